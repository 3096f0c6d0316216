"""Working copies whose norms, attention probabilities and gates are held fixed (Golden 2025, arXiv 2505.24293).

Without biases such a block is linear in the whole sequence: h_{l+1}(s) = Σ_t J(s, t) h_l(t), with the Jacobians of the
detached block. The detached Jacobian is not the block's own, which includes the derivatives of all of these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probe.jacobian.norms import gain_of, standardised
from probe.model.architectures import Form


class DetachedNorm(nn.Module):
    """A norm whose root mean square or standard deviation is held fixed."""

    def __init__(self, norm: nn.Module, gain_offset: float) -> None:
        super().__init__()
        self.norm, self.gain_offset = norm, gain_offset

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed input: the same value, a simpler derivative."""
        centred, inverse = standardised(self.norm, x)
        bias = getattr(self.norm, "bias", None)
        normed = gain_of(self.norm, x, self.gain_offset) * (centred * inverse.detach())
        return normed if bias is None else normed + bias


class DetachedActivation(nn.Module):
    """An activation φ held fixed (in a gated MLP), or its ratio φ(x)/x held fixed (in an MLP without a gate)."""

    def __init__(self, activation: nn.Module, *, gates: bool) -> None:
        super().__init__()
        self.activation, self.gates = activation, gates

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation: the same value, a simpler derivative."""
        active: Tensor = self.activation(x).detach()
        return active if self.gates else detached_ratio(active, x.detach()) * x


def detached_ratio(active: Tensor, before: Tensor) -> Tensor:
    """Divide φ(x) by x; zero where x is zero.

    Args:
        active: φ(x).
        before: x.

    Returns:
        The ratio.
    """
    return torch.where(before == 0, torch.zeros_like(before), active / torch.where(before == 0, 1.0, before))


def detach(copy: nn.Module, form: Form, *, gated: bool) -> nn.Module:
    """Put detached norms and a detached activation into a working copy of a standard block.

    Args:
        copy: The working copy, changed in place; its attention was chosen when it was made.
        form: Paths of its norms and activation.
        gated: Whether the MLP has a gate.

    Returns:
        The copy.
    """
    for path in form.stream_norms:
        copy.set_submodule(path, DetachedNorm(copy.get_submodule(path), form.gain_offset))
    copy.set_submodule(form.activation, DetachedActivation(copy.get_submodule(form.activation), gates=gated))
    return copy
