"""The gain of a norm, found by evaluating it: no field of a row or of a module has to say what its class does to it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SCALE = 2.0**20
"""Root mean square of the test points: so large that no epsilon counts, and a power of two."""


@dataclass(frozen=True)
class NormLaw:
    """A norm x ↦ g ⊙ (x − c(x)) / ρ(x) + b, where c is the mean of a LayerNorm and zero of an RMSNorm.

    Attributes:
        gain: g, with whatever offset the module's code adds to its weight.
        bias: b.
        centred: Whether the mean is taken away.
    """

    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    centred: bool


@torch.no_grad()
def law_of(norm: nn.Module, width: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> NormLaw:
    """Find gain, bias and kind of a norm at three points.

    Args:
        norm: A LayerNorm or an RMSNorm of any class; its parameters have the dtype.
        width: Width d of its input.
        dtype: The dtype of its input.
        device: The device of its parameters.

    Returns:
        The norm's law.
    """
    point = torch.ones(width, dtype=dtype, device=device)
    point[1::2] = -1
    if width % 2:  # its mean must be zero
        point[-3:] = point.new_tensor([1, 1, -2])
    unit = point / point.square().mean().sqrt()
    up, down, shifted = (norm(_SCALE * x) for x in (point, -point, point + 1))
    gain = (up - down) / (2 * unit)
    centred = bool((shifted - up).norm() <= 1e-3 * up.norm())
    return NormLaw(gain.to(dtype), ((up + down) / 2).to(dtype), centred)


def gain_of(norm: nn.Module, width: int) -> Float[Tensor, " d"] | None:
    """Find the gain of a norm, in float32 or, if its weight is stored so, in float64.

    Args:
        norm: The norm.
        width: Width d of its input.

    Returns:
        g; None if the norm has no parameters.
    """
    parameters = list(norm.parameters())
    if not parameters:
        return None
    dtype = torch.float64 if parameters[0].dtype is torch.float64 else torch.float32
    twin = norm
    if parameters[0].dtype is not dtype:
        memo = {id(each): nn.Parameter(each.detach().to(dtype), requires_grad=False) for each in parameters}
        twin = copy.deepcopy(norm, memo)
    return law_of(twin, width, dtype, parameters[0].device).gain
