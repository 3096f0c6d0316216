"""Panels of what each block's Jacobian is: scores by depth, eigenvalues, pseudospectra, coupling of the blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from probe.inference import Interval
from probe.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    Floats,
    Style,
    axes_or_new,
    curve,
    finish,
    line,
    median_over_documents,
)

VARIANT_STYLES = {
    "model": Style("the model", BLUE, "o"),
    "alone": Style("token alone", SKY, "D", "--"),
    "init": Style("fresh initialisations", ORANGE, "s", "--"),
    "shuffled": Style("shuffled weights", GREEN, "^", ":"),
}
LABELS = {
    "antisymmetric_fraction": "antisymmetric fraction",
    "henrici_departure": "Henrici departure",
    "rotation_fraction": "rotation Σ|Im λ| / Σ|λ|",
    "complex_fraction": "complex eigenvalues (share)",
    "commutator_norm": "commutator norm",
    "numerical_abscissa": "numerical abscissa",
    "spectral_abscissa": "spectral abscissa",
    "spectral_radius": "spectral radius",
    "frobenius_norm": "‖A‖_F",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "energy_effective_rank": "energy effective rank",
    "participation_ratio": "participation ratio",
}
SIZES = frozenset(name for name in LABELS if name.endswith(("norm", "radius", "rank", "ratio"))) - {"commutator_norm"}
"""Scores that span orders of magnitude: drawn on a logarithmic scale."""
RANDOM = {"antisymmetric_fraction": 0.5**0.5, "henrici_departure": 0.5**0.5}
"""What a large random matrix has: the dotted lines."""


def variants(data: xr.Dataset, kind: str) -> list[str]:
    """The variants of one kind: the model, the token alone, or all seeds of a control.

    Args:
        data: The dynamics analysis's Dataset.
        kind: A key of `VARIANT_STYLES`.

    Returns:
        Names along `variant`.
    """
    return [name for name in data["variant"].values.tolist() if name == kind or name.startswith(f"{kind}-")]


def positive_median(data: xr.Dataset, values: xr.DataArray) -> Interval:
    """Median over positions of positive values; its interval, made on the scale of logarithms, is positive too.

    Args:
        data: The Dataset.
        values: Dimensions (..., query).

    Returns:
        Estimate and bounds of shape (...).
    """
    with np.errstate(divide="ignore"):
        logs = median_over_documents(data, values.copy(data=np.log(values.values)))
    estimate, low, high = (np.exp(end) for end in (logs.estimate, logs.low, logs.high))
    return replace(logs, estimate=estimate, low=low, high=high)


def by_variant(
    ax: Axes, data: xr.Dataset, values: xr.DataArray, along: str = "layer", *, positive: bool = False
) -> None:
    """Draw a curve for each kind of variant: a median with its interval, or for several seeds their mean and range.

    Args:
        ax: Where to draw.
        data: The Dataset.
        values: (variant, `along`, query).
        along: The depth coordinate.
        positive: Intervals on the scale of logarithms.
    """
    interval_of = positive_median if positive else median_over_documents
    for kind, style in VARIANT_STYLES.items():
        names = variants(data, kind)
        curves = [interval_of(data, values.sel(variant=name)) for name in names]
        if not names or not np.isfinite(np.asarray([one.estimate for one in curves])).any():
            continue
        if len(names) == 1:
            curve(ax, data, curves[0], style, along=along)
            continue
        seeds = np.stack([np.asarray(one.estimate) for one in curves])
        pooled = Interval(seeds.mean(axis=0), seeds.min(axis=0), seeds.max(axis=0), len(seeds), "range over seeds")
        curve(ax, data, pooled, style, along=along)


def score_by_depth(data: xr.Dataset, score: str, matrix: str = "K", ax: Axes | None = None) -> Axes:
    """A score by layer: the model's median with its interval, and every control.

    Args:
        data: The dynamics analysis's Dataset.
        score: A key of `LABELS`.
        matrix: "K" (the update's Jacobian) or "J" (the state's).
        ax: Where to draw.

    Returns:
        The Axes; dotted, where it is known, what a large random matrix has.
    """
    ax, own = axes_or_new(ax)
    large = score in SIZES
    by_variant(ax, data, data[score].sel(matrix=matrix), positive=large)
    null = 1 - (2 / (np.pi * data.attrs["d_model"])) ** 0.5 if score == "complex_fraction" else RANDOM.get(score)
    if null is not None:
        ax.axhline(null, color=GREY, lw=1, ls=(0, (1, 1)), label="a random matrix")
    finish(ax, f"{LABELS[score]} of {matrix}", log=large, legend=own)
    return ax


def mean_score_by_depth(data: xr.Dataset, score: str, matrix: str = "K", ax: Axes | None = None) -> Axes:
    """A score of the mean matrix beside the median of the scores of its terms.

    Args:
        data: The dynamics analysis's Dataset with `mean_SCORE`.
        score: A key of `LABELS`.
        matrix: "K" or "J".
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    values = data[score].sel(matrix=matrix, variant="model")
    curve(ax, data, median_over_documents(data, values), VARIANT_STYLES["model"])
    ends = data[f"mean_{score}"].sel(matrix=matrix).transpose("bound", "layer").values
    mean = Interval(ends[0], ends[1], ends[2], int(data.attrs["n_mean_windows"]), "jackknife")
    curve(ax, data, mean, Style("mean matrix", BLACK, "X", "--"))
    finish(ax, f"{LABELS[score]} of {matrix}", legend=own)
    return ax


