"""Leading singular triplets of one matrix, by a method that suits its size, each with a stated error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor

from probe import display
from probe.boundary import public
from probe.errors import InputError
from probe.spectra.factors import real, require_real, scale_of

Method: TypeAlias = Literal["auto", "dense", "randomised"]

DENSE = 2048  # the longest short side that is decomposed densely: seconds
TOLERANCE = 1e-5  # of the residual over σ₁; float32 products reach about 1e-6
OVERSAMPLING = 8
MOST_COLUMNS = 12  # blocks of trial vectors before they are compressed
MOST_STEPS = 200


@dataclass(frozen=True, repr=False)
class Triplets(display.Shown):
    """The k leading singular triplets ``W vᵢ = σᵢ uᵢ`` of a matrix; signs are arbitrary.

    Attributes:
        left: u, orthonormal columns, (out, k).
        singular: σ, decreasing, (k,).
        right: v, orthonormal columns, (in, k).
        norm: Frobenius norm of the matrix.
        error: ``max_i ‖(W vᵢ − σᵢ uᵢ, Wᵀ uᵢ − σᵢ vᵢ)‖ / σ₁`` as computed; the angle of a vector to the true one is at
            most about this times σ₁ over the distance of its singular value from the others.
        method: "dense" or "randomised".
    """

    left: Float[Tensor, "out k"]
    singular: Float[Tensor, " k"]
    right: Float[Tensor, "in k"]
    norm: float
    error: float
    method: Literal["dense", "randomised"]

    @property
    def gap(self) -> float:
        """σ₁/σ₂: near 1 the leading vectors are arbitrary within a plane. NaN for a zero matrix or a single triplet."""
        if len(self.singular) < 2 or self.singular[0] == 0:
            return float("nan")
        return float(self.singular[0] / self.singular[1])

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"matrix": (len(self.left), len(self.right)), "k": len(self.singular)}
        facts |= {"singular": self.singular.tolist(), "gap": self.gap, "norm": self.norm}
        return facts | {"error": self.error, "method": self.method}


@public
def leading_triplets(
    matrix: Float[Tensor, "out in"],
    k: int = 8,
    *,
    method: Method = "auto",
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Triplets:
    """Compute the k leading singular triplets of a matrix.

    Dense: eigenvectors of the smaller Gram matrix in float64, O(out · in · short side). As float32 weights have 24 bits
    and the Gram matrix 53, leading vectors lose nothing to the squaring. Randomised: block Krylov iteration from a
    random start with Rayleigh-Ritz (Musco & Musco 2015, arXiv 1504.05477), run until the residual is below the
    tolerance; O(out · in · k) a step, products in the matrix's own dtype, all small problems in float64.

    Args:
        matrix: W, (out, in); float32 or float64.
        k: Number of triplets, 1 ≤ k ≤ min(out, in).
        method: "dense", "randomised", or "auto": dense up to a short side of 2,048.
        tolerance: Bound on the error, for "randomised".
        seed: Seed of the random start.

    Returns:
        The triplets in float64, with their error.

    Raises:
        InputError: If k is out of range, or an entry is not finite.
    """
    require_real(matrix)
    matrix, short = matrix.detach(), min(matrix.shape)
    if not 1 <= k <= short:
        raise InputError(
            f"k must lie in 1 … min(out, in) = {short} for matrix= of shape {tuple(matrix.shape)}, got {k}: choose a "
            "k in this "
            "range"
        )
    if not matrix.isfinite().all():
        raise InputError("a matrix of weights must be finite, got NaN or infinity: fetch it again")
    scale, range_of = float(scale_of(matrix)), torch.finfo(matrix.dtype)
    if not range_of.tiny**0.25 < scale < range_of.max**0.25:  # squares would overflow or vanish
        found = leading_triplets(matrix / scale, k, method=method, tolerance=tolerance, seed=seed)
        return replace(found, singular=found.singular * scale, norm=found.norm * scale)
    norm = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    if method == "auto":
        method = "dense" if short <= DENSE else "randomised"
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    if norm == 0 or method == "dense" or 2 * (k + OVERSAMPLING) >= short:
        method, (left, singular, right) = "dense", _dense(tall, k)
    else:
        left, singular, right = _krylov(tall, k, tolerance, seed)
    error = _error(tall, left, singular, right)
    if tall is not matrix:
        left, right = right, left
    return Triplets(left, singular, right, norm, error, method)


def product_triplets(left: Float[Tensor, "out r"], right: Float[Tensor, "r in"], k: int = 1) -> Triplets:
    """Compute the leading triplets of a product of low rank, without forming it: O((out + in) r²).

    Args:
        left: (out, r), r at most out.
        right: (r, in), r at most in.
        k: Number of triplets, at most r.

    Returns:
        The triplets in float64.
    """
    q_left, r_left = torch.linalg.qr(real(left))
    q_right, r_right = torch.linalg.qr(real(right).mT)
    core = leading_triplets(r_left @ r_right.mT, k, method="dense")
    return Triplets(q_left @ core.left, core.singular, q_right @ core.right, core.norm, core.error, core.method)


def _dense(tall: Float[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor, Tensor]:
    wide = tall.double()
    n = tall.shape[1]
    gram = (wide.mT @ wide).cpu().numpy()
    _, vectors = eigh(gram, subset_by_index=[n - k, n - 1], driver="evr", overwrite_a=True, check_finite=False)
    right = torch.from_numpy(vectors).to(tall.device)
    return _ritz(wide @ right, right, k)


def _ritz(image: Float[Tensor, "m j"], basis: Float[Tensor, "n j"], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Triplets of W within the span of a basis, from its image ``W · basis``."""
    q, r = torch.linalg.qr(image.double())
    left, singular, turned = torch.linalg.svd(r)
    return q @ left[:, :k], singular[:k], basis.double() @ turned[:k].mT


def _krylov(tall: Float[Tensor, "m n"], k: int, tolerance: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    width = k + OVERSAMPLING
    start = torch.randn(tall.shape[1], width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(start.to(tall.device)).Q
    image = (tall @ basis.to(tall.dtype)).double()
    for _ in range(MOST_STEPS):
        left, singular, right = _ritz(image, basis, width)
        residual = (tall.mT @ left.to(tall.dtype)).double() - right * singular
        if torch.linalg.vector_norm(residual[:, :k], dim=0).max() <= tolerance * singular[0]:
            break
        if basis.shape[1] > MOST_COLUMNS * width or basis.shape[1] + width > tall.shape[1]:
            basis, image = right, left * singular
        for _ in range(2):  # once is not enough where the residual is nearly inside
            residual = torch.linalg.qr(residual - basis @ (basis.mT @ residual)).Q
        basis = torch.cat([basis, residual], 1)
        image = torch.cat([image, (tall @ residual.to(tall.dtype)).double()], 1)
    return left[:, :k], singular[:k], right[:, :k]


def _error(tall: Float[Tensor, "m n"], left: Tensor, singular: Tensor, right: Tensor) -> float:
    if singular[0] == 0:
        return 0.0
    forward = (tall @ right.to(tall.dtype)).double() - left * singular
    backward = (tall.mT @ left.to(tall.dtype)).double() - right * singular
    return float(torch.cat([forward, backward]).norm(dim=0).max() / singular[0])
