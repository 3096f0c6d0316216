"""What an analysis is: options, stages of tasks, the variables that these measure, and what is said of them.

An author writes a class:

    class Norms(Analysis[Options]):
        name = "norms"
        config = Options
        schema = Schema({"log_norm": Variable("weights depth window", "nat", "mean ln ‖h‖")})

        def stages(self, subject): ...
        def coordinates(self, subject): ...
        def claims(self, data, config): ...
        def figures(self, data, config): ...

All else is here, once: the run directory, resume, progress, the files of the contract, the plan, the command line. A
claim and a figure are read from the Dataset alone, so that a finished run can be judged and drawn again without its
model. Nothing here imports an array library: options and their `--help` answer at once.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from probe import machine
from probe.analysis import command
from probe.analysis.config import Config, TextConfig
from probe.analysis.subject import Subject
from probe.errors import InputError
from probe.runs.tasks import Plan, Schema, StagePlan, Task

if TYPE_CHECKING:
    import xarray as xr

    from probe.claims import Claim
    from probe.report import Figure, Result
    from probe.runs import Run
    from probe.runs.engine import Measure

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Stage:
    """Tasks that one function does; later stages may read what earlier ones saved.

    Attributes:
        name: Of the stage, as its tasks have it.
        measure: `measure(subject, task, run)` to what the task found: a `Piece`, or arrays by name. A function of a
            module, or a method of the analysis.
        tasks: The tasks.
        description: What the progress bar says.
        seconds: `seconds(subject, task)`, how long a task takes, where a plan should not do a whole one to find out.
    """

    name: str
    measure: Measure
    tasks: Sequence[Task]
    description: str
    seconds: Callable[[Any, Task], float] | None = None


def control_names(kind: str, count: int, own: int | None) -> tuple[str, ...]:
    """Name the controls of a kind, one a seed; a control is never the model itself.

    Args:
        kind: "init" for fresh initialisations, "shuffled" for shuffled weights.
        count: How many.
        own: The seed under which the model itself is such a control, if it is.

    Returns:
        ``KIND-SEED`` for the first seeds but its own.
    """
    seeds = [seed for seed in range(count + 1) if seed != own]
    return tuple(f"{kind}-{seed}" for seed in seeds[:count])


class Analysis(ABC, Generic[C]):
    """An analysis: what its author writes, and what every one can do.

    Attributes:
        name: As in `probe NAME`, and in `config.json`.
        config: Its options, a frozen dataclass: the API's argument, the command line and `config.json`.
        schema: The variables that its tasks return and its Dataset holds.
        compared: The variables of scored tokens whose paired differences a page of two runs shows, each with the labels
            at which: `{"kl": {"map": "local"}}`. None by default.
    """

    name: ClassVar[str]
    config: ClassVar[type[Any]]
    schema: ClassVar[Schema]
    compared: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @abstractmethod
    def stages(self, subject: Any) -> Sequence[Stage]:
        """List what is to be done, stage after stage.

        Args:
            subject: What is measured.

        Returns:
            The stages; one without tasks is passed over.
        """

    @abstractmethod
    def coordinates(self, subject: Any) -> Mapping[str, Any]:
        """Give the coordinates of the Dataset: they order the labels of pieces, and give each axis its length.

        Args:
            subject: What was measured.

        Returns:
            Coordinates by name, as `xarray.Dataset` takes them.
        """

    def subject(self, config: C) -> Any:
        """Make what is measured from the options.

        Args:
            config: The options.

        Returns:
            A `Subject`; an analysis that needs more of it returns one of its own.
        """
        return Subject(config)

    def check(self, config: C) -> None:
        """Refuse options that contradict each other, before any work is done.

        Args:
            config: The options.
        """

    def fingerprint(self, subject: Any) -> Mapping[str, str]:
        """Describe what results depend on besides the options.

        Args:
            subject: What is measured.

        Returns:
            By default hashes of weights and text, and the attention implementation.
        """
        found: Mapping[str, str] = subject.fingerprint
        return found

    def finish(self, data: xr.Dataset, subject: Any, run: Run) -> xr.Dataset:
        """Add to the Dataset what follows from its variables, and its attributes.

        Args:
            data: The pieces of all tasks, put together by the schema.
            subject: What was measured.
            run: The run.

        Returns:
            The Dataset; by default with the attributes of model and text, where both are named.
        """
        if not isinstance(subject.config, TextConfig):
            return data
        return data.assign_attrs(subject.attributes(subject.windows()))

    def claims(self, data: xr.Dataset, config: C) -> Sequence[Claim]:
        """Judge sentences by the Dataset.

        Args:
            data: The Dataset.
            config: The options, with the thresholds.

        Returns:
            The claims, in the order in which they are to be read; none by default.
        """
        return ()

    def figures(self, data: xr.Dataset, config: C) -> Sequence[Figure]:
        """Make the figures of the report.

        Args:
            data: The Dataset.
            config: The options.

        Returns:
            The figures, in the report's order; none by default.
        """
        return ()

    def title(self, config: C) -> str:
        """Name the report.

        Args:
            config: The options.

        Returns:
            By default the analysis and the model.
        """
        name = command.title(self.name, config)
        return name[:1].upper() + name[1:]

    def notes(self, config: C) -> Sequence[str]:
        """Write sentences for the report's head.

        Args:
            config: The options.

        Returns:
            By default a word on a text that is only a demonstration.
        """
        if getattr(config, "dataset", None) != "sample":
            return ()
        return (
            "The text is 45 short articles that ship with probe. For numbers to quote, run it on WikiText "
            "(--dataset wikitext-2) or on a text of your own (--text FILE).",
        )

    def across(self, results: Sequence[Result]) -> Sequence[Claim]:
        """Judge what several models decide together.

        Args:
            results: One of each model.

        Returns:
            Claims; none by default.
        """
        return ()

    # what every analysis can do

    def run(
        self,
        config: C,
        *,
        out: Path | None = None,
        fresh: bool = False,
        quiet: bool = False,
        typed: str | None = None,
    ) -> Result:
        """Run the analysis, or what of it is not finished yet, and write results and claims.

        Args:
            config: What to run.
            out: The run directory; by default `runs/NAME/MODEL-KEY`.
            fresh: Move an old run in that directory aside and begin anew.
            quiet: Show no plan and no progress bars.
            typed: The command that was typed, for the record; by default the call from Python.

        Returns:
            The result: `data`, `claims`, `directory`, `write_report()`.

        Raises:
            InputError: If the model, the text or an option is wrong, or the directory belongs to another run.
        """
        from probe.runs import create_run, engine, require_encodable

        self.check(config)
        subject = self.subject(config)
        stages = self._stages(subject)
        coordinates = self.coordinates(subject)
        require_encodable(self.schema, coordinates)
        with create_run(self.name, config, self.fingerprint(subject), out=out, fresh=fresh, typed=typed) as opened:
            if not quiet:
                outline = Plan([StagePlan(stage.name, len(stage.tasks)) for stage in stages])
                command.print_plan(outline, command.title(self.name, config), sys.stderr)
            schema = self.schema.sized(coordinates)
            for stage in stages:
                engine.work(
                    stage.measure,
                    stage.tasks,
                    subject,
                    opened,
                    schema,
                    description=stage.description,
                    quiet=quiet,
                )
            opened.write_results(self.assemble(subject, opened))
            data = opened.read_results()
            claims = self.claims(data, config)
            opened.write_claims(claims)
            return self._result(data, claims, opened.directory, config)

    def assemble(self, subject: Any, run: Run) -> xr.Dataset:
        """Put the finished tasks of a run together as its Dataset.

        Args:
            subject: What was measured.
            run: The run.

        Returns:
            The Dataset: pieces put together by label, and what `finish` adds.
        """
        return self.finish(run.combine(self.schema, self.coordinates(subject)), subject, run)

    def plan(self, config: C, *, quiet: bool = True) -> Plan:
        """Estimate what a run would take here by doing a task or two of each stage.

        Args:
            config: What would be run.
            quiet: Show no progress bar.

        Returns:
            Stages with their tasks, estimated time on this machine, and memory: what `--dry-run` prints.

        Raises:
            InputError: If `run` would raise one.
        """
        from tqdm.auto import tqdm

        from probe.runs.rehearsal import Rehearsal

        self.check(config)
        subject = self.subject(config)
        stages = self._stages(subject)
        plans = []
        with tempfile.TemporaryDirectory(prefix="probe-plan-") as folder:
            rehearsal = Rehearsal(Path(folder))
            for stage in tqdm(stages, desc="timing tasks of each stage", disable=quiet):
                plans.append(self._timed(stage, subject, rehearsal))
        return Plan(plans)

    def _timed(self, stage: Stage, subject: Any, rehearsal: Any) -> StagePlan:
        """Do a task from the middle of a stage, one of the largest; of batches the first, too, which may hold more."""
        whole = max(task.size for task in stage.tasks)
        largest, count = [task for task in stage.tasks if task.size == whole], len(stage.tasks)
        task = largest[len(largest) // 2]
        if stage.seconds is not None:
            with machine.peak_memory() as peak:
                seconds = stage.seconds(subject, task)
            return StagePlan(stage.name, count, count * seconds, peak.bytes)
        first = [largest[0]] if "start" in task.labels and task != largest[0] else []
        taken: list[float] = []
        peaks: list[float] = []  # NaN where the system tells none
        for done in [*first, task]:
            loading, start = getattr(subject, "loading", 0.0), time.perf_counter()
            with machine.peak_memory() as peak:
                found = stage.measure(subject, done, rehearsal)
            taken.append(time.perf_counter() - start - (getattr(subject, "loading", 0.0) - loading))
            peaks.append(peak.bytes)
            rehearsal.rehearse(stage.tasks, done, found, self.schema)
        return StagePlan(stage.name, count, sum(taken) + (count - len(taken)) * taken[-1], max(peaks))

    def _stages(self, subject: Any) -> list[Stage]:
        return [stage for stage in self.stages(subject) if stage.tasks]

    def read(self, directory: Path | str) -> Result:
        """Read what a finished run found; nothing is computed and no model is read.

        Args:
            directory: Of a run of this analysis.

        Returns:
            The result.

        Raises:
            InputError: If this is no run of this analysis, it is not finished, or it is of another version.
        """
        from probe.runs import Run
        from probe.runs.directory import require_format

        run = Run(Path(directory))
        record = run.record
        if record["analysis"] != self.name:
            raise InputError(
                f"an analysis reads its own runs, but {run.directory} is one of {record['analysis']} and this is "
                f"{self.name}: open it with probe.open_run"
            )
        require_format(run)
        config = configured(self.config, record["config"])
        return self._result(run.read_results(), run.read_claims(), run.directory, config)

    def judged(self, data: xr.Dataset, config: C, directory: Path) -> Result:
        """Judge a run's Dataset by options that may have other thresholds; its files stay as they are.

        Args:
            data: The Dataset.
            config: The options.
            directory: The run directory.

        Returns:
            The result, with claims and figures by these options.
        """
        return self._result(data, self.claims(data, config), directory, config)

    def main(self, argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
        """Run its command line.

        Args:
            argv: Arguments; those of this process by default.
            program: The words that were typed before the arguments, `python -m probe.analyses.NAME` by default.

        Returns:
            Exit status.
        """
        return command.main(self.name, self.config, lambda: self, argv, program=program)

    def _result(self, data: xr.Dataset, claims: Sequence[Claim], directory: Path, config: C) -> Result:
        from probe.report import Result

        return Result(
            data,
            list(claims),
            directory,
            self.title(config),
            list(self.notes(config)),
            list(self.figures(data, config)),
            config=config,
            judge=self.judged,
            compared=self.compared,
        )


def configured(kind: type[C], values: Mapping[str, Any]) -> C:
    """Make a configuration from what `config.json` holds of it.

    Args:
        kind: The dataclass.
        values: Its fields in the types that JSON has.

    Returns:
        The configuration.

    Raises:
        InputError: If a field is unknown, or one without a default is missing.
    """
    made: C = _rebuilt(kind, values)
    return made


def _rebuilt(kind: Any, value: Any) -> Any:
    """A value in the type that a field was declared with."""
    parts = typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = typing.get_type_hints(kind)
        missing = (dataclasses.MISSING, dataclasses.MISSING)
        needed = {one.name for one in dataclasses.fields(kind) if (one.default, one.default_factory) == missing}
        if odd := sorted((set(value) - {one.name for one in dataclasses.fields(kind)}) | (needed - set(value))):
            raise InputError(
                f"a run is read by the version that wrote it, but its configuration and {kind.__qualname__} differ in "
                f"{', '.join(odd)}: run it again with fresh=True"
            )
        return kind(**{name: _rebuilt(hints[name], entry) for name, entry in value.items()})
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_rebuilt(parts[0], entry) for entry in value)
    if isinstance(value, str) and (kind is Path or Path in parts):
        return Path(value)
    return value
