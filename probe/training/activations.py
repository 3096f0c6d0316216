"""Nonlinearities of the toys: some act coordinate by coordinate, some commute with every rotation.

A rotation-preserving nonlinearity ``φ(z) = g(‖z‖/√d) z`` has ``φ(Rz) = R φ(z)`` for every orthogonal R, so a network
built of it knows no preferred axes; a pointwise one singles out the coordinate axes and ties all layers to one frame.
The same holds for norms: RMSNorm without a gain commutes with rotations; a gain by coordinate does not, nor does the
subtraction of the mean, which singles out the all-ones direction.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from probe.errors import InputError
from probe.training.names import NORMS

TINY = 1e-12  # under the root, so that the gradient of a norm is finite at zero


def root_mean_square(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """Compute ``‖z‖/√d``, with a finite gradient at zero."""
    return (z.square().mean(-1, keepdim=True) + TINY).sqrt()


def gate_factor(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """Compute ``½ + sigmoid(3(r − 1))`` with ``r = ‖z‖/√d``: 1 at r = 1, more for longer vectors."""
    return 0.5 + torch.sigmoid(3 * (root_mean_square(z) - 1))


def radial_gate(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Apply ``(½ + sigmoid(3(r − 1))) z`` with ``r = ‖z‖/√d``: long vectors grow, short ones shrink.

    It commutes with rotations.

    Args:
        z: Vectors, (..., d).

    Returns:
        Vectors of the same shape.
    """
    return gate_factor(z) * z


def radial_squash(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Apply ``1.5 tanh(r)/(½ + r) · z`` with ``r = ‖z‖/√d``: the norm saturates at 1.5 √d.

    It commutes with rotations.

    Args:
        z: Vectors, (..., d).

    Returns:
        Vectors of the same shape.
    """
    r = root_mean_square(z)
    return 1.5 * torch.tanh(r) / (0.5 + r) * z


def identity(z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Return the vectors themselves."""
    return z


FUNCTION_OF: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType({
    "identity": identity,
    "radial_gate": radial_gate,
    "radial_squash": radial_squash,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
})
"""Activations by name."""


def normalise(
    h: Float[Tensor, "*batch d"],
    norm: str,
    gain: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "*batch d"]:
    """Normalise the last axis by a normalisation of `probe.training.names.NORMS`.

    Args:
        h: Vectors, (..., d).
        norm: Name of the normalisation.
        gain: Factor of each coordinate, for LayerNorm and RMSNorm with gain.
        bias: Shift of each coordinate, for LayerNorm.

    Returns:
        Vectors of the same shape.

    Raises:
        InputError: If there is no such normalisation.
    """
    if norm not in NORMS:
        raise InputError(f"a normalisation must be one of {', '.join(NORMS)}, got {norm!r}: choose one")
    if norm == "none":
        return h
    centred = h - h.mean(-1, keepdim=True) if norm == "layer" else h
    unit = centred / root_mean_square(centred)
    scaled = unit if gain is None else gain * unit
    return scaled if bias is None else scaled + bias
