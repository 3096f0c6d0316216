"""One function a panel: Dataset in, Axes out.

A panel draws on the Axes it is given, or makes a figure of its own with a legend; `panel_rows` puts several on one
page. Nothing here touches matplotlib's global state: figures are `matplotlib.figure.Figure` objects, and the page's
style is a context (`page_style`).

Everywhere a line is a median over tokens, the narrow band around it its 95 % interval when documents are resampled,
and a pale band, where there is one, holds the middle half of the tokens. A class of maps keeps its colour and its
marker in all figures.
"""

from __future__ import annotations

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

__all__ = [
    "NOTEBOOK_DPI",
    "legend_below",
    "new_figure",
    "outer_labels",
    "page_style",
    "panel_rows",
    "shared_legend",
    "titled",
]
