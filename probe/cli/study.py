"""A paper as a study: one TOML names models, controls, settings and claims; its runs and their ledger follow.

    probe study analyses/layer_updates.toml --text FILE

The ledger says claim by claim and model by model what was found: estimate, interval, null, controls, and the verdict as
it was computed, with links to the reports of the runs. It is written anew after every run, as a page, CSV, JSON and
Markdown.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from probe.analysis import command
from probe.analysis.parsing import parse
from probe.errors import InputError

__all__ = ["Options", "main"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run what is missing of a paper's study, and write its ledger.

    Raises:
        InputError: If both a data set and a file are named.
    """

    examples: ClassVar[Mapping[str, str]] = {
        "analyses/layer_updates.toml --text wiki.test.raw": "all runs of the paper on layer updates, and their ledger",
        "analyses/residual_dynamics.toml --dry-run": "what is done, what is missing, and how long that takes",
        "analyses/geometric_continuity.toml --only 'continuity/*'": "some of the runs",
    }

    study: tyro.conf.Positional[Path]
    """The study's TOML, for example analyses/layer_updates.toml."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A UTF-8 file that replaces the data set of every run that reads a text."""
    dataset: str | None = None
    """A data set that replaces that of every run that reads a text: wikitext-2, wikitext-103 or sample."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where runs and ledger go; runs/study/NAME if none is named."""
    only: Annotated[str, tyro.conf.arg(metavar="PATTERN")] = "*"
    """Do only runs whose name ANALYSIS/LABEL matches one of these patterns, for example tokenwise/bundled-*."""
    ledger: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Another folder to write the ledger to, for example docs/ledger/layer_updates."""
    dry_run: bool = False
    """Print what is done and what is missing, with the estimated time, and stop."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        if self.text is not None and self.dataset is not None:
            raise InputError(
                f"only one text can be read, got data set {self.dataset} and file {self.text}: leave one of them out"
            )


def main(argv: Sequence[str] | None = None, *, program: str = "probe study") -> int:
    """Run the command line of a study.

    Prints the path of the ledger's page on standard output, last.

    Args:
        argv: Arguments; those of this process by default.
        program: The words that were typed before the arguments.

    Returns:
        Exit status: 0, 2, 130 or 141.
    """

    def work() -> None:
        options = parse(Options, program, argv)
        from probe.study import work as working

        working.work(
            options.study,
            text=options.text,
            dataset=options.dataset,
            out=options.out,
            only=options.only,
            also=options.ledger,
            dry_run=options.dry_run,
            quiet=options.quiet,
        )

    return command.exit_status(work, shlex.join(command.typed(program, argv)), Options)
