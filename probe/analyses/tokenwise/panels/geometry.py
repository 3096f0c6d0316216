"""Panels of what the maps catch and what the residual looks like.

Unless a panel says otherwise its variables have the dimensions (map, target, layer, query).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.analyses.tokenwise.panels.styles import (
    FIT_STYLES,
    PAIR_STYLES,
    VECTOR_STYLES,
    class_curves,
    deciding_fit,
    fits_present,
)
from probe.plots.pages import axes_or_new, legend_below
from probe.plots.style import (
    BLACK,
    BLUE,
    DOTTED,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    Style,
    curve,
    dark,
    finish,
    line,
    median_over_documents,
    null_line,
)


def relative_error(
    data: xr.Dataset, fits: Sequence[str] | None = None, target: str = "update", ax: Axes | None = None
) -> Axes:
    """Plot the relative error by layer and map: median ‖r‖/‖u‖, log scale.

    Args:
        data: The analysis's Dataset with `relative_error` and, for the floor, `floor` (map, layer, query).
        fits: Classes; default all that are there.
        target: "update" (over ‖u‖) or "state" (over ‖h_{l+1}‖).
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: 1 over ‖u‖, no update; dash-dotted, the floor: the deciding class on one token.
    """
    ax, own = axes_or_new(ax)
    error = data["relative_error"].sel(target=target)
    class_curves(ax, data, "relative_error", lambda name: median_over_documents(data, error.sel(map=name)), fits)
    ax.set_yscale("log")
    if target == "update":
        null_line(ax, 1.0, "no update")
    limits = ax.get_ylim()  # the classes decide them: in the first blocks the floor lies decades below
    decides = deciding_fit(data)
    if decides in fits_present(data, "floor", fits) and target == "update":
        floor = data["floor"].sel(map=decides).median("query")
        ax.plot(data["layer"], floor, color=BLACK, lw=1, ls="-.", label="floor: local, one-token input")
    finish(ax, f"relative error ‖r‖ / {'‖u‖' if target == 'update' else '‖h′‖'}", log=True, legend=own)
    ax.set_ylim(limits)
    return ax


def explained_variance(data: xr.Dataset, fits: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Plot the share of the update's variance that each map explains on held-out tokens, by layer.

    Args:
        data: The analysis's Dataset with `explained_variance` (map, layer).
        fits: Classes; default all that are there.
        ax: Where to draw.

    Returns:
        The Axes; the null is 0, what the mean explains.
    """
    ax, own = axes_or_new(ax)
    for name in fits_present(data, "explained_variance", fits):
        line(ax, data["layer"], data["explained_variance"].sel(map=name), FIT_STYLES[name])
    ax.set_ylim(bottom=max(-0.5, ax.get_ylim()[0]), top=1)
    ax.axhline(0, color=GREY, lw=0.5)
    return finish(ax, "explained variance", legend=own)


def alignment(
    data: xr.Dataset, fit: str | None = None, target: str = "update", angle: bool = False, ax: Axes | None = None
) -> Axes:
    """Plot cosines or angles of update, tokenwise part and residual by layer (Figure 3 of arXiv 2604.02459).

    The dashed curves follow from the error e alone: cos(u, û) ≥ sqrt(1 − e²) for any residual, and cos(u, r) = e,
    cos(û, r) = 0 for one at right angles to û.

    Args:
        data: The analysis's Dataset with `relative_error`, `cos_update_fit`, `cos_update_residual`,
            `cos_fit_residual` and, for the null, `cos_permuted` (map, layer, query).
        fit: The map; the deciding one by default.
        target: "update" or "state".
        angle: Degrees instead of cosines.
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: û fitted to targets permuted within windows.
    """
    ax, own = axes_or_new(ax)
    place = {"map": fit or deciding_fit(data), "target": target}
    shown: Callable[[xr.DataArray], xr.DataArray] = _degrees if angle else _same
    for name, style in PAIR_STYLES.items():
        values = shown(data[name].sel(place))
        curve(ax, data["layer"], median_over_documents(data, values), style, spread=values)
    error = data["relative_error"].sel(place).clip(max=1)
    bound = error.copy(data=np.sqrt(1 - error.values**2))
    for style, cosine in zip(PAIR_STYLES.values(), (bound, error, xr.zeros_like(error)), strict=True):
        fixed = shown(cosine).median("query")
        label = f"{style.label}, fixed by the error"
        ax.plot(data["layer"], fixed, color=dark(style.color), lw=1.2, ls=(0, (4, 3)), zorder=3, label=label)
    if target == "update" and place["map"] in fits_present(data, "cos_permuted"):
        permuted = shown(data["cos_permuted"].sel(map=place["map"])).median("query")
        ax.plot(data["layer"], permuted, color=GREY, ls=DOTTED, label="(u, û), targets permuted")
    ax.set_ylim((0, 120) if angle else (-0.3, 1.03))
    return finish(ax, "angle (degrees)" if angle else "cosine", legend=own)


