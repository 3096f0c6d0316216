"""Angles, shares, subspaces and controls of vectors: tensors in, numbers out.

The last dimension is the width ``d`` of the vectors, every dimension before it is batch. Nothing here knows a model. A
measure that is undefined for a zero vector (its cosine, its share) is NaN, never a number that could slip into a mean.

For a tokenwise part ``û`` and a residual ``r = u − û`` the cosine of (u, û) is at least ``sqrt(1 − (‖r‖/‖u‖)²)``,
whatever ``r`` is: alignment and angles follow from the error (`aligned_cosine_from_error`), only projections carry
information.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vector_norm

from probe.boundary import at_least, filled, finite, public
from probe.errors import InputError

__all__ = [
    "aligned_cosine_from_error",
    "angle",
    "cosine",
    "covariance_matched",
    "dominant_subspace",
    "explained_variance",
    "haar_frame",
    "outlier_coordinates",
    "principal_angles",
    "procrustes_linearity",
    "random_directions",
    "relative_error",
    "subspace_share",
]


def __dir__() -> list[str]:
    return __all__


@public
def cosine(a: Float[Tensor, "*#batch d"], b: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*#batch"]:
    """Compute the cosine of the angle between vectors, ``a·b / (‖a‖ ‖b‖)``.

    >>> cosine(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0]))
    tensor(0.9600)

    Args:
        a: Vectors, (..., d).
        b: Vectors of the same shape.

    Returns:
        Values in [−1, 1], (...); NaN where a vector is zero.
    """
    return (_unit(a) * _unit(b)).sum(-1).clamp(-1, 1)


@public
def angle(a: Float[Tensor, "*#batch d"], b: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*#batch"]:
    """Compute the angle between vectors in degrees, ``2 atan2(‖â − b̂‖, ‖â + b̂‖)`` of the unit vectors.

    Unlike the arc cosine, it keeps its digits for nearly parallel vectors (Kahan, *How Futile are Mindless Assessments
    of Roundoff in Floating-Point Computation?*, 2006, "Mangled Angles").

    >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    tensor(45.)

    Args:
        a: Vectors, (..., d).
        b: Vectors of the same shape.

    Returns:
        Degrees in [0, 180], (...); NaN where a vector is zero.
    """
    a, b = _unit(a), _unit(b)
    half = torch.atan2(vector_norm(a - b, dim=-1), vector_norm(a + b, dim=-1))
    return torch.rad2deg(2 * half)


@public
def relative_error(y: Float[Tensor, "*#batch d"], y_hat: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*#batch"]:
    """Measure the residual relative to the target, ``‖y − ŷ‖ / ‖y‖``.

    >>> relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]))
    tensor(0.8000)

    Args:
        y: Targets, (..., d).
        y_hat: Predictions of the same shape.

    Returns:
        Values ≥ 0, (...); infinite or NaN where the target is zero.
    """
    error: Tensor = vector_norm(y - y_hat, dim=-1) / vector_norm(y, dim=-1)
    return error


@public
def explained_variance(y: Float[Tensor, "*batch n d"], y_hat: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
    """Compute the share of the variance of n targets that predictions explain, ``1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²``.

    >>> explained_variance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
    tensor(0.5000)

    Args:
        y: Targets, (..., n, d).
        y_hat: Predictions of the same shape.

    Returns:
        Values ≤ 1, (...); below 0 where the mean of the targets would have been the better prediction.
    """
    y64 = y.double()
    residual = (y64 - y_hat.double()).square().sum((-2, -1))
    total = (y64 - y64.mean(-2, keepdim=True)).square().sum((-2, -1))
    return (1 - residual / total).to(y.dtype)


@public
def aligned_cosine_from_error(relative_error: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Bound the cosine of (y, ŷ) from below, ``sqrt(1 − e²)`` for an error e, whatever the residual's direction.

    In-sample least squares attains the bound exactly (pooled); for any other residual the cosine lies above it. A
    measured alignment near this line is fixed by the error.

    >>> aligned_cosine_from_error(torch.tensor([0.6, 0.8]))
    tensor([0.8000, 0.6000])

    Args:
        relative_error: ``‖y − ŷ‖ / ‖y‖``, (...).

    Returns:
        Values in [0, 1], (...); 0 for e ≥ 1, where the error alone guarantees no alignment.
    """
    return (1 - relative_error.square()).clamp(min=0).sqrt()


