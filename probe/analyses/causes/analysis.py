"""Runs the stages of the analysis of causes one after the other, and says beforehand what they would take."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from probe import engine
from probe.analyses.causes import cells, claims, dataset, figures, work
from probe.analyses.causes.cells import Cell
from probe.analyses.causes.config import Config
from probe.command import print_plan
from probe.engine import Plan, StagePlan
from probe.report import Result
from probe.runs import open_run
from probe.training import NextByte, Optimiser, Regression, Stack

STAGES = {"toys": work.toy_unit, "transformers": work.arm_unit}
LIBRARIES = 2**29  # bytes that Python and the libraries take before any work
TRIAL_STEPS = 5
WATCHING = 1.2  # time of a training with its snapshots over that of its steps, as measured


def run(config: Config, *, out: Path | None = None, fresh: bool = False, quiet: bool = False) -> Result:
    """See `probe.analyses.causes.run`."""
    config.check()
    units = work.units(config, quiet=quiet)
    text = {"text": work.windows_of(config, "fit").sha256} if config.reads_text else {}
    with open_run("causes", config, text, out=out, fresh=fresh) as opened:
        if not quiet:
            print_plan(plan(config), "causes", sys.stderr)
        for stage, function in STAGES.items():
            if units[stage]:
                engine.work(function, units[stage], config, opened, description=stage, quiet=quiet)
        opened.write_results(dataset.assemble(config, opened))
        data = opened.read_results()
        judged = claims.claims(data, config)
        opened.write_claims(judged)
        title = "Why neighbouring layers' leading directions are alike"
        return Result(data, judged, opened.directory, title, _notes(config), figures.figures(data, config))


def plan(config: Config) -> Plan:
    """See `probe.analyses.causes.plan`."""
    config.check()
    units = work.units(config)
    stages = [_stage("toys", len(units["toys"]), config.steps * _toy_step(config), config)]
    if units["transformers"]:
        stages.append(_stage("transformers", len(units["transformers"]), config.arm_steps * _arm_step(config), config))
    return Plan(stages)


def _stage(name: str, count: int, seconds: float, config: Config) -> StagePlan:
    d, blocks, rows = (
        (config.width, config.blocks, 64 * config.batch)
        if name == "toys"
        else (config.arm_width, config.arm_blocks, 40 * config.arm_batch * config.context)
    )
    numbers = config.seeds * (rows * d + 50 * blocks * d**2) * (1 if name == "toys" else blocks)
    return StagePlan(name, count, count * WATCHING * seconds, LIBRARIES + 4 * numbers)


def _toy_step(config: Config) -> float:
    """Seconds of a step of a typical toy, on this machine now."""
    cell = cells.chosen(config.cells, config.full)[0]
    stack, module, data = work.toy(config, Cell(cell.activation))
    return _step(stack, data, Optimiser("adamw", 0.0, hidden=("reader",), decayed=module.decayed))


def _arm_step(config: Config) -> float:
    stack, module, data = work.transformer(config, config.trained_arms[0])
    return _step(stack, data, Optimiser("adamw", 0.0, hidden=(), decayed=module.decayed), steps=1)


def _step(stack: Stack, data: Regression | NextByte, optimiser: Optimiser, steps: int = TRIAL_STEPS) -> float:
    parameters = {name: value.clone() for name, value in stack.start.items()}
    moments = optimiser.begin(parameters)
    times = []
    for step in range(steps + 1):
        batch = data.batch(step)
        start = time.perf_counter()
        _, gradients = stack.gradients(parameters, batch)
        optimiser.step(parameters, gradients, moments, step)
        times.append(time.perf_counter() - start)
    return min(times)  # the first loads what is loaded once


def _notes(config: Config) -> list[str]:
    """What the report says at its head."""
    notes = []
    if not config.reads_text:
        notes.append("No text was given, so that no transformer was trained: give --text FILE or --dataset.")
    if config.seeds < config.thresholds.threshold_seeds:
        notes.append(f"{config.seeds} seeds decide nothing: {config.thresholds.threshold_seeds} are needed.")
    return notes
