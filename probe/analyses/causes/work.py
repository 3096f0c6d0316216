"""The tasks of a run on causes: a toy, or an arm of the transformer, trained on all seeds at once.

A task returns what `Watch` measures at each snapshot, and the training loss. An arm takes minutes: it leaves a
checkpoint at every snapshot and goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from probe.analyses.causes import cells
from probe.analyses.causes.cells import Cell
from probe.analyses.causes.config import Config
from probe.analyses.causes.schema import SCHEMA
from probe.analysis import Subject, Task
from probe.runs import Piece, Run
from probe.runs.engine import task_bar
from probe.text import Part, Windows, load_windows
from probe.training import (
    Bytes,
    NextByte,
    Optimiser,
    Regression,
    Schedule,
    Shape,
    Size,
    SmallTransformer,
    Stack,
    ToyMLP,
    Watch,
    next_byte_loss,
    snapshot_steps,
    train,
)
from probe.training.measures import LEADING
from probe.training.transformer import ARM_OF, PROJECTIONS
from probe.training.watch import SPACES, WEIGHTS

HELD_OUT, PROBES = 1024, 8  # inputs, and batches on which gradients are measured, of a toy
ARM_HELD_OUT, ARM_PROBES = 64, 1
ARM_DECAY, ARM_WARMUP = 0.1, 0.05
TIMED = 50  # one step in so many is timed for a plan


@dataclass(frozen=True)
class Training:
    """One network on all seeds, before it is trained.

    Attributes:
        stack: The modules of all seeds as one function.
        data: What they learn.
        optimiser: How parameters follow gradients.
        schedule: Steps and snapshots.
        watch: What is measured at a snapshot.
    """

    stack: Stack
    data: Regression | NextByte
    optimiser: Optimiser
    schedule: Schedule
    watch: Watch

    def run(self, **options: Any) -> dict[str, Tensor]:
        """Train it.

        Args:
            **options: As `probe.training.train` takes them.

        Returns:
            What was seen, (snapshot, seed, ...).
        """
        return train(self.stack, self.data.batch, self.optimiser, self.schedule, self.watch, **options)[0]

    def seconds(self) -> float:
        """Estimate what it takes, from some of its steps and a look, after others that load what is loaded once.

        Returns:
            Time in seconds.
        """
        times: list[float] = []

        def look(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            times.append(time.perf_counter())
            seen = self.watch(now, before)
            times.append(time.perf_counter())
            return seen

        timed = 1 + self.schedule.steps // TIMED
        train(self.stack, self.data.batch, self.optimiser, replace(self.schedule, snapshots=(1, 1 + timed)), look)
        _, begun, stepped, looked = times
        return self.schedule.steps * (stepped - begun) / timed + len(self.schedule.snapshots) * (looked - stepped)


class Trainings(Subject[Config]):
    """The toys and the small transformers that the options name, and the text that the latter learn."""

    @cached_property
    def cells(self) -> list[Cell]:
        """The parts of each toy, in the order of the grid."""
        return cells.chosen(self.config.cells, self.config.full)

    @property
    def toys(self) -> list[Task]:
        """A task for each toy."""
        return [Task("toys", {"cell": cell.name}, asdict(cell)) for cell in self.cells]

    @property
    def arms(self) -> list[Task]:
        """A task for each arm of the transformer; none without a text."""
        return [Task("transformers", {"arm": arm}) for arm in self.config.trained_arms]

    @property
    def schedule(self) -> Schedule:
        """Steps and snapshots of a toy: a constant learning rate, as in the trials."""
        return Schedule(self.config.steps, snapshot_steps(self.config.steps, self.config.snapshots))

    @property
    def arm_schedule(self) -> Schedule:
        """Steps and snapshots of a transformer: warm-up, then a cosine."""
        return Schedule(self.config.arm_steps, snapshot_steps(self.config.arm_steps, self.config.snapshots), ARM_WARMUP)

    @property
    def axes(self) -> dict[str, Sequence[int] | Sequence[str]]:
        """Labels along the axes of a toy's variables."""
        return {
            "step": list(self.schedule.snapshots),
            "seed": list(self.config.seed_list),
            "weights": list(WEIGHTS),
            "space": list(SPACES),
            "k": range(1, min(LEADING, self.config.width) + 1),
            "pair": range(self.config.blocks - 1),
            "layer": range(self.config.blocks),
        }

    @property
    def arm_axes(self) -> dict[str, Sequence[int] | Sequence[str]]:
        """Labels along the axes of a transformer's variables."""
        return {
            "arm_step": list(self.arm_schedule.snapshots),
            "seed": list(self.config.seed_list),
            "projection": list(PROJECTIONS),
            "weights": list(WEIGHTS),
            "space": list(SPACES),
            "arm_k": range(1, min(LEADING, self.config.arm_width) + 1),
            "arm_pair": range(self.config.arm_blocks - 1),
            "arm_layer": range(self.config.arm_blocks),
        }

    def windows(self, part: Part = "all", count: int | None = None, *, at_most: bool = False) -> Windows:
        """Draw windows of the text's bytes, one byte longer than the context.

        Args:
            part: "fit" for the documents to learn, "scored" for those held out.
            count: How many; by default all there are.
            at_most: Where the text has fewer, take them all.

        Returns:
            The windows, drawn once.
        """
        config = self.config

        def draw() -> Windows:
            return load_windows(
                Bytes(),
                dataset=config.dataset,
                text=config.text,
                split=config.split,
                column=config.column,
                windows=count,
                window_length=config.window_length + 1,
                part=part,
                seed=config.seed,
                at_most=at_most,
            )

        return self.keep(("windows", part, count, at_most), draw)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """The hash of the text, where there is one."""
        return {"text": self.windows("fit").sha256} if self.config.reads_text else {}

    def toy(self, cell: Cell) -> Training:
        """Make a toy.

        Args:
            cell: What it is made of.

        Returns:
            Its training.
        """
        config, dtype = self.config, getattr(torch, self.config.dtype)
        shape = Shape(config.width, config.blocks)
        modules = [
            ToyMLP(
                form=cell.form,
                residual=cell.residual,
                activation=cell.activation,
                norm=cell.norm,
                scale=cell.scale,
                seed=seed,
                shape=shape,
            ).to(config.device, dtype)
            for seed in config.seed_list
        ]
        data = Regression(
            config.seed_list,
            cell.teacher,
            inputs=shape.inputs,
            outputs=shape.outputs,
            batch=config.batch,
            dtype=dtype,
            device=config.device,
        )
        module, stack = modules[0], Stack(modules, functional.mse_loss)
        names = tuple(dict.fromkeys(module.roles[space] for space in SPACES))  # the first reads, the last writes
        watch = Watch(stack, module.acting, names, data, held_out=HELD_OUT, probes=PROBES)
        optimiser = Optimiser(cell.optimiser, cell.decay, hidden=names, decayed=module.decayed)
        return Training(stack, data, optimiser, self.schedule, watch)

    def arm(self, name: str) -> Training:
        """Make an arm of the transformer.

        Args:
            name: One of `probe.training.names.ARMS`.

        Returns:
            Its training.
        """
        config, dtype = self.config, getattr(torch, self.config.dtype)
        size = Size(config.arm_width, config.arm_blocks, config.arm_heads)
        modules = [
            SmallTransformer(ARM_OF[name], seed=seed, size=size).to(config.device, dtype) for seed in config.seed_list
        ]
        learned, held_out = (self.windows(part).tokens.to(config.device) for part in ("fit", "scored"))
        data = NextByte(config.seed_list, learned, held_out, batch=config.arm_batch)
        module, stack = modules[0], Stack(modules, next_byte_loss)
        watch = Watch(stack, module.acting, PROJECTIONS, data, held_out=ARM_HELD_OUT, probes=ARM_PROBES)
        optimiser = Optimiser("adamw", ARM_DECAY, hidden=PROJECTIONS, decayed=module.decayed)
        return Training(stack, data, optimiser, self.arm_schedule, watch)


