"""Products of block Jacobians along depth, and the coupling of one layer's singular vectors to another's.

``C_l = J_l ⋯ J_0`` is never formed. With ``Q_l R_l = J_l Q_{l−1}`` (QR) it is ``Q_l T_l`` with the triangular
``T_l = R_l ⋯ R_0``, whose rows are graded. Its singular values are those of C_l, and keep their digits where those of
the explicit product are lost in rounding (in trials 1e-13 at σ_i/σ₁ = 1e-25). T_l is kept at norm 1 and its scale in a
logarithm, so that nothing over- or underflows.

Products of random maps collapse on their own (32 factors I + 0.3 G have a participation ratio of 0.16 d): a bottleneck
is a gap to such a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import matrix_norm, vector_norm

from probe import display, plots
from probe.boundary import finite, public
from probe.errors import InputError
from probe.spectra import lapack
from probe.spectra.factors import frobenius_norm, real, scale_of
from probe.spectra.ranks import entropy_rank, ratio_of_squares

# Singular values below this multiple of the largest say nothing about a network computed in float32.
SMALLEST = 1e-12
OVERLAP_RANKS = (1, 4, 8, 16)


@dataclass(frozen=True, repr=False)
class CumulativeSpectra(display.Shown):
    """The singular values of ``C_l = J_l ⋯ J_0`` at every depth l = 0 … L − 1.

    Attributes:
        log_singular_values: ``ln σ_i(C_l)``, decreasing, (..., layer, d); NaN where σ_i/σ₁ < 1e-12.
        ranks: The k of `overlap`, (k,).
        overlap: ``‖V_k(l)ᵀ V_k(l+1)‖_F² / k`` of the top-k right singular subspaces of neighbouring depths, the
            directions at the input that grow most, (..., layer − 1, k); k/d for unrelated subspaces. Where σ_k and
            σ_{k+1} nearly coincide the subspace is arbitrary.
    """

    log_singular_values: Float[Tensor, "*batch layer d"]
    ranks: tuple[int, ...]
    overlap: Float[Tensor, "*batch pairs k"]

    @property
    def singular_values(self) -> Float[Tensor, "*batch layer d"]:
        """``σ_i/σ₁``, decreasing from 1, (..., layer, d); 0 below 1e-12."""
        logs = self.log_singular_values
        return (logs - logs[..., :1]).exp().nan_to_num(nan=0.0)

    @property
    def lyapunov_exponents(self) -> Float[Tensor, "*batch layer d"]:
        """Finite-depth Lyapunov exponents ``ln σ_i(C_l) / (l + 1)``, nats per block, (..., layer, d); NaN as above.

        Source: Storm et al. (2024), *Finite-time Lyapunov exponents of deep neural networks*, arXiv 2306.12548.
        """
        logs = self.log_singular_values
        return logs / torch.arange(1, logs.shape[-2] + 1, dtype=logs.dtype, device=logs.device)[:, None]

    @property
    def effective_rank(self) -> Float[Tensor, "*batch layer"]:
        """Effective rank ``exp(−Σ p ln p)``, p = σ/Σσ, by depth, (..., layer)."""
        return entropy_rank(self.singular_values)

    @property
    def participation_ratio(self) -> Float[Tensor, "*batch layer"]:
        """Participation ratio ``(Σσ²)²/Σσ⁴`` of the singular values by depth, (..., layer)."""
        return ratio_of_squares(self.singular_values)

    def plot(self, **options: Any) -> plots.Picture:
        """Draw the relative singular values ``σ_i/σ₁`` at every depth, coloured by it; of a batch their medians.

        Args:
            **options: Of `probe.plots.singular_values`, such as `ax` and `width`.

        Returns:
            The picture.
        """
        depths = range(self.log_singular_values.shape[-2])
        return plots.singular_values(self, **({"by": depths, "label": "σᵢ/σ₁"} | options))

    def _facts(self) -> dict[str, object]:
        *batch, layers, width = self.log_singular_values.shape
        facts: dict[str, object] = {"layers": layers, "width": width, "batch": tuple(batch), "ranks": self.ranks}
        medians = self.participation_ratio.reshape(-1, layers).median(0).values
        return facts | {"participation_ratio": [float(value) for value in medians]}


@public(J=finite)
def cumulative_spectra(
    J: Float[Tensor, "*batch layer d d"], *, ranks: Sequence[int] = OVERLAP_RANKS
) -> CumulativeSpectra:
    """Compute singular values and leading input directions of ``C_l = J_l ⋯ J_0`` at every depth.

    Args:
        J: Jacobians of the *states* in order of depth, (..., layer, d, d).
        ranks: Sizes k of the subspaces whose overlap is wanted; those above d are left out. An empty sequence
            skips the singular vectors, which take two thirds of the time.

    Returns:
        The spectra, float64.

    Cost: for each matrix a QR factorisation, three matrix products and an SVD.
    """
    J = real(J)
    kept = tuple(k for k in ranks if k <= J.shape[-1])
    logs, overlaps = list[Tensor](), list[Tensor]()
    before: Tensor | None = None
    for _, triangle, log_scale in _triangles(J):
        if kept:
            _, values, right = lapack.svd(triangle)
            top = right[..., : max(kept), :].mT
            if before is not None:
                overlaps.append(_overlap(before, top, kept))
            before = top
        else:
            values = lapack.svdvals(triangle)
        logs.append(torch.where(values < SMALLEST * values[..., :1], torch.nan, values.log() + log_scale[..., None]))
    shape = (*J.shape[:-3], J.shape[-3] - 1, len(kept))
    overlap = torch.stack(overlaps, -2) if overlaps else torch.empty(shape, dtype=torch.float64, device=J.device)
    return CumulativeSpectra(torch.stack(logs, -2), kept, overlap)


@public(J=finite)
def lyapunov_exponents(J: Float[Tensor, "*batch layer d d"]) -> Float[Tensor, "*batch layer d"]:
    """Compute the finite-depth Lyapunov exponents ``ln σ_i(J_l ⋯ J_0) / (l + 1)`` at every depth l.

    >>> blocks = torch.diag(torch.tensor([2.0, 1.0])).expand(5, 2, 2)
    >>> [round(float(growth), 6) for growth in lyapunov_exponents(blocks)[-1].exp()]  # of each block, seen from the end
    [2.0, 1.0]

    Args:
        J: Jacobians of the states in order of depth, (..., layer, d, d).

    Returns:
        Exponents in nats per block, decreasing, float64, (..., layer, d); NaN where σ_i/σ₁ < 1e-12.

    Cost: for each matrix a QR factorisation, two matrix products and an SVD without vectors.

    Source: Storm et al. (2024), *Finite-time Lyapunov exponents of deep neural networks*, arXiv 2306.12548.
    """
    return cumulative_spectra(J, ranks=()).lyapunov_exponents


@public(J=finite)
def cumulative_product(
    J: Float[Tensor, "*batch layer d d"],
) -> tuple[Float[Tensor, "*batch layer d d"], Float[Tensor, "*batch layer"]]:
    """Compute the products ``C_l = J_l ⋯ J_0`` at every depth, at norm 1, and the logarithms of their norms.

    Args:
        J: Jacobians in order of depth, (..., layer, d, d).

    Returns:
        ``C_l/‖C_l‖_F``, float64, (..., layer, d, d), and ``ln ‖C_l‖_F``, (..., layer).

    Cost: for each matrix a QR factorisation and three matrix products.
    """
    steps = [(basis @ triangle, log_scale) for basis, triangle, log_scale in _triangles(J)]
    products, scales = zip(*steps, strict=True)
    return torch.stack(products, -3), torch.stack(scales, -1)


@public(K=finite)
def block_coupling(K: Float[Tensor, "*batch layer d d"], k: int = 10) -> Float[Tensor, "*batch layer layer"]:
    """Measure how far each layer's update is from diagonal in another's top-k singular vectors; 0 is perfect coupling.

    Row i, column j holds ``‖ |U_jᵀ K_i V_j| − S_i ‖_F / ‖S_i‖_F`` with the top-k singular triplets ``U_j, V_j`` of
    K_j and ``S_i`` of K_i. The absolute value is taken entry by entry, since the signs of singular vectors are
    arbitrary. Unrelated layers give about 1; the diagonal is 0.

    Args:
        K: Jacobians of the *updates*, (..., layer, d, d).
        k: Number of singular vectors.

    Returns:
        Values ≥ 0, float64, (..., layer, layer).

    Raises:
        InputError: If k is not in 1 … d.

    Cost: an SVD a layer, and layer² products of a d × d with a d × k matrix.

    Source: Aubry, Meng, Sugolov & Papyan (2024), *Transformer Block Coupling and its Correlation with Generalization
    in LLMs*, arXiv 2407.07810.
    """
    K = real(K)
    d = K.shape[-1]
    if not 1 <= k <= d:
        raise InputError(
            f"k must lie in 1 … d = {d} for K= of shape {tuple(K.shape)}, got {k}: choose a k in this range"
        )
    K = K / scale_of(K)[..., None, None]
    left, values, right = lapack.svd(K)
    U, V = left[..., :k], right[..., :k, :].mT
    seen = torch.einsum("...jpk,...ipq,...jql->...ijkl", U, K, V).abs()
    diagonal = torch.diag_embed(values[..., :k])[..., :, None, :, :]  # S_i
    coupling: Tensor = matrix_norm(seen - diagonal) / matrix_norm(diagonal)
    return coupling


def _triangles(J: Float[Tensor, "*batch layer d d"]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Q_l, T_l and ln s_l of ``C_l = s_l Q_l T_l`` with ``‖T_l‖_F = 1``, depth by depth."""
    J = real(J)
    if J.shape[-3] == 0:
        raise InputError(f"a product needs at least one Jacobian, got shape {tuple(J.shape)}: pass (..., layer, d, d)")
    basis = triangle = torch.eye(J.shape[-1], dtype=torch.float64, device=J.device)
    log_scale = torch.zeros(J.shape[:-3], dtype=torch.float64, device=J.device)
    for step in J.unbind(-3):
        basis, factor = lapack.qr(step @ basis)
        triangle = factor @ triangle
        size = frobenius_norm(triangle)
        if not size.all():
            raise InputError(
                f"J= must not multiply to zero, got a product that does in shape {tuple(J.shape)}: leave such "
                "Jacobians "
                "out"
            )
        triangle = triangle / size[..., None, None]
        log_scale = log_scale + size.log()
        yield basis, triangle, log_scale


def _overlap(
    before: Float[Tensor, "*batch d k"], after: Float[Tensor, "*batch d k"], ranks: Sequence[int]
) -> Float[Tensor, "*batch ranks"]:
    """``‖V_kᵀ V′_k‖_F² / k`` for each k."""
    cosines = before.mT @ after
    return torch.stack([vector_norm(cosines[..., :k, :k], dim=(-2, -1)).square() / k for k in ranks], -1)
