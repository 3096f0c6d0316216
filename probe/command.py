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
import math
import os
import re
import select
import shlex
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TextIO, TypeVar

import tyro

from probe import display
from probe.errors import InputError
from probe.parsing import parse

if TYPE_CHECKING:
    from rich.table import Table

    from probe.engine import Plan

DONE, WRONG_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 2, 130, 141
_WIDEST = 1000  # columns of a table that is not shown on a terminal

_Config = TypeVar("_Config", bound="Config")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every analysis needs to know.

    Attributes:
        examples: What `--help` shows as examples: options as they are typed, and what they do.
    """

    examples: ClassVar[Mapping[str, str]] = {}

    device: str = "cpu"
    """Where it is computed: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Number format of the weights and of the states."""
    seed: int = 0
    """Seed of everything that is drawn at random."""

    def require_inputs(self) -> None:
        """Refuse inputs that are neither here nor to be fetched, before the large libraries are imported."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """What every analysis of a language model needs to know."""

    model: str = "smollm2-135m-instruct-q4"
    """Alias, hub id, directory or .gguf file; a comma list makes one run each and a page that compares them."""
    revision: str | None = None
    """Revision on the hub, for example step1000; a comma list makes one run each."""
    random_init: Annotated[int | None, tyro.conf.arg(metavar="SEED")] = None
    """Same architecture with fresh weights drawn under this seed."""
    shuffled_weights: Annotated[int | None, tyro.conf.arg(metavar="SEED")] = None
    """Entries of each weight matrix permuted under this seed, gains kept."""
    layers: str = "all"
    """Blocks to look at, for example 0,5,10."""

    def require_inputs(self) -> None:
        """Refuse a model that is neither here nor to be fetched, within seconds."""
        from probe import sources

        sources.require(sources.resolve(self.model, self.revision), weights=self.random_init is None)

    def layer_indices(self, n_layers: int) -> list[int]:
        """The layers to look at, in a model of `n_layers`.

        Args:
            n_layers: Number of blocks of the model.

        Returns:
            Their indices, ascending.
        """
        return parse_layers(self.layers, n_layers)


@dataclass(frozen=True, kw_only=True)
class TextConfig(ModelConfig):
    """What every analysis of a language model on a text needs to know.

    Raises:
        InputError: If both a data set and a file are named.
    """

    dataset: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: wikitext-2, without --text)")] = None
    """wikitext-2, wikitext-103 or sample."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A UTF-8 file instead of a data set; a line ' = Title = ' opens a document."""
    split: str = "test"
    """Split of the data set: test, validation or train."""
    windows: int = 32
    """Number of scored windows."""
    window_length: int = 256
    """Tokens in a window."""
    skip_first: int = 1
    """Positions at the start of each window that enter no statistics: the first is an attention sink."""

    def __post_init__(self) -> None:
        if self.text is not None and self.dataset is not None:
            raise InputError(
                f"only one text can be read, got data set {self.dataset} and file {self.text}: leave one of them out"
            )
        if self.text is None and self.dataset is None:
            object.__setattr__(self, "dataset", "wikitext-2")

    def require_inputs(self) -> None:
        """Refuse a model or a data set that is neither here nor to be fetched, within seconds."""
        super().require_inputs()
        from probe import hub

        if self.dataset in hub.DATASETS:
            hub.require_dataset(self.dataset, self.split)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run goes and what is said about it; these change no result."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Run directory, used as it is; runs/ANALYSIS/MODEL-KEY if none is named."""
    fresh: bool = False
    """Move an old run in that directory aside and begin anew."""
    dry_run: bool = False
    """Print the units, the estimated time and memory, and stop."""
    quiet: bool = False
    """Show no progress."""


def model_in_words(
    model: str, revision: str | None = None, random_init: int | None = None, shuffled_weights: int | None = None
) -> str:
    """What a run's model is called: its name, and what was done to it.

    Args:
        model: Its name.
        revision: On the hub.
        random_init: Seed of fresh weights.
        shuffled_weights: Seed under which the entries of its weights were permuted.

    Returns:
        For example "pythia-1b @ step0" or "pythia-1b, fresh weights (seed 0)".
    """
    fresh = "" if random_init is None else f", fresh weights (seed {random_init})"
    shuffled = "" if shuffled_weights is None else f", shuffled weights (seed {shuffled_weights})"
    return f"{model}{f' @ {revision}' if revision else ''}{fresh}{shuffled}"


def parse_layers(text: str, n_layers: int) -> list[int]:
    """Layers from "all" or a comma list.

    Args:
        text: "all", or indices as in "0,5,10".
        n_layers: Number of blocks of the model.

    Returns:
        Indices, ascending, each once.

    Raises:
        InputError: If an index is no number or out of range.
    """
    if text.strip() == "all":
        return list(range(n_layers))
    try:
        layers = sorted({int(index) for index in text.split(",")})
    except ValueError:
        raise InputError(f"layers must be all or numbers like 0,5,10, got {text!r}") from None
    if outside := [layer for layer in layers if not 0 <= layer < n_layers]:
        raise InputError(
            f"layers must lie between 0 and {n_layers - 1}, for the model has {n_layers} blocks, got {outside[0]}"
        )
    return layers


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
        BrokenPipeError: Of another pipe than the output.
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
        plan: its stages.
        title: what stands above.
        file: where to; standard output by default.
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


def show(table: Table, file: Any) -> None:
    """Write a table: as wide as a terminal, or as wide as it is in a file or a pipe, where it has no colours either.

    Args:
        table: The table.
        file: A text stream.
    """
    from rich.console import Console

    # in a notebook rich would display the empty rest of what it hands over
    console = Console(file=file, width=None if file.isatty() else _WIDEST, force_jupyter=False)
    with console.capture() as shown:
        console.print(table)
    file.write(shown.get())  # rich itself would end the program where nobody reads


def duration(seconds: float | int) -> str:
    """A time in words.

    Args:
        seconds: The time.

    Returns:
        For example "12 s", "3 min 5 s" or "2 h 10 min"; "unknown" for NaN.
    """
    if math.isnan(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def write_path(path: Path) -> None:
    """Write a path to standard output, for whoever started the command to read.

    Args:
        path: The path.
    """
    sys.stdout.write(f"{path}\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Write one line to standard error.

    Args:
        text: Its words; line ends within become spaces.
    """
    sys.stderr.write(f"{' '.join(text.split())}\n")
