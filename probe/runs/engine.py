"""Where the units of a run are worked off: here, one after another.

A unit is a plain function of serialisable arguments, so that another executor can come behind the same call.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from probe.runs.directory import Run

_Config = TypeVar("_Config")
_QUIET = ContextVar("quiet", default=False)  # whether the units that are worked off show nothing


@dataclass(frozen=True)
class Unit:
    """One independent piece of work.

    Attributes:
        stage: The stage it belongs to; with `key` the name under which its arrays are saved.
        key: Its name within the stage, a file name.
        arguments: What the function needs to know, in the types that JSON has.

    Raises:
        TypeError: If the arguments cannot be written as JSON.
    """

    stage: str
    key: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        json.dumps(dict(self.arguments))  # raises TypeError


@dataclass(frozen=True)
class StagePlan:
    """What one stage of a run would take.

    Attributes:
        name: The stage.
        units: Number of units.
        seconds: Estimated time, in seconds; NaN where nobody can say.
        bytes: Estimated peak memory, in bytes; NaN likewise.
    """

    name: str
    units: int
    seconds: float | int = math.nan
    bytes: float | int = math.nan


@dataclass(frozen=True)
class Plan:
    """What a run would do, in order; `--dry-run` prints it.

    Attributes:
        stages: The stages.
    """

    stages: Sequence[StagePlan]


def work(
    function: Callable[[_Config, Unit, Run], Mapping[str, Tensor]],
    units: Sequence[Unit],
    config: _Config,
    run: Run,
    *,
    description: str,
    quiet: bool = False,
) -> None:
    """Work off the units that are not finished, and save what each returns.

    Args:
        function: Called as `function(config, unit, run)` for each unit; a function of a module, so that another process
            can find it. Its result must depend on its arguments and finished earlier stages alone, not on the units
            before it: then a resumed run equals an uninterrupted one.
        units: The units, each with its own stage and key.
        config: The analysis's configuration.
        run: Where the arrays go.
        description: What the progress bar says.
        quiet: Show no progress bar.

    Raises:
        ValueError: If two units share stage and key, or the function cannot be found from its module.
    """
    if "<" in function.__qualname__:  # <locals>, <lambda>
        raise ValueError(f"a unit's function must be defined in a module, got {function.__qualname__}")
    twice = [name for name, count in Counter((unit.stage, unit.key) for unit in units).items() if count > 1]
    if twice:
        raise ValueError(f"each unit must have its own stage and key, but {twice[0]} comes more than once")
    waiting = [unit for unit in units if not run.has(unit.stage, unit.key)]
    token = _QUIET.set(quiet)
    try:
        with tqdm(total=len(units), initial=len(units) - len(waiting), desc=description, disable=quiet) as bar:
            for unit in waiting:
                start = time.perf_counter()
                arrays = function(config, unit, run)
                run.save(unit.stage, unit.key, arrays, time.perf_counter() - start)
                bar.update()
    finally:
        _QUIET.reset(token)


def unit_bar(total: int, description: str, *, step: str) -> tqdm[NoReturn]:
    """A progress bar for the inside of a long unit; shown on a terminal only, and not in a quiet run.

    Args:
        total: Number of steps.
        description: What it says.
        step: What a step is called.

    Returns:
        The bar, a context manager.
    """
    return tqdm(total=total, desc=description, unit=step, leave=False, disable=True if _QUIET.get() else None)


def gather(run: Run, units: Sequence[Unit], names: Sequence[str]) -> Mapping[str, Tensor]:
    """The named arrays of all units of a stage, joined along their first axis in the units' order.

    Args:
        run: Where the units were saved.
        units: Units of one stage, all finished.
        names: The arrays wanted.

    Returns:
        Tensors by name.
    """
    parts = [run.load(unit.stage, unit.key, names) for unit in units]
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def flops_per_second() -> float:
    """What this machine's matrix products reach now, halved: real work gets about that. Estimates of time rest on it.

    Returns:
        Floating-point operations a second.
    """
    a = torch.randn(768, 768, generator=torch.Generator().manual_seed(0))
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * 768**3 / (time.perf_counter() - start) / 2
