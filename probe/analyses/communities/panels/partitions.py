"""Panels of partitions of nodes: how good and how stable they are, how they agree, what blocks do to communities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from probe.analyses.communities.config import NODE_NAMES
from probe.analyses.communities.panels.communities import OWN
from probe.inference import Interval, fisher_mean
from probe.plots.networks import COMMUNITY_COLORS, REST
from probe.plots.pages import axes_or_new, color_bar
from probe.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, Floats, Style, curve, finish, line, middle_of

AGREEMENTS = {
    "stability": Style("between seeds", BLUE, "o"),
    "null_stability": Style("between seeds, null graphs", BLACK, "", "--"),
    "half_ami": Style("between halves of the text", ORANGE, "s"),
    "jacobian_ami": Style("with those of |K| + |K|ᵀ", GREEN, "^", ":"),
}
SCALE = 8.0  # standard deviations at which the colours of z-scores end


def layer_agreement(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the AMI of the communities of every two layers.

    Args:
        data: The communities analysis's Dataset with `layer_ami` (layer, other_layer).
        ax: Where to draw.

    Returns:
        The Axes; the diagonal, 1 by definition, is left out. 0, the null, is what unrelated communities share.
    """
    ax, _ = axes_or_new(ax)
    ami = data["layer_ami"].transpose("layer", "other_layer").values.astype(np.float64).copy()
    np.fill_diagonal(ami, np.nan)
    top = max(0.05, float(np.nanmax(ami))) if len(ami) > 1 else 1.0
    shown = ax.imshow(ami, origin="lower", cmap="viridis", vmin=0, vmax=top, rasterized=True)
    _layer_ticks(ax, data)
    ax.set_yticks(ax.get_xticks(), [label.get_text() for label in ax.get_xticklabels()])
    color_bar(ax, shown, "AMI")
    ax.set(xlabel="block", ylabel="block")
    return ax


def agreement_by_depth(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw how well a layer's communities agree: between seeds, between halves of the text, with those of |K| + |K|ᵀ.

    Args:
        data: The communities analysis's Dataset with the keys of `AGREEMENTS`, (layer,) or of null graphs (layer,
            null_draw), and `resampled_half_ami` (layer, resample).
        ax: Where to draw.

    Returns:
        The Axes; 0, the null, is what unrelated communities share. Bands hold 95 % of the null graphs, and of the
        resamples.
    """
    ax, own = axes_or_new(ax)
    for name, style in AGREEMENTS.items():
        if name == "null_stability":
            curve(ax, data["layer"], _null(data, name), style)
        elif name == "half_ami":
            _with_resamples(ax, data, name, "half_ami", style)
        elif name in data:
            line(ax, data["layer"], data[name], style)
    ax.axhline(0, color=GREY, lw=0.5)
    return finish(ax, "AMI", legend=own)


def quality_by_depth(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the quality of the communities by layer, beside that of null graphs.

    Args:
        data: The communities analysis's Dataset with `run_quality` (layer,), `null_quality` (layer, null_draw) and
            `resampled_quality` (layer, resample).
        ax: Where to draw.

    Returns:
        The Axes; dashed, the null graphs; the bands hold 95 % of them, and of the resamples.
    """
    ax, own = axes_or_new(ax)
    curve(ax, data["layer"], _null(data, "null_quality"), Style("null graphs", BLACK, "", "--"))
    _with_resamples(ax, data, "run_quality", "quality", OWN)
    return finish(ax, "quality per link weight", legend=own)


