"""The stages of the continuity analysis in their order, and what they would take beforehand."""

from __future__ import annotations

from probe import weights
from probe.analyses.continuity import work
from probe.analyses.continuity.claims import claims
from probe.analyses.continuity.config import Config
from probe.analyses.continuity.figures import figures
from probe.analyses.continuity.schema import assemble
from probe.analysis.contract import Stage, require_at_least, staged
from probe.analysis.subject import LIBRARIES
from probe.errors import InputError
from probe.model import device_named
from probe.runs import engine
from probe.runs.engine import Plan, StagePlan
from probe.spectra.singular import DENSE

__all__ = ["assemble", "claims", "figures", "fingerprint", "plan", "stages", "title"]

STAGES = {
    "vectors": (work.vectors_unit, "singular vectors of the model"),
    "coordinates": (work.coordinates_unit, "outlier coordinates"),
    "trimmed": (work.trimmed_unit, "without outlier coordinates"),
    "controls": (work.vectors_unit, "fresh and shuffled"),
    "docs": (work.docs_unit, "DOCS"),
}
"""Function and description of each stage, in their order."""
STEPS = 30  # of the randomised method, as a rule


def stages(config: Config) -> list[Stage]:
    """What is to be done, in order."""
    _check(config)
    return staged(STAGES, work.units(config))


def fingerprint(config: Config) -> dict[str, str]:
    """The hash of the weights."""
    return {"weights": weights.weight_hash(work.weights_of(config))}


def title(config: Config) -> str:
    """The report's heading."""
    return f"Continuity of the weights of {config.model}"


def plan(config: Config) -> Plan:
    """What the stages would take on this machine: the timings and counts that stand below."""
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
    require_at_least(config, {"init_seeds": 0, "shuffled_seeds": 0, "permutations": 1, "block_length": 1})
    if not config.subspaces or min(config.subspaces) < 1:
        raise InputError(f"--subspaces must be dimensions from 1 on: got {config.subspaces}; give 1,2,4,8 for example")
    if not 0 <= config.outlier_share < 1:
        raise InputError(
            f"--outlier-share is a share of the coordinates, in [0, 1): got {config.outlier_share}; give 0.005"
        )
