"""A toy analysis of two stages: random numbers, added up.

`python -m tests.plant.toy` is its command line. With the environment variable TOY_STOP=N it says "stopped" in the
N-th task and waits there to be killed; with TOY_STOP=write it does so half way through writing the second task's file.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from probe.analysis import Analysis, Plan, Schema, Stage, StagePlan, Subject, Task, TextConfig, Variable
from probe.errors import InputError
from probe.runs import Run

TASKS = 4


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Adds up random numbers."""

    numbers: int = 1000
    """How many numbers a task adds up."""
    ranks: tuple[int, ...] = (4, 8)
    """Not used, but a comma list."""

    def require_inputs(self) -> None:
        """The toy reads neither a model nor a text."""


def draw(subject: Subject[Config], task: Task, run: Run) -> Mapping[str, Tensor]:
    if os.environ.get("TOY_STOP") == str(task["index"]):
        stop()
    generator = torch.Generator().manual_seed(subject.config.seed + task["index"])
    return {"numbers": torch.randn(subject.config.numbers, generator=generator)}


def add(subject: Subject[Config], task: Task, run: Run) -> Mapping[str, Tensor]:
    if os.environ.get("TOY_STOP") == "write" and task["index"] == 1:
        os.fsync = lambda descriptor: stop()  # the file is written, but neither flushed nor renamed
    return {"sum": run.piece("draw", ["numbers"], index=task["index"])["numbers"].cumsum(0)[-1]}


def stop() -> None:
    sys.stdout.write("stopped\n")
    sys.stdout.flush()
    time.sleep(60)


class Toy(Analysis[Config]):
    """Adds up random numbers."""

    name = "toy"
    config = Config
    schema = Schema({
        "numbers": Variable("index number", meaning="random numbers", kept=False),
        "sum": Variable("index", meaning="their sum"),
    })

    def check(self, config: Config) -> None:
        if config.model == "unknown":
            raise InputError("no model\nof that name")

    def fingerprint(self, subject: Any) -> Mapping[str, str]:
        return {"weights": "0"}

    def stages(self, subject: Any) -> Sequence[Stage]:
        return [
            Stage(name, function, [Task(name, {"index": index}) for index in range(TASKS)], name)
            for name, function in (("draw", draw), ("add", add))
        ]

    def coordinates(self, subject: Any) -> Mapping[str, Any]:
        return {"index": range(TASKS)}

    def finish(self, data: xr.Dataset, subject: Any, run: Run) -> xr.Dataset:
        return data  # no model is behind it


class Timed(Toy):
    """The toy with a plan whose times are known."""

    def plan(self, config: Config, *, quiet: bool = True) -> Plan:
        return Plan([StagePlan("draw", TASKS, 75.2, 123_456_789), StagePlan("add", TASKS, 4000.0, 2_000_000_000)])


analysis = Timed()
run, plan = analysis.run, analysis.plan


def main(argv: list[str] | None = None) -> int:
    return analysis.main(argv)


if __name__ == "__main__":
    sys.exit(main())
