"""Comparisons of the vectors of successive blocks: continuity, subspaces, lag curves, trajectories.

Signs never matter: singular vectors have none.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from probe.boundary import filled, finite, public
from probe.errors import InputError

Vectors = Float[Tensor, "block n"]


@public
def cosine_matrix(vectors: Vectors) -> Float[Tensor, "block block"]:
    """Compute ``|v(l) · v(m)|`` for all pairs of blocks; the first off-diagonal is the continuity.

    Args:
        vectors: Unit vectors, (L, n).

    Returns:
        Values in [0, 1], (L, L), 1 on the diagonal.
    """
    return (vectors @ vectors.mT).abs().clamp(max=1)


@public
def adjacent_cosines(vectors: Vectors) -> Float[Tensor, " pair"]:
    """Compute the continuity ``|v(l) · v(l+1)|`` (arXiv 2605.04971) of the leading left or right singular vectors.

    Args:
        vectors: Unit vectors, (L, n).

    Returns:
        Values in [0, 1], (L − 1,).
    """
    return (vectors[:-1] * vectors[1:]).sum(-1).abs().clamp(max=1)


@public
def adjacent_overlaps(bases: Float[Tensor, "block n k"], k: int) -> Float[Tensor, " pair"]:
    """Compute ``‖V_k(l)ᵀ V_k(l+1)‖_F² / k``, the mean squared cosine of the leading k-subspaces' principal angles.

    Args:
        bases: Orthonormal columns by falling singular value, (L, n, k or more).
        k: Dimension of the subspaces.

    Returns:
        Values in [0, 1], (L − 1,); k/n for random subspaces.

    Raises:
        InputError: If there are fewer than k columns.
    """
    if not 1 <= k <= bases.shape[-1]:
        raise InputError(
            f"k must lie in 1 … {bases.shape[-1]}, the columns of the bases, got {k}: compute more columns"
        )
    overlap = bases[:-1, :, :k].mT @ bases[1:, :, :k]
    return overlap.square().sum((-2, -1)) / k


@public(cosines=filled)
def lag_curve(cosines: Float[Tensor, "*batch block block"]) -> Float[Tensor, "*batch lag"]:
    """Average ``|v(l) · v(l+m)|`` over l for every lag m; on a smooth trajectory the mean falls with m.

    Args:
        cosines: From `cosine_matrix`, (..., L, L).

    Returns:
        Means for m = 1 … L − 1, (..., L − 1).

    Raises:
        InputError: If there are fewer than two blocks.
    """
    if cosines.shape[-1] < 2:
        raise InputError(
            f"cosines= must be those of at least 2 blocks, got a Tensor of shape {tuple(cosines.shape)}: pass more"
        )
    lags = range(1, cosines.shape[-1])
    return torch.stack([cosines.diagonal(lag, -2, -1).mean(-1) for lag in lags], -1)


@public
def aligned(vectors: Vectors) -> Vectors:
    """Choose the vectors' signs along depth, so that no product of a vector with the one before is negative.

    Args:
        vectors: (L, n).

    Returns:
        The vectors, the first unchanged.
    """
    products = (vectors[:-1] * vectors[1:]).sum(-1)
    signs = torch.where(products < 0, -1.0, 1.0).cumprod(0)
    return torch.cat([vectors[:1], vectors[1:] * signs[:, None].to(vectors.dtype)])


@public(vectors=(filled, finite))
def trajectory(vectors: Vectors, axes: int = 3) -> tuple[Float[Tensor, "block axis"], Float[Tensor, " axis"]]:
    """Compute the path of a direction through depth: the principal components of the sign-aligned vectors.

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


@public
def vector_participation(vectors: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Count the coordinates on which a unit vector lives, ``1 / Σ vᵢ⁴``; about n/3 for a random one.

    Args:
        vectors: Unit vectors, (..., n).

    Returns:
        Values in [1, n].
    """
    return 1 / vectors.pow(4).sum(-1)


@public
def best_cosines(a: Float[Tensor, "n i"], b: Float[Tensor, "n j"]) -> Float[Tensor, " i"]:
    """Find the largest |cosine| of each column of a with a column of b: continuity up to exchanged ranks or heads.

    Args:
        a: Unit columns, (n, i).
        b: Unit columns, (n, j).

    Returns:
        Values in [0, 1], (i,).
    """
    return (a.mT @ b).abs().amax(-1).clamp(max=1)


@public(cosines=finite)
def assigned(
    cosines: Float[np.ndarray, "one other"],
) -> tuple[Float[np.ndarray, " one"], Int[np.ndarray, " one"]]:
    """Match vectors with others, one to one, so that the sum of their |cos| is largest: continuity up to an order.

    Args:
        cosines: |cos| of all pairs, as many rows as columns. O(n³).

    Returns:
        The |cos| of each row with its partner, and the partner's column.
    """
    rows, partners = linear_sum_assignment(cosines, maximize=True)
    return cosines[rows, partners], partners


@public
def kept_coordinates(vectors: Vectors, share: float) -> Int[Tensor, " kept"]:
    """Select all coordinates but those that hold most of the vectors' energy, averaged over blocks.

    It is one set for all blocks: a coordinate that dominates every block's vector makes continuity trivial.

    Args:
        vectors: Unit vectors, (L, n).
        share: Share of the n coordinates that is left out, rounded up; 0 leaves out none.

    Returns:
        Indices, ascending.
    """
    n = vectors.shape[-1]
    dropped = -int(-share * n // 1)
    return vectors.square().mean(0).argsort(descending=True, stable=True)[dropped:].sort().values
