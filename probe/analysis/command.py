"""A configuration dataclass -> a command line -> an exit status.

This module and every configuration import no torch: `--help` answers at once. Exit status: 0 done; 2 the input or an
option is wrong (one line on standard error); 130 interrupted, having said how to go on; 141 what read the output has
gone, as `head` does. Any other exception is a defect of the library and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import io
import itertools
import math
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
from probe.errors import InputError, as_typed

if TYPE_CHECKING:
    from probe.analysis.contract import Analysis
    from probe.runs.tasks import Plan

DONE, WRONG_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 2, 130, 141

_Config = TypeVar("_Config", bound="Config")


def main(
    name: str,
    config: type[Any],
    load: Callable[[], Analysis[Any]],
    argv: Sequence[str] | None = None,
    *,
    program: str | None = None,
) -> int:
    """Run the command line of one analysis.

    Prints the path of the report on standard output, last; with several models or revisions one path a run, and last
    that of the page that compares them.

    Args:
        name: Of the analysis, as in `python -m probe.analyses.NAME`.
        config: Its configuration; the fields become options, their docstrings the help.
        load: Gives the analysis, once the options are known to be right.
        argv: Arguments; those of this process by default.
        program: The words that were typed before the arguments, `python -m probe.analyses.NAME` by default.

    Returns:
        Exit status: 0, 2, 130 or 141.
    """
    both: type[Any] = with_run_options(config)
    program = program or f"python -m probe.analyses.{name}"
    words = typed(program, argv)

    def work() -> None:
        parsed = parse(both, program, argv)
        configs = _one_a_run(parsed.config)
        for each in configs:
            each.require_inputs()
        analysis = load()
        if parsed.options.dry_run:
            for each in configs:
                print_plan(analysis.plan(each, quiet=parsed.options.quiet), title(name, each))
        else:
            _run_all(analysis, configs, parsed.options, shlex.join(words))

    go_on = shlex.join(word for word in words if word != "--fresh")  # which would begin again
    return exit_status(work, go_on, config, RunOptions)


def exit_status(work: Callable[[], object], go_on: str, *options: type[Any]) -> int:
    """Do the work of a command and say in one line on standard error how it ended, if not well.

    Args:
        work: Does it; may raise InputError, and is interrupted by KeyboardInterrupt or SIGTERM.
        go_on: The command that goes on after an interruption.
        *options: Dataclasses of the command's options: an error's `window_length=` was typed `--window-length`.

    Returns:
        0, 2 for wrong input, 130 for an interruption, or 141 if what read the output has gone.

    Raises:
        BrokenPipeError: If Of another pipe than the output.
    """
    _spell_what_the_output_can()
    try:
        return _ended(work, go_on, options)
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not gone:
            raise
        for stream in gone:  # the interpreter flushes them when it ends, and would complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return BROKEN_PIPE


def _spell_what_the_output_can() -> None:
    """Write a question mark for a character that the output's encoding does not have, instead of a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _ended(work: Callable[[], object], go_on: str, options: Sequence[type[Any]]) -> int:
    try:
        with _terminated_like_interrupted():
            work()
    except InputError as error:
        say(f"error: {as_typed(str(error), options)}")
        return WRONG_INPUT
    except KeyboardInterrupt:
        say(f"interrupted: finished tasks are kept; go on with: {go_on}")
        return INTERRUPTED
    finally:
        sys.stdout.flush()
    return DONE


def _has_no_reader(stream: TextIO) -> bool:
    """True if a stream is a pipe or a socket whose other end is closed."""
    ends = select.poll()
    ends.register(stream, 0)  # errors are always told
    return bool(ends.poll(0))


def _run_all(analysis: Analysis[Any], configs: Sequence[Config], options: RunOptions, words: str) -> None:
    results = []
    for config in configs:
        out = options.out
        if out is not None and len(configs) > 1:
            out = out / _label(config)
        results.append(analysis.run(config, out=out, fresh=options.fresh, quiet=options.quiet, typed=words))
        write_path(results[-1].write_report())
    if len(configs) > 1:
        from probe.report import write_comparison

        key = hashlib.sha256(repr(configs).encode()).hexdigest()[:8]
        page = options.out / "comparison.html" if options.out else Path("runs", analysis.name, f"comparison-{key}.html")
        write_comparison(results, page, analysis.across(results))
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
    """Name a run in a line: its analysis, and the model and revision where there are any."""
    return " ".join([
        analysis,
        *(str(value) for name in ("model", "revision") if (value := getattr(config, name, None))),
    ])


def typed(program: str, argv: Sequence[str] | None) -> list[str]:
    """Split a command into words that can be typed again.

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
    """Make the dataclass that an analysis's command line is parsed into.

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
    """Print what a run would do as a table; without time and memory where nobody has measured them.

    Args:
        plan: Its stages.
        title: What stands above.
        file: Where to; standard output by default.
    """
    from rich.table import Table

    seconds, sizes = ([getattr(stage, name) for stage in plan.stages] for name in ("seconds", "bytes"))
    timed = not all(map(math.isnan, seconds))
    table = Table(title=title, show_footer=True)
    table.add_column("stage", "in all")
    table.add_column("tasks", str(sum(stage.tasks for stage in plan.stages)), justify="right")
    if timed:
        known = [size for size in sizes if not math.isnan(size)]
        table.add_column("time, about", duration(sum(seconds)), justify="right")
        table.add_column("memory, about", display.size(max(known, default=math.nan)), justify="right")
    for stage in plan.stages:
        told = (duration(stage.seconds), display.size(stage.bytes)) if timed else ()
        table.add_row(stage.name, str(stage.tasks), *told)
    show(table, file or sys.stdout)
