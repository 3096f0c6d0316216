"""Runs the stages of the continuity analysis one after the other, and says beforehand what they would take."""

from __future__ import annotations

from pathlib import Path

from probe import engine, weights
from probe.analyses.continuity import claims, dataset, figures, work
from probe.analyses.continuity.config import Config
from probe.engine import Plan, StagePlan
from probe.errors import InputError
from probe.model import device_named
from probe.report import Result
from probe.runs import open_run
from probe.weights.singular import DENSE

STAGES = {
    "vectors": work.vectors_unit,
    "coordinates": work.coordinates_unit,
    "trimmed": work.trimmed_unit,
    "controls": work.vectors_unit,
    "docs": work.docs_unit,
}
DESCRIPTIONS = {
    "vectors": "singular vectors of the model",
    "coordinates": "outlier coordinates",
    "trimmed": "without outlier coordinates",
    "controls": "fresh and shuffled",
    "docs": "DOCS",
}
LIBRARIES = 2**29  # bytes that Python and the libraries take before any work
STEPS = 30  # of the randomised method, as a rule


def run(config: Config, *, out: Path | None = None, fresh: bool = False, quiet: bool = False) -> Result:
    """See `probe.analyses.continuity.run`."""
    _check(config)
    units = work.units(config)
    fingerprint = {"weights": weights.weight_hash(work.weights_of(config))}
    with open_run("continuity", config, fingerprint, out=out, fresh=fresh) as opened:
        for stage, function in STAGES.items():
            engine.work(function, units[stage], config, opened, description=DESCRIPTIONS[stage], quiet=quiet)
        opened.write_results(dataset.assemble(config, opened))
        data = opened.read_results()
        judged = claims.claims(data, config)
        opened.write_claims(judged)
        drawn = figures.figures(data, config)
        return Result(data, judged, opened.directory, f"Continuity of the weights of {config.model}", (), drawn)


def plan(config: Config) -> Plan:
    """See `probe.analyses.continuity.plan`."""
    _check(config)
    own, units = work.weights_of(config), work.units(config)
    rate = engine.flops_per_second()
    shapes = [(rows, columns) for _, rows, columns in weights.shapes_of(own, composites=config.composites)]
    block = sum(_operations(config, *shape) for shape in shapes) / rate
    entries = max(rows * columns for rows, columns in shapes)
    long = sum(rows * columns**2 for rows, columns in shapes) * 2
    seconds = {"vectors": block, "coordinates": 0.1, "trimmed": block, "controls": block, "docs": long / rate}
    return Plan([
        StagePlan(stage, len(units[stage]), len(units[stage]) * seconds[stage], LIBRARIES + 24 * entries)
        for stage in STAGES
    ])


def _operations(config: Config, rows: int, columns: int) -> float:
    """Floating-point operations of one decomposition, as timed against matrix products of the same machine."""
    long, short = max(rows, columns), min(rows, columns)
    if config.method == "dense" or (config.method == "auto" and short <= DENSE):
        return 1.2 * long * short**2 + 1.5 * short**3
    return 4.0 * STEPS * long * short * (max(config.subspaces) + 8)


def _check(config: Config) -> None:
    """Refuses options that contradict each other, before any work is done."""
    device_named(config.device)
    least = {"init_seeds": 0, "shuffled_seeds": 0, "permutations": 1, "block_length": 1}
    for option, bound in least.items():
        if getattr(config, option) < bound:
            raise InputError(
                f"--{option.replace('_', '-')} must be at least {bound}: got {getattr(config, option)}; "
                "give a larger number"
            )
    if not config.subspaces or min(config.subspaces) < 1:
        raise InputError(f"--subspaces must be dimensions from 1 on: got {config.subspaces}; give 1,2,4,8 for example")
    if not 0 <= config.outlier_share < 1:
        raise InputError(
            f"--outlier-share is a share of the coordinates, in [0, 1): got {config.outlier_share}; give 0.005"
        )
