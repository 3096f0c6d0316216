"""Panels of what the maps catch and what the residual looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.plots.style import (
    BLACK,
    BLUE,
    FIT_STYLES,
    GREEN,
    GREY,
    ORANGE,
    PAIR_STYLES,
    PINK,
    RED,
    SKY,
    VECTOR_STYLES,
    Style,
    axes_or_new,
    class_curves,
    curve,
    deciding_fit,
    finish,
    fits_present,
    legend_below,
    line,
    median_over_documents,
)


def relative_error(
    data: xr.Dataset, fits: Sequence[str] | None = None, target: str = "update", ax: Axes | None = None
) -> Axes:
    """Relative error by layer and class: median ‖r‖/‖u‖, log scale.

    Args:
        data: The analysis's Dataset with `relative_error` and, for the floor, `floor`.
        fits: Classes; default all that are there.
        target: "update" (over ‖u‖) or "state" (over ‖h_{l+1}‖).
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    error = data["relative_error"].sel(target=target)
    class_curves(ax, data, "relative_error", lambda name: median_over_documents(data, error.sel(fit=name)), fits)
    ax.set_yscale("log")
    limits = ax.get_ylim()  # the classes decide them: in the first blocks the floor lies decades below
    decides = deciding_fit(data)
    if decides in fits_present(data, "floor", fits) and target == "update":
        floor = data["floor"].sel(fit=decides).median("query")
        ax.plot(data["layer"], floor, color=BLACK, lw=1, ls=(0, (1, 1)), label="floor: local, one-token input")
    finish(ax, f"relative error ‖r‖ / {'‖u‖' if target == 'update' else '‖h′‖'}", log=True, legend=own)
    ax.set_ylim(limits)
    return ax


