"""Pictures of the continuity of weights: leading singular vectors of neighbouring blocks, and of all pairs of blocks.

The Dataset is what `probe.weights.continuity` gives, or that of the continuity analysis, which has variants of the
model as well; the model's own values are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, MultipleLocator

from probe.boundary import at_least, filled, public
from probe.errors import InputError
from probe.plots.canvas import WIDTH, Page, Picture
from probe.plots.pages import axes_or_new, color_bar, drawing, outer_labels, shared_legend
from probe.plots.style import BLUE, RED, Style, band, finish, null_line

SIDE_STYLES = {"input": Style("v₁, input space", BLUE, "o"), "output": Style("u₁, output space", RED, "s")}
MEANINGLESS = 1.05  # σ₁/σ₂ below which a leading vector means nothing


@public(projections=filled, columns=at_least(1))
def continuity(
    data: xr.Dataset, projections: Sequence[str] | None = None, *, columns: int = 3, **page: Unpack[Page]
) -> Picture:
    """Draw |cos| of neighbouring blocks' leading singular vectors along depth, a panel for each projection.

    Args:
        data: What `probe.weights.continuity` gives.
        projections: Names; all by default.
        columns: Most panels in a row.
        **page: Width, height of a row, font and its size of the figure, see `Page`.

    Returns:
        The picture. Hollow markers: σ₁/σ₂ below 1.05, where the leading vector is arbitrary. Dotted lines or pale
        bands, the null: random directions.

    Raises:
        InputError: If it is another Dataset, or lacks a projection.
    """
    names = _chosen(data, projections, "input_continuity")
    height = 2.0 if len(names) > columns else 2.6  # the legend takes some
    with drawing(None, page, panels=len(names), columns=columns, height=height) as picture:
        for name, ax in zip(names, picture.axes, strict=True):
            continuity_by_depth(data, name, ax=ax).set_title(name, loc="left")
        outer_labels(picture.figure)
        shared_legend(picture.figure)
    return picture


@public(projections=filled, columns=at_least(1))
def cosine_maps(
    data: xr.Dataset,
    projections: Sequence[str] | None = None,
    *,
    side: Literal["input", "output"] = "input",
    columns: int = 4,
    **page: Unpack[Page],
) -> Picture:
    """Draw |cos| of the leading singular vectors of all pairs of blocks, a map for each projection.

    Args:
        data: What `probe.weights.continuity` gives.
        projections: Names; all by default.
        side: The vectors that are compared: "input" (v₁) or "output" (u₁).
        columns: Most maps in a row.
        **page: Width, height of a row, font and its size of the figure, see `Page`.

    Returns:
        The picture: a path through depth is a band along the diagonal, one shared direction a filled square.

    Raises:
        InputError: If it is another Dataset, lacks a projection, or there is no such side.
    """
    if side not in SIDE_STYLES:
        raise InputError(f'side must be "input" or "output", got {side!r}: choose one')
    names = _chosen(data, projections, f"{side}_cosine")
    square = 0.85 * page.get("width", WIDTH) / min(columns, len(names)) + 0.3
    with drawing(None, page, panels=len(names), columns=columns, height=square) as picture:
        for name, ax in zip(names, picture.axes, strict=True):
            cosine_map(data, name, side, ax=ax, bar=False).set(xlabel="block", ylabel="block")
        if len(names) > 1:
            outer_labels(picture.figure)
        images = picture.axes[0].get_images()
        picture.figure.colorbar(images[0], ax=list(picture.axes), label="|cos|", shrink=0.8)
    return picture


def continuity_by_depth(data: xr.Dataset, projection: str, ax: Axes | None = None) -> Axes:
    """Draw |cos| of neighbouring blocks' leading singular vectors in both spaces, over depth.

    Args:
        data: A Dataset with `gap` and `SIDE_continuity`, and `SIDE_haar_high` or `SIDE_haar`.
        projection: Which projection.
        ax: Where to draw.

    Returns:
        The Axes; hollow markers where σ₁/σ₂ is below 1.05. The null: bands, what 99 % of random directions stay below,
        or dotted lines, their mean, where the Dataset knows no more.
    """
    ax, own = axes_or_new(ax)
    layer = data["layer"].values
    one = _of_model(data).sel(projection=projection)
    gap = one["gap"].values
    for side, style in SIDE_STYLES.items():
        values = one[f"{side}_continuity"].values
        random = f"random, {style.label[:2]}"
        if f"{side}_haar_high" in data:
            high = float(one[f"{side}_haar_high"])
            band(ax, data["layer"], 0.0, high, style.color, alpha=0.12, label=random)
        else:
            null_line(ax, float(one[f"{side}_haar"]), random, style.color)
        ax.plot(layer, values, color=style.color, lw=0.8)
        for clear, face in ((gap >= MEANINGLESS, style.color), (gap < MEANINGLESS, "white")):
            label = style.label if face == style.color else "_"
            options: dict[str, Any] = {"color": style.color, "marker": style.marker, "ls": "", "mfc": face, "mew": 0.8}
            ax.plot(layer[clear], values[clear], label=label, **options)
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_locator(MultipleLocator(0.25))
    return finish(ax, "|cos|, l and l + 1", legend=own)


def cosine_map(data: xr.Dataset, projection: str, side: str, ax: Axes | None = None, *, bar: bool = True) -> Axes:
    """Draw |cos| of leading vectors for all pairs of blocks.

    Args:
        data: A Dataset with `SIDE_cosine`.
        projection: Which projection.
        side: "input" or "output".
        ax: Where to draw.
        bar: Show the scale.

    Returns:
        The Axes; a path through depth is a band along the diagonal, one shared direction a filled square; random
        directions, the null, are dark.
    """
    ax, _ = axes_or_new(ax)
    values = _of_model(data)[f"{side}_cosine"].sel(projection=projection).transpose("block", "other_block").values
    block = data["block"].values
    ends = (block[0] - 0.5, block[-1] + 0.5)
    image = ax.imshow(values, origin="lower", cmap="viridis", vmin=0, vmax=1, extent=(*ends, *ends))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_title(f"{projection}, {SIDE_STYLES[side].label[:2]}", loc="left")
    if bar:
        color_bar(ax, image, "|cos|")
    return ax


def _of_model(data: xr.Dataset) -> xr.Dataset:
    return data.sel(variant="model") if "variant" in data.dims else data


def _chosen(data: xr.Dataset, projections: Sequence[str] | None, needed: str) -> list[str]:
    if needed not in data:
        raise InputError(
            f"the data must have {needed}, got a Dataset with {', '.join(map(str, list(data)[:5])) or 'nothing'}: pass "
            "that of probe.weights.continuity"
        )
    known = [str(name) for name in data["projection"].values]
    missing = [] if projections is None else [name for name in projections if name not in known]
    if missing:
        raise InputError(f"a projection must be one of {', '.join(known)}, got {missing[0]!r}: choose among these")
    return known if projections is None else list(projections)
