"""The resolvent ``(zI − A)⁻¹`` over many points z: pseudospectra and Kreiss constants from one Schur form.

For a triangular T unitarily similar to A, σ_min(zI − A) = σ_min(zI − T), and the largest eigenvalue of
``(zI − T)⁻ᴴ (zI − T)⁻¹`` is found by Lanczos with two triangular solves a step, as EigTool does (Trefethen, *Acta
Numerica* 8, 1999; Trefethen & Embree, *Spectra and Pseudospectra*, 2005, ch. 39). The systems of all points differ in
the diagonal alone: the rest of a solve is one matrix product for all of them, d² · points complex multiplications and
additions, instead of an SVD a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.linalg import rsf2csf
from torch import Tensor
from torch.linalg import vector_norm

from probe import display, plots
from probe.boundary import at_least, filled, finite, public
from probe.errors import InputError
from probe.spectra import lapack
from probe.spectra.factors import Factors, Matrices, factors

# Rows that a solve treats one by one before a product updates the rest.
_BLOCK = 48
# Lanczos steps between checks of the residual, and the most steps.
_STEPS, _MOST_STEPS = 4, 80
# Complex numbers in a block of vectors; it sets the number of points that are solved at once.
_VECTORS = 2**21
# The search for a Kreiss constant: distances and angles of the first grid, points refined, rounds of refinement.
_DISTANCES, _PLACES, _LEADING, _STARTS, _ROUNDS = 18, 24, 16, 4, 10
_NEAREST = 1e-7
# A spectral radius within this of 1 is 1.
_UNIT = 1e-10


@dataclass(frozen=True, repr=False)
class Pseudospectrum(display.Shown):
    """The smallest singular value of zI − A over points z of the complex plane.

    The ε-pseudospectrum is the set with ``sigma_min ≤ ε``: the eigenvalues of all A + E with ‖E‖₂ ≤ ε.

    Attributes:
        points: The points z, complex128, (*grid).
        sigma_min: ``σ_min(zI − A)``, float64, (..., *grid).
        residual: Relative residual of Lanczos' largest eigenvalue θ = 1/σ²: an eigenvalue lies within θ · residual of
            it, (..., *grid).
    """

    points: Complex[Tensor, "*grid"]
    sigma_min: Float[Tensor, "*values"]
    residual: Float[Tensor, "*values"]

    def plot(self, **options: Any) -> plots.Picture:
        """Draw level lines of σ_min, of one matrix over a grid; see `probe.plots.pseudospectrum`.

        Args:
            **options: Of `probe.plots.pseudospectrum`, such as `eigenvalues` and `width`.

        Returns:
            The picture.
        """
        return plots.pseudospectrum(self, **options)

    def _facts(self) -> dict[str, object]:
        ends = f"{float(self.sigma_min.min()):.3g} to {float(self.sigma_min.max()):.3g}"
        grid, every = tuple(self.points.shape), tuple(self.sigma_min.shape)
        return {"grid": grid, "matrices": every[: len(every) - len(grid)], "sigma_min": ends}


@public(A=(filled, finite))
def pseudospectrum(A: Matrices, points: Complex[Tensor, "*grid"], *, tolerance: float = 1e-4) -> Pseudospectrum:
    """Compute the pseudospectrum ``σ_min(zI − A)`` at the points z, the same points for every matrix.

    Values come from above and are good to half the tolerance, usually to its square. Below 1e-16·‖A‖, where rounding
    of A alone hides them, they are not known and may be 0. For a real A they are symmetric about the real
    axis: the upper half-plane is enough.

    Args:
        A: Matrices, (..., d, d), or their `decompose`, whose Schur form is then used.
        points: Points of any shape, for example `spectral_grid`.
        tolerance: Relative residual at which Lanczos stops, or after 80 steps.

    Returns:
        The values with their residuals.

    Cost: a Schur form without vectors, and about ten steps of Lanczos a point.
    """
    known = factors(A)
    z = points.to(known.matrices.device, torch.complex128)
    found = [_resolvent_norm(T, z.flatten(), tolerance) for T in _triangles(known)]
    shape = (*known.matrices.shape[:-2], *z.shape)
    norms, residuals = (torch.stack(part).reshape(shape) for part in zip(*found, strict=True))
    return Pseudospectrum(z, 1 / norms, residuals)


@public(A=(filled, finite), resolution=at_least(2))
def spectral_grid(A: Matrices, resolution: int = 64, margin: float = 0.3) -> Complex[Tensor, "rows columns"]:
    """Lay a rectangle of points in the upper half-plane around the eigenvalues of all the matrices.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.
        resolution: Points along the real axis; half as many along the imaginary one.
        margin: Reach beyond the eigenvalues, as a share of their largest spread.

    Returns:
        Points, complex128: rows of equal imaginary part, from 0 up.

    Cost: an eigenvalue problem.
    """
    values = factors(A).eigenvalues
    left, right = float(values.real.min()), float(values.real.max())
    top = float(values.imag.max())
    beyond = margin * max(right - left, top, 1e-3 * float(values.abs().max()), 1e-12)
    real = torch.linspace(left - beyond, right + beyond, resolution, dtype=torch.float64, device=values.device)
    imaginary = torch.linspace(0, top + beyond, max(2, resolution // 2), dtype=torch.float64, device=values.device)
    return torch.complex(*torch.broadcast_tensors(real, imaginary[:, None]))


@public(A=(filled, finite))
def kreiss_constant(A: Matrices, *, form: Literal["half_plane", "disc"] = "half_plane") -> Float[Tensor, "*batch"]:
    """Estimate from below the Kreiss constant, itself a lower bound of transient growth.

    ``"half_plane"``: ``sup_{Re z > 0} Re z · ‖(zI − B)⁻¹‖₂`` of ``B = A − αI``, α the spectral abscissa, which moves
    the eigenvalues to the edge of stability: ``sup_t ‖exp(tB)‖`` is at least this. Meant for K. ``"disc"``:
    ``sup_{|z| > 1} (|z| − 1) ‖(zI − A)⁻¹‖₂``, infinite where the spectral radius exceeds 1; ``sup_n ‖Aⁿ‖`` is at least
    this and at most e·d times it. Both are 1 for a normal matrix.

    The supremum is searched on a grid of distances (from 1e-7 · ‖A‖_F, logarithmic) and places along the edge (even,
    and at the leading eigenvalues), then refined around the best four points. Where it is infinite, at a defective
    leading eigenvalue, a large number is returned.

    Args:
        A: Matrices, (..., d, d), or their `decompose`, whose Schur form is then used.
        form: ``"half_plane"`` or ``"disc"``.

    Returns:
        Values ≥ 1, float64, (...).

    Raises:
        InputError: If the form is unknown.

    Cost: a Schur form without vectors, and about ten steps of Lanczos at 1,700 points.

    Source: Kreiss (1962); Trefethen & Embree, *Spectra and Pseudospectra* (2005), ch. 14 and 18.
    """
    if form not in {"half_plane", "disc"}:
        raise InputError(f'form must be "half_plane" or "disc", got {form!r}: choose one')
    known = factors(A)
    # With A = sB and z = sw, (|z| − 1) ‖(zI − A)⁻¹‖ = (|w| − 1/s) ‖(wI − B)⁻¹‖; a half plane has no length.
    scale = known.scale.reshape(-1)
    scale = scale.clamp(min=1) if form == "disc" else scale
    values = known.eigenvalues.reshape(-1, known.d) / scale[:, None]
    triangles = [T / one for T, one in zip(_triangles(known), scale, strict=True)]
    constants = [_kreiss(*each, form) for each in zip(triangles, values, 1 / scale, strict=True)]
    return torch.stack(constants).reshape(known.matrices.shape[:-2])


def _kreiss(
    T: Complex[Tensor, "d d"], values: Complex[Tensor, " d"], unit: Float[Tensor, ""], form: str
) -> Float[Tensor, ""]:
    """The Kreiss constant of one triangular matrix, of the disc of radius `unit`."""
    size = vector_norm(T)
    if form == "half_plane":
        edge, along = values.real, values.imag.abs()
        limit = edge.amax()
        end = lapack.eigvalsh((T - T.mH) / 2j)[-1]  # above the numerical range the resolvent is tame
    else:
        edge, along = values.abs(), values.angle().abs()
        limit = unit
        end = torch.full_like(size, math.pi)
        if edge.amax() > unit * (1 + _UNIT):
            return torch.full_like(size, torch.inf)
    if size == 0:
        return torch.ones_like(size)

    def growth(distance: Tensor, place: Tensor) -> Tensor:
        z = torch.complex(limit + distance, place) if form == "half_plane" else torch.polar(limit + distance, place)
        return distance * _resolvent_norm(T, z.flatten(), 1e-4)[0].reshape(z.shape)

    even = end * torch.linspace(0, 1, _PLACES, dtype=torch.float64, device=T.device)
    leading = along[edge.topk(min(_LEADING, len(edge))).indices]
    logs = size.log() + torch.linspace(
        math.log(_NEAREST), math.log(2), _DISTANCES, dtype=torch.float64, device=T.device
    )
    return _highest(growth, logs, torch.cat([leading, even])).clamp(min=1)


def _highest(
    growth: Callable[[Tensor, Tensor], Tensor], logs: Float[Tensor, " m"], places: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """The largest growth over distances exp(logs) and places: the grid's, then around its best points."""
    log, place = (part.flatten() for part in torch.meshgrid(logs, places, indexing="ij"))
    found = growth(log.exp(), place)
    best = found.topk(min(_STARTS, len(found))).indices
    log, place = log[best], place[best]
    step = torch.linspace(-1, 1, 5, dtype=torch.float64, device=log.device)
    to_log, to_place = (part.flatten() for part in torch.meshgrid(step, step, indexing="ij"))
    log_span, place_span = logs[1] - logs[0], places.amax() / _PLACES
    for _ in range(_ROUNDS):
        near_log = (log[:, None] + log_span * to_log).clamp(min=logs[0])
        near_place = place[:, None] + place_span * to_place
        found = growth(near_log.exp(), near_place)
        index = found.argmax(-1, keepdim=True)
        log, place = (near.gather(-1, index)[:, 0] for near in (near_log, near_place))
        log_span, place_span = log_span / 2, place_span / 2
    return found.amax()


