"""One function a panel: Dataset in, Axes out.

A panel draws on the Axes it is given, or makes a figure of its own with a legend; `panel_rows` puts several on one
page. Nothing here touches matplotlib's global state: figures are `matplotlib.figure.Figure` objects, and the page's
style is a context (`page_style`).

Everywhere a line is a median over tokens, the narrow band around it its 95 % interval when documents are resampled,
and a pale band, where there is one, holds the middle half of the tokens. A class of maps keeps its colour and its
marker in all figures.
"""

from __future__ import annotations

from probe.plots.communities import (
    community_graph,
    operator_by_depth,
    place_against_gain,
    pooled_controls,
    rho_by_depth,
)
from probe.plots.depth import (
    bottleneck,
    effective_rank_of_product,
    lyapunov,
    mean_products,
    singular_growth,
    subspace_overlap,
)
from probe.plots.function import (
    error_against_kl,
    kl_by_layer,
    kl_ratio,
    replacement_modes,
    rho_by_layer,
    rho_controls,
    top1_agreement,
)
from probe.plots.geometry import (
    alignment,
    explained_variance,
    instability,
    projection,
    relative_error,
    residual_overlap,
    sweep,
)
from probe.plots.joint import direction_angles, subspace_angles
from probe.plots.linearity import linear_range, perturbation
from probe.plots.pages import (
    NOTEBOOK_DPI,
    legend_below,
    new_figure,
    outer_labels,
    page_style,
    panel_rows,
    shared_legend,
    titled,
)
from probe.plots.partitions import (
    agreement_by_depth,
    amplification_map,
    choice_map,
    community_flow,
    layer_agreement,
    quality_by_depth,
    resolution_profile,
)
from probe.plots.regimes import regime_table, regimes
from probe.plots.spectral import (
    coupling,
    eigenvalue_cloud,
    eigenvector_condition,
    mean_score_by_depth,
    polar_rotation,
    pseudospectrum,
    score_by_depth,
)
from probe.plots.training import (
    arm_continuity,
    arm_learning,
    coherence_against_continuity,
    decay_against_start,
    learning,
    matches,
    through_training,
)
from probe.plots.weights import (
    continuity_by_depth,
    continuity_controls,
    continuity_summary,
    cosine_map,
    docs_by_depth,
    gap_by_depth,
    head_continuity,
    lag_curves,
    participation_by_depth,
    subspace_continuity,
    trajectory_path,
)

__all__ = [
    "NOTEBOOK_DPI",
    "agreement_by_depth",
    "alignment",
    "amplification_map",
    "arm_continuity",
    "arm_learning",
    "bottleneck",
    "choice_map",
    "coherence_against_continuity",
    "community_flow",
    "community_graph",
    "continuity_by_depth",
    "continuity_controls",
    "continuity_summary",
    "cosine_map",
    "coupling",
    "decay_against_start",
    "direction_angles",
    "docs_by_depth",
    "effective_rank_of_product",
    "eigenvalue_cloud",
    "eigenvector_condition",
    "error_against_kl",
    "explained_variance",
    "gap_by_depth",
    "head_continuity",
    "instability",
    "kl_by_layer",
    "kl_ratio",
    "lag_curves",
    "layer_agreement",
    "learning",
    "legend_below",
    "linear_range",
    "lyapunov",
    "matches",
    "mean_products",
    "mean_score_by_depth",
    "new_figure",
    "operator_by_depth",
    "outer_labels",
    "page_style",
    "panel_rows",
    "participation_by_depth",
    "perturbation",
    "place_against_gain",
    "polar_rotation",
    "pooled_controls",
    "projection",
    "pseudospectrum",
    "quality_by_depth",
    "regime_table",
    "regimes",
    "relative_error",
    "replacement_modes",
    "residual_overlap",
    "resolution_profile",
    "rho_by_depth",
    "rho_by_layer",
    "rho_controls",
    "score_by_depth",
    "shared_legend",
    "singular_growth",
    "subspace_angles",
    "subspace_continuity",
    "subspace_overlap",
    "sweep",
    "through_training",
    "titled",
    "top1_agreement",
    "trajectory_path",
]
