"""Panels of communities of nodes: their graphs, and the coupling of a node's place among them and its gain.

The Dataset is that of the communities analysis as its `summarised` returns it: with the coupling `rho` of every view.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from probe.inference import Interval
from probe.plots.networks import LARGEST, SMALLEST, community_colors, nodes_and_links
from probe.plots.pages import axes_or_new, legend_below
from probe.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    Style,
    band,
    curve,
    finish,
    median_over_documents,
    middle_of,
    null_line,
    of_kind,
    plain_log,
    range_of,
)

OWN = Style("the model", BLUE, "o")
VIEW_STYLES = {
    "init": Style("fresh initialisations", ORANGE, "s", "--"),
    "basis": Style("random bases", GREEN, "^", ":"),
    "symmetrised": Style("K symmetrised", PINK, "D", "-."),
}
PERMUTED = "permuted places, 99 % point"
CONTROLS = {
    "model": "the model",
    "init": "fresh initialisations",
    "symmetrised": "K symmetrised",
    "basis": "random orthogonal bases",
    "no_outliers": "without outlier coordinates",
}


def node_gain(data: xr.Dataset, layer: int, view: str = "model") -> Float[np.ndarray, " node"]:
    """Average the gain of each node, in root mean square, over the tokens at which the view was measured.

    Args:
        data: The Dataset.
        layer: The block.
        view: Which view.

    Returns:
        ‖K e_i‖.
    """
    square = data["square_gain"].sel(view=view, layer=layer).transpose("node", "query").values.astype(np.float64)
    return np.asarray(np.sqrt(np.nanmean(square, axis=1)))


def gain_scale(gain: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """Scale gains from 0 to 1 so that a few outliers do not stretch it: their logarithm, between its 2 % points.

    Args:
        gain: Positive.

    Returns:
        Values in [0, 1].
    """
    logs = np.log(np.maximum(gain, np.finfo(float).tiny))
    low, high = np.quantile(logs, [0.02, 0.98])
    return np.asarray(np.clip((logs - low) / max(high - low, 1e-12), 0, 1))


def drawn_links(data: xr.Dataset, layer: int) -> tuple[Int[np.ndarray, "link 2"], Float[np.ndarray, " link"]]:
    """Read the links that are drawn of a layer, without the padding.

    Args:
        data: The Dataset with `link` and `link_weight`.
        layer: One of `drawn`.

    Returns:
        Pairs of nodes, and the weights of their links.
    """
    ends = data["link"].sel(drawn=layer).transpose("link_index", "end").values
    kept = (ends >= 0).all(axis=1)
    return ends[kept], data["link_weight"].sel(drawn=layer).values[kept]


def community_graph(data: xr.Dataset, layer: int, ax: Axes | None = None) -> Axes:
    """Draw the graph of a layer's nodes: coloured by community, as large as their gain.

    Args:
        data: The communities analysis's Dataset with `place` (drawn, node, axis), `link` (drawn, link_index, end) and
            `link_weight` (drawn, link_index).
        layer: One of `drawn`.
        ax: Where to draw.

    Returns:
        The Axes; red links are negative correlations. A drawing is no test, and has no null.
    """
    ax, _ = axes_or_new(ax)
    place = data["place"].sel(drawn=layer).transpose("node", "axis").values
    links, weights = drawn_links(data, layer)
    labels = data["community"].sel(view="model", layer=layer).values
    area = SMALLEST + (LARGEST - SMALLEST) * gain_scale(node_gain(data, layer))
    nodes_and_links(ax, place, links, weights, area, community_colors(labels))
    ax.set_title(f"block {layer}: {_count(labels)} communities", loc="left")
    return ax


def place_against_gain(data: xr.Dataset, layer: int, ax: Axes | None = None) -> Axes:
    """Draw the participation coefficient of each node against its gain, with the coupling and its null.

    Args:
        data: The communities analysis's Dataset with `participation` (view, layer, node), `permuted_rho` (view, layer,
            permutation) and `rho` (view, layer).
        layer: The block.
        ax: Where to draw.

    Returns:
        The Axes; gains are on a logarithmic scale; in the title the null, 95 % of ρ under permuted places.
    """
    ax, _ = axes_or_new(ax)
    own = data.sel(view="model", layer=layer)
    colors = community_colors(own["community"].values)
    gain = node_gain(data, layer)
    ax.scatter(own["participation"], gain, s=7, lw=0, c=colors, alpha=0.8, rasterized=True)
    null = middle_of(np.nan_to_num(own["permuted_rho"].values))
    rho, low, high = (signed(float(value)) for value in (own["rho"], null.low, null.high))
    ax.set_title(f"block {layer}: ρ = {rho}\nnull {low} to {high}", loc="left")
    ax.set(xlabel="participation coefficient", ylabel="gain ‖K eᵢ‖", yscale="log")
    plain_log(ax.yaxis)
    if max(ax.get_ylim()) < 4 * min(ax.get_ylim()):  # too few ticks of a logarithmic axis
        ax.yaxis.set_major_locator(MaxNLocator(4))
    return ax


def rho_by_depth(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the coupling by layer, with its interval, its controls and the band of permuted places.

    Args:
        data: The communities analysis's Dataset with `rho` (view, layer), `permuted_rho` (view, layer, permutation),
            `rho_bounds` (bound, layer), `adjusted_p` and `stable` (layer,).
        ax: Where to draw.

    Returns:
        The Axes; grey, the null: 95 % under permuted places; rings: a significant coupling; crosses: no stable
        communities.
    """
    ax, own = axes_or_new(ax)
    layer = data["layer"]
    permuted = data["permuted_rho"].sel(view="model").transpose("permutation", "layer")
    null = middle_of(np.nan_to_num(permuted.values))
    band(ax, layer, null.low, null.high, GREY, label="permuted places, 95 %")
    for kind, style in VIEW_STYLES.items():
        views = of_kind(data["view"], kind)
        if views:
            curve(ax, layer, range_of(data["rho"].sel(view=views).transpose("view", "layer").values), style)
    rho = data["rho"].sel(view="model").values
    low, high = data["rho_bounds"].transpose("bound", "layer").values
    curve(ax, layer, Interval(rho, low, high, 0, "documents"), OWN)
    significant, stable = data["adjusted_p"].values < 0.05, data["stable"].values
    marks: dict[str, tuple[Bool[np.ndarray, " layer"], dict[str, Any]]] = {
        "significant (Benjamini–Hochberg)": (significant, {"marker": "o", "facecolors": "none", "edgecolors": BLACK}),
        "no stable communities": (~stable, {"marker": "x", "color": RED}),
    }
    for label, (at, look) in marks.items():
        if at.any():
            ax.scatter(layer.values[at], rho[at], s=45, lw=1, zorder=4, label=label, **look)
    ax.axhline(0, color=GREY, lw=0.5)
    return finish(ax, "coupling ρ", legend=own)


