"""Toy MLPs on a residual stream, in which each suspected cause of continuity is switched on or off.

With the residual, the forms (`probe.training.names.TOY_FORMS`) are:

- stream: ``h ← φ(h + W_l n(h))``: the nonlinearity acts on the stream itself and ties all layers to one frame;
- branch: ``h ← h + φ(W_l n(h))``;
- block2: ``h ← h + B_l φ(A_l n(h))``, two matrices a block.

Without it ``h ← φ(W_l n(h))`` (or ``B_l φ(A_l n(h))``), so that stream and branch are one network. n is a
normalisation.

How far rotations are a symmetry depends on the form. In stream form with a rotation-preserving φ, and with no norm or
RMSNorm without gain, every layer may be rotated on its own: ``I + W_l → R_l (I + W_l) R_{l−1}ᵀ`` changes no output. The
other two forms keep only one rotation of the whole stream, and block2 also one of each hidden space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.boundary import at_least, public
from probe.errors import InputError
from probe.training.activations import FUNCTION_OF, normalise
from probe.training.data import generator
from probe.training.names import NORMS, TOY_FORMS

HIDDEN = 2  # width of block2's hidden layer, in widths of the stream


@public
@dataclass(frozen=True)
class Shape:
    """Sizes of a toy.

    Attributes:
        width: Width of the stream, d.
        blocks: Number of blocks, L.
        inputs: Width of the inputs.
        outputs: Width of the outputs.
    """

    width: int = 64
    blocks: int = 8
    inputs: int = 32
    outputs: int = 16


class ToyMLP(nn.Module):
    """A toy; the matrices of all blocks are one parameter, (L, out, in).

    The same seed gives the same start, up to its scale, whatever the form, activation, norm or scale.

    Args:
        form: One of `probe.training.names.TOY_FORMS`.
        residual: Whether there is a residual connection.
        activation: One of `probe.training.names.ACTIVATIONS`.
        norm: One of `probe.training.names.NORMS`.
        scale: Standard deviation of the hidden weights at the start, in units of one over the root of the fan-in.
        seed: Seed of the start.
        shape: Sizes.

    Raises:
        InputError: If there is no such form, activation or norm.
    """

    decayed = ("embed", "reader", "writer", "readout")  # gains and biases are not

    @public(seed=at_least(0))
    def __init__(
        self,
        *,
        form: str,
        residual: bool,
        activation: str,
        norm: str = "none",
        scale: float,
        seed: int,
        shape: Shape,
    ) -> None:
        super().__init__()
        for part, value, known in (
            ("form", form, TOY_FORMS),
            ("activation", activation, FUNCTION_OF),
            ("norm", norm, NORMS),
        ):
            if value not in known:
                raise InputError(f"the {part} of a toy must be one of {', '.join(known)}, got {value!r}: choose one")
        self.form, self.residual, self.norm = form, residual, norm
        self.activation = FUNCTION_OF[activation]
        d, L = shape.width, shape.blocks
        hidden = HIDDEN * d if form == "block2" else d
        draw = generator(seed, 0)

        def normal(*size: int, std: float = 1.0) -> nn.Parameter:
            return nn.Parameter(std / math.sqrt(size[-1]) * torch.randn(size, generator=draw))

        self.embed, self.readout = normal(d, shape.inputs), normal(shape.outputs, d)
        self.reader = normal(L, hidden, d, std=scale)
        if form == "block2":
            self.writer = normal(L, d, hidden, std=scale)
        if norm in ("layer", "rms"):
            self.gain = nn.Parameter(torch.ones(L, d))
        if norm == "layer":
            self.bias = nn.Parameter(torch.zeros(L, d))

    @property
    def roles(self) -> dict[str, str]:
        """The parameter whose input space, and the one whose output space, is the stream."""
        return {"input": "reader", "output": "writer" if self.form == "block2" else "reader"}

    @staticmethod
    @public
    def acting(parameters: Mapping[str, Tensor], name: str) -> Float[Tensor, "*seed layer out in"]:
        """Return the matrices as they act on the normalised stream: ``W diag(gain)`` for a reader after a gain.

        Args:
            parameters: Parameters of one module, or of several, stacked.
            name: "reader" or "writer".

        Returns:
            Matrices (..., L, out, in).

        Raises:
            InputError: If the parameters have no such matrix.
        """
        if name not in parameters:
            raise InputError(
                f"name= must be a matrix of parameters=, got {name!r} for a dict of "
                f"{', '.join(parameters) or 'nothing'}: choose another"
            )
        folds = name == "reader" and "gain" in parameters
        return parameters[name] * parameters["gain"].unsqueeze(-2) if folds else parameters[name]

    @public
    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Compute the outputs of inputs."""
        h = x @ self.embed.mT
        for layer, reader in enumerate(self.reader.unbind(0)):
            z = self._normalised(h, layer) @ reader.mT
            if self.form == "stream" and self.residual:
                h = self.activation(h + z)
                continue
            written = self.activation(z)
            if self.form == "block2":
                written = written @ self.writer[layer].mT
            h = h + written if self.residual else written
        return h @ self.readout.mT

    def _normalised(self, h: Float[Tensor, "batch d"], layer: int) -> Float[Tensor, "batch d"]:
        gain = self.gain[layer] if self.norm in ("layer", "rms") else None
        return normalise(h, self.norm, gain, self.bias[layer] if self.norm == "layer" else None)
