"""Figures of page width: their settings, panels in rows, legends, colour bars."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import matplotlib
import numpy as np
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

WIDTH = 7.0  # inches: the text width of a page
NOTEBOOK_DPI = 110

Panel: TypeAlias = Callable[..., Axes]  # draws on the Axes that it is given as `ax`
Shared: TypeAlias = Literal["none", "row", "all"]


@contextmanager
def page_style() -> Iterator[None]:
    """The style of a printed page, as a context that leaves matplotlib's settings as they were."""
    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "savefig.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": False,
        "lines.linewidth": 1.2,
        "lines.markersize": 3.5,
        "svg.fonttype": "path",
        "svg.hashsalt": "probe",  # equal data, equal file
    }
    with matplotlib.rc_context(settings):
        yield


class PageFigure(Figure):
    """A figure of page width that shows itself in a notebook, whichever backend is set there."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=NOTEBOOK_DPI)
        return file.getvalue()


def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float = 2.6,
    share_y: Shared = "none",
    projection: Literal["3d"] | None = None,
) -> tuple[Figure, Shaped[np.ndarray, "row column"]]:
    """A figure of page width and its panels.

    Args:
        rows: Rows of panels.
        columns: Panels in a row.
        height: Inches a row.
        share_y: Which panels have one vertical scale.
        projection: "3d" for panels in space.

    Returns:
        The figure and an object array (rows, columns) of Axes.
    """
    figure = PageFigure(figsize=(WIDTH, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y, subplot_kw={"projection": projection})
    return figure, np.asarray(axes, dtype=object)


def new_grid(
    count: int, columns: int, *, height: float, share_y: Shared = "none", projection: Literal["3d"] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of page width with so many panels, row by row; the last row may end early.

    Args:
        count: Number of panels.
        columns: Panels in a row, if there are as many.
        height: Inches a row.
        share_y: Which panels have one vertical scale.
        projection: "3d" for panels in space.

    Returns:
        The figure and its `count` Axes.
    """
    columns = min(columns, count)
    figure, axes = new_figure(-(-count // columns), columns, height=height, share_y=share_y, projection=projection)
    places = axes.ravel().tolist()
    for ax in places[count:]:
        ax.remove()
    return figure, places[:count]


def panel_rows(
    panels: Sequence[Panel], columns: int = 1, *, height: float = 2.6, share_y: Shared = "none", legend: int = 0
) -> Figure:
    """Panels drawn row by row on a figure of page width.

    Args:
        panels: Each draws on the Axes that it is given as `ax`.
        columns: Panels in a row, if there are as many.
        height: Inches a row.
        share_y: Which panels have one vertical scale.
        legend: Columns of one legend below all panels; 0 for none.

    Returns:
        The figure.
    """
    figure, places = new_grid(len(panels), columns, height=height, share_y=share_y)
    for panel, ax in zip(panels, places, strict=True):
        panel(ax=ax)
    if legend:
        shared_legend(figure, legend)
    return figure


def titled(title: str, panel: Panel, *arguments: Any, **options: Any) -> Panel:
    """A panel with a title over its left corner, as `panel_rows` takes it.

    Args:
        title: The title.
        panel: One of the functions of `probe.plots`.
        *arguments: What it is called with.
        **options: By keyword.

    Returns:
        A function of `ax`.
    """

    def draw(ax: Axes) -> Axes:
        panel(*arguments, **options, ax=ax).set_title(title, loc="left")
        return ax

    return draw


def outer_labels(figure: Figure) -> Figure:
    """Keep the labels of axes at the edge of the page only: left of each row, below each column.

    Args:
        figure: A figure whose panels have the same axes.

    Returns:
        The figure.
    """
    places = {}
    for ax in figure.axes:
        spec = ax.get_subplotspec()
        if spec is not None:
            places[spec.rowspan.start, spec.colspan.start] = ax
    for (row, column), ax in places.items():
        if column:
            ax.set_ylabel("")
        if (row + 1, column) in places:
            ax.set_xlabel("")
    return figure


def axes_or_new(ax: Axes | None) -> tuple[Axes, bool]:
    """The given Axes, or those of a new figure.

    Args:
        ax: Axes to draw on, or None.

    Returns:
        The Axes, and whether they are new (then the panel shows its own legend).
    """
    if ax is not None:
        return ax, False
    return new_figure(height=3.2)[1][0, 0], True


def shared_legend(figure: Figure, columns: int = 4) -> None:
    """One legend below all panels, each label once.

    Args:
        figure: The figure.
        columns: Columns of the legend.
    """
    found = {
        label: handle
        for ax in figure.axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        if not label.startswith("_")
    }
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(columns, len(found)))


def legend_below(ax: Axes, columns: int = 2) -> None:
    """A panel's own legend, under its horizontal axis.

    Args:
        ax: The panel.
        columns: Columns of the legend.
    """
    scale = _figure_of(ax).dpi_scale_trans
    under = ax.transAxes + ScaledTranslation(0, -0.45, scale)  # inches: ticks and label lie between
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=under,
        ncols=columns,
        handlelength=1.6,
        columnspacing=1,
        borderaxespad=0,
    )


def color_bar(
    ax: Axes, shown: ScalarMappable, label: str = "", extend: Literal["neither", "max", "both"] = "neither"
) -> Colorbar:
    """The scale of a panel's colours, right of it.

    Args:
        ax: The panel.
        shown: What is drawn in colours.
        label: Quantity and unit.
        extend: Where values lie beyond the scale.

    Returns:
        The colour bar.
    """
    return _figure_of(ax).colorbar(shown, ax=ax, shrink=0.9, extend=extend, label=label)


def _figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None, "a panel belongs to a figure"
    return figure