def projection(
    data: xr.Dataset, k: int = 4, fit: str | None = None, centring: str = "no_outliers", ax: Axes | None = None
) -> Axes:
    """Plot the share of each vector in the k dominant tokenwise directions, by layer (Figure 4 of arXiv 2604.02459).

    ‖V_kᵀx‖²/‖x‖² for x = u, û, r and r′ (another token's update), V_k from û on training tokens.

    Args:
        data: The analysis's Dataset with `share` (map, centring, vector, k, layer, query) and `share_of_update`
            (centring, k, layer, query); k/d needs the attribute `d_model`.
        k: Dimensions of the subspace.
        fit: The map; the deciding one by default.
        centring: "centred", "uncentred" or "no_outliers".
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: k/d, a random subspace; dashed, the share of u in the k top directions of u itself.
    """
    ax, own = axes_or_new(ax)
    share = data["share"].sel(map=fit or deciding_fit(data), centring=centring, k=k)
    for name, style in VECTOR_STYLES.items():
        if name in share["vector"].values:
            curve(ax, data["layer"], median_over_documents(data, share.sel(vector=name)), style)
    if "share_of_update" in data:
        top = data["share_of_update"].sel(centring=centring, k=k).median("query")
        ax.plot(data["layer"], top, color=GREY, lw=1, ls="--", label="u in the top directions of u")
    if "d_model" in data.attrs:
        null_line(ax, k / data.attrs["d_model"], "random subspace, k/d", BLACK)
    ax.set_ylim(0, 1.02)
    return finish(ax, "share of squared norm", legend=own)


def sweep(data: xr.Dataset, over: Literal["rank", "neighbours"] = "rank", ax: Axes | None = None) -> Axes:
    """Plot the local map's relative error over its rank r, a line for each k, or the reverse (Figure 5).

    Solid: held-out tokens, median over tokens, mean over layers. Dashed: the same fits on their own neighbours.

    Args:
        data: The analysis's Dataset with `sweep_error` (neighbours, rank, layer, query) and, for the dashed lines,
            `sweep_error_in_sample` (neighbours, rank, layer).
        over: The horizontal axis.
        ax: Where to draw.

    Returns:
        The Axes; the null is 1, no update at all.
    """
    ax, _ = axes_or_new(ax)
    lines, symbol = ("neighbours", "k") if over == "rank" else ("rank", "r")
    measured = data["sweep_error"].dropna("layer", how="all")
    colors = (SKY, BLUE, GREEN, ORANGE, RED, PINK, BLACK)
    for value, color, marker in zip(data[lines].values, colors, "osD^vPX", strict=False):
        values = measured.sel({lines: value}).transpose(over, "layer", "query")
        style = Style(f"{symbol} = {value}", color, marker)
        curve(ax, data[over], median_over_documents(data, values, average=True), style)
        if "sweep_error_in_sample" in data:
            inside = data["sweep_error_in_sample"].sel({lines: value}).mean("layer")
            ax.plot(data[over], inside, color=color, ls="--", lw=0.9)
    name = {"rank": "rank r", "neighbours": "neighbours k"}[over]
    _powers_of_two(ax, data[over], name, "relative error ‖r‖ / ‖u‖")
    legend_below(ax)
    return ax


def instability(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Plot the distance of the local maps of two disjoint token banks, over the number of neighbours.

    ‖T_A(q) − T_B(q)‖ / ‖u‖: median over tokens, mean over layers; the pale band holds the middle half of all tokens.

    Args:
        data: The analysis's Dataset with `instability` (neighbours, layer, query).
        ax: Where to draw.

    Returns:
        The Axes; the null is 0, two equal fits.
    """
    ax, _ = axes_or_new(ax)
    values = data["instability"].dropna("layer", how="all").transpose("neighbours", "layer", "query")
    interval = median_over_documents(data, values, average=True)
    curve(ax, data["neighbours"], interval, Style("two banks", BLUE), spread=values)
    return _powers_of_two(ax, data["neighbours"], "neighbours k", "distance of two fits / ‖u‖")


def residual_overlap(
    data: xr.Dataset, measure: Literal["cosine", "share"] = "cosine", fit: str | None = None, ax: Axes | None = None
) -> Axes:
    """Plot the residual's overlap with the block's attention write and with that write's off-position part.

    Args:
        data: The analysis's Dataset with `residual_attention_*` and `residual_offposition_*`, (map, layer, query).
        measure: "cosine", or "share": of ‖r‖² along the direction.
        fit: The map; the deciding one by default.
        ax: Where to draw.

    Returns:
        The Axes; the null is 0, a direction of its own.
    """
    ax, own = axes_or_new(ax)
    off_position = Style("its off-position part", RED, "^", "--")
    for part, style in {"attention": Style("attention write", BLUE), "offposition": off_position}.items():
        name = f"residual_{part}_{measure}"
        if name in data:
            values = data[name].sel(map=fit or deciding_fit(data))
            curve(ax, data["layer"], median_over_documents(data, values), style, spread=values)
    ax.axhline(0, color=GREY, lw=0.5)
    return finish(ax, "cosine with r" if measure == "cosine" else "share of ‖r‖²", legend=own)


def _powers_of_two(ax: Axes, x: xr.DataArray, xlabel: str, ylabel: str) -> Axes:
    """Axes over a few numbers that double: a tick at each, the vertical axis from 0."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(x.values, [str(value) for value in x.values], minor=False)
    ax.set_ylim(bottom=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def _same(cosine: xr.DataArray) -> xr.DataArray:
    return cosine


def _degrees(cosine: xr.DataArray) -> xr.DataArray:
    return cosine.copy(data=np.degrees(np.arccos(np.clip(cosine.values, -1, 1))))
