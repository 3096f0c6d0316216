"""Panels of the product of Jacobians over depth: the bottleneck and its nulls, Lyapunov exponents, subspaces."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from probe.analyses.dynamics.panels.spectral import VARIANT_STYLES, bounded, by_variant
from probe.plots.pages import axes_or_new
from probe.plots.style import (
    BLACK,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    Style,
    curve,
    finish,
    geometric_mean,
    median_over_documents,
    null_line,
    positive_median,
)

NULL_STYLES = {
    "norm_matched": Style("random K of equal norm", BLACK, "", "--"),
    "shuffled_depth": Style("blocks in random order", GREY, "*", "-."),
    "schur_shuffle": Style("schur_shuffle", RED, "^"),
    "schur_normal": Style("schur_normal, own ‖K‖", GREEN, "v", ":"),
    "schur_normal_matched": Style("schur_normal, equal ‖K‖", GREEN, "v"),
    "schur_normal_transposed": Style("schur_normal of Kᵀ", SKY, "<", "--"),
    "schur_normal_rotated": Style("schur_normal of rotated K", ORANGE, ">", "--"),
    "symmetrised": Style("J symmetrised", PINK, "s"),
    "symmetrised_ov": Style("W_O W_V symmetrised", ORANGE, "P", "-."),
}
INDEX_MARKERS = "os^vD<>*PXdh"
DEPTH = "blocks multiplied"


def bottleneck(data: xr.Dataset, nulls: Sequence[str] = (), *, variants: bool = True, ax: Axes | None = None) -> Axes:
    """Draw the participation ratio of J_l ⋯ J_1 over d, by depth.

    Args:
        data: The dynamics analysis's Dataset with `product_participation_ratio` and, for nulls,
            `null_participation_ratio`.
        nulls: Keys of `NULL_STYLES`, drawn where they were measured.
        variants: Draw the token alone and the controls beside the model.
        ax: Where to draw.

    Returns:
        The Axes; random products collapse too: the nulls and the controls are the lines to compare with.
    """
    ax, own = axes_or_new(ax)
    return _score_over_width(ax, data, "participation_ratio", nulls, variants=variants, legend=own)


def effective_rank_of_product(data: xr.Dataset, nulls: Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """Draw the effective rank of J_l ⋯ J_1 over d, by depth.

    Args:
        data: The dynamics analysis's Dataset with `product_effective_rank` and, for nulls, `null_effective_rank`.
        nulls: Keys of `NULL_STYLES`, drawn where they were measured.
        ax: Where to draw.

    Returns:
        The Axes; nulls as in `bottleneck`.
    """
    ax, own = axes_or_new(ax)
    return _score_over_width(ax, data, "effective_rank", nulls, variants=True, legend=own)


def lyapunov(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw finite-depth Lyapunov exponents ln σ_i / l by depth, for some i.

    Args:
        data: The dynamics analysis's Dataset with `lyapunov_exponent`.
        ax: Where to draw.

    Returns:
        The Axes; the null is 0, neither growth nor decay.
    """
    ax, own = axes_or_new(ax)
    numbers = data["exponent"].values.tolist()[:-1]  # the last is so far below that it would flatten the others
    chosen = numbers if len(numbers) <= 7 else numbers[::2]
    colors = [to_hex(color) for color in matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(chosen)))]
    for place, (number, color) in enumerate(zip(chosen, colors, strict=True)):
        values = data["lyapunov_exponent"].sel(exponent=number)
        style = Style(f"i = {number}", color, INDEX_MARKERS[place % len(INDEX_MARKERS)])
        curve(ax, data["depth"], median_over_documents(data, values), style)
    ax.axhline(0, color=GREY, lw=0.5)
    return finish(ax, "ln σ_i / l (nats a block)", legend=own, xlabel=DEPTH)


def subspace_overlap(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the overlap of the product's top right singular subspace with that one block before, by depth.

    Args:
        data: The dynamics analysis's Dataset with `product_overlap`, missing at the first depth.
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: k/d, what unrelated subspaces share.
    """
    ax, own = axes_or_new(ax)
    later = data.isel(depth=slice(1, None))
    styles = dict(zip(data["k"].values.tolist(), ((BLACK, "o"), (RED, "^"), (SKY, "D")), strict=False))
    for k, (color, marker) in styles.items():
        interval = median_over_documents(later, later["product_overlap"].sel(k=k))
        curve(ax, later["depth"], interval, Style(f"k = {k}", color, marker))
        null_line(ax, k / data.attrs["d_model"], color=color)
    ax.set_ylim(0, 1.02)
    return finish(ax, "‖VₖᵀVₖ′‖² / k", legend=own, xlabel=DEPTH)


def mean_products(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw participation ratios over d: product of averages, average of products, and the median of single products.

    Args:
        data: The dynamics analysis's Dataset with `product_of_averages` and `average_of_products`.
        ax: Where to draw.

    Returns:
        The Axes; no null, ways to average are compared.
    """
    ax, own = axes_or_new(ax)
    width, n = data.attrs["d_model"], int(data.attrs["n_mean_windows"])
    values = data["product_participation_ratio"].sel(variant="model") / width
    curve(ax, data["depth"], positive_median(data, values), VARIANT_STYLES["model"])
    for name, style in (
        ("product_of_averages", Style("product of averages", BLACK, "X", "--")),
        ("average_of_products", Style("average of products", PINK, "P", "-.")),
    ):
        curve(ax, data["depth"], bounded(data[name] / width, n), style)
    return finish(ax, "participation ratio / d", log=True, legend=own, xlabel=DEPTH)


def singular_growth(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the root-mean-square growth ‖J_l ⋯ J_1‖_F / √d by depth.

    Args:
        data: The dynamics analysis's Dataset with `product_log_norm`.
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: 1, which keeps lengths on average.
    """
    ax, own = axes_or_new(ax)
    by_variant(ax, data, np.exp(data["product_log_norm"]) / data.attrs["d_model"] ** 0.5, along="depth", positive=True)
    null_line(ax, 1.0, "length kept")
    return finish(ax, "‖C‖_F / √d", log=True, legend=own, xlabel=DEPTH)


def _score_over_width(
    ax: Axes, data: xr.Dataset, score: str, nulls: Sequence[str], *, variants: bool, legend: bool
) -> Axes:
    """A score of J_l ⋯ J_1 over d by depth, and that of the products that take its place."""
    width = data.attrs["d_model"]
    shown = data if variants else data.sel(variant=["model"])
    by_variant(ax, shown, shown[f"product_{score}"] / width, along="depth", positive=True)
    for null in nulls:
        if "null" in data.coords and null in data["null"].values:
            values = data[f"null_{score}"].sel(null=null)
            one = geometric_mean(values, "draw") if "draw" in values.dims else values
            curve(ax, data["depth"], positive_median(data, one / width), NULL_STYLES[null])
    return finish(ax, f"{score.replace('_', ' ')} / d", log=True, legend=legend, xlabel=DEPTH)