def explained_variance(data: xr.Dataset, fits: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Share of the update's variance that each class explains on held-out tokens, by layer.

    Args:
        data: The analysis's Dataset with `explained_variance`.
        fits: Classes; default all that are there.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    for name in fits_present(data, "explained_variance", fits):
        style = FIT_STYLES[name]
        values = data["explained_variance"].sel(fit=name)
        line(ax, data["layer"].values, values.values, style)
    ax.set_ylim(bottom=max(-0.5, ax.get_ylim()[0]), top=1)
    ax.axhline(0, color=GREY, lw=0.8)
    finish(ax, "explained variance", legend=own)
    return ax


def alignment(
    data: xr.Dataset, fit: str | None = None, target: str = "update", angle: bool = False, ax: Axes | None = None
) -> Axes:
    """Cosines or angles of update, tokenwise part and residual by layer (Figure 3 of arXiv 2604.02459).

    The dashed curves follow from the error e alone: cos(u, û) ≥ sqrt(1 − e²) for any residual, and cos(u, r) = e,
    cos(û, r) = 0 for one at right angles to û.

    Args:
        data: The analysis's Dataset with the three cosines and `relative_error`.
        fit: The class; default the deciding one.
        target: "update" or "state".
        angle: Degrees instead of cosines.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    place = {"fit": fit or deciding_fit(data), "target": target}
    shown: Callable[[xr.DataArray], xr.DataArray] = _degrees if angle else _same
    for name, style in PAIR_STYLES.items():
        values = shown(data[name].sel(place))
        curve(ax, data, median_over_documents(data, values), style, spread=values)
    error = data["relative_error"].sel(place).clip(max=1)
    bound = error.copy(data=np.sqrt(1 - error.values**2))
    for number, cosine in enumerate((bound, error, xr.zeros_like(error))):
        fixed = shown(cosine).median("query")
        label = "_" if number else "fixed by the error"
        ax.plot(data["layer"], fixed, color=BLACK, lw=1, ls=(0, (4, 3)), zorder=3, label=label)
    if target == "update" and place["fit"] in fits_present(data, "cos_permuted"):
        permuted = shown(data["cos_permuted"].sel(fit=place["fit"])).median("query")
        ax.plot(data["layer"], permuted, color=GREY, ls=":", label="(u, û), targets permuted")
    ax.set_ylim((0, 120) if angle else (-0.3, 1.03))
    finish(ax, "angle (degrees)" if angle else "cosine", legend=own)
    return ax


def projection(
    data: xr.Dataset, k: int = 4, fit: str | None = None, centring: str = "no_outliers", ax: Axes | None = None
) -> Axes:
    """Share of each vector in the k dominant tokenwise directions, by layer (Figure 4 of arXiv 2604.02459).

    ‖V_kᵀx‖²/‖x‖² for x = u, û, r and r′ (another token's update), V_k from û on training tokens; the dotted line is
    k/d, a random subspace; the thin line is the share of u in the k top directions of u itself.

    Args:
        data: The analysis's Dataset with `share`; k/d needs the attribute `d_model`.
        k: Dimensions of the subspace.
        fit: The class; default the deciding one.
        centring: "centred", "uncentred" or "no_outliers".
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    share = data["share"].sel(fit=fit or deciding_fit(data), centring=centring, k=k)
    for name, style in VECTOR_STYLES.items():
        if name in share["vector"].values:
            curve(ax, data, median_over_documents(data, share.sel(vector=name)), style)
    if "share_of_update" in data:
        top = data["share_of_update"].sel(centring=centring, k=k).median("query")
        ax.plot(data["layer"], top, color=GREY, lw=1, ls="--", label="u in the top directions of u")
    if "d_model" in data.attrs:
        ax.axhline(k / data.attrs["d_model"], color=BLACK, lw=1, ls=":", label="random subspace, k/d")
    ax.set_ylim(0, 1.02)
    finish(ax, "share of squared norm", legend=own)
    return ax


def sweep(data: xr.Dataset, over: Literal["rank", "neighbours"] = "rank", ax: Axes | None = None) -> Axes:
    """Relative error of the local class over its rank r, a line for each k, or the reverse (Figure 5 of the paper).

    Solid: held-out tokens, median over tokens, mean over layers. Dashed: the same fits on their own neighbours.

    Args:
        data: The analysis's Dataset with `sweep_error` and, for the dashed lines, `sweep_error_in_sample`.
        over: The horizontal axis.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, _ = axes_or_new(ax)
    lines, symbol = ("neighbours", "k") if over == "rank" else ("rank", "r")
    measured = data["sweep_error"].dropna("layer", how="all")
    colours = (SKY, BLUE, GREEN, ORANGE, RED, PINK, BLACK)
    for value, colour, marker in zip(data[lines].values, colours, "osD^vPX", strict=False):
        values = measured.sel({lines: value}).transpose(over, "layer", "query")
        interval = median_over_documents(data, values, average=True)
        ax.fill_between(data[over], interval.low, interval.high, color=colour, alpha=0.25, lw=0)
        ax.plot(data[over], interval.estimate, color=colour, marker=marker, label=f"{symbol} = {value}")
        if "sweep_error_in_sample" in data:
            inside = data["sweep_error_in_sample"].sel({lines: value}).mean("layer")
            ax.plot(data[over], inside, color=colour, ls="--", lw=0.9)
    ax.set_xscale("log", base=2)
    ax.set_xticks(data[over].values, [str(value) for value in data[over].values], minor=False)
    ax.set_ylim(bottom=0)
    name = {"rank": "rank r", "neighbours": "neighbours k"}[over]
    ax.set(xlabel=name, ylabel="relative error ‖r‖ / ‖u‖")
    legend_below(ax)
    return ax


def instability(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """How far the local fits of two disjoint token banks lie apart, over the number of neighbours.

    ‖T_A(q) − T_B(q)‖ / ‖u‖: median over tokens, mean over layers; the band holds the middle half of all tokens.

    Args:
        data: The analysis's Dataset with `instability`.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, _ = axes_or_new(ax)
    values = data["instability"].dropna("layer", how="all").transpose("neighbours", "layer", "query")
    interval = median_over_documents(data, values, average=True)
    low, high = values.quantile([0.25, 0.75], dim=("layer", "query")).transpose("quantile", "neighbours").values
    k = data["neighbours"].values
    ax.fill_between(k, low, high, color=BLUE, alpha=0.1, lw=0)
    ax.fill_between(k, interval.low, interval.high, color=BLUE, alpha=0.25, lw=0)
    ax.plot(k, interval.estimate, color=BLUE, marker="o")
    ax.set_xscale("log", base=2)
    ax.set_xticks(k, [str(value) for value in k])
    ax.set_ylim(bottom=0)
    ax.set(xlabel="neighbours k", ylabel="distance of two fits / ‖u‖")
    return ax


def residual_overlap(
    data: xr.Dataset, measure: Literal["cosine", "share"] = "cosine", fit: str | None = None, ax: Axes | None = None
) -> Axes:
    """What the residual is: its overlap with the block's attention write and with that write's off-position part.

    Args:
        data: The analysis's Dataset with `residual_attention_*` and `residual_offposition_*`.
        measure: "cosine", or "share": of ‖r‖² along the direction.
        fit: The class; default the deciding one.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    off_position = Style("its off-position part", RED, "^", "--")
    for part, style in {"attention": Style("attention write", BLUE), "offposition": off_position}.items():
        name = f"residual_{part}_{measure}"
        if name in data:
            values = data[name].sel(fit=fit or deciding_fit(data))
            curve(ax, data, median_over_documents(data, values), style, spread=values)
    ax.axhline(0, color=GREY, lw=0.8)
    finish(ax, "cosine with r" if measure == "cosine" else "share of ‖r‖²", legend=own)
    return ax


def _same(cosine: xr.DataArray) -> xr.DataArray:
    return cosine


def _degrees(cosine: xr.DataArray) -> xr.DataArray:
    return cosine.copy(data=np.degrees(np.arccos(np.clip(cosine.values, -1, 1))))
