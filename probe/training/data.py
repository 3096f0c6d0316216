"""Data of the toys and the small transformers: a frozen teacher's outputs, or the next byte of a text.

Everything is drawn from a seed and the number of the step, never from a running generator: the batch of step 1,000 is
the same in a resumed run, in a seed trained alone, and in every arm of a contrast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from probe.boundary import at_least, filled, public
from probe.errors import InputError
from probe.training.names import TEACHERS

CHUNK = 64  # steps whose inputs are drawn at once: drawing them one by one would cost more than the products
TEACHER_WIDTH = 64
STANDARD = 8192  # inputs on which a teacher's outputs are standardised
_TEACHER, _STANDARD, _TRAIN, _HELD_OUT, _PROBE = range(1, 6)


def generator(*parts: int) -> torch.Generator:
    """Make a generator for one purpose, from a seed and the numbers that name the purpose.

    Args:
        *parts: The seed, then the numbers of the purpose.

    Returns:
        Independent streams for different parts.
    """
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


class Regression:
    """Inputs ``x ~ N(0, I)`` and the outputs of a frozen random teacher, one teacher a seed.

    Outputs have mean 0 and variance 1 (over all coordinates), so that the best constant has a loss of 1.

    Args:
        seeds: Seeds; each has its own stream of data.
        teacher: "nonlinear" (two hidden ReLU layers) or "linear".
        inputs: Width of the inputs.
        outputs: Width of the outputs.
        batch: Inputs of a step.
        dtype: The dtype of inputs and outputs, which are drawn in float32 on the CPU.
        device: The device of inputs and outputs.

    Raises:
        InputError: If there is no such teacher.
    """

    @public(seeds=filled, inputs=at_least(1), outputs=at_least(1), batch=at_least(1))
    def __init__(
        self,
        seeds: Sequence[int],
        teacher: str,
        *,
        inputs: int = 32,
        outputs: int = 16,
        batch: int = 128,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        if teacher not in TEACHERS:
            raise InputError(f"a teacher must be one of {', '.join(TEACHERS)}, got {teacher!r}: choose one")
        self.seeds, self.size, self.inputs = tuple(seeds), batch, inputs
        self.dtype, self.device = dtype, device
        widths = [inputs, TEACHER_WIDTH, TEACHER_WIDTH, outputs] if teacher == "nonlinear" else [inputs, outputs]
        draws = [generator(seed, _TEACHER) for seed in self.seeds]
        self._layers = [
            torch.stack([math.sqrt(2 / fan_in) * torch.randn(fan_in, out, generator=draw) for draw in draws])
            for fan_in, out in itertools.pairwise(widths)
        ]
        self._mean, self._std = torch.zeros(()), torch.ones(())
        raw = self._taught(self._normal(STANDARD, _STANDARD))
        self._mean = raw.mean(1, keepdim=True)
        self._std = (raw - self._mean).square().mean((1, 2), keepdim=True).sqrt()
        self._chunk: tuple[int, Tensor, Tensor] | None = None

    @public(step=at_least(0))
    def batch(self, step: int) -> tuple[Float[Tensor, "seed batch inputs"], Float[Tensor, "seed batch outputs"]]:
        """Draw the inputs and outputs of one step."""
        index, offset = divmod(step, CHUNK)
        if self._chunk is None or self._chunk[0] != index:
            self._chunk = (index, *self._pair(CHUNK * self.size, _TRAIN, index))
        rows = slice(offset * self.size, (offset + 1) * self.size)
        return self._chunk[1][:, rows], self._chunk[2][:, rows]

    @public(n=at_least(1))
    def held_out(self, n: int) -> tuple[Float[Tensor, "seed n inputs"], Float[Tensor, "seed n outputs"]]:
        """Draw inputs and outputs that no step sees."""
        return self._pair(n, _HELD_OUT)

    @public
    def probes(
        self, count: int
    ) -> list[tuple[Float[Tensor, "seed batch inputs"], Float[Tensor, "seed batch outputs"]]]:
        """Draw further batches that no step sees, on which gradients are measured."""
        return [self._pair(self.size, _PROBE, index) for index in range(count)]

    def _pair(self, n: int, *purpose: int) -> tuple[Tensor, Tensor]:
        x = self._normal(n, *purpose)
        return x.to(self.device, self.dtype), self._taught(x).to(self.device, self.dtype)

    def _normal(self, n: int, *purpose: int) -> Float[Tensor, "seed n inputs"]:
        return torch.stack([torch.randn(n, self.inputs, generator=generator(seed, *purpose)) for seed in self.seeds])

    def _taught(self, x: Float[Tensor, "seed n inputs"]) -> Float[Tensor, "seed n outputs"]:
        for layer in self._layers[:-1]:
            x = torch.relu(x @ layer)
        return (x @ self._layers[-1] - self._mean) / self._std


@public
@dataclass(frozen=True)
class Bytes:
    """A reader of text byte by byte, with the members that `probe.text.load_windows` asks of a model.

    Attributes:
        tokenizer: Name of the encoding: UTF-8.
        max_positions: None: no window is too long.
        special_ids: Empty: no byte is special.
        bos_id: None: windows begin with the text itself.
    """

    tokenizer: str = "utf-8"
    max_positions: int | None = None
    special_ids: frozenset[int] = frozenset()
    bos_id: int | None = None

    @public
    def encode(self, text: str) -> list[int]:
        """Encode a text as its bytes."""
        return list(text.encode())


class NextByte:
    """Windows of a text's bytes, and the bytes that follow.

    Args:
        seeds: Seeds; each has its own stream of windows.
        train: Windows to learn, one byte longer than the context.
        held_out: Windows on which a model is judged, of the same length.
        batch: Windows of a step.
    """

    @public(seeds=filled, batch=at_least(1))
    def __init__(
        self,
        seeds: Sequence[int],
        train: Int64[Tensor, "window position"],
        held_out: Int64[Tensor, "other position"],
        *,
        batch: int = 16,
    ) -> None:
        self.seeds, self.size = tuple(seeds), batch
        self._train, self._held_out = train, held_out

    @public(step=at_least(0))
    def batch(self, step: int) -> tuple[Int64[Tensor, "seed batch context"], Int64[Tensor, "seed batch context"]]:
        """Draw the windows of one step and the bytes that follow."""
        return self._draw(self._train, _TRAIN, step)

    @public(n=at_least(1))
    def held_out(self, n: int) -> tuple[Int64[Tensor, "seed n context"], Int64[Tensor, "seed n context"]]:
        """Return windows that no step sees: the first n, or all there are, the same for all seeds."""
        rows = self._held_out[:n].expand(len(self.seeds), -1, -1)
        return rows[..., :-1], rows[..., 1:]

    @public
    def probes(
        self, count: int
    ) -> list[tuple[Int64[Tensor, "seed batch context"], Int64[Tensor, "seed batch context"]]]:
        """Draw batches that no step sees, on which gradients are measured."""
        return [self._draw(self._held_out, _PROBE, index) for index in range(count)]

    def _draw(self, windows: Int64[Tensor, "window position"], *purpose: int) -> tuple[Tensor, Tensor]:
        draws = [torch.randint(len(windows), (self.size,), generator=generator(seed, *purpose)) for seed in self.seeds]
        rows = torch.stack([windows[draw] for draw in draws])
        return rows[..., :-1], rows[..., 1:]