def resolution_profile(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw how much more stable communities are than those of null graphs, by layer and resolution.

    Args:
        data: The communities analysis's Dataset with `profile_stability`, `profile_null_stability` and
            `profile_communities` (layer, profiled), and `resolution` (layer,).
        ax: Where to draw.

    Returns:
        The Axes; 0, the null: as stable as null graphs. A dot marks the resolution that each layer takes.
    """
    ax, _ = axes_or_new(ax)
    excess = (data["profile_stability"] - data["profile_null_stability"]).transpose("profiled", "layer").values
    single = data["profile_communities"].transpose("profiled", "layer").values < 2
    reach = max(0.05, float(np.nanmax(np.abs(excess))))
    shown = _heat(ax, np.where(single, np.nan, excess), reach)
    grid = data["profiled"].values
    chosen = np.abs(np.log(data["resolution"].values[:, None] / grid)).argmin(axis=1)
    ax.scatter(np.arange(len(chosen)), chosen, s=9, color=BLACK, lw=0, zorder=3)
    _layer_ticks(ax, data)
    ax.set_yticks(np.arange(len(grid)), [f"{gamma:.3g}" for gamma in grid])
    ax.set(xlabel="block", ylabel="resolution γ")
    color_bar(ax, shown, "AMI of seeds\nless null")
    return ax


def choice_map(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the coupling under every other choice, crossed out where sign or significance differ from the default's.

    Args:
        data: The communities analysis's Dataset with `grid_rho` (ablated, half, edges, neighbours, method, factor) and
            `agrees` (half, edges, neighbours, method, factor).
        ax: Where to draw.

    Returns:
        The Axes: half, edges and neighbours down, algorithm and resolution across; colour is the mean ρ over layers.
    """
    ax, _ = axes_or_new(ax)
    rho = pooled_choices(data)
    reach = max(0.05, float(np.abs(rho).max()))
    down, across = ("half", "edges", "neighbours"), ("method", "factor")
    shape = (-1, rho.sizes["method"] * rho.sizes["factor"])
    shown = _heat(ax, rho.transpose(*down, *across).values.reshape(shape), reach)
    differs = ~data["agrees"].transpose(*down, *across).values.reshape(shape)
    row, column = np.nonzero(differs)
    ax.scatter(column, row, marker="x", s=16, color=BLACK, lw=0.8)
    ax.invert_yaxis()
    words = rho.stack(row=down)["row"].values
    ax.set_yticks(np.arange(len(words)), [f"{half[-1].upper()}, {edges}, {k}" for half, edges, k in words])
    columns = rho.stack(column=across)["column"].values
    ax.set_xticks(np.arange(len(columns)), [f"{factor:g}γ" for _, factor in columns])
    factors = rho.sizes["factor"]
    for place, method in enumerate(rho["method"].values.tolist()):
        ax.text((place + 0.5) * factors - 0.5, -0.7, method, ha="center", va="bottom")
        ax.axvline(place * factors - 0.5, color="white", lw=2)
    for place in range(rho.sizes["neighbours"], len(words), rho.sizes["neighbours"]):
        ax.axhline(place - 0.5, color="white", lw=2)
    ax.set(xlabel="algorithm and resolution", ylabel="half of the text, edges, neighbours")
    color_bar(ax, shown, "mean ρ")
    return ax


def pooled_choices(data: xr.Dataset) -> xr.DataArray:
    """Average the coupling over the ablated layers, on Fisher's scale, under every other choice.

    Args:
        data: The Dataset with `grid_rho`.

    Returns:
        (half, edges, neighbours, method, factor); a layer in which one community holds all nodes counts as 0.
    """
    rho = data["grid_rho"].fillna(0.0).transpose("ablated", ...)
    return rho[0].copy(data=fisher_mean(rho.values, axis=0)).drop_vars("ablated")


def amplification_map(data: xr.Dataset, measure: str, matrix: Literal["J", "K"] = "K", ax: Axes | None = None) -> Axes:
    """Draw what a block does to its largest communities, in standard deviations of random sets of as many nodes.

    Args:
        data: The communities analysis's Dataset with `community_z` (matrix, amplification, layer, largest).
        measure: One of `amplification`.
        matrix: "K" (the update's Jacobian) or "J" (the state's).
        ax: Where to draw.

    Returns:
        The Axes: layers across, communities by size upwards; 0, the null: a random set. All measures have one scale.
    """
    ax, _ = axes_or_new(ax)
    z = data["community_z"].sel(matrix=matrix, amplification=measure).transpose("largest", "layer").values
    ax.set_facecolor("#EEEEEE")
    shown = _heat(ax, z[np.isfinite(z).any(axis=1)], SCALE)
    _layer_ticks(ax, data)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="block", ylabel="community, by size")
    ax.set_title(measure.replace("_", " "), loc="left")
    color_bar(ax, shown, "z", extend="both")
    return ax


