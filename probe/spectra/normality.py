"""Eigenvalues, rotation, symmetry, and departure from normality."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.linalg import matrix_norm

from probe.boundary import finite, public
from probe.spectra import lapack
from probe.spectra.factors import Matrices, factors

# |Im λ| below this multiple of the largest |λ| is rounding, not rotation.
REAL_TOLERANCE = 1e-6


@public(A=finite)
def eigenvalues(A: Matrices) -> Complex[Tensor, "*batch d"]:
    """Compute the eigenvalues ``λ_i``, in the order of the real Schur form.

    Those of a matrix with a large eigenvector condition κ carry an error of about κ·1e-16·‖A‖: beyond κ = 1e8 use
    single ones with care, and prefer scores of singular values and of the Schur form.

    >>> sorted(round(float(imaginary), 6) for imaginary in eigenvalues(torch.tensor([[0.0, -2.0], [2.0, 0.0]])).imag)
    [-2.0, 2.0]

    Args:
        A: Matrices of any float dtype, (..., d, d), or their `decompose`.

    Returns:
        Eigenvalues, complex128, (..., d).

    Cost: an eigenvalue problem.
    """
    return factors(A).eigenvalues


@public(A=finite)
def spectral_radius(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the spectral radius ``max |λ_i|``; at most ``‖A‖₂``.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values ≥ 0, float64, (...).

    Cost: an eigenvalue problem.
    """
    return eigenvalues(A).abs().amax(-1)


