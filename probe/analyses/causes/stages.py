"""The stages of the analysis of causes in their order, and what they would take beforehand."""

from __future__ import annotations

import time

from probe.analyses.causes import cells, work
from probe.analyses.causes.cells import Cell
from probe.analyses.causes.claims import claims
from probe.analyses.causes.config import Config
from probe.analyses.causes.figures import figures
from probe.analyses.causes.schema import assemble
from probe.analysis.contract import Stage, staged
from probe.analysis.subject import LIBRARIES
from probe.runs.engine import Plan, StagePlan
from probe.training import NextByte, Optimiser, Regression, Stack

__all__ = ["assemble", "claims", "figures", "fingerprint", "notes", "plan", "stages", "title"]

STAGES = {
    "toys": (work.toy_unit, "toys"),
    "transformers": (work.arm_unit, "transformers"),
}
"""Function and description of each stage, in their order."""
TRIAL_STEPS = 5
WATCHING = 1.2  # time of a training with its snapshots over that of its steps, as measured


def stages(config: Config) -> list[Stage]:
    """What is to be done, in order."""
    config.check()
    return staged(STAGES, work.units(config))


def fingerprint(config: Config) -> dict[str, str]:
    """The hash of the text, where there is one."""
    return {"text": work.windows_of(config, "fit").sha256} if config.reads_text else {}


def title(config: Config) -> str:
    """The report's heading."""
    return "Why neighbouring layers' leading directions are alike"


def plan(config: Config) -> Plan:
    """What the stages would take on this machine: the timings and counts that stand below."""
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
        else (config.arm_width, config.arm_blocks, 40 * config.arm_batch * config.window_length)
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


def notes(config: Config) -> list[str]:
    """What the report says at its head."""
    notes = []
    if not config.reads_text:
        notes.append("No text was given, so that no transformer was trained: give --text FILE or --dataset.")
    if config.seeds < config.thresholds.threshold_seeds:
        notes.append(f"{config.seeds} seeds decide nothing: {config.thresholds.threshold_seeds} are needed.")
    return notes
