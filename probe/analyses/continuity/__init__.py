"""Continuity of weights (arXiv 2605.04971): do leading singular vectors carry on from block to block?

For every projection and both of its spaces, the |cosine| of neighbouring blocks' leading singular vectors, their
subspaces, lag curves and trajectories, beside random directions, fresh initialisations, shuffled weights, permuted
orders of the blocks, gains folded in and outlier coordinates left out. No text is read.

    python -m probe.analyses.continuity --model smollm2-135m-instruct-q4
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probe.analyses.continuity.config import Config
from probe.analyses.continuity.thresholds import Thresholds

if TYPE_CHECKING:
    from probe.engine import Plan
    from probe.report import Result

__all__ = ["Config", "Thresholds", "plan", "run"]


def run(config: Config, *, out: Path | None = None, fresh: bool = False, quiet: bool = False) -> Result:
    """Runs the analysis, or what of it is not finished yet, and writes results, claims and figures.

    Args:
        config: what to run.
        out: the run directory; by default `runs/continuity/MODEL-KEY`.
        fresh: move an old run in that directory aside and begin anew.
        quiet: no progress bars.

    Returns:
        The result: `data`, `claims`, `directory`, `write_report()`.

    Raises:
        InputError: if the model or an option is wrong.
    """
    from probe.analyses.continuity import analysis

    return analysis.run(config, out=out, fresh=fresh, quiet=quiet)


def plan(config: Config) -> Plan:
    """What a run would do: stages, units, estimated time on this machine, and memory.

    Args:
        config: what would be run.

    Returns:
        The plan that `--dry-run` prints.
    """
    from probe.analyses.continuity import analysis

    return analysis.plan(config)
