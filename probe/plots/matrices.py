"""Pictures of matrices: heat maps of any, of a Jacobian with the gains of its coordinates, of tokens against layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from probe.errors import InputError
from probe.plots.canvas import WIDTH, Page, Picture
from probe.plots.pages import color_bar, drawing
from probe.plots.style import BLUE, ORANGE, plain_log
from probe.plots.values import Numbers, array_of, labels_of

ABSENT = "#D9D9D9"  # cells without a value
MOST_SIGNS = 10  # of a text in a cell
Table = Float[np.ndarray, "row column"]


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
        for axis, labels, count in ((picture.ax.yaxis, rows, len(values)), (picture.ax.xaxis, columns, len(values.T))):
            _label(axis, labels, count)
        picture.ax.set_title(title, loc="left")
    return picture


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
    values = _real(matrix, "a Jacobian")
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
        _label(picture.ax.yaxis, layers, depth)
        _label(picture.ax.xaxis, tokens, length, turned=tokens is not None)
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
    colors = matplotlib.colormaps[cmap or ("RdBu_r" if both else "viridis")].with_extremes(bad=ABSENT)
    image = ax.imshow(values, origin=origin, cmap=colors, norm=Normalize(low, high if high > low else low + 1))
    beyond = (finite.min() < low, finite.max() > high)
    color_bar(ax, image, label, "both" if all(beyond) else "max" if beyond[1] else "min" if beyond[0] else "neither")
    return image


def _label(axis: Axis, labels: Sequence[object] | None, count: int, *, turned: bool = False) -> None:
    """Labels of rows or columns: as many as there is room for."""
    if labels is None:
        axis.set_major_locator(MaxNLocator(6, integer=True))
        return
    words = labels_of(labels, count, "labels")
    box = axis.axes.get_position()
    figure = axis.axes.get_figure(root=True)
    assert figure is not None
    across = axis.axis_name == "x"
    inches = (box.width if across else box.height) * figure.get_size_inches()[0 if across else 1]
    turned = turned and max(map(len, words)) > 2
    need = 1.4 if across and not turned else 1.05  # of a line of type; words that are turned stand closer
    room = max(int(72 * inches / (need * matplotlib.rcParams["font.size"])), 1)
    step = -(-count // room)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned and count <= 24 else {}
    upright = {"rotation": 90} if turned and not slanted else {}
    axis.set_ticks(range(0, count, step), words[::step], parse_math=False, **slanted, **upright)


def _write(image: AxesImage, values: Table, cells: Sequence[Sequence[str]]) -> None:
    """A text in each cell, black or white, in the largest type that fits."""
    ax = image.axes
    figure = ax.get_figure(root=True)
    assert figure is not None
    short = [[cell if len(cell) <= MOST_SIGNS else f"{cell[: MOST_SIGNS - 1]}…" for cell in row] for row in cells]
    widest = max(max(map(len, row)) for row in short)
    inches = 0.78 * figure.get_size_inches()[0] * ax.get_position().width / 0.775
    fits = 72 * inches / values.shape[1] / (0.68 * max(widest, 1))
    size = float(np.clip(fits, 4.0, matplotlib.rcParams["font.size"] - 1))
    colors: Colormap = image.cmap
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = colors(image.norm(value)) if np.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
        ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
        options = {"ha": "center", "va": "center", "fontsize": size, "color": ink, "parse_math": False}
        Axes.text(ax, column, row, short[row][column], **options)