def eigenvalue_cloud(data: xr.Dataset, layer: int, ax: Axes | None = None) -> Axes:
    """Eigenvalues of one block's K in the complex plane, at a few positions.

    Args:
        data: The dynamics analysis's Dataset with `eigenvalue_real` and `eigenvalue_imaginary`.
        layer: The block.
        ax: Where to draw.

    Returns:
        The Axes; a unit of length is the same along both axes.
    """
    ax, _ = axes_or_new(ax)
    real, imaginary = (data[f"eigenvalue_{part}"].sel(layer=layer).values.ravel() for part in ("real", "imaginary"))
    ax.axhline(0, color=GREY, lw=0.5)
    ax.axvline(0, color=GREY, lw=0.5)
    ax.scatter(real, imaginary, s=3, lw=0, alpha=0.5, color=BLUE, rasterized=True)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_title(f"block {layer}", loc="left")
    ax.set(xlabel="Re λ(K)", ylabel="Im λ(K)")
    return ax


def pseudospectrum(data: xr.Dataset, layer: int, ax: Axes | None = None) -> Axes:
    """Level lines of σ_min(zI − K) around the eigenvalues of one block's K.

    Args:
        data: The dynamics analysis's Dataset with `pseudospectrum_sigma_min`.
        layer: The block, one of `chosen`.
        ax: Where to draw.

    Returns:
        The Axes; of a normal matrix the lines are circles of radius ε around the eigenvalues.
    """
    ax, _ = axes_or_new(ax)
    one = data.sel(chosen=layer)
    real, imaginary = one["pseudospectrum_real"].values, one["pseudospectrum_imaginary"].values
    sigma = np.maximum(one["pseudospectrum_sigma_min"].transpose("imaginary", "real").values, 1e-16)
    height = np.concatenate([-imaginary[:0:-1], imaginary])  # K is real: symmetric about the real axis
    both = np.concatenate([sigma[:0:-1], sigma])
    levels = 10.0 ** np.arange(np.floor(np.log10(sigma.min())), np.ceil(np.log10(sigma.max())) + 0.1, 0.5)[-8:]
    drawn = ax.contour(real, height, both, levels=levels, norm=LogNorm(levels[0], levels[-1]), cmap="viridis")
    values = one["pseudospectrum_spectrum"].transpose("index", "part").values
    ax.scatter(values[:, 0], values[:, 1], s=3, lw=0, color=BLACK, rasterized=True)
    figure: Any = ax.get_figure(root=True)
    bar = figure.colorbar(drawn, ax=ax, shrink=0.8, extendfrac=0)
    bar.ax.set_title("ε", fontsize=9)
    bar.ax.minorticks_off()
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_title(f"block {layer}: Kreiss constant ≥ {float(one['kreiss_constant']):.3g}", loc="left")
    ax.set(xlabel="Re z", ylabel="Im z")
    return ax


def coupling(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """How far each block's K is from diagonal in another block's leading singular vectors.

    Args:
        data: The dynamics analysis's Dataset with `coupling`.
        ax: Where to draw.

    Returns:
        The Axes; 0 is perfect coupling, unrelated blocks give about 1. The diagonal, 0 by definition, is left out.
    """
    ax, _ = axes_or_new(ax)
    measured: Floats = data["coupling"].transpose("block", "other_block", "query").values
    median = np.nanmedian(measured[..., np.isfinite(measured).any(axis=(0, 1))], axis=-1)
    np.fill_diagonal(median, np.nan)  # 0 by definition
    shown = ax.imshow(median, origin="lower", cmap="viridis_r", vmax=1.0)
    figure: Any = ax.get_figure(root=True)
    bar = figure.colorbar(shown, ax=ax, shrink=0.8, extend="max")
    bar.set_label("distance from coupling")
    ax.set(xlabel="singular vectors of block j", ylabel="K of block i")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return ax


def eigenvector_condition(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Condition number of K's eigenvectors by layer, a thin line a window and their median.

    Args:
        data: The dynamics analysis's Dataset with `eigenvector_condition`.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    return _windows(data, "eigenvector_condition", "κ₂ of K's eigenvectors", True, ax)


def polar_rotation(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Mean rotation angle of J's orthogonal polar factor by layer, a thin line a window and their median.

    Args:
        data: The dynamics analysis's Dataset with `polar_rotation`.
        ax: Where to draw.

    Returns:
        The Axes, in degrees.
    """
    return _windows(
        data.assign(polar_rotation=np.rad2deg(data["polar_rotation"])),
        "polar_rotation",
        "polar rotation of J (degrees)",
        False,
        ax,
    )


def _windows(data: xr.Dataset, name: str, label: str, log: bool, ax: Axes | None) -> Axes:
    ax, own = axes_or_new(ax)
    values = data[name].transpose("eigenvector_window", "layer").values
    finite = np.where(np.isfinite(values), values, np.nan)
    for one in finite:
        ax.plot(data["layer"], one, color=BLUE, lw=0.5, alpha=0.4)
    line(ax, data["layer"].values, np.nanmedian(finite, axis=0), VARIANT_STYLES["model"])
    finish(ax, label, log=log, legend=own)
    return ax
