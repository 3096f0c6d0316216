"""The subject of a run of the dynamics: the measured positions, and the Jacobians of a model's blocks there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.analyses.dynamics.config import Config
from probe.analysis import Subject
from probe.analysis.subject import OWN, spread
from probe.errors import InputError
from probe.jacobian import iter_block_jacobians, routing_margin

ALONE: Final = "alone"
"""The variant whose blocks run on the token alone."""
MEMORY = 2**29  # bytes of float32 matrices in one task
JACOBIAN_MEMORY = 2**28  # bytes while they are computed


class DynamicsSubject(Subject[Config]):
    """The model, its controls, and where the Jacobians of their blocks are measured."""

    @cached_property
    def depth(self) -> int:
        """Number of blocks that are multiplied."""
        return self.model.n_layers

    @cached_property
    def positions(self) -> Int[Tensor, "window chosen"]:
        """The measured positions, a seeded draw; controls are measured at the first column."""
        return self.draw(self.windows(), self.config.positions_per_window)

    @property
    def chosen(self) -> int:
        """Measured positions of a window."""
        return self.positions.shape[1]

    @property
    def control_windows(self) -> int:
        """Number of windows, from the first, on which controls and mean matrices are measured."""
        return min(self.config.control_windows, len(self.positions))

    @property
    def variants(self) -> list[str]:
        """The model, its blocks on the token alone, and the controls."""
        alone = [ALONE] if self.config.alone and self.config.context != "alone" else []
        return [OWN, *alone, *self.config.controls]

    @property
    def starts(self) -> list[int]:
        """The blocks before which the stream is perturbed."""
        return spread(list(range(self.depth)), self.config.perturb_layers)

    @property
    def exponents(self) -> list[int]:
        """The Lyapunov exponents that are kept: the 1st, 2nd, 4th, 8th … and the last."""
        width = self.model.d_model
        return sorted({2**power for power in range(width.bit_length()) if 2**power <= width} | {width})

    def queries(self, rows: slice, *, every_position: bool = False) -> range:
        """Name the measured tokens of some windows.

        Args:
            rows: The windows.
            every_position: All measured positions, by default the first of each window.

        Returns:
            Their places along `query`.
        """
        return range(rows.start * self.chosen, rows.stop * self.chosen, 1 if every_position else self.chosen)

    def batch(self, chosen: int) -> int:
        """Choose how many windows make a task: two matrices a core for each block, and no more than fit the memory.

        Args:
            chosen: Measured positions of each.

        Returns:
            Number of windows.
        """
        stack = 4 * self.depth * self.model.d_model**2 * chosen
        return max(1, min(-(-4 // chosen), MEMORY // stack))

    def jacobians(
        self,
        rows: slice,
        *,
        variant: str = OWN,
        layers: Sequence[int] | None = None,
        every_position: bool = False,
    ) -> Iterator[tuple[int, Float[Tensor, "window chosen d d"]]]:
        """Compute Jacobians J of the blocks in depth order, in float32, from one recorded pass.

        Args:
            rows: The windows.
            variant: Of the model.
            layers: The blocks, all by default.
            every_position: At all measured positions, by default at the first of each window.

        Yields:
            Layer and matrices.
        """
        positions = self.positions[rows]
        found = iter_block_jacobians(
            self.variant(variant),
            self.windows().tokens[rows],
            range(self.depth) if layers is None else layers,
            positions if every_position else positions[:, :1],
            context=ALONE if variant == ALONE else self.config.context,
            method=self.config.method,
            memory=JACOBIAN_MEMORY,
        )
        for layer, matrices in found:
            yield layer, matrices.cpu()  # `probe.spectra.lapack` sends to a GPU what is quicker there

    def stacked(
        self, rows: slice, *, variant: str = OWN, every_position: bool = False
    ) -> Float[Tensor, "layer query d d"]:
        """Compute the Jacobians of all blocks at once: 4 L d² bytes a position.

        Args:
            rows: The windows.
            variant: Of the model.
            every_position: As in `jacobians`.

        Returns:
            J.
        """
        found = self.jacobians(rows, variant=variant, every_position=every_position)
        return torch.stack([matrices.flatten(0, 1) for _, matrices in found])

    def margins(self, rows: slice) -> Float[Tensor, "layer query"]:
        """Measure how far experts are from being chosen otherwise, at all measured positions of some windows.

        Args:
            rows: The windows.

        Returns:
            `probe.jacobian.routing_margin`; NaN for blocks without experts, or whose router has no known margin, and
            for states out of their context.
        """
        found = torch.full((len(self.layers), self.positions[rows].numel()), torch.nan)
        for row, layer in enumerate(self.layers if self.config.context == "sequence" else ()):
            with suppress(InputError):
                margins = routing_margin(self.model, self.windows().tokens[rows], layer, self.positions[rows])
                found[row] = margins.flatten()
        return found

    def first_blocks(self, count: int) -> DynamicsSubject:
        """Take the first blocks alone, and of the layers that are looked at the same share: what a plan times.

        Args:
            count: Number of blocks.

        Returns:
            A subject with the same models and windows.
        """
        part = type(self)(self.config)
        part._variants, part._kept = self._variants, self._kept
        part.depth = min(count, self.depth)
        part.layers = list(range(max(1, part.depth * len(self.layers) // self.depth)))
        return part
