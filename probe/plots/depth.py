"""Pictures of quantities along depth: curves by layer, with bands over samples and intervals over documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import xarray as xr
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes

from probe.boundary import public
from probe.errors import InputError
from probe.inference import Interval, Ranking, bootstrap
from probe.plots.canvas import COLORS, Page, Picture
from probe.plots.pages import drawing, shared_legend
from probe.plots.style import RESAMPLES, Style, curve, finish, line, null_line
from probe.plots.values import Numbers, array_of

MARKERS, LINES = ("o", "s", "^", "D", "v", "P", "X"), ("-", "--", "-.", ":")


@public
def by_depth(
    values: Numbers | Interval | Mapping[str, Numbers | Interval],
    *,
    layers: Sequence[float | int] | None = None,
    documents: Shaped[np.ndarray, " sample"] | Sequence[object] | None = None,
    label: str = "",
    null: float | int | None = None,
    null_label: str = "null",
    log: bool = False,
    title: str = "",
    xlabel: str = "block",
    ax: Axes | None = None,
    **page: Unpack[Page],
) -> Picture:
    """Draw a quantity along depth: one curve, or several by name.

    Args:
        values: (layer,), or (sample, layer): then the curve is the median over the samples, and the pale band the
            middle half of them; NaN are left out. An `Interval` of arrays over layers is drawn as it is. A dictionary
            of any of these draws a curve for each name.
        layers: The layers; 0, 1, … by default.
        documents: The document that each sample is from, (sample,): a narrow band then is the 95 % interval of the
            median, documents resampled.
        label: Quantity and unit.
        null: What it would be by chance, a dotted line.
        null_label: Name of that line.
        log: Whether the vertical axis is logarithmic.
        title: Title of the panel.
        xlabel: Label of the horizontal axis.
        ax: Where to draw; by default on a new figure.
        **page: Width, height, font and its size of the new figure, see `Page`.

    Returns:
        The picture.

    Raises:
        InputError: If lengths do not agree, or documents came without samples.
    """
    curves = values if isinstance(values, Mapping) else {"": values}
    if not curves:
        raise InputError("by_depth draws at least one curve, got an empty dictionary: pass one with values")
    named = len(curves) > 1 or "" not in curves
    with drawing(ax, page, width=4.8, height=3.2) as picture:
        for number, (name, one) in enumerate(curves.items()):
            colors, markers, lines = (every[number % len(every)] for every in (COLORS, MARKERS, LINES))
            style = Style(name or "_", colors, markers, lines)
            _draw(picture.ax, one, layers, documents, style, name or "values")
        if null is not None:
            null_line(picture.ax, null, null_label)
        finish(picture.ax, label, log=log, xlabel=xlabel)
        picture.ax.set_title(title, loc="left")
        if picture.new and (named or null is not None):
            shared_legend(picture.figure, 3)
    return picture


def _draw(
    ax: Axes,
    values: Numbers | Interval,
    layers: Sequence[float | int] | None,
    documents: Shaped[np.ndarray, " sample"] | Sequence[object] | None,
    style: Style,
    name: str,
) -> None:
    if isinstance(values, Interval):
        estimate = array_of(values.estimate, name, (1,))
        curve(ax, _along(layers, len(estimate)), values, style)
        return
    array = array_of(values, name, (1, 2))
    depth = _along(layers, array.shape[-1])
    if array.ndim == 1:
        if documents is not None:
            raise InputError(f"documents belong to samples, and {name} has none: pass (sample, layer)")
        line(ax, depth, array, style)
        return
    spread = xr.DataArray(array, dims=("sample", "layer"))
    if documents is None:
        low, high = np.nanquantile(array, [0.25, 0.75], axis=0)
        ax.fill_between(depth, low, high, color=style.color, alpha=0.15, lw=0)
        line(ax, depth, np.nanmedian(array, axis=0), style)
        return
    whose = np.asarray(documents)
    if whose.shape != array.shape[:1]:
        raise InputError(f"documents must name one for each of {len(array)} samples of {name}, got {whose.shape}")
    curve(ax, depth, _median(array, whose), style, spread)


def _median(array: Float[np.ndarray, "sample layer"], documents: Shaped[np.ndarray, " sample"]) -> Interval:
    """The median of each layer, and its interval over resampled documents."""
    ranking = Ranking(array.T)
    return bootstrap(
        lambda rows: ranking.median(np.bincount(rows, minlength=len(array))), documents, resamples=RESAMPLES, seed=0
    )


def _along(layers: Sequence[float | int] | None, count: int) -> xr.DataArray:
    """The coordinate along which curves run."""
    found = np.arange(count) if layers is None else np.asarray(layers)
    if found.shape != (count,):
        raise InputError(f"layers must name each of {count}, got {len(found)}: pass one for each")
    return xr.DataArray(found, dims="layer", name="layer")