def _triangles(known: Factors) -> list[Complex[Tensor, "d d"]]:
    """The complex Schur form of each matrix, from its real one: a Givens rotation a 2 × 2 block."""
    T = known.schur().T.reshape(-1, known.d, known.d)
    unused = np.eye(known.d)
    forms = [torch.from_numpy(rsf2csf(one.cpu().numpy(), unused)[0]) for one in T]
    return [form.to(T.device, torch.complex128) for form in forms]


def _resolvent_norm(
    T: Complex[Tensor, "d d"], z: Complex[Tensor, " p"], tolerance: float
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """``‖(zI − T)⁻¹‖₂`` of an upper triangular T with the relative residuals, a block of points at a time."""
    parts = [_lanczos(T, part, tolerance) for part in z.split(max(16, _VECTORS // len(T)))]
    norms, residuals = (torch.cat(part) for part in zip(*parts, strict=True))
    return norms, residuals


def _lanczos(
    T: Complex[Tensor, "d d"], z: Complex[Tensor, " p"], tolerance: float
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """Lanczos for the largest eigenvalue of ``(zI − T)⁻ᴴ(zI − T)⁻¹``; points that have converged leave the block."""
    adjoint = T.mH.flip(0, 1).contiguous()  # upper triangular again
    floor = torch.finfo(torch.float64).eps * vector_norm(T)
    pivots = z - T.diagonal()[:, None]
    pivots = torch.where(pivots.abs() < floor, floor.to(pivots.dtype), pivots)
    norms, residuals = torch.full_like(z.real, torch.inf), torch.zeros_like(z.real)
    active = torch.arange(len(z), device=z.device)
    generator = torch.Generator(device=z.device).manual_seed(0)
    vector = torch.randn(len(T), 1, generator=generator, dtype=T.dtype, device=T.device).expand(pivots.shape)
    vector, before = vector / vector_norm(vector, dim=0), torch.zeros_like(vector)
    diagonal, beside = list[Tensor](), list[Tensor]()
    for step in range(1, _MOST_STEPS + 1):
        image = _solve(T, pivots, vector)
        image = _solve(adjoint, pivots.conj().flip(0), image.flip(0)).flip(0)
        if beside:
            image = image - beside[-1] * before
        diagonal.append((vector.conj() * image).sum(0).real)
        image = image - diagonal[-1] * vector
        beside.append(vector_norm(image, dim=0))
        before, vector = vector, image / beside[-1].clamp(min=torch.finfo(torch.float64).tiny)
        if step % _STEPS and step < len(T) and beside[-1].isfinite().all():
            continue
        largest, residual = _ritz(diagonal, beside)
        finite = largest.isfinite() & (largest > 0)  # an overflow leaves norm ∞: σ_min is far below rounding
        norms[active] = torch.where(finite, largest.sqrt(), torch.inf)
        residuals[active] = torch.where(finite, residual, 0.0)
        waiting = finite & (residual > tolerance)
        if not waiting.any():
            break
        active, pivots, vector, before = active[waiting], pivots[:, waiting], vector[:, waiting], before[:, waiting]
        diagonal, beside = [part[waiting] for part in diagonal], [part[waiting] for part in beside]
    return norms, residuals


def _ritz(diagonal: list[Tensor], beside: list[Tensor]) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """The largest eigenvalue of each tridiagonal matrix and the relative residual that the next vector leaves."""
    middle, off = torch.stack(diagonal, -1), torch.stack(beside, -1)
    scale = middle.amax(-1)
    usable = (middle.isfinite() & off.isfinite()).all(-1) & (scale > 0)
    ratio = torch.where(usable, scale, 1.0)[:, None]
    middle, off = (torch.where(usable[:, None], part / ratio, 0.0) for part in (middle, off))
    tridiagonal = torch.diag_embed(middle)
    tridiagonal.diagonal(-1, -2, -1).copy_(off[:, :-1])  # eigh reads the lower triangle
    values, vectors = torch.linalg.eigh(tridiagonal)
    largest = values[:, -1] * ratio[:, 0]
    residual = off[:, -1] * vectors[:, -1, -1].abs() / values[:, -1]
    return torch.where(usable, largest, torch.inf), residual


def _solve(
    T: Complex[Tensor, "d d"], pivots: Complex[Tensor, "d p"], right: Complex[Tensor, "d p"]
) -> Complex[Tensor, "d p"]:
    """Column by column the solution of ``(diag(pivots) − strictly upper T) x = b``, by blocks of rows from below."""
    x = right.clone()
    for stop in range(len(T), 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        for i in range(stop - 1, start - 1, -1):
            if i + 1 < stop:
                x[i] += T[i, i + 1 : stop] @ x[i + 1 : stop]
            x[i] /= pivots[i]
        if start:
            x[:start] += T[:start, start:stop] @ x[start:stop]
    return x