def community_flow(data: xr.Dataset, layers: Sequence[int], ax: Axes | None = None) -> Axes:
    """Draw how nodes pass between the communities of some layers: a bar a community, a band for those that two share.

    Args:
        data: The communities analysis's Dataset with `community` (view, layer, node).
        layers: Which blocks, ascending.
        ax: Where to draw.

    Returns:
        The Axes: the largest communities from below in the colours of the other figures, the rest in grey on top.
    """
    ax, _ = axes_or_new(ax)
    found = data["community"].sel(view="model", layer=list(layers)).transpose("layer", "node").values
    labels = np.where(
        (found < 0) | (found > len(COMMUNITY_COLORS)), len(COMMUNITY_COLORS), found
    )  # the last of `palette`: the rest
    palette, half = [*COMMUNITY_COLORS, REST], 0.07
    sizes = np.stack([np.bincount(one, minlength=len(palette)) for one in labels])
    gap = 0.015 * labels.shape[1]
    bottom = np.cumsum(np.column_stack([np.zeros(len(layers)), sizes[:, :-1] + gap * (sizes[:, :-1] > 0)]), axis=1)
    for place, kind in np.argwhere(sizes > 0).tolist():
        corner = (place - half, float(bottom[place, kind]))
        ax.add_patch(Rectangle(corner, 2 * half, float(sizes[place, kind]), color=palette[kind], lw=0))
    for place in range(len(layers) - 1):
        left, right = bottom[place].copy(), bottom[place + 1].copy()
        shared = np.zeros((len(palette), len(palette)), dtype=np.int64)
        np.add.at(shared, (labels[place], labels[place + 1]), 1)
        for source, target in np.argwhere(shared > 0).tolist():
            height = float(shared[source, target])
            ends = (place + half, left[source]), (place + 1 - half, right[target])
            ax.add_patch(_band(*ends, height, palette[source]))
            left[source] += height
            right[target] += height
    ax.set_xlim(-0.15, len(layers) - 0.85)
    ax.set_ylim(0, float((bottom[:, -1] + sizes[:, -1]).max()))
    ax.set_xticks(np.arange(len(layers)), [str(layer) for layer in layers])
    ax.set(xlabel="block", ylabel=f"{NODE_NAMES[data.attrs['nodes']]}s")
    ax.set_yticks([])
    return ax


def _null(data: xr.Dataset, name: str) -> Interval:
    """Mean and middle 95 % of the null graphs."""
    return middle_of(data[name].transpose("null_draw", "layer").values)


def _with_resamples(ax: Axes, data: xr.Dataset, name: str, resampled: str, style: Style) -> None:
    """The values by layer, in a band for 95 % of the resamples, where there are any."""
    draws = data[f"resampled_{resampled}"].transpose("resample", "layer").values
    if len(draws):
        curve(ax, data["layer"], replace(middle_of(draws), estimate=data[name].values), style)
    else:
        line(ax, data["layer"], data[name], style)


def _band(start: tuple[float, float], end: tuple[float, float], height: float, color: str) -> PathPatch:
    """A band of constant height that leaves and arrives level."""
    (x0, y0), (x1, y1) = start, end
    half = (x0 + x1) / 2
    corners = [(x0, y0), (half, y0), (half, y1), (x1, y1), (x1, y1 + height), (half, y1 + height), (half, y0 + height)]
    corners += [(x0, y0 + height), (x0, y0)]
    curve4 = [Path.CURVE4] * 3
    codes = [Path.MOVETO, *curve4, Path.LINETO, *curve4, Path.CLOSEPOLY]
    return PathPatch(Path(corners, codes), facecolor=color, alpha=0.4, lw=0)


def _heat(ax: Axes, values: Floats, reach: float) -> AxesImage:
    """A heat map on a diverging scale around 0; missing values stay blank."""
    return ax.imshow(values, origin="lower", aspect="auto", cmap="RdBu_r", vmin=-reach, vmax=reach, rasterized=True)


def _layer_ticks(ax: Axes, data: xr.Dataset) -> None:
    """The blocks' own numbers under columns that are drawn side by side."""
    layer = data["layer"].values
    step = max(1, round(len(layer) / 6))
    ax.set_xticks(np.arange(0, len(layer), step), layer[::step])
