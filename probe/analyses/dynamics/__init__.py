"""Dynamics of the residual stream (arXiv 2605.14258): exact Jacobians of every block, and their product over depth.

How each block rotates, stretches and compresses the stream; into how many directions a perturbation is funnelled by
all of them; whether the product predicts the real network; and what of it is learned. Scores by depth, controls, and
the claims of the paper come out as a Dataset, a list of claims and a report.

    python -m probe.analyses.dynamics --model smollm2-135m-instruct-q4 --dataset sample
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probe.analyses.dynamics.config import Config
from probe.analyses.dynamics.thresholds import Thresholds

if TYPE_CHECKING:
    from probe.engine import Plan
    from probe.report import Result

__all__ = ["Config", "Thresholds", "plan", "run"]


def run(config: Config, *, out: Path | None = None, fresh: bool = False, quiet: bool = False) -> Result:
    """Runs the analysis, or what of it is not finished yet, and writes results, claims and figures.

    Args:
        config: what to run.
        out: the run directory; by default `runs/dynamics/MODEL-KEY`.
        fresh: move an old run in that directory aside and begin anew.
        quiet: no progress bars.

    Returns:
        The result: `data`, `claims`, `directory`, `write_report()`.

    Raises:
        InputError: if the model, the text or an option is wrong.
    """
    from probe.analyses.dynamics import analysis

    return analysis.run(config, out=out, fresh=fresh, quiet=quiet)


def plan(config: Config) -> Plan:
    """What a run would do: stages, units, estimated time on this machine, and memory.

    Args:
        config: what would be run.

    Returns:
        The plan that `--dry-run` prints.
    """
    from probe.analyses.dynamics import analysis

    return analysis.plan(config)
