"""Measures of neighbouring layers' matrices through training: continuity, gaps, coherence, rotation of frames.

All act on stacks (..., layer, out, in) in float64, seeds among the leading axes, and compare each layer with the next:
a result has one entry a pair. ``W = U Σ Vᵀ``. Signs of singular vectors are arbitrary, so cosines are absolute; where
σ₁ and σ₂ nearly coincide the leading vector is arbitrary too, so every value is read beside the gap. Where a matrix is
zero (W − W₀ at step 0) or not finite (a training that diverged) everything is NaN; where its rank is too low, what
needs the directions that it does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe import display
from probe.geometry import principal_angles

LEADING = 8  # singular vectors that are compared


@dataclass(frozen=True, repr=False)
class BatchedTriplets(display.Shown):
    """Leading singular triplets of a batch of matrices.

    Attributes:
        left: Columns u_1 … u_k, (..., layer, out, k).
        values: σ_1 … σ_k, falling, (..., layer, k).
        right: Columns v_1 … v_k, (..., layer, in, k).
    """

    left: Float[Tensor, "*batch out k"]
    values: Float[Tensor, "*batch k"]
    right: Float[Tensor, "*batch in k"]

    @property
    def gap(self) -> Float[Tensor, "*batch"]:
        """The gap σ₁/σ₂."""
        return self.values[..., 0] / self.values[..., 1]


def batched_triplets(matrices: Float[Tensor, "*batch out in"], k: int = LEADING) -> BatchedTriplets:
    """Compute the k leading singular triplets of every matrix, from its smaller Gram matrix in float64.

    Half the digits of the small singular values are lost that way; the leading ones and their vectors keep enough. What
    rounding hides, σ_i below √(n ε) σ₁ for a shorter side n, has no direction: u_i and v_i are NaN.
    `probe.spectra.singular.leading_triplets` decomposes one matrix with a stated error.

    Args:
        matrices: (..., out, in).
        k: Number of triplets, at most min(out, in).

    Returns:
        Triplets. The directions of a matrix of zeros are NaN, and all of one that is not finite.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = (matrices.mT if tall else matrices).double()
    finite = wide.isfinite().all(-1).all(-1)[..., None]
    wide = torch.where(finite[..., None], wide, 0)  # eigh refuses NaN
    eigenvalues, vectors = torch.linalg.eigh(wide @ wide.mT)  # eigenvalues rise
    values = torch.where(finite, eigenvalues[..., -k:].flip(-1).clamp(min=0).sqrt(), torch.nan)
    hidden = (wide.shape[-2] * torch.finfo(torch.float64).eps) ** 0.5 * values[..., :1]
    near = torch.where((values > hidden)[..., None, :], vectors[..., -k:].flip(-1), torch.nan)
    far = wide.mT @ near / values[..., None, :]
    return BatchedTriplets(far, values, near) if tall else BatchedTriplets(near, values, far)


def continuity(vectors: Float[Tensor, "*batch layer n k"]) -> Float[Tensor, "*batch pair"]:
    """Compute ``|v₁(l) · v₁(l+1)|`` of neighbouring layers; √(2/(πn)) for random directions."""
    first = vectors[..., 0]
    return (first[..., :-1, :] * first[..., 1:, :]).sum(-1).abs()


def subspace_continuity(vectors: Float[Tensor, "*batch layer n k"]) -> Float[Tensor, "*batch pair k"]:
    """Compute ``‖V_j(l)ᵀ V_j(l+1)‖_F² / j`` for j = 1 … k, the mean squared cosine; j/n for random subspaces.

    Args:
        vectors: Orthonormal columns, (..., layer, n, k).

    Returns:
        Values in [0, 1], (..., pair, k).
    """
    sums = _squares(vectors).cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)
    mean: Tensor = sums / torch.arange(1, vectors.shape[-1] + 1, dtype=sums.dtype, device=sums.device)
    return mean


def best_squared_cosines(vectors: Float[Tensor, "*batch layer n k"]) -> Float[Tensor, "*batch pair k"]:
    """Compute ``m_i² = max_{j ≤ k} (v_i(l) · v_j(l+1))²``: how well a direction carries on, whatever its new rank.

    Args:
        vectors: Orthonormal columns, (..., layer, n, k).

    Returns:
        Squared cosines, (..., pair, k); those of random frames: `haar_matches`.
    """
    return _squares(vectors).amax(-1)


def _squares(vectors: Float[Tensor, "*batch layer n k"]) -> Float[Tensor, "*batch pair k k"]:
    return (vectors[..., :-1, :, :].mT @ vectors[..., 1:, :, :]).square()


def coherence(gradients: Float[Tensor, "*batch layer out in"]) -> Float[Tensor, "*batch pair"]:
    """Compute ``cos(vec G_l, vec G_{l+1})`` of neighbouring layers' gradients.

    Args:
        gradients: (..., layer, out, in).

    Returns:
        Values in [−1, 1], (..., pair); NaN where a gradient is zero.
    """
    flat = gradients.double().flatten(-2)
    unit = flat / torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
    cosines: Tensor = (unit[..., :-1, :] * unit[..., 1:, :]).sum(-1)
    return cosines


def rotation(a: Float[Tensor, "*batch n k"], b: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
    """Measure how far one frame is turned from another: the mean principal angle of the two column spaces.

    The singular values of ``AᵀB``, whose polar factor is the orthogonal Procrustes rotation of one basis into the
    other, are the cosines of these angles.

    Args:
        a: Orthonormal columns, (..., n, k).
        b: Orthonormal columns, (..., n, k).

    Returns:
        Degrees in [0, 90], (...); NaN where a direction is missing.
    """
    return principal_angles(a, b).mean(-1)


def haar_matches(n: int, k: int = LEADING, *, draws: int = 4000) -> Float[np.ndarray, " k"]:
    """Simulate the mean of `best_squared_cosines` for pairs of random k-frames: null_i, i = 1 … k.

    Each frame is compared with the first k axes, so that its first k rows are the cosines.

    Args:
        n: Width.
        k: Columns.
        draws: Number of draws.

    Returns:
        The mean of each direction's best squared cosine, (k,).
    """
    normal = torch.randn(draws, n, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frames = torch.linalg.qr(normal).Q
    matches: Float[np.ndarray, " k"] = frames[:, :k].square().amax(-1).mean(0).numpy()
    return np.full_like(matches, matches.mean())  # the ranks of a random frame are alike
