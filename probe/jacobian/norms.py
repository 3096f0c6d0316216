"""Derivatives of norms: diagonal times identity minus a projection of low rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.model.architectures import law_of


@dataclass(frozen=True)
class NormDerivative:
    """D = diag(scale) (I − U Uᵀ) at N points.

    Attributes:
        scale: Gain / ρ, with ρ the root mean square (RMSNorm) or the standard deviation (LayerNorm).
        directions: U: the normed point / sqrt(d); of a LayerNorm also the constant vector.
    """

    scale: Float[Tensor, "n d"]
    directions: Float[Tensor, "n d rank"]

    def at(self, rows: slice) -> NormDerivative:
        """Select some of the points."""
        return NormDerivative(self.scale[rows], self.directions[rows])

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

    def dense(self) -> Float[Tensor, "n d d"]:
        """Compute D."""
        count, width = self.scale.shape
        return self.times(torch.eye(width, dtype=self.scale.dtype, device=self.scale.device).repeat(count, 1, 1))


@torch.no_grad()
def norm_derivative(module: nn.Module, point: Float[Tensor, "n d"], *, detached: bool) -> NormDerivative:
    r"""Compute the derivative of an RMSNorm or a LayerNorm of any class, by evaluating the norm.

    .. math:: \mathrm{RMS}: \mathrm{diag}(g)\,(I/\rho - x x^\top / (d \rho^3)), \qquad
       \mathrm{LN}: \mathrm{diag}(g)\,(I - 1 1^\top/d - \hat x \hat x^\top/d) / \sigma

    Args:
        module: The norm.
        point: Its input x.
        detached: Whether ρ or σ is held fixed, so that the term with x falls away.

    Returns:
        The derivative.
    """
    _, centred, gain, inverse, is_centred = _evaluated(module, point)
    share = point.shape[-1] ** -0.5
    directions = [torch.full_like(point, share)] if is_centred else []
    if not detached:
        directions.append(centred * inverse * share)
    stacked = torch.stack(directions, -1) if directions else point.new_empty((*point.shape, 0))
    return NormDerivative(gain * inverse, stacked)


def _evaluated(
    module: nn.Module, point: Float[Tensor, "*batch d"]
) -> tuple[Tensor, Tensor, Float[Tensor, " d"], Float[Tensor, "*batch 1"], bool]:
    """Output, centred input, gain, 1/ρ or 1/σ (which the output shows, whatever the norm's epsilon), the kind."""
    law = law_of(module, point.shape[-1], point.dtype, point.device)
    written: Tensor = module(point)
    centred = point - point.mean(-1, keepdim=True) if law.centred else point
    along = law.gain * centred
    size = along.square().sum(-1, keepdim=True)
    inverse = ((written - law.bias) * along).sum(-1, keepdim=True) / torch.where(size == 0, 1, size)
    return written, centred, law.gain, inverse, law.centred


class DetachedNorm(nn.Module):
    """A norm whose root mean square or standard deviation is held fixed."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed input: the same value, a simpler derivative."""
        with torch.no_grad():
            written, _, gain, inverse, is_centred = _evaluated(self.norm, x)
        moved = x - x.detach()
        if is_centred:
            moved = moved - moved.mean(-1, keepdim=True)
        return written + gain * inverse * moved
