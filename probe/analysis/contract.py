"""What an analysis is: a configuration, units of work, and how results, claims and figures come of them.

The parts of an analysis are plain functions of one module, found by their names:

=============================  =========================================================================================
`stages(config)`               what is to be done, `Stage` after `Stage`; refuses options that contradict each other
`assemble(config, run)`        the Dataset, made of the units that are finished
`claims(data, config)`         optional: what the Dataset says about a paper's sentences
`figures(data, config)`        optional: the figures of the report
`fingerprint(config)`          optional: what the results depend on besides the configuration, such as hashes of weights
`title(config)`                optional: the report's heading
`notes(config)`                optional: sentences at its head
`plan(config)`                 optional: what a run would take, by stage
`across(results)`              optional: claims that several models decide together
=============================  =========================================================================================

All else is here, once: the run directory, resume, progress, the files of the contract, the command line. Claims and
figures are read from the Dataset alone, so that a finished run can be judged and drawn again without its model.

This module imports no torch: a configuration and its `--help` answer at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from probe.analysis import command
from probe.analysis.config import Config
from probe.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from probe.claims import Claim
    from probe.report import Result
    from probe.runs import Run
    from probe.runs.engine import Plan, Unit

_Config = TypeVar("_Config", bound=Config)


@dataclass(frozen=True)
class Stage:
    """Units that are worked off by one function; later stages may read what earlier ones saved.

    Attributes:
        name: Of the stage, as its units have it.
        function: `function(config, unit, run)` to the unit's arrays; a function of a module.
        units: The units.
        description: What the progress bar says.
    """

    name: str
    function: Callable[[Any, Unit, Run], Mapping[str, Tensor]]
    units: Sequence[Unit]
    description: str


def staged(
    stages: Mapping[str, tuple[Callable[[Any, Unit, Run], Mapping[str, Tensor]], str]],
    units: Mapping[str, Sequence[Unit]],
) -> list[Stage]:
    """The stages of an analysis with their units.

    Args:
        stages: By name, in their order: the function, and what the progress bar says.
        units: By stage.

    Returns:
        The stages, in their order.
    """
    return [Stage(name, function, units[name], words) for name, (function, words) in stages.items()]


def require_at_least(config: Config, bounds: Mapping[str, int]) -> None:
    """Refuses options that are too small.

    Args:
        config: What is to be run.
        bounds: The least value of each field.

    Raises:
        InputError: If a field lies below its bound.
    """
    for field, bound in bounds.items():
        if getattr(config, field) < bound:
            raise InputError(
                f"--{field.replace('_', '-')} must be at least {bound}: got {getattr(config, field)}; "
                "give a larger number"
            )


def control_names(kind: str, count: int, own: int | None) -> tuple[str, ...]:
    """The names of the controls of a kind, one a seed; a control is never the model itself.

    Args:
        kind: "init" for fresh initialisations, "shuffled" for shuffled weights.
        count: How many.
        own: The seed under which the model itself is such a control, if it is.

    Returns:
        ``KIND-SEED`` for the first seeds but its own.
    """
    seeds = [seed for seed in range(count + 1) if seed != own]
    return tuple(f"{kind}-{seed}" for seed in seeds[:count])


@dataclass(frozen=True)
class Analysis(Generic[_Config]):
    """An analysis by its name; the module with its parts is imported on first use.

    Attributes:
        name: As in `python -m probe.analyses.NAME`, and in `config.json`.
        config: Its configuration, a frozen dataclass.
        module: Name of the module with its parts.
    """

    name: str
    config: type[_Config]
    module: str

    def run(
        self,
        config: _Config,
        *,
        out: Path | None = None,
        fresh: bool = False,
        quiet: bool = False,
        typed: str | None = None,
    ) -> Result:
        """Runs the analysis, or what of it is not finished yet, and writes results and claims.

        Args:
            config: What to run.
            out: The run directory; by default `runs/NAME/MODEL-KEY`.
            fresh: Move an old run in that directory aside and begin anew.
            quiet: No plan and no progress bars.
            typed: The command that was typed, for the record; by default the call from Python.

        Returns:
            The result: `data`, `claims`, `directory`, `write_report()`.

        Raises:
            InputError: If the model, the text or an option is wrong, or the directory belongs to another run.
        """
        from probe.runs import engine, open_run

        stages = self._part("stages")(config)
        fingerprint = self._part("fingerprint", lambda config: {})(config)
        with open_run(self.name, config, fingerprint, out=out, fresh=fresh, typed=typed) as opened:
            if not quiet:
                command.print_plan(self.plan(config), command.title(self.name, config), sys.stderr)
            for stage in stages:
                if stage.units:
                    engine.work(stage.function, stage.units, config, opened, description=stage.description, quiet=quiet)
            opened.write_results(self._part("assemble")(config, opened))
            data = opened.read_results()
            claims = self._part("claims", _nothing)(data, config)
            opened.write_claims(claims)
            return self._result(data, claims, opened.directory, config)

    def plan(self, config: _Config) -> Plan:
        """What a run would do.

        Args:
            config: What would be run.

        Returns:
            Stages with their units, estimated time on this machine, and memory: what `--dry-run` prints.

        Raises:
            InputError: If As `run` does.
        """
        own = self._part("plan", None)
        if own is not None:
            plan: Plan = own(config)
            return plan
        from probe.runs.engine import Plan, StagePlan

        return Plan([StagePlan(stage.name, len(stage.units)) for stage in self._part("stages")(config)])

    def read(self, directory: Path) -> Result:
        """What a finished run found, from its directory; nothing is computed and no model is read.

        Args:
            directory: Of a run of this analysis.

        Returns:
            The result.

        Raises:
            InputError: If the run is not finished, or its configuration is of another version.
        """
        from probe.runs import Run

        run = Run(directory)
        config = configured(self.config, run.record["config"])
        return self._result(run.read_results(), run.read_claims(), directory, config)

    def across(self, results: Sequence[Result]) -> Sequence[Claim]:
        """The claims that several models decide together.

        Args:
            results: One of each model.

        Returns:
            Claims; none where an analysis has no such claim.
        """
        claims: Sequence[Claim] = self._part("across", lambda results: ())(results)
        return claims

    def main(self, argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
        """Its command line.

        Args:
            argv: Arguments; those of this process by default.
            program: The words that were typed before the arguments, `python -m probe.analyses.NAME` by default.

        Returns:
            Exit status.
        """
        return command.main(self.name, self.config, self.run, self.plan, argv, across=self.across, program=program)

    def _result(self, data: Any, claims: Sequence[Claim], directory: Path, config: _Config) -> Result:
        from probe.report import Result

        title = self._part("title", lambda config: command.title(self.name, config).capitalize())(config)
        notes = self._part("notes", lambda config: ())(config)
        return Result(data, claims, directory, title, notes, self._part("figures", _nothing)(data, config))

    def _part(self, name: str, default: Any = ...) -> Any:
        """A function of the module; without a default there must be one."""
        module = importlib.import_module(self.module)
        if default is ... and not hasattr(module, name):
            raise TypeError(f"the module of an analysis has a function {name}, but {self.module} has none")
        return getattr(module, name, default)


def configured(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """A configuration from what `config.json` holds of it.

    Args:
        kind: The dataclass.
        values: Its fields in the types that JSON has.

    Returns:
        The configuration.

    Raises:
        InputError: If a field is missing or unknown.
    """
    made: _Config = _rebuilt(kind, values)
    return made


def _rebuilt(kind: Any, value: Any) -> Any:
    """A value in the type that a field was declared with."""
    parts = typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = typing.get_type_hints(kind)
        if odd := sorted({field.name for field in dataclasses.fields(kind)} ^ set(value)):
            raise InputError(
                f"a run is read by the version that wrote it, but its configuration and {kind.__qualname__} differ in "
                f"{', '.join(odd)}: run it again with --fresh"
            )
        return kind(**{name: _rebuilt(hints[name], entry) for name, entry in value.items()})
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_rebuilt(parts[0], entry) for entry in value)
    if isinstance(value, str) and (kind is Path or Path in parts):
        return Path(value)
    return value


def _nothing(data: Any, config: Any) -> tuple[()]:
    return ()
