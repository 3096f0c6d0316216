"""Why neighbouring layers' leading directions are alike (arXiv 2605.04971): toys in which each cause is switched.

Toy MLPs and small transformers are trained on several seeds at once, with and without residual connections, with
nonlinearities that break the rotational symmetry and such that keep it, with four normalisations, over weight decay and
the scale of the start; continuity, coherence of gradients and rotation of frames are measured through training.

    python -m probe.analyses.causes                                  # the toys
    python -m probe.analyses.causes --text FILE                      # small transformers as well
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probe.analyses.causes.config import Config
from probe.analyses.causes.thresholds import Thresholds

if TYPE_CHECKING:
    from probe.engine import Plan
    from probe.report import Result

__all__ = ["Config", "Thresholds", "plan", "run"]


def run(config: Config, *, out: Path | None = None, fresh: bool = False, quiet: bool = False) -> Result:
    """Runs the analysis, or what of it is not finished yet, and writes results, claims and figures.

    Args:
        config: what to run.
        out: the run directory; by default `runs/causes/causes-KEY`.
        fresh: move an old run in that directory aside and begin anew.
        quiet: no progress bars.

    Returns:
        The result: `data`, `claims`, `directory`, `write_report()`.

    Raises:
        InputError: if the text or an option is wrong.
    """
    from probe.analyses.causes import analysis

    return analysis.run(config, out=out, fresh=fresh, quiet=quiet)


def plan(config: Config) -> Plan:
    """What a run would do: stages, units, estimated time on this machine, and memory.

    Args:
        config: what would be run.

    Returns:
        The plan that `--dry-run` prints.
    """
    from probe.analyses.causes import analysis

    return analysis.plan(config)
