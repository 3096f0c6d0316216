"""The panels of communities: Dataset in, Axes out."""

from __future__ import annotations

from probe.analyses.communities.panels.communities import (
    community_graph,
    operator_by_depth,
    place_against_gain,
    pooled_controls,
    rho_by_depth,
)
from probe.analyses.communities.panels.partitions import (
    agreement_by_depth,
    amplification_map,
    choice_map,
    community_flow,
    layer_agreement,
    quality_by_depth,
    resolution_profile,
)

__all__ = [
    "agreement_by_depth",
    "amplification_map",
    "choice_map",
    "community_flow",
    "community_graph",
    "layer_agreement",
    "operator_by_depth",
    "place_against_gain",
    "pooled_controls",
    "quality_by_depth",
    "resolution_profile",
    "rho_by_depth",
]
