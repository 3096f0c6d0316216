"""Panels of the continuity of weights: by depth, by projection, by lag; maps of all pairs; trajectories; gaps.

The variables are those of `probe.analyses.continuity.schema`, where SIDE is "input" or "output", the space of v₁ or u₁.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.inference import Interval, circular_block_bootstrap
from probe.plots.directions import MEANINGLESS, SIDE_STYLES
from probe.plots.directions import continuity_by_depth as continuity_by_depth
from probe.plots.directions import cosine_map as cosine_map
from probe.plots.pages import axes_or_new
from probe.plots.style import (
    BLACK,
    BLUE,
    DOTTED,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    RESAMPLES,
    SKY,
    Floats,
    Style,
    finish,
    line,
    null_line,
    of_kind,
)
from probe.weights.bases import stream_sides

PROJECTION_STYLES = {
    "q": Style("q", BLUE, "o"),
    "k": Style("k", SKY, "s"),
    "v": Style("v", GREY, "X", "--"),
    "q_a": Style("q_a", BLUE, "o", ":"),
    "kv_a": Style("kv_a", SKY, "s", ":"),
    "k_rot": Style("k_rot", SKY, "D", "-."),
    "q_b": Style("q_b", BLUE, "o", "--"),
    "k_b": Style("k_b", SKY, "s", "--"),
    "v_b": Style("v_b", GREY, "X", ":"),
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


def sides_of(name: str) -> tuple[str, ...]:
    """Choose the spaces in which a projection is shown: the stream's, or both where it has none.

    Args:
        name: A projection.

    Returns:
        "input", "output" or both.
    """
    return stream_sides(name) or ("input", "output")


def shown_spaces(data: xr.Dataset) -> list[tuple[str, str]]:
    """List every projection in the spaces in which it is shown.

    Args:
        data: The continuity analysis's Dataset.

    Returns:
        Pairs of a projection and "input" or "output".
    """
    return [(name, side) for name in data["projection"].values.tolist() for side in sides_of(name)]


def in_stream(data: xr.Dataset, side: str) -> list[str]:
    """List the projections whose space on a side is the residual stream.

    Args:
        data: The continuity analysis's Dataset.
        side: "input" or "output".

    Returns:
        Names along `projection`.
    """
    return [name for name in data["projection"].values.tolist() if side in stream_sides(name)]


def continuity_summary(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Draw the mean continuity of every projection in one space, with intervals over depth, beside its controls.

    Args:
        data: The continuity analysis's Dataset with `gap`, `SIDE_continuity` and `SIDE_haar`.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; full bars where the space is the residual stream, the median σ₁/σ₂ under each name; random
        directions, the null, are black lines.
    """
    ax, own = axes_or_new(ax)
    names = data["projection"].values.tolist()
    style, values = SIDE_STYLES[side], data[f"{side}_continuity"]
    block = int(data.attrs.get("block_length", 3))
    for place, name in enumerate(names):
        found = _over_depth(values.sel(variant="model", projection=name).values, block)
        ends = [[found.estimate - found.low], [found.high - found.estimate]]
        alpha = 0.75 if side in stream_sides(name) else 0.25
        ax.bar(place, found.estimate, width=0.62, yerr=ends, capsize=2, color=style.color, alpha=alpha)
        null = float(data[f"{side}_haar"].sel(projection=name))
        label = "_" if place else "random directions"
        ax.plot([place - 0.4, place + 0.4], [null, null], color=BLACK, lw=1.2, label=label)
        for shift, kind in ((-0.2, "init"), (0.2, "trimmed")):
            controls = of_kind(data["variant"], kind)
            if controls:
                mean, shown = float(values.sel(variant=controls, projection=name).mean()), VARIANT_STYLES[kind]
                label = "_" if place else shown.label
                _mark(ax, place + shift, mean, shown, label, mec="white")
    gaps = data["gap"].sel(variant="model").median("layer")
    ax.set_xticks(range(len(names)), [f"{name}\n{float(gaps.sel(projection=name)):.2f}" for name in names])
    return _mean_cosine_axis(ax, side, own)


