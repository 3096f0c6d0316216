"""Panels of each block's Jacobian: scores by depth, eigenvalues, pseudospectra, coupling of the blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from probe.inference import Interval
from probe.plots.pages import axes_or_new, color_bar
from probe.plots.planes import level_lines, scatter_plane
from probe.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    SKY,
    Floats,
    Style,
    curve,
    finish,
    line,
    median_over_documents,
    null_line,
    of_kind,
    positive_median,
    range_of,
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


def random_matrix(score: str, d: int) -> float | None:
    """Know a score of the null, a large random matrix: d × d independent entries of one normal distribution.

    Args:
        score: A key of `LABELS`.
        d: Its width.

    Returns:
        The score; None where it depends on the scale of the entries, or is not known.
    """
    known = {"complex_fraction": 1 - (2 / (np.pi * d)) ** 0.5}
    known |= dict.fromkeys(("antisymmetric_fraction", "henrici_departure"), 0.5**0.5)
    return known.get(score)


def bounded(ends: xr.DataArray, n_windows: int) -> Interval:
    """Read the jackknife interval of a mean over windows.

    Args:
        ends: (bound, ...): estimate, low, high.
        n_windows: Number of windows in the mean.

    Returns:
        Estimate and bounds of shape (...).
    """
    estimate, low, high = ends.transpose("bound", ...).values
    return Interval(estimate, low, high, n_windows, "jackknife")


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
    interval_of: Callable[[xr.Dataset, xr.DataArray], Interval] = positive_median if positive else median_over_documents
    for kind, style in VARIANT_STYLES.items():
        curves = [interval_of(data, values.sel(variant=name)) for name in of_kind(data["variant"], kind)]
        middle = np.array([one.estimate for one in curves])
        if np.isfinite(middle).any():
            curve(ax, data[along], curves[0] if len(curves) == 1 else range_of(middle), style)


def score_by_depth(data: xr.Dataset, score: str, matrix: str = "K", ax: Axes | None = None) -> Axes:
    """Draw a score by layer: the model's median with its interval, and every control.

    Args:
        data: The dynamics analysis's Dataset.
        score: A key of `LABELS`.
        matrix: "K" (the update's Jacobian) or "J" (the state's).
        ax: Where to draw.

    Returns:
        The Axes; dotted, where it is known, the null: a large random matrix. Controls are nulls too.
    """
    ax, own = axes_or_new(ax)
    large = score in SIZES
    by_variant(ax, data, data[score].sel(matrix=matrix), positive=large)
    null = random_matrix(score, int(data.attrs["d_model"]))
    if null is not None:
        null_line(ax, null, "a random matrix")
    return finish(ax, f"{LABELS[score]} of {matrix}", log=large, legend=own)


def mean_score_by_depth(data: xr.Dataset, score: str, matrix: str = "K", ax: Axes | None = None) -> Axes:
    """Draw a score of the mean matrix beside the median of the scores of its terms.

    Args:
        data: The dynamics analysis's Dataset with `mean_SCORE`.
        score: A key of `LABELS`.
        matrix: "K" or "J".
        ax: Where to draw.

    Returns:
        The Axes; no null, two ways to average are compared.
    """
    ax, own = axes_or_new(ax)
    values = data[score].sel(matrix=matrix, variant="model")
    curve(ax, data["layer"], median_over_documents(data, values), VARIANT_STYLES["model"])
    mean = bounded(data[f"mean_{score}"].sel(matrix=matrix), int(data.attrs["n_mean_windows"]))
    curve(ax, data["layer"], mean, Style("mean matrix", BLACK, "X", "--"))
    return finish(ax, f"{LABELS[score]} of {matrix}", legend=own)


def eigenvalue_cloud(data: xr.Dataset, layer: int, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of one block's K in the complex plane, at a few positions.

    Args:
        data: The dynamics analysis's Dataset with `eigenvalue_real` and `eigenvalue_imaginary`.
        layer: The block.
        ax: Where to draw.

    Returns:
        The Axes; a unit of length is the same along both axes. The null, a random matrix, fills a disc evenly.
    """
    ax, _ = axes_or_new(ax)
    real, imaginary = (data[f"eigenvalue_{part}"].sel(layer=layer).values.ravel() for part in ("real", "imaginary"))
    scatter_plane(ax, real + 1j * imaginary, BLUE)
    ax.set_title(f"block {layer}", loc="left")
    ax.set(xlabel="Re λ(K)", ylabel="Im λ(K)")
    return ax


