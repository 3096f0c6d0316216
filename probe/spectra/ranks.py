"""Number of directions that a matrix acts on, by its singular values σ, and the rotation of its polar factor."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from probe.boundary import finite, public
from probe.spectra import lapack
from probe.spectra.factors import Matrices, factors

# Below this ratio of the extreme singular values the polar factor is not determined well enough to speak of its angles.
SINGULAR = 1e-8


@public(A=finite)
def singular_values(A: Matrices) -> Float[Tensor, "*batch d"]:
    """Compute the singular values ``σ_i``, decreasing.

    Args:
        A: Matrices of any float dtype, (..., d, d), or their `decompose`.

    Returns:
        Values ≥ 0, float64, (..., d).

    Cost: an SVD without vectors.
    """
    return factors(A).singular_values


@public(A=finite)
def identity_share(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the share of ``‖A‖_F²`` that the nearest multiple of the identity has, ``(tr A)² / (d ‖A‖_F²)``.

    A rank or spectrum of ``A = αI + M`` with a large share is that of the identity, whatever M is.

    >>> round(float(identity_share(torch.tensor([[1.0, 2.0], [-2.0, 1.0]]))), 6)
    0.2

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [0, 1], float64, (...); about 1/d² for a Gaussian matrix, NaN for a zero one.

    Cost: two passes over the entries.
    """
    scaled = factors(A).scaled
    trace = scaled.diagonal(dim1=-2, dim2=-1).sum(-1)
    share: Tensor = trace.square() / (scaled.shape[-1] * scaled.square().sum((-2, -1)))
    return share


@public(A=finite)
def stable_rank(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the stable rank ``‖A‖_F² / σ₁²``.

    >>> round(float(stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))), 6)
    1.5

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [1, d], float64, (...); NaN for a zero matrix.

    Cost: an SVD without vectors.
    """
    relative = _relative(singular_values(A))
    return relative.square().sum(-1)


@public(A=finite)
def effective_rank(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the effective rank ``exp(−Σ p ln p)`` with ``p = σ/Σσ``; about 0.80 d for a square Gaussian matrix.

    >>> round(float(effective_rank(3 * torch.eye(4))), 6)
    4.0

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [1, d], float64, (...); NaN for a zero matrix.

    Cost: an SVD without vectors.

    Source: Roy & Vetterli, *EUSIPCO* (2007).
    """
    return entropy_rank(_relative(singular_values(A)))


@public(A=finite)
def energy_effective_rank(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the effective rank of the energies, ``exp(−Σ p ln p)`` with ``p = σ²/Σσ²``.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [1, d], float64, (...), between `participation_ratio` and `effective_rank`; NaN for a zero matrix.

    Cost: an SVD without vectors.
    """
    return entropy_rank(_relative(singular_values(A)).square())


@public(A=finite)
def participation_ratio(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the participation ratio of singular values, ``(Σσ²)² / Σσ⁴``; d/2 for a square Gaussian matrix.

    An effective number of directions of a matrix. Not the participation ratio of a vector's coordinates
    (`probe.weights`), nor the participation coefficient of a graph's nodes (`probe.graphs`).

    >>> round(float(participation_ratio(torch.diag(torch.tensor([1.0, 1.0, 0.0])))), 6)
    2.0

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [1, d], float64, (...); NaN for a zero matrix.

    Cost: an SVD without vectors.
    """
    return ratio_of_squares(singular_values(A))


@public(A=finite)
def polar_rotation(A: Matrices) -> Float[Tensor, "*batch"]:
    """Measure the rotation of the orthogonal polar factor, the mean of ``|arg λ_i(U)|`` for ``A = U P``.

    Meant for J. The angles θ come from the singular values 2 sin(θ/2) of I − U and 2 cos(θ/2) of I + U, which keeps
    the digits of small and of nearly straight angles and is quicker than the eigenvalues of U.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Radians in [0, π], float64, (...); NaN where σ_min/σ₁ < 1e-8, where the factor is not determined.

    Cost: an SVD and two more without vectors.
    """
    left, values, right = factors(A).svd
    U = left @ right
    identity = torch.eye(U.shape[-1], dtype=U.dtype, device=U.device)
    sines, cosines = lapack.svdvals(torch.stack([identity - U, identity + U]))
    angles = 2 * torch.atan2(sines, cosines.flip(-1))
    return torch.where(values[..., -1] <= SINGULAR * values[..., 0], torch.nan, angles.mean(-1))


def entropy_rank(weights: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Compute the number of equal weights with the same entropy, ``exp(−Σ p ln p)`` with ``p = w/Σw``.

    Args:
        weights: Values ≥ 0, (..., d).

    Returns:
        Values in [1, d], (...); NaN where all weights are zero.
    """
    share = weights / weights.sum(-1, keepdim=True)
    return (-torch.xlogy(share, share).sum(-1)).exp()


def ratio_of_squares(values: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Compute ``(Σσ²)² / Σσ⁴`` of singular values that are known: the formula of `participation_ratio`.

    Args:
        values: Singular values, decreasing, (..., d).

    Returns:
        Values in [1, d], (...); NaN where all are zero.
    """
    energies = _relative(values).square()
    return energies.sum(-1).square() / energies.square().sum(-1)


def _relative(values: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Singular values over the largest, so that no power of them can overflow."""
    return values / values[..., :1]
