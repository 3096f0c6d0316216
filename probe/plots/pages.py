"""Figures of page width: style, panels in rows, legends, colour bars."""

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
    """Apply the style of a printed page in a context, and restore matplotlib's settings after it."""
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
    """Make a figure of page width and its panels.

    Args:
        rows: Rows of panels.
        columns: Panels in a row.
        height: Height of a row in inches.
        share_y: Panels that share a vertical scale: those of a row, all, or none.
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
    """Make a figure of page width with a number of panels, row by row; the last row may be shorter.

    Args:
        count: Number of panels.
        columns: Most panels in a row.
        height: Height of a row in inches.
        share_y: Panels that share a vertical scale: those of a row, all, or none.
        projection: "3d" for panels in space.

    Returns:
        The figure and its `count` Axes.
    """
    columns = min(columns, count)
    figure, axes = new_figure(-(-count // columns), columns, height=height, share_y=share_y, projection=projection)
    every = axes.ravel().tolist()
    for ax in every[count:]:
        ax.remove()
    return figure, every[:count]


def panel_rows(
    panels: Sequence[Panel], columns: int = 1, *, height: float = 2.6, share_y: Shared = "none", legend: int = 0
) -> Figure:
    """Draw panels row by row on a figure of page width.

    Args:
        panels: Functions that draw on the Axes that they get as `ax`.
        columns: Most panels in a row.
        height: Height of a row in inches.
        share_y: Panels that share a vertical scale: those of a row, all, or none.
        legend: Columns of one legend below all panels; 0 for none.

    Returns:
        The figure.
    """
    figure, every = new_grid(len(panels), columns, height=height, share_y=share_y)
    for panel, ax in zip(panels, every, strict=True):
        panel(ax=ax)
    if legend:
        shared_legend(figure, legend)
    return figure


def titled(title: str, panel: Panel, *arguments: Any, **options: Any) -> Panel:
    """Put a title over the left corner of a panel, for `panel_rows`.

    Args:
        title: The title.
        panel: A function that draws on the Axes that it gets as `ax`.
        *arguments: Its positional arguments.
        **options: Its other keyword arguments.

    Returns:
        A function of `ax`.
    """

    def draw(ax: Axes) -> Axes:
        panel(*arguments, **options, ax=ax).set_title(title, loc="left")
        return ax

    return draw


def outer_labels(figure: Figure) -> Figure:
    """Keep axis labels only at the edge of the page: left of each row, below each column.

    Args:
        figure: A figure whose panels have the same axes.

    Returns:
        The figure.
    """
    by_cell = {}
    for ax in figure.axes:
        spec = ax.get_subplotspec()
        if spec is not None:
            by_cell[spec.rowspan.start, spec.colspan.start] = ax
    for (row, column), ax in by_cell.items():
        if column:
            ax.set_ylabel("")
        if (row + 1, column) in by_cell:
            ax.set_xlabel("")
    return figure


def axes_or_new(ax: Axes | None) -> tuple[Axes, bool]:
    """Return the given Axes, or those of a new figure.

    Args:
        ax: Axes to draw on, or None.

    Returns:
        The Axes, and whether they are new, in which case the panel shows its own legend.
    """
    if ax is not None:
        return ax, False
    return new_figure(height=3.2)[1][0, 0], True


def shared_legend(figure: Figure, columns: int = 4) -> None:
    """Put one legend below all panels, each label once.

    Args:
        figure: The figure.
        columns: Columns of the legend.
    """
    handles = {
        label: handle
        for ax in figure.axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        if not label.startswith("_")
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(columns, len(handles)))


def legend_below(ax: Axes, columns: int = 2) -> None:
    """Put a panel's own legend under its horizontal axis.

    Args:
        ax: The panel.
        columns: Columns of the legend.
    """
    scale = _figure_of(ax).dpi_scale_trans
    under = ax.transAxes + ScaledTranslation(0, -0.45, scale)  # inches, with ticks and label in between
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
    """Draw the scale of a panel's colours to its right.

    Args:
        ax: The panel.
        shown: The coloured drawing.
        label: Quantity and unit.
        extend: Ends of the scale beyond which values lie.

    Returns:
        The colour bar.
    """
    return _figure_of(ax).colorbar(shown, ax=ax, shrink=0.9, extend=extend, label=label)


def _figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None, "a panel belongs to a figure"
    return figure
