"""Pictures of matrices: heat maps of any, of a Jacobian with the gains of its coordinates, of tokens against layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from probe.boundary import public
from probe.errors import InputError
from probe.plots.canvas import WIDTH, Page, Picture
from probe.plots.pages import color_bar, drawing
from probe.plots.style import BLUE, ORANGE, plain_log
from probe.plots.values import Numbers, array_of, labels_of

ABSENT = "#D9D9D9"  # cells without a value
MOST_SIGNS = 10  # of a text in a cell
LETTER = 0.68  # width of most letters over the size of their type
Table = Float[np.ndarray, "row column"]


@public
def heat_map(
    matrix: Numbers,
    *,
    rows: Sequence[object] | None = None,
    columns: Sequence[object] | None = None,
    label: str = "",
    title: str = "",
    symmetric: bool | None = None,
    clip: float | int = 1.0,
    cmap: str | None = None,
    ax: Axes | None = None,
    **page: Unpack[Page],
) -> Picture:
    """Draw a matrix as colours, the first row on top.

    Args:
        matrix: Real, (row, column); grey where it is NaN.
        rows: A label for each row; numbers from 0 by default.
        columns: A label for each column.
        label: Quantity and unit, beside the scale of colours.
        title: Title of the panel.
        symmetric: True: red above 0, blue below, the same range to both sides. False: one range from the least value to
            the largest. By default symmetric where there are values of both signs.
        clip: The share of the entries, by absolute value, that the scale covers; below 1 a few outliers take its end
            colours, which the scale shows by an arrow, and leave the rest to be seen.
        cmap: Another colour map of matplotlib.
        ax: Where to draw; by default on a new figure.
        **page: Width, height, font and its size of the new figure, see `Page`.

    Returns:
        The picture.

    Raises:
        InputError: If the matrix is not real with two axes, has no finite value, or labels are too many or too few.
    """
    values = _real(matrix, "the matrix")
    ratio = values.shape[0] / values.shape[1]
    width = page.get("width", 4.2)
    with drawing(ax, page, width=width, height=float(np.clip(0.8 * width * ratio + 0.7, 1.6, 9.0))) as picture:
        image = _colored(picture.ax, values, symmetric, clip, cmap, label, "upper")
        image.axes.set_aspect("equal" if 0.1 < ratio < 10 else "auto")
        _label(picture.ax, rows, len(values), "rows", across=False)
        _label(picture.ax, columns, len(values.T), "columns", across=True)
        picture.ax.set_title(title, loc="left")
    return picture


@public
def jacobian(
    matrix: Numbers, *, of: Literal["state", "update"] = "update", clip: float | int = 0.999, **page: Unpack[Page]
) -> Picture:
    """Draw one Jacobian: its entries, and how much each coordinate is read and written.

    On the left the entries, outliers cut. On the right, by coordinate and sorted, the norms of the columns ``‖A e_j‖``
    (the gain of a perturbation of input coordinate j) and of the rows ``‖e_iᵀ A‖`` (how much output coordinate i
    reacts): a few coordinates far above the others are outliers of the stream.

    Args:
        matrix: Square, (d, d): one position of `probe.block_jacobian(...)`, or a mean over many.
        of: "update": J of the state came, and K = J − I is drawn, since the identity would hide the rest. "state": what
            came is drawn as it is.
        clip: The share of the entries that the scale of colours covers.
        **page: Width, height, font and its size of the figure, see `Page`.

    Returns:
        The picture, of two panels.

    Raises:
        InputError: If it is not one real, square matrix.
    """
    values = _real(matrix, "the matrix of a Jacobian")
    if values.shape[0] != values.shape[1]:
        raise InputError(f"a Jacobian must be square, got shape {values.shape}: draw other matrices by heat_map")
    name = "J"
    if of == "update":
        name, values = "K = J − I", values - np.eye(len(values))
    columns = 2 if page.get("width", WIDTH) > 5 else 1
    with drawing(None, page, panels=2, columns=columns, width=WIDTH, height=3.0) as picture:
        left, right = picture.axes
        _colored(left, values, True, clip, None, "", "upper")
        left.set(xlabel="input coordinate", ylabel="output coordinate")
        left.set_title(name, loc="left")
        for axis in (left.xaxis, left.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        place = np.arange(1, len(values) + 1)
        for along, words, color, line in (
            (0, "column norms: gain", BLUE, "-"),
            (1, "row norms: reaction", ORANGE, "--"),
        ):
            right.plot(place, np.sort(np.linalg.norm(values, axis=along))[::-1], color=color, ls=line, label=words)
        right.set(xscale="log", yscale="log", xlabel="coordinates, sorted", ylabel=f"norm, of {name[0]}")
        for log_axis in (right.xaxis, right.yaxis):
            plain_log(log_axis)
        right.legend(loc="lower left")
    return picture


@public
def token_layer_map(
    values: Numbers,
    *,
    tokens: Sequence[object] | None = None,
    layers: Sequence[object] | None = None,
    text: Sequence[Sequence[object]] | None = None,
    label: str = "",
    title: str = "",
    symmetric: bool | None = None,
    clip: float | int = 1.0,
    cmap: str | None = None,
    ax: Axes | None = None,
    **page: Unpack[Page],
) -> Picture:
    """Draw values by layer and token, the first layer at the bottom: what patching does, or what a lens reads.

    Args:
        values: (layer, position); grey where it is NaN.
        tokens: The token at each position, as text; numbers by default. Spaces at its ends and control characters are
            shown, and nothing in it is read as markup.
        layers: A label for each layer; numbers from 0 by default.
        text: A text in each cell, [layer][position], such as the token that a lens reads there; at most ten letters of
            it are shown.
        label: Quantity and unit, beside the scale of colours.
        title: Title of the panel.
        symmetric: As in `heat_map`.
        clip: As in `heat_map`.
        cmap: Another colour map of matplotlib.
        ax: Where to draw; by default on a new figure.
        **page: Width, height, font and its size of the new figure, see `Page`.

    Returns:
        The picture; with text in its cells it is as wide as they need, or as `width` says, and its type shrinks to fit.

    Raises:
        InputError: If the values are not real with two axes, or labels or texts are too many or too few.
    """
    table = _real(values, "values by layer and token")
    depth, length = table.shape
    cells = None if text is None else [labels_of(row, length, "a row of text") for row in text]
    if cells is not None and len(cells) != depth:
        raise InputError(f"text must have a row for each of {depth} layers, got {len(cells)}: pass [layer][position]")
    usual = {
        "width": float(np.clip(0.3 * length + 1.6, 3.2, WIDTH)),
        "height": float(np.clip(0.13 * depth + 1.3, 1.8, 8)),
    }
    if cells is not None:
        widest = min(max(len(cell) for row in cells for cell in row), MOST_SIGNS)
        usual["height"] = float(np.clip(0.2 * depth + 1.2, 1.8, 8))
        usual["width"] = max(usual["width"], 0.085 * (widest + 1) * length + 1.6)
    with drawing(ax, page, width=usual["width"], height=usual["height"]) as picture:
        image = _colored(picture.ax, table, symmetric, clip, cmap, label, "lower")
        picture.ax.set_aspect("auto")
        _label(picture.ax, layers, depth, "layers", across=False)
        _label(picture.ax, tokens, length, "tokens", across=True)
        picture.ax.set(ylabel="layer", xlabel="" if tokens is not None else "position")
        picture.ax.set_title(title, loc="left")
        if cells is not None:
            _write(image, table, cells)
    return picture


def _real(values: Numbers, name: str) -> Table:
    found = array_of(values, name, (2,))
    if np.iscomplexobj(found):
        raise InputError(f"{name} must be real, got complex numbers: draw its .real, .imag or abs()")
    if not np.isfinite(found).any():
        raise InputError(f"{name} must have finite entries, got none: there is nothing to draw")
    return found


def _colored(
    ax: Axes,
    values: Table,
    symmetric: bool | None,
    clip: float | int,
    cmap: str | None,
    label: str,
    origin: Literal["upper", "lower"],
) -> AxesImage:
    """The image and its scale of colours."""
    if not 0 < clip <= 1:
        raise InputError(f"clip must lie in (0, 1], got {clip}: it is the share of entries that the colours cover")
    finite = values[np.isfinite(values)]
    both = bool(finite.min() < 0 < finite.max()) if symmetric is None else symmetric
    if both:
        high = float(np.quantile(np.abs(finite), clip))
        low = -high
    else:
        low, high = (float(end) for end in np.quantile(finite, [(1 - clip) / 2, (1 + clip) / 2]))
    if cmap is not None and cmap not in matplotlib.colormaps:
        raise InputError(f"cmap= must be a colour map of matplotlib, got {cmap!r}: pass viridis, for example")
    colors = matplotlib.colormaps[cmap or ("RdBu_r" if both else "viridis")].with_extremes(bad=ABSENT)
    image = ax.imshow(values, origin=origin, cmap=colors, norm=Normalize(low, high if high > low else low + 1))
    ends: dict[tuple[bool, bool], Literal["neither", "min", "max", "both"]] = {
        (False, False): "neither",
        (True, False): "min",
        (False, True): "max",
        (True, True): "both",
    }
    color_bar(ax, image, label, ends[bool(finite.min() < low), bool(finite.max() > high)])
    return image


def _label(ax: Axes, labels: Sequence[object] | None, count: int, name: str, *, across: bool) -> None:
    """Labels of columns (across) or rows: as many as there is room for, turned where they are wider than a column."""
    axis = ax.xaxis if across else ax.yaxis
    if labels is None:
        axis.set_major_locator(MaxNLocator(6, integer=True))
        return
    words = labels_of(labels, count, name)
    points = 72 * (_inches(ax)[0] if across else _inches(ax)[1])
    size = float(matplotlib.rcParams["font.size"])
    step = -(-count // max(int(points / (1.05 * size)), 1))
    axis.set_ticks(range(0, count, step), words[::step], parse_math=False)
    if across and LETTER * size * max(map(len, words)) > step * points / count:
        slanted = {"rotation": 45.0, "ha": "right", "rotation_mode": "anchor"}
        for label in ax.get_xticklabels():
            label.set(**(slanted if count <= 24 else {"rotation": 90.0}))


def _inches(ax: Axes) -> tuple[float, float]:
    """Width and height of a panel, about: it is laid out when it is drawn."""
    figure, box = ax.get_figure(root=True), ax.get_position()
    assert figure is not None
    width, height = figure.get_size_inches()
    return float(box.width * width), float(box.height * height)


def _write(image: AxesImage, values: Table, cells: Sequence[Sequence[str]]) -> None:
    """A text in each cell, black or white, in the largest type that fits."""
    short = [[cell if len(cell) <= MOST_SIGNS else f"{cell[: MOST_SIGNS - 1]}…" for cell in row] for row in cells]
    widest = max(max(map(len, row)) for row in short)
    fits = 72 * _inches(image.axes)[0] / values.shape[1] / (LETTER * max(widest, 1))
    size = float(np.clip(fits, 4.0, matplotlib.rcParams["font.size"] - 1))
    colors: Colormap = image.cmap
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = colors(image.norm(value)) if np.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
        ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
        options: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size, "color": ink, "parse_math": False}
        Axes.text(image.axes, column, row, short[row][column], **options)
