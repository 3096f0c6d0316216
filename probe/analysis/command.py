"""A configuration dataclass -> a command line -> an exit status.

This module and every configuration import no torch: `--help` answers at once. Exit status: 0 done; 2 the input or an
option is wrong (one line on standard error); 130 interrupted, having said how to go on; 141 what read the output has
gone, as `head` does. Any other exception is a defect of the library and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import itertools
import os
import re
import select
import shlex
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import tyro

from probe import display
from probe.analysis.config import Config, RunOptions
from probe.analysis.parsing import parse
from probe.display import duration, say, show, write_path
from probe.errors import InputError

if TYPE_CHECKING:
    from probe.runs.engine import Plan

DONE, WRONG_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 2, 130, 141

_Config = TypeVar("_Config", bound="Config")


def main(
    analysis: str,
    config_type: type[_Config],
    run: Callable[..., Any],
    plan: Callable[[_Config], Plan],
    argv: Sequence[str] | None = None,
    *,
    across: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
    program: str | None = None,
) -> int:
    """The command line of one analysis.

    Prints the path of the report on standard output, last; with several models or revisions one path a run, and last
    that of the page that compares them.

    Args:
        analysis: Its name, as in `python -m probe.analyses.NAME`.
        config_type: Its configuration; the fields become options, their docstrings the help.
        run: `run(config, *, out, fresh, quiet, typed)`, which returns a `Result`.
        plan: `plan(config)`, what a run would do.
        argv: Arguments; those of this process by default.
        across: Claims that are read from several results together, for the page that compares them.
        program: The words that were typed before the arguments, `python -m probe.analyses.NAME` by default.

    Returns:
        Exit status: 0, 2, 130 or 141.
    """
    both: type[Any] = with_run_options(config_type)
    program = program or f"python -m probe.analyses.{analysis}"
    words = typed(program, argv)

    def work() -> None:
        parsed = parse(both, program, argv)
        configs = _one_a_run(parsed.config)
        for each in configs:
            each.require_inputs()
        if parsed.options.dry_run:
            for each in configs:
                print_plan(plan(each), title(analysis, each))
        else:
            _run_all(analysis, configs, parsed.options, functools.partial(run, typed=shlex.join(words)), across)

    return exit_status(work, shlex.join(word for word in words if word != "--fresh"))  # which would begin again


def exit_status(work: Callable[[], object], go_on: str) -> int:
    """Do the work of a command and say in one line on standard error how it ended, if not well.

    Args:
        work: Does it; may raise InputError, and is interrupted by KeyboardInterrupt or SIGTERM.
        go_on: The command that goes on after an interruption.

    Returns:
        0, 2 for wrong input, 130 for an interruption, or 141 if what read the output has gone.

    Raises:
        BrokenPipeError: If Of another pipe than the output.
    """
    try:
        return _ended(work, go_on)
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not gone:
            raise
        for stream in gone:  # the interpreter flushes them when it ends, and would complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return BROKEN_PIPE


def _ended(work: Callable[[], object], go_on: str) -> int:
    try:
        with _terminated_like_interrupted():
            work()
    except InputError as error:
        say(f"error: {error}")
        return WRONG_INPUT
    except KeyboardInterrupt:
        say(f"interrupted: finished units are kept; go on with: {go_on}")
        return INTERRUPTED
    finally:
        sys.stdout.flush()
    return DONE


def _has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe or a socket whose other end is closed."""
    ends = select.poll()
    ends.register(stream, 0)  # errors are always told
    return bool(ends.poll(0))


def _run_all(
    analysis: str,
    configs: Sequence[Config],
    options: RunOptions,
    run: Callable[..., Any],
    across: Callable[[Sequence[Any]], Sequence[Any]] | None,
) -> None:
    results = []
    for config in configs:
        out = options.out
        if out is not None and len(configs) > 1:
            out = out / _label(config)
        results.append(run(config, out=out, fresh=options.fresh, quiet=options.quiet))
        write_path(results[-1].write_report())
    if len(configs) > 1:
        from probe.report import write_comparison

        key = hashlib.sha256(repr(configs).encode()).hexdigest()[:8]
        page = options.out / "comparison.html" if options.out else Path("runs", analysis, f"comparison-{key}.html")
        write_comparison(results, page, across(results) if across else ())
        write_path(page)


def _one_a_run(config: _Config) -> list[_Config]:
    """One configuration for each model and each revision of a comma list."""
    lists = [
        [(name, item.strip()) for item in str(value).split(",")]
        for name in ("model", "revision")
        if (value := getattr(config, name, None)) is not None
    ]
    choices: list[dict[str, Any]] = [dict(choice) for choice in itertools.product(*lists)]
    return [dataclasses.replace(config, **choice) for choice in choices]


def _label(config: Config) -> str:
    """A file name for one of several models and revisions."""
    parts = [str(value) for name in ("model", "revision") if (value := getattr(config, name, None)) is not None]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts))


def title(analysis: str, config: Config) -> str:
    """What a run is called in a line: its analysis, and the model and revision where there are any."""
    return " ".join([
        analysis,
        *(str(value) for name in ("model", "revision") if (value := getattr(config, name, None))),
    ])


def typed(program: str, argv: Sequence[str] | None) -> list[str]:
    """The words of a command, as one can type them again.

    Args:
        program: Those before the arguments.
        argv: The arguments; None if they are this process's own.

    Returns:
        The words; of this process's own command, all that it was started with.
    """
    return sys.orig_argv if argv is None else [*shlex.split(program), *argv]


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt; only the main thread may set signal handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def with_run_options(config_type: type[Any]) -> type[Any]:
    """What an analysis' command line is parsed to.

    Args:
        config_type: The analysis' configuration.

    Returns:
        A dataclass with the fields `config` and `options`, whose fields in turn are the options; described as the
        configuration is.
    """
    unnamed = tyro.conf.arg(name="")  # --model, not --config.model
    fields = [("config", Annotated[config_type, unnamed]), ("options", Annotated[RunOptions, unnamed])]
    described = {"__doc__": inspect.getdoc(config_type), "examples": config_type.examples}
    return dataclasses.make_dataclass("Both", fields, namespace=described)


def print_plan(plan: Plan, title: str, file: Any = None) -> None:
    """Print what a run would do as a table.

    Args:
        plan: Its stages.
        title: What stands above.
        file: Where to; standard output by default.
    """
    from rich.table import Table

    table = Table(title=title, show_footer=True)
    table.add_column("stage", "in all")
    table.add_column("units", str(sum(stage.units for stage in plan.stages)), justify="right")
    table.add_column("time, about", duration(sum(stage.seconds for stage in plan.stages)), justify="right")
    table.add_column(
        "memory, about", display.size(max((stage.bytes for stage in plan.stages), default=0)), justify="right"
    )
    for stage in plan.stages:
        table.add_row(stage.name, str(stage.units), duration(stage.seconds), display.size(stage.bytes))
    show(table, file or sys.stdout)
