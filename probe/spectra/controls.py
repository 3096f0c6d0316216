"""Interventions on the update's Jacobian K: its asymmetry, its non-normality or the structure of the latter is removed.

Henrici's departure is 0 under `schur_normal` and unchanged under `schur_shuffle` by definition: test other scores under
them. A control at unequal norm shows little, since products of weaker maps collapse less: match the norm, or shuffle.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probe.boundary import at_least, finite, public
from probe.errors import InputError
from probe.spectra.factors import Factors, Matrices, factors, frobenius_norm, scale_of
from probe.spectra.lapack import SchurForm
from probe.spectra.normality import strictly_upper


@public
def symmetrised(A: Matrices, *, match: Literal["frobenius"] | None = "frobenius") -> Float[Tensor, "*batch d d"]:
    """Take the symmetric part ``(A + Aᵀ)/2``, rescaled to ``‖A‖_F``.

    At equal Frobenius norm a symmetric matrix has a larger norm and larger eigenvalues, and its products may collapse
    faster than the original's.

    Args:
        A: Matrices, (..., d, d), or their `decompose`.
        match: ``"frobenius"`` rescales to the norm of A; None leaves the symmetric part as it is.

    Returns:
        Symmetric matrices, float64, (..., d, d).

    Cost: norms.
    """
    known = factors(A)
    return _matched(known.matrices / 2 + known.matrices.mT / 2, known, match)


@public(A=finite)
def schur_normal(A: Matrices, *, match: Literal["frobenius"] | None = None) -> Float[Tensor, "*batch d d"]:
    """Remove non-normality: the normal matrix with A's eigenvalues and Schur vectors.

    In the standardised real Schur form ``A = Q T Qᵀ`` each 2 × 2 block ``[[a, b], [c, a]]``, bc < 0, becomes
    ``[[a, s], [−s, a]]`` with ``s = sign(b) sqrt(−bc)``, and the strictly upper part is zeroed: the result is real,
    exactly normal, and has the same eigenvalues. It depends on the order of the eigenvalues along T: compare
    ``schur_normal(A)`` with ``schur_normal(A.mT).mT`` and with a rotated A, ``R schur_normal(RᵀAR) Rᵀ``.

    Args:
        A: Matrices, (..., d, d), or their `decompose`, whose Schur form is then used.
        match: ``"frobenius"`` rescales to ``‖A‖_F``, which scales the eigenvalues too; None keeps them.

    Returns:
        Normal matrices, float64, (..., d, d).

    Cost: a Schur form with vectors and two matrix products.
    """
    known = factors(A)
    form, Q = _with_vectors(known)
    return _matched(Q @ _normal_part(form.T) @ Q.mT, known, match)


@public(A=finite, draws=at_least(1))
def schur_shuffle(A: Matrices, generator: torch.Generator, draws: int = 5) -> Float[Tensor, "draws *batch d d"]:
    """Shuffle the structure of non-normality, keeping its size, A's eigenvalues and Schur vectors.

    The strictly upper entries N of the real Schur form (for a 2 × 2 block ``[[a, b], [c, a]]`` the entry ``b + c``)
    are permuted within the triangle and given random signs. Where a new entry n falls on a block, the block becomes
    ``[[a, b′], [c′, a]]`` with ``b′ + c′ = n`` and ``b′c′ = bc``. Eigenvalues, ``‖N‖_F`` and therefore ``‖A‖_F`` and
    Henrici's departure are kept exactly, so that no rescaling is needed.

    Args:
        A: Matrices, (..., d, d), or their `decompose`, whose Schur form then serves all draws.
        generator: Source of permutations and signs, on the device of A; every matrix and draw gets its own.
        draws: Number of independent draws.

    Returns:
        Matrices, float64, (draws, ..., d, d).

    Raises:
        InputError: If draws is less than 1.

    Cost: a Schur form with vectors, and for a draw a sort of d²/2 numbers and two matrix products.
    """
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}: pass more, five show the spread")
    form, Q = _with_vectors(factors(A))
    normal, upper = _normal_part(form.T), strictly_upper(form.T)
    rows, columns = torch.triu_indices(upper.shape[-2], upper.shape[-1], offset=1, device=upper.device)
    entries = upper[..., rows, columns].expand(draws, *upper.shape[:-2], len(rows))
    uniform = torch.rand(2, *entries.shape, generator=generator, dtype=torch.float64, device=upper.device)
    T = normal.triu(0).tril(0).expand(draws, *normal.shape).clone()
    T[..., rows, columns] = entries.gather(-1, uniform[0].argsort(-1)) * (uniform[1] - 0.5).sign()
    above, below = _blocks(T.diagonal(1, -2, -1), normal.diagonal(1, -2, -1))
    T.diagonal(1, -2, -1).copy_(above)
    T.diagonal(-1, -2, -1).copy_(below)
    return Q @ T @ Q.mT


def _blocks(
    total: Float[Tensor, "*batch k"], turn: Float[Tensor, "*#batch k"]
) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
    """The b and c of 2 × 2 blocks with ``b + c = total``, ``bc = −turn²``, b of turn's sign; (total, 0) without turn.

    They are the roots of ``x² − total·x − turn²``; the larger comes from the formula, the other from the product, so
    that neither loses digits.

    Args:
        total: The sums, (..., k).
        turn: The imaginary parts of the blocks' eigenvalues, signed, (..., k).

    Returns:
        b and c, (..., k).
    """
    larger = (total + torch.copysign(torch.hypot(total, 2 * turn), total)) / 2
    smaller = torch.where(turn == 0, 0.0, -turn * (turn / larger))
    first = larger * turn >= 0
    return torch.where(first, larger, smaller), torch.where(first, smaller, larger)


def _normal_part(T: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """The block diagonal of a real Schur form with each block made normal."""
    scale = scale_of(T)[..., None]  # the product of two entries may be beyond the range of float64
    below = T.diagonal(-1, -2, -1) / scale
    beside = T.diagonal(1, -2, -1) / scale
    turn = beside.sign() * (-beside * below).clamp(min=0).sqrt() * scale
    normal = torch.diag_embed(T.diagonal(0, -2, -1))
    normal.diagonal(1, -2, -1).copy_(turn)
    normal.diagonal(-1, -2, -1).copy_(-turn)
    return normal


def _with_vectors(known: Factors) -> tuple[SchurForm, Float[Tensor, "*batch d d"]]:
    form = known.schur(vectors=True)
    assert form.Q is not None
    return form, form.Q


def _matched(changed: Float[Tensor, "*batch d d"], known: Factors, match: str | None) -> Float[Tensor, "*batch d d"]:
    """The changed matrices at the norm of the original, if asked for."""
    if match is None:
        return changed
    if match != "frobenius":
        raise InputError(f'match must be "frobenius" or None, got {match!r}: choose one')
    factor: Tensor = known.frobenius_norm / frobenius_norm(changed)
    return changed * factor[..., None, None]
