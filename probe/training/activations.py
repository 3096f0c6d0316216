"""Nonlinearities of the toys: what acts coordinate by coordinate, and what commutes with every rotation.

A rotation-preserving nonlinearity ``φ(z) = g(‖z‖/√d) z`` has ``φ(Rz) = R φ(z)`` for every orthogonal R, so a network
built of it knows no preferred axes; a pointwise one singles out the coordinate axes and ties all layers to one frame.
The same holds of norms: RMSNorm without a gain commutes with rotations; a gain by coordinate, or the subtraction of the
mean (which singles out the all-ones direction), does not.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from probe.errors import InputError

TINY = 1e-12  # under the root, so that the gradient of a norm is finite at zero


def root_mean_square(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """``‖z‖/√d``, with a finite gradient at zero."""
    return (z.square().mean(-1, keepdim=True) + TINY).sqrt()


def gate_factor(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """``½ + sigmoid(3(r − 1))`` with ``r = ‖z‖/√d``: 1 at r = 1, more for longer vectors."""
    return 0.5 + torch.sigmoid(3 * (root_mean_square(z) - 1))


def radial_gate(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Rotation-preserving: ``(½ + sigmoid(3(r − 1))) z`` with ``r = ‖z‖/√d``; long vectors grow, short ones shrink.

    Args:
        z: Vectors, (..., d).

    Returns:
        Vectors of the same shape.
    """
    return gate_factor(z) * z


def radial_squash(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Rotation-preserving: ``1.5 tanh(r)/(½ + r) · z`` with ``r = ‖z‖/√d``; the norm saturates at 1.5 √d.

    Args:
        z: Vectors, (..., d).

    Returns:
        Vectors of the same shape.
    """
    r = root_mean_square(z)
    return 1.5 * torch.tanh(r) / (0.5 + r) * z


def identity(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """The vectors themselves."""
    return z


ACTIVATIONS: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType({
    "identity": identity,
    "radial_gate": radial_gate,
    "radial_squash": radial_squash,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
})
"""Activations by name."""
RADIAL = ("radial_gate", "radial_squash")
"""Those that are nonlinear and yet commute with rotations."""
NORMS = ("none", "layer", "rms", "rms_bare")
"""Normalisations by name: none, LayerNorm, RMSNorm with gain, RMSNorm without."""


def normalise(
    h: Float[Tensor, "*batch d"],
    norm: str,
    gain: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "*batch d"]:
    """A normalisation of the last axis, by its name in `NORMS`.

    Args:
        h: Vectors, (..., d).
        norm: Its name.
        gain: Factor by coordinate, for LayerNorm and RMSNorm with gain.
        bias: Added by LayerNorm.

    Returns:
        Vectors of the same shape.

    Raises:
        InputError: If there is no such normalisation.
    """
    if norm not in NORMS:
        raise InputError(f"a normalisation is one of {', '.join(NORMS)}, got {norm!r}: choose one")
    if norm == "none":
        return h
    centred = h - h.mean(-1, keepdim=True) if norm == "layer" else h
    unit = centred / root_mean_square(centred)
    scaled = unit if gain is None else gain * unit
    return scaled if bias is None else scaled + bias