def operator_by_depth(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the kind of operator that each block is: antisymmetric and rotation fraction of K by layer.

    Args:
        data: The communities analysis's Dataset with `antisymmetric_fraction` and `rotation_fraction` (layer, query).
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: the antisymmetric fraction of a large random matrix.
    """
    ax, own = axes_or_new(ax)
    for name, style in (
        ("antisymmetric_fraction", Style("antisymmetric fraction", BLUE, "o")),
        ("rotation_fraction", Style("rotation Σ|Im λ| / Σ|λ|", ORANGE, "s", "--")),
    ):
        curve(ax, data["layer"], median_over_documents(data, data[name]), style)
    null_line(ax, 0.5**0.5, "antisymmetric, a random matrix")
    ax.set_ylim(0, max(0.8, ax.get_ylim()[1]))
    return finish(ax, "fraction of K", legend=own)


def pooled_controls(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the pooled coupling of the model and of every control, with intervals.

    Args:
        table: A row a control with `view`, `√A`, `√A, low` and `√A, high`; the row `PERMUTED` is the null line.
        ax: Where to draw.

    Returns:
        The Axes; dashed, the null: the 99 % point of permuted places. Left of 0 is less than they reach on average.
    """
    ax, _ = axes_or_new(ax)
    null = table["view"] == PERMUTED
    rows = table[~null].iloc[::-1]
    middle, low, high = (rows[name].to_numpy(dtype=np.float64) for name in ("√A", "√A, low", "√A, high"))
    place = np.arange(len(rows))
    ax.hlines(place, low, high, color=BLUE, lw=1.5)
    ax.plot(middle, place, "o", color=BLUE, ms=5)
    for value in table.loc[null, "√A"]:
        ax.axvline(value, color=BLACK, lw=1, ls="--", label=PERMUTED)
    ax.axvline(0, color=GREY, lw=0.5)
    ax.set_yticks(place, rows["view"])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set(xlabel="√A (with A's sign)")
    if null.any():
        legend_below(ax)
    return ax


def signed(value: float) -> str:
    """Write a correlation with two digits and its sign.

    Args:
        value: The correlation.

    Returns:
        For example "−0.21".
    """
    return f"{value:+.2f}".replace("-", "−")


def _count(labels: Int[np.ndarray, " node"]) -> int:
    return len(np.unique(labels[labels >= 0]))
