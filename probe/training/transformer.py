"""Small transformers on bytes: RMSNorm, RoPE, SwiGLU, and arms in which one part is changed.

    h ← h + W_O attention(norm(h)),   h ← h + W_down (SiLU(W_gate norm(h)) ⊙ W_up norm(h))

The projections of all blocks are one parameter each, (L, out, in), under the names that the rest of the library uses.
Attention is written out, because the fused kernels have no rule for `vmap` in their backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from probe.boundary import at_least, public
from probe.errors import InputError
from probe.training.activations import gate_factor, normalise
from probe.training.data import generator

BYTES = 256
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
READERS = ("q", "k", "v", "gate", "up")
STD = 0.02  # of the weights at the start; the writers' is divided by √(2L)


@public
@dataclass(frozen=True)
class Arm:
    """The changes of one arm.

    Attributes:
        label: Label in figures.
        residual: True: blocks add to the stream. False: they replace it.
        norm: "rms" or "none".
        mlp: "silu": SwiGLU. "radial": ``g(‖W_gate x‖/√m) W_up x`` with the g of `radial_gate`, which commutes with
            rotations of the hidden space.
        v_nonlinearity: Whether a GELU follows V.
        softmax: False: attention is linear, ``q·k/√d_h`` over the number of positions.

    Raises:
        InputError: If there is no such norm or MLP.
    """

    label: str
    residual: bool = True
    norm: str = "rms"
    mlp: str = "silu"
    v_nonlinearity: bool = False
    softmax: bool = True

    def __post_init__(self) -> None:
        for part, value, known in (("norm", self.norm, ("rms", "none")), ("mlp", self.mlp, ("silu", "radial"))):
            if value not in known:
                raise InputError(f"the {part} of an arm must be one of {', '.join(known)}, got {value!r}: choose one")


ARM_OF = MappingProxyType({
    "full": Arm("full"),
    "v_nonlinearity": Arm("GELU after V", v_nonlinearity=True),
    "radial": Arm("rotation-preserving MLP", mlp="radial"),
    "no_residual": Arm("no residual", residual=False),
    "no_norm": Arm("no norm", norm="none"),
    "linear_attention": Arm("linear attention", softmax=False),
})
"""Arms by name; the first three are trained by default."""


@public
@dataclass(frozen=True)
class Size:
    """Sizes of a small transformer.

    Attributes:
        width: Width of the stream, d.
        blocks: Number of blocks, L.
        heads: Number of attention heads, a divisor of the width.
    """

    width: int = 128
    blocks: int = 6
    heads: int = 4

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer: 8/3 d, rounded up to a multiple of 32."""
        return 32 * math.ceil(8 * self.width / 96)


class SmallTransformer(nn.Module):
    """A small transformer of one arm; the same seed gives the same start in all arms.

    Args:
        arm: The changes.
        seed: Seed of the start.
        size: Sizes.
    """

    decayed = (*PROJECTIONS, "embed", "readout")

    @public(seed=at_least(0))
    def __init__(self, arm: Arm, *, seed: int, size: Size) -> None:
        super().__init__()
        self.arm, self.heads = arm, size.heads
        d, m, L = size.width, size.hidden, size.blocks
        draw = generator(seed, 0)

        def normal(*shape: int, std: float = STD) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(shape, generator=draw))

        self.embed, self.readout = normal(BYTES, d), normal(BYTES, d)
        self.q, self.k, self.v = (normal(L, d, d) for _ in range(3))
        self.gate, self.up = (normal(L, m, d) for _ in range(2))
        self.o, self.down = (normal(L, d, n, std=STD / math.sqrt(2 * L)) for n in (d, m))
        if arm.norm == "rms":
            self.attention_gain, self.mlp_gain = (nn.Parameter(torch.ones(L, d)) for _ in range(2))
            self.final_gain = nn.Parameter(torch.ones(d))

    @staticmethod
    @public
    def acting(parameters: Mapping[str, Tensor], projection: str) -> Float[Tensor, "*seed layer out in"]:
        """Return a projection as it acts on the normalised stream: ``W diag(gain)`` for those that read it.

        Args:
            parameters: Parameters of one module, or of several, stacked.
            projection: One of `PROJECTIONS`.

        Returns:
            Matrices (..., L, out, in).

        Raises:
            InputError: If the parameters have no such matrix.
        """
        if projection not in parameters:
            raise InputError(
                f"projection= must be a matrix of parameters=, got {projection!r} for a dict of "
                f"{', '.join(parameters) or 'nothing'}: choose another"
            )
        gain = parameters.get("mlp_gain" if projection in ("gate", "up") else "attention_gain")
        matrices = parameters[projection]
        return matrices if gain is None or projection not in READERS else matrices * gain.unsqueeze(-2)

    @public
    def forward(self, tokens: Int64[Tensor, "batch position"]) -> Float[Tensor, "batch position byte"]:
        """Compute the logits of the next byte."""
        h = functional.embedding(tokens, self.embed)
        turn = _turns(tokens.shape[-1], self.embed.shape[-1] // self.heads, h)
        for layer in range(len(self.q)):
            h = self._add(h, self._attention(self._normalised(h, "attention_gain", layer), layer, turn))
            h = self._add(h, self._mlp(self._normalised(h, "mlp_gain", layer), layer))
        return self._normalised(h, "final_gain") @ self.readout.mT

    def _add(self, h: Tensor, written: Tensor) -> Tensor:
        return h + written if self.arm.residual else written

    def _normalised(self, h: Tensor, gain: str, layer: int | None = None) -> Tensor:
        if self.arm.norm == "none":
            return h
        factor = getattr(self, gain)
        return normalise(h, self.arm.norm, factor if layer is None else factor[layer])

    def _attention(self, x: Float[Tensor, "batch position d"], layer: int, turn: tuple[Tensor, Tensor]) -> Tensor:
        def heads(weight: Tensor) -> Float[Tensor, "batch head position width"]:
            split: Tensor = (x @ weight.mT).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            return split

        q, k = (_rotated(heads(weight[layer]), turn) for weight in (self.q, self.k))
        v = heads(self.v[layer])
        v = functional.gelu(v) if self.arm.v_nonlinearity else v
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        n = scores.shape[-1]
        past = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        if self.arm.softmax:
            pattern = scores.masked_fill(~past, -torch.inf).softmax(-1)
        else:
            pattern = scores.masked_fill(~past, 0.0) / torch.arange(1, n + 1, device=x.device)[:, None]
        return (pattern @ v).transpose(-2, -3).flatten(-2) @ self.o[layer].mT

    def _mlp(self, x: Float[Tensor, "batch position d"], layer: int) -> Tensor:
        gate, up = x @ self.gate[layer].mT, x @ self.up[layer].mT
        gate = functional.silu(gate) if self.arm.mlp == "silu" else gate_factor(gate)
        written: Tensor = (gate * up) @ self.down[layer].mT
        return written


def _turns(positions: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE, (position, width/2)."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    angles = torch.arange(positions, device=like.device, dtype=like.dtype)[:, None] * rates
    return angles.cos(), angles.sin()


def _rotated(x: Float[Tensor, "batch head position width"], turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x_i, x_{i + width/2}) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = turn
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


@public
def next_byte_loss(logits: Float[Tensor, "batch position byte"], targets: Int64[Tensor, "batch position"]) -> Tensor:
    """Compute the cross-entropy in nats a byte."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
