"""Panels of the continuity of weights: by depth, by projection, by lag; maps of all pairs; trajectories; gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from probe.inference import circular_block_bootstrap
from probe.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    RESAMPLES,
    SKY,
    Floats,
    Style,
    axes_or_new,
    finish,
    line,
    plain_log,
)
from probe.weights import stream_sides

SIDE_STYLES = {"input": Style("v₁, input space", BLUE, "o"), "output": Style("u₁, output space", RED, "s")}
PROJECTION_STYLES = {
    "q": Style("q", BLUE, "o"),
    "k": Style("k", SKY, "s"),
    "v": Style("v", GREY, "X", "--"),
    "o": Style("o", RED, "^"),
    "gate": Style("gate", GREEN, "D"),
    "up": Style("up", ORANGE, "P"),
    "down": Style("down", PINK, "v"),
    "ov": Style("ov", BLACK, "<", "--"),
    "qk": Style("qk", BLACK, ">", ":"),
    "in": Style("in", BLUE, "o"),
    "x": Style("x", GREY, "X", "--"),
    "dt": Style("dt", ORANGE, "P", "--"),
    "out": Style("out", RED, "^"),
}
VARIANT_STYLES = {
    "model": Style("model", BLACK, "o"),
    "folded": Style("gains folded in", BLUE, "D"),
    "trimmed": Style("outlier coordinates out", GREEN, "^"),
    "shuffled": Style("shuffled weights", ORANGE, "v"),
    "init": Style("fresh initialisation", PINK, "s"),
}
MEANINGLESS = 1.05  # σ₁/σ₂ below which a leading vector means nothing


def sides_of(name: str) -> tuple[str, ...]:
    """The spaces of a projection in which it is shown: the stream's, or both where it has none.

    Args:
        name: A projection.

    Returns:
        "input", "output" or both.
    """
    return stream_sides(name) or ("input", "output")


def variants_of(data: xr.Dataset, kind: str) -> list[str]:
    """The variants of a kind: the model itself, or every seed of a control.

    Args:
        data: The continuity analysis's Dataset.
        kind: A key of `VARIANT_STYLES`.

    Returns:
        Their names.
    """
    return [str(name) for name in data["variant"].values if str(name).split("-")[0] == kind]


def continuity_by_depth(data: xr.Dataset, projection: str, ax: Axes | None = None) -> Axes:
    """|cos| of neighbouring blocks' leading singular vectors in both spaces, over depth.

    Args:
        data: The continuity analysis's Dataset.
        projection: Which projection.
        ax: Where to draw.

    Returns:
        The Axes; hollow markers where σ₁/σ₂ is below 1.05, bands what 99 % of random directions stay below.
    """
    ax, own = axes_or_new(ax)
    layer = data["layer"].values
    gap = data["gap"].sel(variant="model", projection=projection).values
    for side, style in SIDE_STYLES.items():
        values = data[f"{side}_continuity"].sel(variant="model", projection=projection).values
        high = float(data[f"{side}_haar_high"].sel(projection=projection))
        ax.fill_between(layer, 0, high, color=style.color, alpha=0.12, lw=0, label=f"random, {style.label[:2]}")
        ax.plot(layer, values, color=style.color, lw=0.8)
        for clear, face in ((gap >= MEANINGLESS, style.color), (gap < MEANINGLESS, "white")):
            label = style.label if face == style.color else f"_{side}"
            options: dict[str, Any] = {"color": style.color, "marker": style.marker, "ls": "", "mfc": face, "mew": 0.8}
            ax.plot(layer[clear], values[clear], label=label, **options)
    ax.set_ylim(-0.02, 1.02)
    finish(ax, "|cos|, l and l + 1", legend=own)
    return ax


def continuity_summary(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Mean continuity of every projection in one space, with intervals over depth, beside its controls.

    Args:
        data: The continuity analysis's Dataset.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; full bars where the space is the residual stream, the median σ₁/σ₂ under each name.
    """
    ax, own = axes_or_new(ax)
    names = [str(name) for name in data["projection"].values]
    style, values = SIDE_STYLES[side], data[f"{side}_continuity"]
    block = int(data.attrs.get("block_length", 3))
    for place, name in enumerate(names):
        curve = values.sel(variant="model", projection=name).values
        found = _over_depth(curve, block)
        solid = side in stream_sides(name)
        bar: dict[str, Any] = {"color": style.color, "alpha": 0.75} if solid else {"color": style.color, "alpha": 0.25}
        ax.bar(place, found[0], width=0.62, yerr=[[found[0] - found[1]], [found[2] - found[0]]], capsize=2, **bar)
        null = float(data[f"{side}_haar"].sel(projection=name))
        ax.plot([place - 0.4, place + 0.4], [null, null], color=BLACK, lw=1.2, label="random directions" * (not place))
        for shift, kind in ((-0.2, "init"), (0.2, "trimmed")):
            controls = variants_of(data, kind)
            mean = float(values.sel(variant=controls, projection=name).mean()) if controls else np.nan
            shown = VARIANT_STYLES[kind]
            options: dict[str, Any] = {"color": shown.color, "marker": shown.marker, "ls": "", "mec": "white", "ms": 5}
            ax.plot([place + shift], [mean], label=shown.label if not place else "_", **options)
    gaps = data["gap"].sel(variant="model").median("layer")
    ax.set_xticks(range(len(names)), [f"{name}\n{float(gaps.sel(projection=name)):.2f}" for name in names])
    ax.set_ylim(0, 1)
    ax.set_ylabel(f"mean |cos|, {style.label}")
    if own:
        ax.legend()
    return ax


