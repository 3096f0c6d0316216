"""Vectors of successive blocks compared: continuity, subspaces, lag curves, trajectories. Signs never matter."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.errors import InputError

Vectors = Float[Tensor, "block n"]


def cosine_matrix(vectors: Vectors) -> Float[Tensor, "block block"]:
    """``|v(l) · v(m)|`` for all pairs of blocks; the first off-diagonal is the continuity.

    Args:
        vectors: Unit vectors, (L, n).

    Returns:
        Values in [0, 1], (L, L), 1 on the diagonal.
    """
    return (vectors @ vectors.mT).abs().clamp(max=1)


def adjacent_cosines(vectors: Vectors) -> Float[Tensor, " pair"]:
    """Continuity ``|v(l) · v(l+1)|`` of arXiv 2605.04971, of the leading left or right singular vectors.

    Args:
        vectors: Unit vectors, (L, n).

    Returns:
        Values in [0, 1], (L − 1,).
    """
    return (vectors[:-1] * vectors[1:]).sum(-1).abs().clamp(max=1)


def adjacent_overlaps(bases: Float[Tensor, "block n k"], k: int) -> Float[Tensor, " pair"]:
    """``‖V_k(l)ᵀ V_k(l+1)‖_F² / k``: mean squared cosine of the principal angles of leading k-subspaces.

    Args:
        bases: Orthonormal columns by falling singular value, (L, n, k or more).
        k: Dimension of the subspaces.

    Returns:
        Values in [0, 1], (L − 1,); k/n for random subspaces.

    Raises:
        InputError: If there are fewer than k columns.
    """
    if not 1 <= k <= bases.shape[-1]:
        raise InputError(f"k must lie in 1 … {bases.shape[-1]}, the columns of the bases, got {k}; compute more")
    overlap = bases[:-1, :, :k].mT @ bases[1:, :, :k]
    return overlap.square().sum((-2, -1)) / k


def lag_curve(cosines: Float[Tensor, "*batch block block"]) -> Float[Tensor, "*batch lag"]:
    """Mean ``|v(l) · v(l+m)|`` over l for every lag m: a smooth trajectory decays with it.

    Args:
        cosines: From `cosine_matrix`, (..., L, L).

    Returns:
        Means for m = 1 … L − 1, (..., L − 1).
    """
    lags = range(1, cosines.shape[-1])
    return torch.stack([cosines.diagonal(lag, -2, -1).mean(-1) for lag in lags], -1)


def aligned(vectors: Vectors) -> Vectors:
    """The same vectors with signs along depth: each turned so that its product with the one before is not negative.

    Args:
        vectors: (L, n).

    Returns:
        The vectors, the first as it was.
    """
    products = (vectors[:-1] * vectors[1:]).sum(-1)
    signs = torch.where(products < 0, -1.0, 1.0).cumprod(0)
    return torch.cat([vectors[:1], vectors[1:] * signs[:, None].to(vectors.dtype)])


def trajectory(vectors: Vectors, axes: int = 3) -> tuple[Float[Tensor, "block axis"], Float[Tensor, " axis"]]:
    """The path of a direction through depth: principal components of the sign-aligned vectors.

    Args:
        vectors: Unit vectors, (L, n).
        axes: Number of components, at most min(L, n).

    Returns:
        Coordinates (L, axes), and the share of the variance that each axis holds; the signs of the axes are arbitrary.
    """
    path = aligned(vectors).double()
    left, singular, _ = torch.linalg.svd(path - path.mean(0), full_matrices=False)
    energy = singular.square()
    return left[:, :axes] * singular[:axes], energy[:axes] / energy.sum()


def participation_ratio(vectors: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Number of coordinates that a unit vector lives on, ``1 / Σ vᵢ⁴``; about n/3 for a random one.

    Args:
        vectors: Unit vectors, (..., n).

    Returns:
        Values in [1, n].
    """
    return 1 / vectors.pow(4).sum(-1)


def best_matches(a: Float[Tensor, "n i"], b: Float[Tensor, "n j"]) -> Float[Tensor, " i"]:
    """For each unit column of a the largest |cosine| to a column of b: continuity up to an exchange of ranks or heads.

    Args:
        a: (n, i).
        b: (n, j).

    Returns:
        Values in [0, 1], (i,).
    """
    return (a.mT @ b).abs().amax(-1).clamp(max=1)


def kept_coordinates(vectors: Vectors, share: float) -> Int[Tensor, " kept"]:
    """All coordinates but those that hold most of the vectors' energy, mean over blocks.

    One set for all blocks: a coordinate that dominates every block's vector makes continuity trivial.

    Args:
        vectors: Unit vectors, (L, n).
        share: Of the n coordinates that is left out, rounded up; 0 leaves out none.

    Returns:
        Indices, ascending.
    """
    n = vectors.shape[-1]
    dropped = -int(-share * n // 1)
    return vectors.square().mean(0).argsort(descending=True, stable=True)[dropped:].sort().values
