"""The units of a run on causes: one toy, or one arm of the transformer, with all its seeds.

Each unit is a plain function of `(config, unit, run)` that returns named arrays, seeds along the second axis. An arm
takes minutes: it leaves a checkpoint at every snapshot and goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from probe.analyses.causes import cells
from probe.analyses.causes.cells import Cell
from probe.analyses.causes.config import Config
from probe.runs import Run
from probe.runs.engine import Unit, unit_bar
from probe.text import Part, Windows, load_windows
from probe.training import (
    ARMS,
    PROJECTIONS,
    SPACES,
    Bytes,
    NextByte,
    Optimiser,
    Plan,
    Regression,
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

HELD_OUT, PROBES = 1024, 8  # inputs, and batches on which gradients are measured, of a toy
ARM_HELD_OUT, ARM_PROBES = 64, 1
ARM_DECAY, ARM_WARMUP = 0.1, 0.05


def units(config: Config) -> dict[str, list[Unit]]:
    """All units of a run by stage.

    Args:
        config: What is run.

    Returns:
        The toys, and the arms of the transformer.
    """
    toys = [Unit("toys", cell.name, asdict(cell)) for cell in cells.chosen(config.cells, config.full)]
    arms = [Unit("transformers", arm, {"arm": arm}) for arm in config.trained_arms]
    return {"toys": toys, "transformers": arms}


def toy_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Trains one toy on all seeds.

    Args:
        config: The run's configuration.
        unit: Its cell.
        run: Not used.

    Returns:
        What `Watch` measures, (snapshot, seed, ...), for a toy of two matrices a block in the input space of the first
        and the output space of the second; with `train_loss`.
    """
    cell = Cell(**unit.arguments)
    stack, module, data = toy(config, cell)
    names = tuple(dict.fromkeys(module.roles[space] for space in SPACES))
    watch = Watch(stack, module.acting, names, data, held_out=HELD_OUT, probes=PROBES)
    optimiser = Optimiser(cell.optimiser, cell.decay, hidden=names, decayed=module.decayed)
    with _one_thread():
        seen, _ = train(stack, data.batch, optimiser, plan_of(config), watch)
    place = [names.index(module.roles[space]) for space in SPACES]
    return {name: _by_space(name, values, place) for name, values in seen.items()}


def toy(config: Config, cell: Cell) -> tuple[Stack, ToyMLP, Regression]:
    """The modules of a cell, all seeds as one function; one of them; and their data.

    Args:
        config: The run's configuration.
        cell: What the toy is made of.

    Returns:
        The stack, a module, the data.
    """
    dtype, shape = getattr(torch, config.dtype), Shape(config.width, config.blocks)
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
    return Stack(modules, functional.mse_loss), modules[0], data


def arm_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Trains one arm of the transformer on all seeds, or what is left of it.

    Args:
        config: The run's configuration.
        unit: Its arm.
        run: Where checkpoints go.

    Returns:
        What `Watch` measures, (snapshot, seed, projection, ...); with `train_loss`.
    """
    stack, module, data = transformer(config, unit.arguments["arm"])
    watch = Watch(stack, module.acting, PROJECTIONS, data, held_out=ARM_HELD_OUT, probes=ARM_PROBES)
    optimiser = Optimiser("adamw", ARM_DECAY, hidden=PROJECTIONS, decayed=module.decayed)
    with unit_bar(config.arm_steps, unit.key, step="step") as bar:
        seen, _ = train(
            stack,
            data.batch,
            optimiser,
            arm_plan_of(config),
            watch,
            checkpoint=UnitCheckpoint(run, unit.key),
            progress=bar.update,
        )
    return seen


def transformer(config: Config, arm: str) -> tuple[Stack, SmallTransformer, NextByte]:
    """The modules of an arm, all seeds as one function; one of them; and their data.

    Args:
        config: The run's configuration.
        arm: A key of `probe.training.ARMS`.

    Returns:
        The stack, a module, the data.
    """
    size, dtype = Size(config.arm_width, config.arm_blocks, config.arm_heads), getattr(torch, config.dtype)
    modules = [SmallTransformer(ARMS[arm], seed=seed, size=size).to(config.device, dtype) for seed in config.seed_list]
    learned, held_out = (windows_of(config, part).tokens.to(config.device) for part in ("fit", "scored"))
    data = NextByte(config.seed_list, learned, held_out, batch=config.arm_batch)
    return Stack(modules, next_byte_loss), modules[0], data


@lru_cache(maxsize=2)
def windows_of(config: Config, part: Part) -> Windows:
    """All windows of the documents to learn ("fit") or held out ("scored"), one byte longer than the context."""
    return load_windows(
        Bytes(),
        dataset=None if config.text else config.dataset,
        text=config.text,
        split=config.split,
        windows=None,
        window_length=config.window_length + 1,
        part=part,
        seed=config.seed,
    )


def plan_of(config: Config) -> Plan:
    """Steps and snapshots of a toy: a constant learning rate, as in the trials."""
    return Plan(config.steps, snapshot_steps(config.steps, config.snapshots))


def arm_plan_of(config: Config) -> Plan:
    """Steps and snapshots of a transformer: warm-up, then a cosine."""
    return Plan(config.arm_steps, snapshot_steps(config.arm_steps, config.snapshots), ARM_WARMUP)


@dataclass(frozen=True)
class UnitCheckpoint:
    """A training's checkpoint in the run directory, each over the one before.

    Attributes:
        run: The run directory.
        key: The unit's key.
    """

    run: Run
    key: str

    def load(self) -> dict[str, Tensor] | None:
        """What was saved last; None if nothing was."""
        return self.run.load("checkpoints", self.key) if self.run.has("checkpoints", self.key) else None

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Keep this state, and no older one."""
        self.run.save("checkpoints", self.key, state, seconds=0.0)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products of toys are too small to share: threads would wait for each other, and round in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _by_space(name: str, values: Tensor, place: list[int]) -> Tensor:
    """The matrix axis (third) exchanged for a space axis: each space read from its own matrix."""
    chosen = [values.select(2, index) for index in place] if values.ndim > 2 else []
    match name:
        case "held_out_loss" | "train_loss":
            return values
        case "cosine" | "overlap" | "match" | "layer_angle":  # (snapshot, seed, weights, space, ...)
            return torch.stack([one.select(3, space) for space, one in enumerate(chosen)], dim=3)
        case "step_angle":  # (snapshot, seed, space)
            return torch.stack([one.select(2, space) for space, one in enumerate(chosen)], dim=2)
        case "gap":  # (snapshot, seed, weights, layer)
            return torch.stack(chosen, dim=3)
        case _:  # (snapshot, seed)
            return torch.stack(chosen, dim=2)