def lag_curves(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Mean |cos| of leading vectors at every lag, one curve a projection whose space is the stream's.

    Args:
        data: The continuity analysis's Dataset.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; dotted: random directions of the stream; thin: the same curves with the blocks in random order.
    """
    ax, own = axes_or_new(ax)
    names = [str(name) for name in data["projection"].values if side in stream_sides(str(name))]
    lag = data["lag"].values
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(data.sizes["block"]) for _ in range(50)])
    for name in names:
        style = PROJECTION_STYLES.get(name, Style(name, GREY))
        line(ax, lag, data[f"{side}_lag"].sel(projection=name).values, style)
        cosines = data[f"{side}_cosine"].sel(projection=name).values
        permuted = np.mean([_lags(cosines[np.ix_(rows, rows)]) for rows in order], axis=0)
        ax.plot(lag, permuted, color=style.color, lw=0.5, alpha=0.8)
    if names:
        null = float(data[f"{side}_haar"].sel(projection=names[0]))
        ax.axhline(null, color=BLACK, lw=1, ls=(0, (1, 1)), label="random directions")
    ax.set_ylim(0, None)
    finish(ax, f"mean |cos|, {SIDE_STYLES[side].label}", legend=own, xlabel="lag (blocks)")
    return ax


def cosine_map(data: xr.Dataset, projection: str, side: str, ax: Axes | None = None, *, bar: bool = True) -> Axes:
    """|cos| of leading vectors for all pairs of blocks.

    Args:
        data: The continuity analysis's Dataset.
        projection: Which projection.
        side: "input" or "output".
        ax: Where to draw.
        bar: Show the scale.

    Returns:
        The Axes; a path through depth is a band along the diagonal, one shared direction a filled square.
    """
    ax, _ = axes_or_new(ax)
    values = data[f"{side}_cosine"].sel(projection=projection).transpose("block", "other_block").values
    block = data["block"].values
    ends = (block[0] - 0.5, block[-1] + 0.5)
    image = ax.imshow(values, origin="lower", cmap="viridis", vmin=0, vmax=1, extent=(*ends, *ends))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_title(f"{projection}, {SIDE_STYLES[side].label[:2]}", loc="left")
    figure = ax.get_figure(root=True)
    if bar and figure is not None:
        figure.colorbar(image, ax=ax, label="|cos|")
    return ax


def trajectory_path(data: xr.Dataset, projection: str, side: str, ax: Any) -> Any:
    """The path of the leading vector through depth in its three principal components, colour by block.

    Args:
        data: The continuity analysis's Dataset.
        projection: Which projection.
        side: "input" or "output".
        ax: Axes with the projection "3d".

    Returns:
        The Axes.
    """
    x, y, z = data[f"{side}_trajectory"].sel(projection=projection).transpose("axis", "block").values
    held = data[f"{side}_trajectory_share"].sel(projection=projection).values
    ax.plot(x, y, z, color=GREY, lw=0.7)
    ax.scatter(x, y, z, c=data["block"].values, cmap="viridis", s=14, depthshade=False)
    ax.scatter(x[:1], y[:1], z[:1], facecolors="none", edgecolors=RED, s=50)
    for axis, share in zip((ax.xaxis, ax.yaxis, ax.zaxis), held, strict=True):
        axis.set_ticklabels([])
        axis.set_label_text(f"{share:.0%}", fontsize=8)
        axis.labelpad = -12
    ax.set_box_aspect(None, zoom=1.15)
    ax.set_title(f"{projection}, {SIDE_STYLES[side].label[:2]}", loc="left", pad=-4)
    return ax


def gap_by_depth(data: xr.Dataset, names: Sequence[str], ax: Axes | None = None) -> Axes:
    """σ₁/σ₂ of every block, one curve a projection.

    Args:
        data: The continuity analysis's Dataset.
        names: Projections.
        ax: Where to draw.

    Returns:
        The Axes; dotted: 1.05, below which the leading vector means nothing.
    """
    ax, own = axes_or_new(ax)
    for name in names:
        values = data["block_gap"].sel(variant="model", projection=name).values
        line(ax, data["block"].values, values, PROJECTION_STYLES.get(name, Style(name, GREY)))
    ax.axhline(MEANINGLESS, color=GREY, lw=1, ls=(0, (1, 1)))
    finish(ax, "σ₁/σ₂", log=True, legend=own)
    plain_log(ax.yaxis)
    return ax


def subspace_continuity(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Mean squared cosine of the principal angles of leading k-subspaces, mean over pairs, against k.

    Args:
        data: The continuity analysis's Dataset.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; dotted: k/d, random subspaces of the stream.
    """
    ax, own = axes_or_new(ax)
    names = [str(name) for name in data["projection"].values if side in stream_sides(str(name))]
    k = data["k"].values
    for name in names:
        values = data[f"{side}_subspace"].sel(projection=name).mean("layer").values
        style = PROJECTION_STYLES.get(name, Style(name, GREY))
        ax.plot(k, values, color=style.color, marker=style.marker, ls=style.line, label=name)
    ax.plot(k, k / data.attrs["d_model"], color=BLACK, lw=1, ls=(0, (1, 1)), label="random subspaces")
    ax.set_xscale("log", base=2)
    ax.set_xticks(k, [str(one) for one in k])
    ax.set(xlabel="k", ylabel=f"‖VₖᵀVₖ′‖² / k, {SIDE_STYLES[side].label.split(', ')[1]}")
    ax.set_ylim(0, None)
    if own:
        ax.legend(ncols=2)
    return ax


def continuity_controls(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Mean continuity of each projection on the stream's side, in the model and in every variant of it.

    Args:
        data: The continuity analysis's Dataset.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; dotted: random directions.
    """
    ax, own = axes_or_new(ax)
    names = [str(name) for name in data["projection"].values if side in stream_sides(str(name))]
    kinds = [kind for kind in VARIANT_STYLES if variants_of(data, kind)]
    for number, kind in enumerate(kinds):
        values = data[f"{side}_continuity"].sel(variant=variants_of(data, kind), projection=names).mean("layer")
        style, shift = VARIANT_STYLES[kind], 0.13 * (number - (len(kinds) - 1) / 2)
        for seed, one in enumerate(values.transpose("variant", "projection").values):
            place = np.arange(len(names)) + shift
            label = style.label if not seed else "_"
            ax.plot(place, one, color=style.color, marker=style.marker, ls="", ms=5, alpha=0.8, label=label)
    if names:
        null = float(data[f"{side}_haar"].sel(projection=names[0]))
        ax.axhline(null, color=BLACK, lw=1, ls=(0, (1, 1)), label="random directions")
    ax.set_xticks(range(len(names)), names)
    ax.set_ylim(0, 1)
    ax.set_ylabel(f"mean |cos|, {SIDE_STYLES[side].label}")
    if own:
        ax.legend()
    return ax


def participation_by_depth(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Participation ratio of the leading vector over the width, by block: on how many coordinates it lives.

    Args:
        data: The continuity analysis's Dataset.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; dotted: a third, random directions.
    """
    ax, own = axes_or_new(ax)
    for name in (str(name) for name in data["projection"].values if side in stream_sides(str(name))):
        ratio = data[f"{side}_participation"].sel(variant="model", projection=name)
        width = float(data[f"{side}_width"].sel(projection=name))
        line(ax, data["block"].values, ratio.values / width, PROJECTION_STYLES.get(name, Style(name, GREY)))
    ax.axhline(1 / 3, color=BLACK, lw=1, ls=(0, (1, 1)), label="random directions")
    finish(ax, f"participation / d, {SIDE_STYLES[side].label[:2]}", log=True, legend=own)
    return ax


def head_continuity(data: xr.Dataset, composite: str, ax: Axes | None = None) -> Axes:
    """For each head's composite the best |cos| to a head of the next block, mean over heads, over depth.

    Args:
        data: The continuity analysis's Dataset with `input_heads` and `output_heads`.
        composite: "ov" or "qk".
        ax: Where to draw.

    Returns:
        The Axes; dotted: the best of as many random directions.
    """
    ax, own = axes_or_new(ax)
    for side, style in SIDE_STYLES.items():
        line(ax, data["layer"].values, data[f"{side}_heads"].sel(composite=composite).values, style)
    ax.axhline(float(data["heads_null"]), color=BLACK, lw=1, ls=(0, (1, 1)), label="random directions")
    finish(ax, "best |cos|, mean over heads", legend=own)
    ax.set_ylim(0, None)
    return ax


def docs_by_depth(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """DOCS of neighbouring blocks, one curve a projection.

    Args:
        data: The continuity analysis's Dataset with `docs`.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    for name in (str(name) for name in data["projection"].values):
        values = data["docs"].sel(projection=name).values
        if np.isfinite(values).any():
            line(ax, data["layer"].values, values, PROJECTION_STYLES.get(name, Style(name, GREY)))
    finish(ax, "DOCS, l and l + 1", legend=own)
    return ax


def _lags(cosines: Floats) -> Floats:
    """Mean |cosine| by lag of an L × L matrix."""
    return np.array([np.diagonal(cosines, lag).mean() for lag in range(1, len(cosines))])


def _over_depth(curve: Floats, block: int) -> tuple[float, float, float]:
    """Mean over pairs with its interval over depth."""
    found = circular_block_bootstrap(
        lambda index: float(curve[index].mean()), len(curve), block=min(block, len(curve)), resamples=RESAMPLES
    )
    return float(found.estimate), float(found.low), float(found.high)
