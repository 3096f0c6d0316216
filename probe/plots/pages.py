"""Figures of page width: style, panels in rows, legends, colour bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, Unpack

import matplotlib
import numpy as np
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from probe.boundary import at_least, between, filled, public
from probe.errors import InputError
from probe.plots.canvas import FONT_SIZE, WIDTH, Page, PageAxes, PageFigure, Picture

Panel: TypeAlias = Callable[..., object]  # draws on the Axes that it is given as `ax`
Shared: TypeAlias = Literal["none", "row", "all"]


@public(rows=at_least(1), columns=at_least(1), height=between(0, math.inf), width=between(0, math.inf))
def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float | int = 2.6,
    share_y: Shared = "none",
    projection: Literal["3d"] | None = None,
    width: float | int = WIDTH,
    font: str | None = None,
    font_size: float | int = FONT_SIZE,
) -> tuple[PageFigure, Shaped[np.ndarray, "row column"]]:
    """Make a figure in the style of the page and its panels.

    Args:
        rows: Rows of panels.
        columns: Panels in a row.
        height: Height of a row in inches.
        share_y: Panels that share a vertical scale: those of a row, all, or none.
        projection: "3d" for panels in space.
        width: Width of the figure in inches; the text width of a page by default.
        font: Family of the type; None keeps DejaVu Sans.
        font_size: Size of all words in points.

    Returns:
        The figure and an object array (rows, columns) of Axes.

    Raises:
        InputError: If the font is not installed.
    """
    figure = PageFigure(figsize=(width, height * rows), layout="constrained", font=font, font_size=font_size)
    kind: dict[str, Any] = {"projection": projection} if projection else {"axes_class": PageAxes}
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y, subplot_kw=kind)
    return figure, np.asarray(axes, dtype=object)


def new_grid(
    count: int,
    columns: int,
    *,
    share_y: Shared = "none",
    projection: Literal["3d"] | None = None,
    **page: Unpack[Page],
) -> tuple[PageFigure, list[Axes]]:
    """Make a figure with a number of panels, row by row; the last row may be shorter.

    Args:
        count: Number of panels.
        columns: Most panels in a row.
        share_y: Panels that share a vertical scale: those of a row, all, or none.
        projection: "3d" for panels in space.
        **page: Width of the figure, height of a row, font and its size, see `Page`.

    Returns:
        The figure and its `count` Axes.
    """
    columns = min(columns, count)
    figure, axes = new_figure(-(-count // columns), columns, share_y=share_y, projection=projection, **page)
    every = axes.ravel().tolist()
    for ax in every[count:]:
        ax.remove()
    return figure, every[:count]


@public(panels=filled, columns=at_least(1))
def panel_rows(
    panels: Sequence[Panel], columns: int = 1, *, share_y: Shared = "none", legend: int = 0, **page: Unpack[Page]
) -> PageFigure:
    """Draw panels row by row on one figure.

    Args:
        panels: Functions that draw on the Axes that they get as `ax`.
        columns: Most panels in a row.
        share_y: Panels that share a vertical scale: those of a row, all, or none.
        legend: Most columns of one legend below all panels; 0 for none.
        **page: Width of the figure, height of a row, font and its size, see `Page`.

    Returns:
        The figure.
    """
    figure, every = new_grid(len(panels), columns, share_y=share_y, **page)
    with matplotlib.rc_context(figure.look):
        for panel, ax in zip(panels, every, strict=True):
            panel(ax=ax)
    if legend:
        shared_legend(figure, legend)
    return figure


@public
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
        panel(*arguments, **options, ax=ax)
        ax.set_title(title, loc="left")
        return ax

    return draw


@public
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


@contextmanager
def drawing(
    ax: Axes | None, page: Page, *, panels: int = 1, columns: int = 1, **usual: Unpack[Page]
) -> Iterator[Picture]:
    """Open a picture: on new panels in the style of the page, or on the one that is given.

    Args:
        ax: The Axes to draw on, or None for a new figure.
        page: Page options that the caller passed.
        panels: Number of panels of a new figure.
        columns: Most panels in a row.
        **usual: Page options that hold where the caller passed none.

    Yields:
        The picture, while the style is that of its figure.

    Raises:
        InputError: If both Axes and page options came.
    """
    if ax is None:
        figure, axes = new_grid(panels, columns, **(Page(**usual) | page))
        picture = Picture(figure, tuple(axes))
    elif page:
        raise InputError(
            f"{', '.join(page)} are of a new figure, got ax as well: pass them to the figure that ax belongs to"
        )
    else:
        picture = Picture(_figure_of(ax), (ax,), new=False)
    look = picture.figure.look if isinstance(picture.figure, PageFigure) else {}
    with matplotlib.rc_context(look):
        yield picture


@public
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


@public
def shared_legend(figure: Figure, columns: int = 4) -> None:
    """Put one legend below all panels, each label once; it is as wide as the figure at most.

    Args:
        figure: The figure.
        columns: Most columns of the legend.
    """
    handles = {
        label: handle
        for ax in figure.axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        if not label.startswith("_")
    }
    for ncols in range(min(columns, len(handles)), 0, -1):
        legend = figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols)
        if ncols == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()


@public
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


@public
def color_bar(
    ax: Axes, shown: ScalarMappable, label: str = "", extend: Literal["neither", "min", "max", "both"] = "neither"
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