def train_toy(subject: Trainings, task: Task, run: Run) -> Piece:
    """Train one toy.

    Args:
        subject: What is trained.
        task: Its cell.
        run: Not used.

    Returns:
        What was seen; a space is that of the matrix that reads the stream, or of the one that writes it.
    """
    toy = subject.toy(Cell(**task.arguments))
    with _one_thread():
        seen = toy.run()
    return Piece({name: _by_space(name, values) for name, values in seen.items()}, subject.axes)


def toy_seconds(subject: Trainings, task: Task) -> float:
    """Estimate what a toy takes.

    Args:
        subject: What is trained.
        task: Its cell.

    Returns:
        Time in seconds.
    """
    with _one_thread():
        return subject.toy(Cell(**task.arguments)).seconds()


def train_arm(subject: Trainings, task: Task, run: Run) -> Piece:
    """Train one arm of the transformer, or what is left of it.

    Args:
        subject: What is trained.
        task: Its arm.
        run: Where checkpoints go.

    Returns:
        What was seen.
    """
    with task_bar(subject.config.arm_steps, task["arm"], step="step") as bar:
        seen = subject.arm(task["arm"]).run(checkpoint=TaskCheckpoint(run, task), progress=bar.update)
    return Piece({f"arm_{name}": values for name, values in seen.items()}, subject.arm_axes)


def arm_seconds(subject: Trainings, task: Task) -> float:
    """Estimate what an arm of the transformer takes.

    Args:
        subject: What is trained.
        task: Its arm.

    Returns:
        Time in seconds.
    """
    return subject.arm(task["arm"]).seconds()


@dataclass(frozen=True)
class TaskCheckpoint:
    """A training's checkpoint in the run directory, each over the one before.

    Attributes:
        run: The run directory.
        task: The task that is cut off.
    """

    run: Run
    task: Task

    def load(self) -> dict[str, Tensor] | None:
        """Read what was saved last; None if nothing was."""
        return self.run.load_checkpoint(self.task)

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Keep this state, and no older one."""
        self.run.save_checkpoint(self.task, state)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products of toys are too small to share: threads would wait for each other, and round in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _by_space(name: str, values: Tensor) -> Tensor:
    """The matrix axis (third) exchanged for a space axis: input space of the first matrix, output space of the last."""
    axes, of_matrix = SCHEMA[name].dims[1:], SCHEMA[f"arm_{name}"].dims[4:]  # a transformer keeps its matrix axis
    if "space" not in axes:
        return values
    chosen = [values.select(2, matrix) for matrix in (0, -1)]
    if "space" in of_matrix:
        chosen = [array.select(2 + of_matrix.index("space"), space) for space, array in enumerate(chosen)]
    return torch.stack(chosen, dim=axes.index("space"))