def lag_curves(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Draw mean |cos| of leading vectors at every lag, one curve a projection whose space is the stream's.

    Args:
        data: The continuity analysis's Dataset with `SIDE_lag` and `SIDE_cosine`.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; nulls are dotted, random directions of the stream, and thin, the same curves with the blocks in random
        order.
    """
    ax, own = axes_or_new(ax)
    names = in_stream(data, side)
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(data.sizes["block"]) for _ in range(50)])
    for name in names:
        style = _style(name)
        line(ax, data["lag"], data[f"{side}_lag"].sel(projection=name), style)
        cosines = data[f"{side}_cosine"].sel(projection=name).values
        permuted = np.mean([_lags(cosines[np.ix_(rows, rows)]) for rows in order], axis=0)
        ax.plot(data["lag"], permuted, color=style.color, lw=0.5, alpha=0.8)
    _stream_null(ax, data, side, names)
    ax.set_ylim(0, None)
    return finish(ax, f"mean |cos|, {SIDE_STYLES[side].label}", legend=own, xlabel="lag (blocks)")


def trajectory_path(data: xr.Dataset, projection: str, side: str, ax: Any) -> Any:
    """Draw the path of the leading vector through depth in its three principal components, colour by block.

    Args:
        data: The continuity analysis's Dataset with `SIDE_trajectory` and `SIDE_trajectory_share`.
        projection: Which projection.
        side: "input" or "output".
        ax: Axes with the projection "3d".

    Returns:
        The Axes; the null, independent directions, is a jumble.
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
    """Draw σ₁/σ₂ of every block, one curve a projection.

    Args:
        data: The continuity analysis's Dataset with `block_gap`.
        names: Projections.
        ax: Where to draw.

    Returns:
        The Axes; dotted: 1.05, below which the leading vector means nothing, as at a fresh initialisation.
    """
    ax, own = axes_or_new(ax)
    for name in names:
        line(ax, data["block"], data["block_gap"].sel(variant="model", projection=name), _style(name))
    null_line(ax, MEANINGLESS)
    return finish(ax, "σ₁/σ₂", log=True, legend=own)


def subspace_continuity(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Draw the mean squared cosine of the principal angles of leading k-subspaces, mean over pairs, against k.

    Args:
        data: The continuity analysis's Dataset with `SIDE_subspace`.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: k/d, random subspaces of the stream.
    """
    ax, own = axes_or_new(ax)
    k = data["k"].values
    for name in in_stream(data, side):
        line(ax, data["k"], data[f"{side}_subspace"].sel(projection=name).mean("layer"), _style(name))
    ax.plot(k, k / data.attrs["d_model"], color=BLACK, lw=1, ls=DOTTED, label="random subspaces")
    ax.set_xscale("log", base=2)
    ax.set_xticks(k, [str(one) for one in k])
    ax.set(xlabel="k", ylabel=f"‖VₖᵀVₖ′‖² / k, {SIDE_STYLES[side].label.split(', ')[1]}")
    ax.set_ylim(0, None)
    if own:
        ax.legend(ncols=2)
    return ax


def continuity_controls(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Draw the mean continuity of each projection on the stream's side, in the model and in every variant of it.

    Args:
        data: The continuity analysis's Dataset with `SIDE_continuity`.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: random directions.
    """
    ax, own = axes_or_new(ax)
    names = in_stream(data, side)
    kinds = {kind: found for kind in VARIANT_STYLES if (found := of_kind(data["variant"], kind))}
    for number, (kind, variants) in enumerate(kinds.items()):
        values = data[f"{side}_continuity"].sel(variant=variants, projection=names).mean("layer")
        place = np.arange(len(names)) + 0.13 * (number - (len(kinds) - 1) / 2)
        for seed, one in enumerate(values.transpose("variant", "projection").values):
            style = VARIANT_STYLES[kind]
            _mark(ax, place, one, style, "_" if seed else style.label, alpha=0.8)
    _stream_null(ax, data, side, names)
    ax.set_xticks(range(len(names)), names)
    return _mean_cosine_axis(ax, side, own)


def participation_by_depth(data: xr.Dataset, side: str, ax: Axes | None = None) -> Axes:
    """Draw the participation ratio of the leading vector over the width, by block: how many coordinates it lives on.

    Args:
        data: The continuity analysis's Dataset with `SIDE_participation`.
        side: "input" or "output".
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: a third, random directions.
    """
    ax, own = axes_or_new(ax)
    for name in in_stream(data, side):
        ratio = data[f"{side}_participation"].sel(variant="model", projection=name)
        line(ax, data["block"], ratio / float(data[f"{side}_width"].sel(projection=name)), _style(name))
    null_line(ax, 1 / 3, "random directions", BLACK)
    return finish(ax, f"participation / d, {SIDE_STYLES[side].label[:2]}", log=True, legend=own)


def head_continuity(data: xr.Dataset, composite: str, ax: Axes | None = None) -> Axes:
    """Draw the best |cos| of each head's composite to a head of the next block, mean over heads, over depth.

    Args:
        data: The continuity analysis's Dataset with `SIDE_heads` and `heads_null`.
        composite: "ov" or "qk".
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: the best of as many random directions.
    """
    ax, own = axes_or_new(ax)
    for side, style in SIDE_STYLES.items():
        line(ax, data["layer"], data[f"{side}_heads"].sel(composite=composite), style)
    null_line(ax, float(data["heads_null"]), "random directions", BLACK)
    ax.set_ylim(0, None)
    return finish(ax, "best |cos|, mean over heads", legend=own)


def docs_by_depth(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw DOCS of neighbouring blocks, one curve a projection.

    Args:
        data: The continuity analysis's Dataset with `docs`.
        ax: Where to draw.

    Returns:
        The Axes; no null, it depends on the number of columns.
    """
    ax, own = axes_or_new(ax)
    for name in data["projection"].values.tolist():
        values = data["docs"].sel(projection=name)
        if np.isfinite(values).any():
            line(ax, data["layer"], values, _style(name))
    return finish(ax, "DOCS, l and l + 1", legend=own)


def _style(name: str) -> Style:
    return PROJECTION_STYLES.get(name, Style(name, GREY))


def _mark(ax: Axes, x: float | Floats, y: float | Floats, style: Style, label: str, **options: Any) -> None:
    """Markers without a line: means over depth."""
    ax.plot(x, y, color=style.color, marker=style.marker, ls="", ms=5, label=label, **options)


def _stream_null(ax: Axes, data: xr.Dataset, side: str, names: Sequence[str]) -> None:
    """Random directions of the stream: one null for all projections that have it."""
    if names:
        null_line(ax, float(data[f"{side}_haar"].sel(projection=names[0])), "random directions", BLACK)


def _mean_cosine_axis(ax: Axes, side: str, legend: bool) -> Axes:
    ax.set(ylim=(0, 1), ylabel=f"mean |cos|, {SIDE_STYLES[side].label}")
    if legend:
        ax.legend()
    return ax


def _lags(cosines: Floats) -> Floats:
    """Mean |cosine| by lag of an L × L matrix."""
    return np.array([np.diagonal(cosines, lag).mean() for lag in range(1, len(cosines))])


def _over_depth(curve: Floats, block: int) -> Interval:
    """Mean over pairs with its interval over depth."""
    return circular_block_bootstrap(
        lambda index: float(curve[index].mean()), len(curve), block=min(block, len(curve)), resamples=RESAMPLES
    )
