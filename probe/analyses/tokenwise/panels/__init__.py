"""The panels of layer updates: Dataset in, Axes out."""

from __future__ import annotations

from probe.analyses.tokenwise.panels.function import (
    error_against_kl,
    kl_by_layer,
    kl_ratio,
    replacement_modes,
    rho_by_layer,
    rho_controls,
    top1_agreement,
)
from probe.analyses.tokenwise.panels.geometry import (
    alignment,
    explained_variance,
    instability,
    projection,
    relative_error,
    residual_overlap,
    sweep,
)
from probe.analyses.tokenwise.panels.regimes import regime_table, regimes

__all__ = [
    "alignment",
    "error_against_kl",
    "explained_variance",
    "instability",
    "kl_by_layer",
    "kl_ratio",
    "projection",
    "regime_table",
    "regimes",
    "relative_error",
    "replacement_modes",
    "residual_overlap",
    "rho_by_layer",
    "rho_controls",
    "sweep",
    "top1_agreement",
]