def pseudospectrum(data: xr.Dataset, layer: int, ax: Axes | None = None) -> Axes:
    """Draw level lines of σ_min(zI − K) around the eigenvalues of one block's K.

    Args:
        data: The dynamics analysis's Dataset with `pseudospectrum_*`: σ_min, the grid, and the eigenvalues.
        layer: The block, one of `chosen`.
        ax: Where to draw.

    Returns:
        The Axes; of a normal matrix the lines are circles of radius ε around the eigenvalues.
    """
    ax, _ = axes_or_new(ax)
    one = data.sel(chosen=layer)
    real, imaginary = one["pseudospectrum_real"].values, one["pseudospectrum_imaginary"].values
    level_lines(ax, real, imaginary, one["pseudospectrum_sigma_min"].transpose("imaginary", "real").values)
    values = one["pseudospectrum_spectrum"].transpose("index", "part").values
    ax.scatter(values[:, 0], values[:, 1], s=3, lw=0, color=BLACK, rasterized=True)
    ax.set_title(f"block {layer}: Kreiss constant ≥ {float(one['kreiss_constant']):.3g}", loc="left")
    return ax


def coupling(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the distance of each block's K from diagonal in another block's leading singular vectors.

    Args:
        data: The dynamics analysis's Dataset with `coupling`.
        ax: Where to draw.

    Returns:
        The Axes; 0 is perfect coupling; the null, unrelated blocks, gives about 1. The diagonal, 0 by definition, is
        left out.
    """
    ax, _ = axes_or_new(ax)
    measured: Floats = data["coupling"].transpose("block", "other_block", "query").values
    median = np.nanmedian(measured[..., np.isfinite(measured).any(axis=(0, 1))], axis=-1)
    np.fill_diagonal(median, np.nan)  # 0 by definition
    shown = ax.imshow(median, origin="lower", cmap="viridis_r", vmax=1.0)
    color_bar(ax, shown, "distance from coupling", extend="max")
    ax.set(xlabel="singular vectors of block j", ylabel="K of block i")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return ax


def eigenvector_condition(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the condition number of K's eigenvectors by layer, a thin line a window and their median.

    Args:
        data: The dynamics analysis's Dataset with `eigenvector_condition`.
        ax: Where to draw.

    Returns:
        The Axes; the null is 1, a normal matrix.
    """
    return _windows(data["eigenvector_condition"], "κ₂ of K's eigenvectors", True, ax)


def polar_rotation(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the mean rotation angle of J's orthogonal polar factor by layer, a thin line a window and their median.

    Args:
        data: The dynamics analysis's Dataset with `polar_rotation`, in radians.
        ax: Where to draw.

    Returns:
        The Axes, in degrees; the null is 0, no rotation.
    """
    return _windows(data["polar_rotation"] * (180 / np.pi), "polar rotation of J (degrees)", False, ax)


def _windows(values: xr.DataArray, label: str, log: bool, ax: Axes | None) -> Axes:
    """(eigenvector_window, layer): a thin line a window, and the median of those that are finite."""
    ax, own = axes_or_new(ax)
    finite = values.where(np.isfinite(values)).transpose("eigenvector_window", "layer").values
    for one in finite:
        ax.plot(values["layer"], one, color=BLUE, lw=0.5, alpha=0.4)
    line(ax, values["layer"], np.nanmedian(finite, axis=0), VARIANT_STYLES["model"])
    return finish(ax, label, log=log, legend=own)