@public(A=finite)
def spectral_abscissa(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the spectral abscissa ``max Re λ_i``: the growth rate of ``ḣ = A h`` in the long run.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values, float64, (...).

    Cost: an eigenvalue problem.
    """
    return eigenvalues(A).real.amax(-1)


@public(A=finite)
def complex_fraction(A: Matrices, scale: Float[Tensor, "*#batch"] | float | None = None) -> Float[Tensor, "*batch"]:
    """Compute the share of eigenvalues with ``|Im λ| > 1e-6 · scale``.

    A state's Jacobian J and its update K = J − I have the same imaginary parts; with the scale ``max |λ(K)|`` for both
    they have the same complex fraction, which is ``decompose(J).update.complex_fraction``. For a real random matrix it
    is 1 − sqrt(2/(πd)) (Edelman, Kostlan & Shub 1994): 98.75 % at d = 4096 is the null, not a finding.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.
        scale: Scale that imaginary parts are compared with, (...); the matrix's own spectral radius if None.

    Returns:
        Shares in [0, 1], float64, (...).

    Cost: an eigenvalue problem.
    """
    values = eigenvalues(A)
    if scale is None:
        scale = values.abs().amax(-1)
    bound = REAL_TOLERANCE * torch.as_tensor(scale, dtype=torch.float64, device=values.device)
    return (values.imag.abs() > bound[..., None]).double().mean(-1)


@public(A=finite)
def rotation_fraction(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the rotation fraction ``Σ|Im λ_i| / Σ|λ_i|``: 0 for a symmetric, 1 for an antisymmetric matrix.

    >>> round(float(rotation_fraction(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))), 6)  # a quarter turn
    1.0

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [0, 1], float64, (...); NaN where every eigenvalue is zero.

    Cost: an eigenvalue problem.
    """
    known = factors(A)
    values = known.eigenvalues / known.scale[..., None]
    return values.imag.abs().sum(-1) / values.abs().sum(-1)


@public
def antisymmetric_fraction(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the antisymmetric fraction ``‖A − Aᵀ‖_F / (2 ‖A‖_F)``.

    0 for a symmetric, 1 for an antisymmetric matrix, sqrt(½) for a random one and for a random rotation.

    >>> round(float(antisymmetric_fraction(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))), 6)
    1.0

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [0, 1], float64, (...); NaN for a zero matrix.

    Cost: norms.
    """
    known = factors(A)
    fraction: Tensor = matrix_norm(known.scaled - known.scaled.mT) / (2 * matrix_norm(known.scaled))
    return fraction


def symmetric_share(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the share of the energy in the symmetric part, ``‖(A + Aᵀ)/2‖_F² / ‖A‖_F²``; ½ for a random matrix.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [0, 1], float64, (...): one minus the square of `antisymmetric_fraction`; NaN for a zero matrix.

    Cost: norms.
    """
    known = factors(A)
    share: Tensor = (matrix_norm(known.scaled + known.scaled.mT) / (2 * matrix_norm(known.scaled))).square()
    return share


@public(A=finite)
def henrici_departure(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute Henrici's departure from normality, relative: ``sqrt(‖A‖_F² − Σ|λ_i|²) / ‖A‖_F``.

    Computed without that difference, which would leave no digits below 1e-8: for the real Schur form
    ``A = Q T Qᵀ`` it is the norm of T's strictly upper part, in which a 2 × 2 block ``[[a, b], [c, a]]`` counts
    ``(b + c)²``. It is 0 for a normal matrix up to rounding of 1e-15, and 1 for a nilpotent one. The eigenvalue
    route would not be quicker: the form without vectors costs 5 % more than the eigenvalues.

    >>> round(float(henrici_departure(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))), 6)  # nilpotent
    1.0
    >>> round(float(henrici_departure(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))), 6)  # normal
    0.0

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [0, 1], float64, (...); NaN for a zero matrix.

    Cost: an eigenvalue problem, shared with `eigenvalues`.

    Source: Henrici, *Numerische Mathematik* 4 (1962); Trefethen & Embree, *Spectra and Pseudospectra* (2005), ch. 48.
    """
    known = factors(A)
    departure: Tensor = matrix_norm(strictly_upper(known.schur().T / known.scale[..., None, None])) / matrix_norm(
        known.scaled
    )
    return departure.clamp(max=1)


def strictly_upper(T: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """Extract the non-normal part of a real Schur form: its strictly upper part, with b + c in place of a block's b.

    Args:
        T: Standardised quasi-triangular matrices, (..., d, d).

    Returns:
        Strictly upper triangular matrices N with ``‖N‖_F² = ‖T‖_F² − Σ|λ|²``, (..., d, d).
    """
    upper = T.triu(1)
    upper.diagonal(1, -2, -1).add_(T.diagonal(-1, -2, -1))
    return upper


@public
def commutator_norm(A: Matrices) -> Float[Tensor, "*batch"]:
    """Measure the commutator with the transpose, ``‖AᵀA − AAᵀ‖_F / ‖A‖_F²``; 0 iff A is normal.

    Its square is at most six times the square of `henrici_departure`.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values in [0, sqrt 2], float64, (...); NaN for a zero matrix.

    Cost: two matrix products.

    Source: Elsner & Paardekooper, *Linear Algebra and its Applications* 92 (1987).
    """
    known = factors(A)
    unit = known.scaled / matrix_norm(known.scaled)[..., None, None]
    norm: Tensor = matrix_norm(unit.mT @ unit - unit @ unit.mT)
    return norm


@public(A=finite)
def eigenvector_condition(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the condition number ``κ₂(V)`` of the eigenvectors, columns of length 1; 1 iff A is normal.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values ≥ 1, float64, (...); infinite where it exceeds 1/(d·2.2e-16), which float64 cannot tell from a defective
        matrix. Where a normal matrix has equal eigenvalues, LAPACK's eigenvectors need not be orthogonal.

    Cost: eigenvectors, and the singular values of a complex matrix.
    """
    known = factors(A)
    values = lapack.svdvals(known.eigenvectors)
    condition = values[..., 0] / values[..., -1]
    return torch.where(condition * known.d * torch.finfo(torch.float64).eps < 1, condition, torch.inf)


@public(A=finite)
def numerical_abscissa(A: Matrices) -> Float[Tensor, "*batch"]:
    """Compute the numerical abscissa ``λ_max((A + Aᵀ)/2)``.

    It is the largest growth rate of ``‖h‖`` under ``ḣ = A h`` at time 0⁺. Meant for the update's Jacobian K. Its excess
    over the spectral abscissa is transient growth.

    >>> round(float(numerical_abscissa(torch.tensor([[-1.0, 4.0], [0.0, -1.0]]))), 6)  # grows at first, then decays
    1.0

    Args:
        A: Matrices, (..., d, d), or their `decompose`.

    Returns:
        Values of at least the spectral abscissa, float64, (...).

    Cost: a symmetric eigenvalue problem, a tenth of a general one.

    Source: Trefethen & Embree, *Spectra and Pseudospectra* (2005), ch. 17.
    """
    matrices = factors(A).matrices / 2
    return lapack.eigvalsh(matrices + matrices.mT)[..., -1]
