"""Derivatives of norms: diagonal times identity minus a projection of low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class NormDerivative:
    """D = diag(scale) (I − U Uᵀ) at N points.

    Attributes:
        scale: Gain / ρ, with ρ the root mean square (RMSNorm) or the standard deviation (LayerNorm).
        directions: U: the normed point / sqrt(d); of a LayerNorm also the constant vector.
    """

    scale: Float[Tensor, "n d"]
    directions: Float[Tensor, "n d rank"]

    def after(self, matrix: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
        """Compute `matrix` · D in place."""
        matrix *= self.scale[:, None]
        if self.directions.shape[-1]:
            matrix.baddbmm_(matrix @ self.directions, self.directions.mT, alpha=-1)
        return matrix

    def times(self, matrix: Float[Tensor, "n d m"]) -> Float[Tensor, "n d m"]:
        """Compute D · `matrix` in place."""
        if self.directions.shape[-1]:
            matrix.baddbmm_(self.directions, self.directions.mT @ matrix, alpha=-1)
        matrix *= self.scale[..., None]
        return matrix


def norm_derivative(
    module: nn.Module, point: Float[Tensor, "n d"], gain_offset: float = 0.0, *, detached: bool
) -> NormDerivative:
    r"""Compute the derivative of an RMSNorm or a LayerNorm.

    .. math:: \mathrm{RMS}: \mathrm{diag}(g)\,(I/\rho - x x^\top / (d \rho^3)), \qquad
       \mathrm{LN}: \mathrm{diag}(g)\,(I - 1 1^\top/d - \hat x \hat x^\top/d) / \sigma

    Args:
        module: The norm: `torch.nn.LayerNorm`, or an RMSNorm with `weight` and `eps` or `variance_epsilon`.
        point: Its input x.
        gain_offset: Added to its weight to get the gain (Gemma: 1).
        detached: Whether ρ or σ is held fixed, so that the term with x falls away.

    Returns:
        The derivative.
    """
    centred, inverse = standardised(module, point)
    share = point.shape[-1] ** -0.5
    directions = []
    if isinstance(module, nn.LayerNorm):
        directions.append(torch.full_like(point, share))
    if not detached:
        directions.append(centred * inverse * share)
    stacked = torch.stack(directions, -1) if directions else point.new_empty((*point.shape, 0))
    return NormDerivative(gain_of(module, point, gain_offset) * inverse, stacked)


def standardised(module: nn.Module, point: Float[Tensor, "*batch d"]) -> tuple[Tensor, Tensor]:
    """Center a norm's input if the norm does, and return it with 1/ρ or 1/σ.

    Args:
        module: The norm.
        point: Its input.

    Returns:
        (..., d) and (..., 1).
    """
    norm: Any = module
    if isinstance(module, nn.LayerNorm):
        point = point - point.mean(-1, keepdim=True)
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return point, torch.rsqrt(point.square().mean(-1, keepdim=True) + epsilon)


def gain_of(module: nn.Module, point: Float[Tensor, "*batch d"], gain_offset: float) -> Float[Tensor, " d"]:
    """Return a norm's gain, in the dtype of its input.

    Args:
        module: The norm.
        point: Its input.
        gain_offset: Added to the norm's weight to get the gain.

    Returns:
        The gain; ones where the norm has no weight.
    """
    norm: Any = module
    if norm.weight is None:
        return point.new_ones(point.shape[-1])
    gain: Tensor = norm.weight.detach().to(point.dtype) + gain_offset
    return gain
