"""Panels of the product of Jacobians over depth: the bottleneck and its nulls, Lyapunov exponents, subspaces."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from probe.inference import Interval
from probe.plots.spectral import VARIANT_STYLES, by_variant, positive_median
from probe.plots.style import (
    BLACK,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    Style,
    axes_or_new,
    curve,
    finish,
    geometric_mean,
    line,
    median_over_documents,
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


def bottleneck(data: xr.Dataset, nulls: Sequence[str] = (), *, variants: bool = True, ax: Axes | None = None) -> Axes:
    """Participation ratio of J_l ⋯ J_1 over d, by depth.

    Args:
        data: The dynamics analysis's Dataset with `product_participation_ratio`.
        nulls: Keys of `NULL_STYLES`, drawn where they were measured.
        variants: Draw the token alone and the controls beside the model.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    shown = data if variants else data.sel(variant=["model"])
    by_variant(ax, shown, shown["product_participation_ratio"] / data.attrs["d_model"], along="depth", positive=True)
    for null in nulls:
        if "null" in data.coords and null in data["null"].values:
            values = geometric_mean(data["null_participation_ratio"].sel(null=null), "draw")
            interval = positive_median(data, values / data.attrs["d_model"])
            curve(ax, data, interval, NULL_STYLES[null], along="depth")
    finish(ax, "participation ratio / d", log=True, legend=own, xlabel="blocks multiplied")
    return ax


def effective_rank_of_product(data: xr.Dataset, nulls: Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """Effective rank of J_l ⋯ J_1 over d, by depth.

    Args:
        data: The dynamics analysis's Dataset with `product_effective_rank`.
        nulls: Keys of `NULL_STYLES`, drawn where they were measured.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    by_variant(ax, data, data["product_effective_rank"] / data.attrs["d_model"], along="depth", positive=True)
    for null in nulls:
        if "null" in data.coords and null in data["null"].values:
            values = data["null_effective_rank"].sel(null=null) / data.attrs["d_model"]
            curve(ax, data, positive_median(data, values), NULL_STYLES[null], along="depth")
    finish(ax, "effective rank / d", log=True, legend=own, xlabel="blocks multiplied")
    return ax


def lyapunov(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Finite-depth Lyapunov exponents ln σ_i / l by depth, for some i.

    Args:
        data: The dynamics analysis's Dataset with `lyapunov_exponent`.
        ax: Where to draw.

    Returns:
        The Axes; above 0 the direction grows.
    """
    ax, own = axes_or_new(ax)
    numbers = data["exponent"].values.tolist()[:-1]  # the last is so far below that it would flatten the others
    chosen = numbers if len(numbers) <= 7 else numbers[::2]
    colors = [to_hex(color) for color in matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(chosen)))]
    for place, (number, color) in enumerate(zip(chosen, colors, strict=True)):
        values = data["lyapunov_exponent"].sel(exponent=number)
        style = Style(f"i = {number}", color, INDEX_MARKERS[place % len(INDEX_MARKERS)])
        curve(ax, data, median_over_documents(data, values), style, along="depth")
    ax.axhline(0, color=GREY, lw=0.5)
    finish(ax, "ln σ_i / l (nats a block)", legend=own, xlabel="blocks multiplied")
    return ax


def subspace_overlap(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Overlap of the product's top right singular subspace with that one block before, by depth.

    Args:
        data: The dynamics analysis's Dataset with `product_overlap`.
        ax: Where to draw.

    Returns:
        The Axes; dotted, k/d, what unrelated subspaces share.
    """
    ax, own = axes_or_new(ax)
    later = data.isel(depth=slice(1, None))
    styles = dict(zip(data["k"].values.tolist(), ((BLACK, "o"), (RED, "^"), (SKY, "D")), strict=False))
    for k, (color, marker) in styles.items():
        interval = median_over_documents(later, later["product_overlap"].sel(k=k))
        curve(ax, later, interval, Style(f"k = {k}", color, marker), along="depth")
        ax.axhline(k / data.attrs["d_model"], color=color, lw=1, ls=(0, (1, 1)))
    finish(ax, "‖VₖᵀVₖ′‖² / k", legend=own, xlabel="blocks multiplied")
    ax.set_ylim(0, 1.02)
    return ax


def mean_products(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Participation ratio over d: product of averages, average of products, and the median of single products.

    Args:
        data: The dynamics analysis's Dataset with `product_of_averages` and `average_of_products`.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    width, n = data.attrs["d_model"], int(data.attrs["n_mean_windows"])
    values = data["product_participation_ratio"].sel(variant="model") / width
    curve(ax, data, positive_median(data, values), VARIANT_STYLES["model"], along="depth")
    for name, style in (
        ("product_of_averages", Style("product of averages", BLACK, "X", "--")),
        ("average_of_products", Style("average of products", PINK, "P", "-.")),
    ):
        ends = data[name].transpose("bound", "depth").values / width
        curve(ax, data, Interval(ends[0], ends[1], ends[2], n, "jackknife"), style, along="depth")
    finish(ax, "participation ratio / d", log=True, legend=own, xlabel="blocks multiplied")
    return ax


def singular_growth(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Root-mean-square growth ‖J_l ⋯ J_1‖_F / √d by depth.

    Args:
        data: The dynamics analysis's Dataset with `product_log_norm`.
        ax: Where to draw.

    Returns:
        The Axes; 1 keeps lengths on average.
    """
    ax, own = axes_or_new(ax)
    by_variant(ax, data, np.exp(data["product_log_norm"]) / data.attrs["d_model"] ** 0.5, along="depth", positive=True)
    line(ax, data["depth"].values, np.ones(data.sizes["depth"]), Style("length kept", GREY, "", ":"))
    finish(ax, "‖C‖_F / √d", log=True, legend=own, xlabel="blocks multiplied")
    return ax
