"""Communities of units (arXiv 2605.14258), and what the block's Jacobian does to them.

Graphs of correlated units, made from one half of the text; Leiden communities, beside null graphs and on resampled
documents; the gain of each unit under the block's Jacobian, on the other half; whether a unit's place among the
communities predicts its gain, and what of that remains in fresh initialisations, in random bases, without outliers and
under every other choice of algorithm, resolution, neighbours and edges.

    python -m probe.analyses.communities --model smollm2-135m-instruct-q4 --dataset sample
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probe.analyses.communities.config import Config
from probe.analyses.communities.thresholds import Thresholds

if TYPE_CHECKING:
    from probe.engine import Plan
    from probe.report import Result

__all__ = ["Config", "Thresholds", "plan", "run"]


def run(config: Config, *, out: Path | None = None, fresh: bool = False, quiet: bool = False) -> Result:
    """Runs the analysis, or what of it is not finished yet, and writes results, claims and figures.

    Args:
        config: what to run.
        out: the run directory; by default `runs/communities/MODEL-KEY`.
        fresh: move an old run in that directory aside and begin anew.
        quiet: no progress bars.

    Returns:
        The result: `data`, `claims`, `directory`, `write_report()`.

    Raises:
        InputError: if the model, the text or an option is wrong.
    """
    from probe.analyses.communities import analysis

    return analysis.run(config, out=out, fresh=fresh, quiet=quiet)


def plan(config: Config) -> Plan:
    """What a run would do: stages, units, estimated time on this machine, and memory.

    Args:
        config: what would be run.

    Returns:
        The plan that `--dry-run` prints.
    """
    from probe.analyses.communities import analysis

    return analysis.plan(config)
