"""One function a panel: Dataset in, Axes out.

A panel draws on the Axes it is given, or makes a figure of its own with a legend. Nothing here touches matplotlib's
global state: figures are `matplotlib.figure.Figure` objects, and the page's style is a context (`page_style`).

Everywhere a line is a median over tokens, the narrow band around it its 95 % interval when documents are resampled,
and a pale band, where there is one, holds the middle half of the tokens. A class of maps keeps its colour and its
marker in all figures.
"""

from __future__ import annotations

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
from probe.plots.regimes import regime_table, regimes
from probe.plots.style import legend_below, new_figure, page_style, shared_legend

__all__ = [
    "alignment",
    "error_against_kl",
    "explained_variance",
    "instability",
    "kl_by_layer",
    "kl_ratio",
    "legend_below",
    "new_figure",
    "page_style",
    "projection",
    "regime_table",
    "regimes",
    "relative_error",
    "replacement_modes",
    "residual_overlap",
    "rho_by_layer",
    "rho_controls",
    "shared_legend",
    "sweep",
    "top1_agreement",
]
