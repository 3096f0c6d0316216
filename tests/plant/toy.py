"""A toy analysis that uses runs, engine and command line as a real one does: units of random numbers, added up.

`python -m tests.plant.toy` is its command line. With the environment variable TOY_STOP=N it says "stopped" in the
N-th unit and waits there to be killed; with TOY_STOP=write it does so half way through writing the second unit's file.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor

from probe.analysis import command, config
from probe.errors import InputError
from probe.runs import Run, open_run, write_file
from probe.runs.engine import Plan, StagePlan, Unit, work

UNITS = 4


@dataclass(frozen=True, kw_only=True)
class Config(config.TextConfig):
    """Adds up random numbers."""

    numbers: int = 1000
    """How many numbers a unit adds up."""
    ranks: tuple[int, ...] = (4, 8)
    """Not used, but a comma list."""

    def require_inputs(self) -> None:
        """The toy reads neither a model nor a text."""


@dataclass(frozen=True)
class Result:
    data: xr.Dataset
    directory: Path

    def write_report(self) -> Path:
        write_file(self.directory / "report.html", "<p>report</p>")
        return self.directory / "report.html"


def draw(config: Config, unit: Unit, run: Run) -> Mapping[str, Tensor]:
    index = unit.arguments["index"]
    if os.environ.get("TOY_STOP") == str(index):
        stop()
    generator = torch.Generator().manual_seed(config.seed + index)
    return {"numbers": torch.randn(config.numbers, generator=generator)}


def add(config: Config, unit: Unit, run: Run) -> Mapping[str, Tensor]:
    if os.environ.get("TOY_STOP") == "write" and unit.arguments["index"] == 1:
        os.fsync = lambda descriptor: stop()  # the file is written, but neither flushed nor renamed
    return {"sum": run.load("draw", unit.key)["numbers"].cumsum(0)[-1]}


def stop() -> None:
    sys.stdout.write("stopped\n")
    sys.stdout.flush()
    time.sleep(60)


def run(
    config: Config,
    *,
    out: Path | None = None,
    fresh: bool = False,
    quiet: bool = False,
    typed: str | None = None,
) -> Result:
    if config.model == "unknown":
        raise InputError("no model\nof that name")
    keys = [f"unit={index}" for index in range(UNITS)]
    with open_run("toy", config, {"weights": "0"}, out=out, fresh=fresh, typed=typed) as opened:
        for function in (draw, add):
            units = [Unit(function.__name__, key, {"index": index}) for index, key in enumerate(keys)]
            work(function, units, config, opened, description=function.__name__, quiet=quiet)
        data = xr.Dataset({"sum": ("unit", torch.stack([opened.load("add", key)["sum"] for key in keys]).numpy())})
        opened.write_results(data)
        return Result(opened.read_results(), opened.directory)


def plan(config: Config) -> Plan:
    return Plan([StagePlan("draw", UNITS, 75.2, 123_456_789), StagePlan("add", UNITS, 4000.0, 2_000_000_000)])


def main(argv: list[str] | None = None) -> int:
    return command.main("toy", Config, run, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
