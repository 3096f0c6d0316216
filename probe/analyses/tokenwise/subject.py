"""What a run of layer updates is about: windows for fitting and scoring, the scored positions, the maps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from probe.analyses.tokenwise.config import Config
from probe.analysis import Subject, Task
from probe.text import Part, Windows

BATCH = 8
PERMUTED_MAPS = ("linear", "local")
FLOOR_MAPS = ("mean", "diagonal", "linear", "low_rank", "local")
SHARE_MAPS = ("mean", "linear", "low_rank", "local", "mlp", "mlp_random")


class UpdateSubject(Subject[Config]):
    """The model and the text of a run, and what is drawn from them."""

    def part(self, part: Part) -> Windows:
        """Draw the windows for fitting, validation or scoring: documents of the three never meet.

        Args:
            part: "fit", "validation" or "scored".

        Returns:
            The windows.
        """
        validation = max(1, self.config.fit_windows // 6)
        wanted = {"fit": self.config.fit_windows, "validation": validation, "scored": self.config.windows}
        return self.windows(part, wanted[part], at_most=part != "scored")

    @property
    def scored(self) -> Windows:
        """The windows that are scored."""
        return self.part("scored")

    @cached_property
    def positions(self) -> Int[Tensor, "window query"]:
        """The scored positions: a seeded draw from each window's counted positions that a token follows, sorted."""
        return self.draw(self.scored, self.config.positions_per_window, followed=True)  # the loss needs a next token

    @cached_property
    def control_rows(self) -> Int[Tensor, " query"]:
        """Rows of the queries that enter sweep, floor and permuted maps: a seeded draw from each window's."""
        windows, chosen = self.positions.shape
        drawn = torch.rand((windows, chosen), generator=torch.Generator().manual_seed(self.config.seed + 1))
        columns = drawn.topk(min(self.config.control_positions_per_window, chosen), dim=1).indices.sort(dim=1).values
        return (torch.arange(windows)[:, None] * chosen + columns).flatten()

    def queries(self, rows: slice) -> range:
        """Name the scored tokens of some windows.

        Args:
            rows: The windows.

        Returns:
            Their places along `query`.
        """
        windows, chosen = self.positions.shape
        start, stop, _ = rows.indices(windows)
        return range(start * chosen, stop * chosen)

    def batches(self, stage: str, *parts: Part) -> Iterator[Task]:
        """Make the tasks of a stage that takes windows in batches.

        Args:
            stage: The stage.
            *parts: Of the windows.

        Yields:
            Tasks with the labels `part` and `start`.
        """
        for part in parts:
            n = self.part(part).n_windows
            for start in range(0, n, BATCH):
                yield Task(stage, {"part": part, "start": start}, {"stop": min(start + BATCH, n)})

    @cached_property
    def states(self) -> list[int]:
        """The layers whose entering state is needed: each layer that is looked at, and the one behind it."""
        return sorted({layer + step for layer in self.layers for step in (0, 1)})

    @cached_property
    def maps(self) -> list[str]:
        """The maps that are fitted: those asked for, less the MLP alone where the blocks have none."""
        absent = {"mlp_alone"} if self.model.recurrent else set()
        return [name for name in self.config.classes if name not in absent]

    @property
    def permuted_maps(self) -> list[str]:
        """The maps that are also fitted to permuted updates."""
        return [name for name in PERMUTED_MAPS if name in self.config.classes]

    @property
    def share_maps(self) -> list[str]:
        """The maps whose dominant subspace is measured."""
        return [name for name in self.maps if name in SHARE_MAPS]

    @property
    def floor_maps(self) -> list[str]:
        """The maps that are also fitted to blocks run on tokens alone."""
        return [name for name in FLOOR_MAPS if name in self.config.classes]

    @property
    def sweep_grid(self) -> tuple[list[int], list[int]]:
        """The values of k and r in the sweep, ascending."""
        return sorted(self.config.sweep_neighbours), sorted(self.config.sweep_ranks)

    @property
    def whole_windows(self) -> range:
        """The first windows, in which every position is replaced."""
        wanted = self.config.all_windows if self.config.replacement == "both" else 0
        return range(min(wanted, self.scored.n_windows))