@public(x=finite)
def dominant_subspace(
    x: Float[Tensor, "*batch n d"], rank: int, *, centred: bool = True
) -> Float[Tensor, "*batch d k"]:
    """Find the top right singular vectors of n vectors: the directions that hold most of their energy.

    From the d × d Gram matrix in float64: O(n d² + d³). Signs are arbitrary; where singular values coincide, so are the
    vectors, and only the subspace is determined.

    Args:
        x: Vectors in rows, (..., n, d).
        rank: Number of directions k, 1 ≤ k ≤ min(n, d).
        centred: Subtract the mean of the n vectors first. Without it, the first direction of a residual stream is
            often one outlier coordinate.

    Returns:
        Orthonormal columns by decreasing singular value, (..., d, k).

    Raises:
        InputError: If the rank is not in 1 … min(n, d).
    """
    most = min(x.shape[-2:])
    if not 1 <= rank <= most:
        raise InputError(
            f"rank must lie in 1 … min(n, d) = {most} for x= of shape {tuple(x.shape)}, got {rank}: choose another or "
            "pass "
            "more vectors"
        )
    rows = x.double()
    if centred:
        rows = rows - rows.mean(-2, keepdim=True)
    directions: Tensor = torch.linalg.eigh(rows.mT @ rows).eigenvectors  # eigenvalues increase
    return directions[..., -rank:].flip(-1).to(x.dtype)


@public
def subspace_share(x: Float[Tensor, "*batch d"], basis: Float[Tensor, "d k"]) -> Float[Tensor, "*batch"]:
    """Compute the share of a vector's energy inside a subspace, ``‖Vᵀx‖² / ‖x‖²``; k/d for a random subspace.

    >>> subspace_share(torch.tensor([3.0, 4.0]), torch.tensor([[1.0], [0.0]]))
    tensor(0.3600)

    Args:
        x: Vectors, (..., d).
        basis: Orthonormal columns V, (d, k).

    Returns:
        Values in [0, 1], (...); NaN where the vector is zero.
    """
    return (_unit(x) @ basis).square().sum(-1).clamp(max=1)


@public
def principal_angles(a: Float[Tensor, "*batch d k"], b: Float[Tensor, "*batch d m"]) -> Float[Tensor, "*batch angles"]:
    """Compute the principal angles between two column spaces, in degrees.

    Large angles come from the cosines (singular values of ``QₐᵀQ_b``), small ones from the sines (those of
    ``Q_b − QₐQₐᵀQ_b``), since the arc cosine would lose half their digits (Björck & Golub, *Mathematics of
    Computation* 27, 1973).

    >>> planes = torch.eye(3)[:, :2], torch.eye(3)[:, 1:]
    >>> [round(float(degrees), 3) for degrees in principal_angles(*planes)]  # they share a line
    [0.0, 90.0]

    Args:
        a: Columns that span the first subspace, of full rank, (..., d, k).
        b: Columns that span the second, of full rank, (..., d, m).

    Returns:
        The min(k, m) angles in [0, 90], increasing, (..., min(k, m)); NaN where a column is not finite.
    """
    finite = (a.isfinite().all(-2).all(-1) & b.isfinite().all(-2).all(-1))[..., None, None]
    wide, narrow = (a, b) if a.shape[-1] >= b.shape[-1] else (b, a)
    wide, narrow = (torch.linalg.qr(torch.where(finite, columns, 0)).Q for columns in (wide, narrow))
    overlap = wide.mT @ narrow
    cosines = torch.linalg.svdvals(overlap).clamp(max=1)
    sines = torch.linalg.svdvals(narrow - wide @ overlap).flip(-1).clamp(max=1)
    angles = torch.rad2deg(torch.where(cosines.square() > 0.5, sines.arcsin(), cosines.arccos()))
    return torch.where(finite[..., 0], angles, torch.nan)


@public
def outlier_coordinates(x: Float[Tensor, "n d"], factor: float = 20.0) -> Bool[Tensor, " d"]:
    """Mark the coordinates whose scale exceeds a multiple of the median scale.

    The scale is the root mean square over the n vectors, so that a coordinate counts by its offset as well as by its
    spread: outlier coordinates of language models have both.

    >>> outlier_coordinates(torch.tensor([[1.0, 1.0, 50.0], [1.0, -1.0, 50.0]]))
    tensor([False, False,  True])

    Args:
        x: Vectors in rows, (n, d).
        factor: Multiple of the median scale above which a coordinate is an outlier.

    Returns:
        True at outlier coordinates, (d,).
    """
    scale = x.double().square().mean(-2).sqrt()
    return scale > factor * scale.median()


