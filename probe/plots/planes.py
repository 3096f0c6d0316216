"""Pictures of spectra: eigenvalues and pseudospectra in the complex plane, singular values by rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Unpack, runtime_checkable

import matplotlib
import numpy as np
from jaxtyping import Complex, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Circle
from matplotlib.typing import ColorType
from torch import Tensor

from probe.boundary import public
from probe.errors import InputError
from probe.plots.canvas import Page, Picture
from probe.plots.pages import color_bar, drawing
from probe.plots.style import BLACK, BLUE, DOTTED, GREY, ORANGE, plain_log
from probe.plots.values import Numbers, array_of

FAINTEST = 1e-16  # of σ_min on a logarithmic scale: below, rounding hides it


@runtime_checkable
class HasEigenvalues(Protocol):
    """An object that knows its eigenvalues, such as `probe.spectra.decompose(J)`."""

    @property
    def eigenvalues(self) -> Complex[Tensor, "*batch d"]:
        """Eigenvalues, (..., d)."""
        ...


@runtime_checkable
class HasSingularValues(Protocol):
    """An object that knows its singular values, such as `probe.spectra.decompose(J)`."""

    @property
    def singular_values(self) -> Float[Tensor, "*batch d"]:
        """Singular values, decreasing, (..., d)."""
        ...


@runtime_checkable
class HasResolvent(Protocol):
    """The smallest singular value of zI − A over a grid of points, as `probe.spectra.pseudospectrum` gives it."""

    @property
    def points(self) -> Complex[Tensor, "*grid"]:
        """The points z."""
        ...

    @property
    def sigma_min(self) -> Float[Tensor, "*values"]:
        """σ_min(zI − A) at each."""
        ...


@public
def eigenvalues(
    of: HasEigenvalues | Numbers,
    *,
    circle: complex | float | int | None = 0,
    by: Sequence[float | int] | None = None,
    by_label: str = "block",
    label: str = "λ",
    title: str = "",
    ax: Axes | None = None,
    **page: Unpack[Page],
) -> Picture:
    """Draw eigenvalues in the complex plane, beside the unit circle.

    Args:
        of: A `Spectrum`, or eigenvalues, (..., d); those of a batch lie on each other.
        circle: Centre of the dotted circle of radius 1: outside it a block enlarges an eigenvector. 0 for the Jacobian
            of a state; −1 for that of an update, whose eigenvalues are λ(J) − 1. None draws none.
        by: A number for each row along the last axis but one, such as its block: the colour of its points.
        by_label: Meaning of these numbers, beside the scale of colours.
        label: Name of an eigenvalue in the labels of the axes.
        title: Title of the panel.
        ax: Where to draw; by default on a new figure.
        **page: Width, height, font and its size of the new figure, see `Page`.

    Returns:
        The picture, of the part of the plane where the eigenvalues lie; a unit of length is the same along both axes.

    Raises:
        InputError: If matrices came, or `by` has not a number for each.
    """
    values = array_of(getattr(of, "eigenvalues", of), "eigenvalues of=")
    if values.ndim > 1 and values.dtype.kind == "f" and values.shape[-1] == values.shape[-2]:
        raise InputError(
            f"eigenvalues must be computed before they are drawn, got real matrices of shape {values.shape}: pass "
            "probe.spectra.decompose(matrices)"
        )
    with drawing(ax, page, width=4.2 if by is None else 4.8, height=3.8) as picture:
        if circle is not None:
            around = Circle((circle.real, circle.imag), 1, fill=False, color=GREY, lw=1, ls=DOTTED)
            picture.ax.add_artist(around)  # a patch would stretch the view to the whole circle
        if by is None:
            scatter_plane(picture.ax, values.ravel(), BLUE)
        else:
            rows = np.moveaxis(np.atleast_2d(values), -2, 0)
            rows = rows.reshape(len(rows), -1)
            shades, scale = _by_number(by, len(rows), "eigenvalues")
            for shade, row in zip(shades, rows, strict=True):
                scatter_plane(picture.ax, row, shade)
            color_bar(picture.ax, scale, by_label)
        picture.ax.set(xlabel=f"Re {label}", ylabel=f"Im {label}")
        picture.ax.set_title(title, loc="left")
    return picture


def scatter_plane(ax: Axes, values: Complex[np.ndarray, " point"], color: ColorType) -> None:
    """Draw points of the complex plane over its two axes, with one unit of length along both.

    Args:
        ax: The Axes.
        values: The points.
        color: Their colour.
    """
    ax.axhline(0, color=GREY, lw=0.5)
    ax.axvline(0, color=GREY, lw=0.5)
    size = 3 if values.size > 200 else 12
    ax.scatter(values.real, values.imag, s=size, lw=0, alpha=0.5, color=[color], rasterized=True)
    ax.set_aspect("equal", adjustable="datalim")


@public
def singular_values(
    of: HasSingularValues | Numbers,
    *,
    by: Sequence[float | int] | None = None,
    by_label: str = "block",
    label: str = "σ",
    title: str = "",
    log: bool = True,
    ax: Axes | None = None,
    **page: Unpack[Page],
) -> Picture:
    """Draw singular values by their rank, largest first; of several matrices a thin line each, and the median.

    Args:
        of: A `Spectrum`, or singular values, (..., rank). Zeros and NaN are left out of a logarithmic scale.
        by: A number for each row along the last axis but one, such as its block: the colour of its line, which is then
            the median over all other axes.
        by_label: Meaning of these numbers, beside the scale of colours.
        label: Name of a singular value in the label of the axis.
        title: Title of the panel.
        log: Whether the vertical axis is logarithmic.
        ax: Where to draw; by default on a new figure.
        **page: Width, height, font and its size of the new figure, see `Page`.

    Returns:
        The picture; dotted, 1: above, lengths grow.

    Raises:
        InputError: If the values are complex, or `by` has not a number for each row.
    """
    values = array_of(getattr(of, "singular_values", of), "singular values of=", range(1, 9))
    if np.iscomplexobj(values):
        raise InputError("singular values must be real, got complex numbers: draw eigenvalues by plots.eigenvalues")
    values = np.where(values > 0, values, np.nan) if log else values
    place = np.arange(1, values.shape[-1] + 1)
    with drawing(ax, page, width=4.2 if by is None else 4.8, height=3.2) as picture:
        panel = picture.ax
        if by is None:
            rows = values.reshape(-1, values.shape[-1])
            if len(rows) > 1:
                panel.plot(place, rows.T, color=BLUE, lw=0.5, alpha=min(1.0, max(0.05, 8 / len(rows))), label="_")
            panel.plot(place, _median(rows), color=ORANGE if len(rows) > 1 else BLUE, label="median")
        else:
            rows = _median(values.reshape(-1, *values.shape[-2:])) if values.ndim > 1 else values[None]
            shades, scale = _by_number(by, len(rows), "singular values")
            for shade, row in zip(shades, rows, strict=True):
                panel.plot(place, row, color=shade)
            color_bar(panel, scale, by_label)
        panel.axhline(1, color=GREY, lw=1, ls=DOTTED)
        panel.set(xlabel="rank", ylabel=label, yscale="log" if log else "linear")
        if log:
            plain_log(panel.yaxis)
        panel.set_title(title, loc="left")
    return picture


@public
def pseudospectrum(
    found: HasResolvent,
    *,
    eigenvalues: HasEigenvalues | Numbers | None = None,
    mirrored: bool = True,
    title: str = "",
    ax: Axes | None = None,
    **page: Unpack[Page],
) -> Picture:
    """Draw level lines of ``σ_min(zI − A)``: inside the line of ε lie all eigenvalues of A + E with ``‖E‖₂ ≤ ε``.

    Args:
        found: From `probe.spectra.pseudospectrum(A, probe.spectra.spectral_grid(A))`, of one matrix.
        eigenvalues: The matrix's `Spectrum` or eigenvalues, drawn as points.
        mirrored: Whether to draw the other half-plane too: of a real matrix both are alike.
        title: Title of the panel.
        ax: Where to draw; by default on a new figure.
        **page: Width, height, font and its size of the new figure, see `Page`.

    Returns:
        The picture; of a normal matrix the lines are circles of radius ε around the eigenvalues.

    Raises:
        InputError: If the points are no grid, or there is more than one matrix.
    """
    points, sigma = array_of(found.points, "points", (2,)), array_of(found.sigma_min, "sigma_min")
    if sigma.size != points.size:
        raise InputError(
            f"a pseudospectrum is drawn of one matrix, got sigma_min of shape {sigma.shape} over {points.shape}: "
            "compute it for one"
        )
    known = None if eigenvalues is None else array_of(getattr(eigenvalues, "eigenvalues", eigenvalues), "eigenvalues")
    with drawing(ax, page, width=4.8, height=3.8) as picture:
        level_lines(picture.ax, points.real[0], points.imag[:, 0], sigma.reshape(points.shape), mirrored=mirrored)
        if known is not None:
            values = known.ravel()
            picture.ax.scatter(values.real, values.imag, s=3, lw=0, color=BLACK, rasterized=True)
        picture.ax.set_title(title, loc="left")
    return picture


def level_lines(
    ax: Axes,
    real: Float[np.ndarray, " x"],
    imaginary: Float[np.ndarray, " y"],
    sigma: Float[np.ndarray, "y x"],
    *,
    mirrored: bool = True,
) -> None:
    """Draw level lines of σ_min over a grid of the complex plane, two a decade, eight at most, and their scale.

    Args:
        ax: The Axes.
        real: Real parts.
        imaginary: Imaginary parts, from 0 up if the other half-plane is to be mirrored.
        sigma: σ_min(zI − A) on the grid.
        mirrored: Whether to draw the half-plane below as well.
    """
    sigma = np.maximum(sigma, FAINTEST)
    if mirrored and imaginary[0] == 0:
        imaginary, sigma = np.concatenate([-imaginary[:0:-1], imaginary]), np.concatenate([sigma[:0:-1], sigma])
    levels = 10.0 ** np.arange(np.floor(np.log10(sigma.min())), np.ceil(np.log10(sigma.max())) + 0.1, 0.5)[-8:]
    drawn = ax.contour(real, imaginary, sigma, levels=levels, norm=LogNorm(levels[0], levels[-1]), cmap="viridis")
    bar = color_bar(ax, drawn)
    bar.ax.set_title("ε", fontsize=matplotlib.rcParams["font.size"])
    bar.ax.minorticks_off()
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel="Re z", ylabel="Im z")


def _median(rows: Float[np.ndarray, row * rest]) -> Float[np.ndarray, "*rest"]:
    """The median of what is there along the first axis; NaN where nothing is."""
    known = np.isfinite(rows).any(axis=0)
    found = np.full(rows.shape[1:], np.nan)
    found[known] = np.nanmedian(rows[:, known], axis=0)
    return found


def _by_number(by: Sequence[float | int], count: int, name: str) -> tuple[list[ColorType], ScalarMappable]:
    """Colours by a number, and their scale."""
    if len(by) != count:
        raise InputError(f"by must have a number for each of {count} rows of {name}, got {len(by)}: pass one for each")
    low, high = float(min(by)), float(max(by))
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), matplotlib.colormaps["viridis"])
    return [tuple(color) for color in scale.to_rgba(np.asarray(by, dtype=np.float64)).tolist()], scale
