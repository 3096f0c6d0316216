"""Layer updates (arXiv 2604.02459): how much of a block's update is tokenwise, and what is the rest?

Maps of one token's state are fitted to each block's update on text of one set of documents, and scored on another.
The geometry of the tokenwise part and the residual, what the model's output does when the residual is left out, and
the claims of the paper with their controls come out as a Dataset, a list of claims and a report.

    python -m probe.analyses.tokenwise --model smollm2-135m-instruct-q4 --dataset sample
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probe.analyses.tokenwise.config import FITS, Config
from probe.analyses.tokenwise.thresholds import Thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probe.claims import Claim
    from probe.engine import Plan
    from probe.report import Result

__all__ = ["FITS", "Config", "Thresholds", "across", "plan", "run"]


def run(config: Config, *, out: Path | None = None, fresh: bool = False, quiet: bool = False) -> Result:
    """Runs the analysis, or what of it is not finished yet, and writes results, claims and figures.

    Args:
        config: what to run.
        out: the run directory; by default `runs/tokenwise/MODEL-KEY`.
        fresh: move an old run in that directory aside and begin anew.
        quiet: no progress bars.

    Returns:
        The result: `data`, `claims`, `directory`, `write_report()`.

    Raises:
        InputError: if the model, the text or an option is wrong.
    """
    from probe.analyses.tokenwise import analysis

    return analysis.run(config, out=out, fresh=fresh, quiet=quiet)


def plan(config: Config) -> Plan:
    """What a run would do: stages, units, estimated time on this machine, and memory.

    Args:
        config: what would be run.

    Returns:
        The plan that `--dry-run` prints.
    """
    from probe.analyses.tokenwise import analysis

    return analysis.plan(config)


def across(results: Sequence[Result]) -> list[Claim]:
    """The claims that several models decide together.

    Args:
        results: one of each model.

    Returns:
        Whether Transformers and state-space models are alike.
    """
    from probe.analyses.tokenwise.claims import universal

    names = [f"{result.data.attrs['model']} ({result.directory.name})" for result in results]
    claims = {name: result.claims for name, result in zip(names, results, strict=True)}
    kinds = {name: result.data.attrs["kind"] for name, result in zip(names, results, strict=True)}
    return [universal(claims, kinds)]