@public(x=(filled, finite), y=finite)
def procrustes_linearity(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> float:
    """Score the linearity of the map from x to y in sample, ``1 − min_A ‖X̃A − Ỹ‖_F²``, both centred, of unit norm.

    Razzhigaev et al., *Your Transformer is Secretly Linear*, arXiv 2405.12250. In spite of its name, A is an
    unrestricted least-squares map; as it is judged on the sample it was fitted to, the score is inflated unless n is at
    least about 10 d.

    Args:
        x: States, (n, d).
        y: Next states (or updates) of the same tokens, (n, e).

    Returns:
        A score in [0, 1]: 1 for an affine map.
    """
    x64, y64 = x.double(), y.double()
    x64, y64 = x64 - x64.mean(0), y64 - y64.mean(0)
    left, singular, _ = torch.linalg.svd(x64, full_matrices=False)
    kept = left[:, singular > singular[0] * max(x.shape) * torch.finfo(torch.float64).eps]
    return float((kept.mT @ (y64 / y64.norm())).square().sum())


@public(d=at_least(1), draws=at_least(1))
def random_directions(
    norms: Float[Tensor, "*batch"], d: int, generator: torch.Generator, draws: int = 1
) -> Float[Tensor, "draws *batch d"]:
    """Draw vectors of given norms in directions uniform on the sphere, ``r′ = ‖r‖ · g / ‖g‖``.

    Args:
        norms: The norm ‖r‖ of each vector, (...).
        d: Width.
        generator: Source of the normal variates g, on the device of the norms.
        draws: Number of independent draws a vector.

    Returns:
        Vectors, (draws, ..., d).
    """
    normal = torch.randn(draws, *norms.shape, d, generator=generator, dtype=norms.dtype, device=norms.device)
    return norms[..., None] * _unit(normal)


@public
def haar_frame(
    d: int, k: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "d k"]:
    """Draw orthonormal columns uniformly (Haar) from all k-frames; a random orthogonal basis for k = d.

    The Q of a normal matrix, signs fixed by the diagonal of R (Mezzadri, arXiv math-ph/0609050). O(d k²).

    Args:
        d: Width.
        k: Number of columns, at most d.
        generator: Source of the normal variates; the frame lies on its device.
        dtype: The dtype of the frame.

    Returns:
        The frame, (d, k).

    Raises:
        InputError: If k is not in 1 … d.
    """
    if not 1 <= k <= d:
        raise InputError(f"a frame of width d = {d} has 1 … d orthonormal columns, got k = {k}: choose such a k")
    normal = torch.randn(d, k, generator=generator, dtype=dtype, device=generator.device)
    q, r = torch.linalg.qr(normal)
    frame: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(dtype)
    return frame


@public(residual_covariance=finite, draws=at_least(1))
def covariance_matched(
    residual_covariance: Float[Tensor, "d d"],
    norms: Float[Tensor, "*batch"],
    generator: torch.Generator,
    draws: int = 1,
) -> Float[Tensor, "draws *batch d"]:
    """Draw vectors of given norms with the residuals' own covariance, ``r′ = ‖r‖ · Σ^½g / ‖Σ^½g‖``.

    Args:
        residual_covariance: Covariance Σ of the residuals, symmetric, (d, d).
        norms: The norm ‖r‖ of each vector, (...).
        generator: Source of the normal variates g, on the device of the norms.
        draws: Number of independent draws a vector.

    Returns:
        Vectors, (draws, ..., d).
    """
    values, vectors = torch.linalg.eigh(residual_covariance.double())
    root = ((vectors * values.clamp(min=0).sqrt()) @ vectors.mT).to(norms.dtype)  # Σ^½
    d = len(residual_covariance)
    normal = torch.randn(draws, *norms.shape, d, generator=generator, dtype=norms.dtype, device=norms.device)
    return norms[..., None] * _unit(normal @ root)


def _unit(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Vectors scaled to length 1; NaN for a zero vector."""
    unit: Tensor = x / vector_norm(x, dim=-1, keepdim=True)
    return unit
