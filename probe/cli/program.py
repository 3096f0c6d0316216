"""`probe COMMAND [OPTIONS]`: all analyses, studies, comparisons and the names of models as one program.

Analyses of other installed packages are commands, too. What a command needs is imported when it is called: `probe
--help` imports neither torch nor any other package's analysis.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import operator
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import probe
from probe import analyses
from probe.analysis import command, parsing
from probe.errors import InputError

SHELLS = ("bash", "zsh", "fish")

PROGRAMS = {
    "study": ("probe.cli.study", "Test a paper's claims on its models and controls, and write the ledger."),
    "compare": ("probe.cli.compare", "Show two or more runs side by side on one page."),
    "models": ("probe.cli.models", "List the names of models, what they stand for, and which are on this machine."),
}
"""The commands that are no analyses: a module with `main(argv, program=...)` and `Options`, and a line of help."""

_HELP = """\
usage: {program} COMMAND [OPTIONS]

How a language model moves its residual stream: layer updates, Jacobians, continuity of weights.

Analyses:
{analyses}

Other commands:
{programs}

Options:
  COMMAND --help      What the command does, its options, examples.
  --version           Print the version.
  --completion SHELL  Print a script by which {shells} completes commands and options:
                        eval "$(probe --completion bash)"              in ~/.bashrc
                        probe --completion zsh > ~/.zfunc/_probe       once; ~/.zfunc must be in $fpath
                        probe --completion fish | source               in ~/.config/fish/config.fish

Examples:
  {program} continuity --model bundled/transformer   a run in seconds, on a model that ships
  {program} tokenwise --dataset sample --dry-run     what a run of the default model would take
  {program} models                                   the names of models, and which are on this machine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that is named first.

    Args:
        argv: Arguments; those of this process by default.

    Returns:
        Exit status: that of the command; 2 if there is no such command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    program = "probe" if argv is not None else _typed()
    first, rest = (words[0], words[1:]) if words else ("--help", [])
    texts: dict[str, Callable[[], str]] = {
        "-h": lambda: _help(program),
        "--help": lambda: _help(program),
        "--version": lambda: f"residual-probe {probe.__version__}\n",
        "--completion": lambda: _completion(rest),
    }
    if first in PROGRAMS:
        status: int = importlib.import_module(PROGRAMS[first][0]).main(rest, program=f"{program} {first}")
        return status
    if first in analyses.names():
        return _analysis(first, rest, f"{program} {first}")
    return command.exit_status(lambda: sys.stdout.write(texts.get(first, lambda: _refuse(first))()), program)


def _analysis(name: str, argv: Sequence[str], program: str) -> int:
    kinds: list[type[Any]] = []
    status = command.exit_status(lambda: kinds.append(analyses.config_of(name)), program)  # of a package: may be broken
    return status or command.main(name, kinds[0], lambda: analyses.load(name), argv, program=program)


def _typed() -> str:
    """The words before the arguments, as one can type them again."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        return shlex.join(sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1])
    found = shutil.which(script.name)
    return script.name if found and Path(found).samefile(script) else shlex.quote(str(script))


def _refuse(word: str) -> str:
    known = [*analyses.names(), *PROGRAMS]
    close = difflib.get_close_matches(word, known, n=3)
    meant = f"perhaps {' or '.join(close)}" if close else f"there are {', '.join(known)}"
    raise InputError(f"a command must be one of probe's, got {word!r}: {meant}; --help says what each does")


def _help(program: str) -> str:
    lines = {name: analyses.summary(name) for name in analyses.names()}
    others = {name: line for name, (_, line) in PROGRAMS.items()}
    column = max(map(len, [*lines, *others])) + 4
    return _HELP.format(
        program=program,
        analyses=_aligned(lines, column),
        programs=_aligned(others, column),
        shells=f"{', '.join(SHELLS[:-1])} or {SHELLS[-1]}",
    )


def _aligned(lines: Mapping[str, str], column: int) -> str:
    """One line each, cut where a terminal ends."""
    width = shutil.get_terminal_size().columns - column if sys.stdout.isatty() else sys.maxsize
    cut = {name: textwrap.shorten(line, max(width, 20), placeholder=" …") for name, line in lines.items()}
    return "\n".join(f"  {name:<{column - 2}}{line}" for name, line in cut.items())


def _completion(words: Sequence[str]) -> str:
    if list(words) not in [[shell] for shell in SHELLS]:
        raise InputError(f"--completion takes one of {', '.join(SHELLS)}, got {shlex.join(words) or 'nothing'}")
    kinds = {name: command.with_run_options(analyses.config_of(name)) for name in analyses.names()}
    for name, (module, _) in PROGRAMS.items():
        kinds[name] = importlib.import_module(module).Options
    commands = [Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in kinds.items()]
    absent = dataclasses.field(default=False)
    fields: list[Any] = [
        ("command", functools.reduce(operator.or_, commands)),
        ("version", bool, absent),
        ("completion", Annotated[Literal[SHELLS], tyro.conf.arg(help="")], dataclasses.field(default="bash")),
    ]
    return parsing.completion(dataclasses.make_dataclass("Probe", fields), "probe", words[0])
