"""Two or more runs on one page: models, revisions, controls; or several analyses of one model.

    probe compare RUN RUN ...

Claims stand side by side, then the settings that differ and the figures of one name. Where runs of continuity, dynamics
and tokenwise (two of them at least) are of one model, a joint figure shows whether their directions coincide.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from probe import display
from probe.analysis import command
from probe.analysis.config import RunOptions
from probe.analysis.parsing import parse
from probe.errors import InputError

__all__ = ["Options", "main"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show two or more runs side by side on one page.

    Raises:
        InputError: If fewer than two runs are named, or one of them twice.
    """

    examples: ClassVar[Mapping[str, str]] = {
        "runs/tokenwise/A runs/tokenwise/B": "one analysis of two models, revisions or controls",
        "runs/continuity/A runs/dynamics/A runs/tokenwise/A": "do the directions of three analyses coincide?",
    }

    runs: Annotated[tyro.conf.Positional[list[Path]], tyro.conf.arg(metavar="RUN RUN ...", help_behavior_hint="")]
    """Run directories, each finished."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("runs", "comparison.html")
    """The page."""

    def __post_init__(self) -> None:
        if len({run.resolve() for run in self.runs}) < max(2, len(self.runs)):
            named = ", ".join(map(str, self.runs)) or "none"
            raise InputError(f"a comparison needs two or more different run directories, got {named}: name others")


def main(argv: Sequence[str] | None = None, *, program: str = "probe compare") -> int:
    """Run the command line of a comparison.

    Prints the path of the page on standard output.

    Args:
        argv: Arguments; those of this process by default.
        program: The words that were typed before the arguments.

    Returns:
        Exit status: 0, 2, 130 or 141.
    """

    def work() -> None:
        options = parse(Options, program, argv)
        from probe.study import compare as working

        display.write_path(working.compare(options.runs, options.out))

    return command.exit_status(work, shlex.join(command.typed(program, argv)), Options, RunOptions)
