"""A configuration dataclass -> a command line -> an exit status.

This module and every configuration import no torch: `--help` answers at once. Exit status: 0 done; 2 the input or an
option is wrong (one line on standard error); 130 interrupted, having said how to go on. Any other exception is a defect
of the library and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import io
import itertools
import re
import shlex
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from probe.errors import InputError

if TYPE_CHECKING:
    from probe.engine import Plan

DONE, WRONG_INPUT, INTERRUPTED = 0, 2, 130

_Config = TypeVar("_Config", bound="Config")
_Options = TypeVar("_Options")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every analysis needs to know."""

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

    dataset: str | None = None
    """wikitext-2 (the default where no --text is named), wikitext-103 or sample."""
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
) -> int:
    """The command line of one analysis.

    Prints the path of the report on standard output, last; with several models or revisions one path a run, and last
    that of the page that compares them.

    Args:
        analysis: Its name, as in `python -m probe.analyses.NAME`.
        config_type: Its configuration; the fields become options, their docstrings the help.
        run: `run(config, *, out, fresh, quiet)`, which returns a `Result`.
        plan: `plan(config)`, what a run would do.
        argv: Arguments; those of this process by default.
        across: Claims that are read from several results together, for the page that compares them.

    Returns:
        Exit status: 0, 2 or 130.
    """

    def work() -> None:
        config, options = _parse(analysis, config_type, argv)
        configs = _one_a_run(config)
        for each in configs:
            each.require_inputs()
        if options.dry_run:
            for each in configs:
                print_plan(plan(each), _title(analysis, each))
        else:
            _run_all(analysis, configs, options, run, across)

    return exit_status(work, _command_to_go_on(analysis, argv))


def exit_status(work: Callable[[], object], go_on: str) -> int:
    """Do the work of a command and say in one line on standard error how it ended, if not well.

    Args:
        work: Does it; may raise InputError, and is interrupted by KeyboardInterrupt or SIGTERM.
        go_on: The command that goes on after an interruption.

    Returns:
        0, 2 for wrong input, or 130 for an interruption.
    """
    try:
        with _terminated_like_interrupted():
            work()
    except InputError as error:
        _say(f"error: {error}")
        return WRONG_INPUT
    except KeyboardInterrupt:
        _say(f"interrupted: finished units are kept; go on with: {go_on}")
        return INTERRUPTED
    return DONE


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
        _write(results[-1].write_report())
    if len(configs) > 1:
        from probe.report import write_comparison

        key = hashlib.sha256(repr(configs).encode()).hexdigest()[:8]
        page = options.out / "comparison.html" if options.out else Path("runs", analysis, f"comparison-{key}.html")
        write_comparison(results, page, across(results) if across else ())
        _write(page)


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


def _title(analysis: str, config: Config) -> str:
    return " ".join([
        analysis,
        *(str(value) for name in ("model", "revision") if (value := getattr(config, name, None))),
    ])


def _command_to_go_on(analysis: str, argv: Sequence[str] | None) -> str:
    """The command that was typed, less `--fresh`, which would begin again."""
    typed = sys.orig_argv if argv is None else ["python", "-m", f"probe.analyses.{analysis}", *argv]
    return shlex.join(word for word in typed if word != "--fresh")


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


def _parse(analysis: str, config_type: type[_Config], argv: Sequence[str] | None) -> tuple[_Config, RunOptions]:
    unnamed = tyro.conf.arg(name="")  # --model, not --config.model
    fields = [("config", Annotated[config_type, unnamed]), ("options", Annotated[RunOptions, unnamed])]
    both: type[Any] = dataclasses.make_dataclass("Both", fields)
    parsed = parse(both, f"python -m probe.analyses.{analysis}", inspect.getdoc(config_type) or "", argv)
    return parsed.config, parsed.options


def parse(options: type[_Options], program: str, description: str, argv: Sequence[str] | None) -> _Options:
    """Read a command line into a dataclass.

    Args:
        options: The dataclass; its fields become options, their docstrings the help.
        program: The command, as its help shows it.
        description: What it does, for its help.
        argv: Arguments; those of this process by default.

    Returns:
        The options.

    Raises:
        InputError: If an option is wrong; in one line.
        SystemExit: After --help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: _Options = tyro.cli(
                options,
                prog=program,
                description=description,
                args=argv,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
                registry=_registry(),
            )
    except SystemExit as stop:
        if stop.code == WRONG_INPUT:
            raise InputError(_one_line(said.getvalue())) from None
        raise
    return parsed


def _one_line(box: str) -> str:
    """What is wrong, out of the box of several lines that tyro draws: its sections stand between rules."""
    lines = [line.strip(" │") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()]
    parts = itertools.groupby(lines, lambda line: line[:1] in "╭╰" or not line.strip("─-"))
    sections = [list(group) for rule, group in parts if not rule]
    wrong = " ".join(sections[0 if "╭" in box else 1]).removeprefix("Error parsing ")  # the first is a title otherwise
    meant = [line.split()[0] for section in sections for line in section if line.startswith("--")]
    hint = f"perhaps {' or '.join(meant)}; " if meant and wrong.startswith("Unrecognized") else ""
    return f"{wrong.rstrip('.')}; {hint}--help lists the options"


def _registry() -> ConstructorRegistry:
    """Tuples are written as comma lists, and an absent value as none."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_comma_list)
    registry.primitive_rule(_optional)
    return registry


def _comma_list(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    parts = typing.get_args(info.type)
    if typing.get_origin(info.type) is not tuple or len(parts) != 2 or parts[1] is not Ellipsis:
        return None
    kind = parts[0]
    name = kind.__name__.upper()
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{name},{name},...",
        instance_from_str=lambda words: tuple(kind(item.strip()) for item in words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(item, kind) for item in value),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    kinds = [part for part in typing.get_args(info.type) if part is not types.NoneType]
    if typing.get_origin(info.type) is not types.UnionType or len(kinds) != 1 or not isinstance(kinds[0], type):
        return None
    kind = kinds[0]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar={int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "NAME"),
        instance_from_str=lambda words: None if words[0] == "none" else kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )


def print_plan(plan: Plan, title: str, file: TextIO | None = None) -> None:
    """Print what a run would do as a table.

    Args:
        plan: its stages.
        title: what stands above.
        file: where to; standard output by default.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_footer=True)
    table.add_column("stage", "in all")
    table.add_column("units", str(sum(stage.units for stage in plan.stages)), justify="right")
    table.add_column("time, about", _duration(sum(stage.seconds for stage in plan.stages)), justify="right")
    table.add_column("memory, about", _size(max((stage.bytes for stage in plan.stages), default=0)), justify="right")
    for stage in plan.stages:
        table.add_row(stage.name, str(stage.units), _duration(stage.seconds), _size(stage.bytes))
    Console(file=file or sys.stdout).print(table)


def _duration(seconds: float | int) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _size(count: float | int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _write(path: Path) -> None:
    sys.stdout.write(f"{path}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"{' '.join(text.split())}\n")
