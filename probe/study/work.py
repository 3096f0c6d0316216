"""Doing the runs that a study misses, one after another, and its ledger anew after each."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from probe import analyses, display
from probe.errors import InputError
from probe.report import Result
from probe.runs import Run, changes
from probe.study import definition, ledger
from probe.study.definition import Member, Study

FINISHED = ("results.nc", "claims.json", "report.html")
"""Files that a run holds when it is done."""


@dataclass(frozen=True)
class Waiting:
    """A run that is not done.

    Attributes:
        member: The run.
        tasks: How many tasks each of its stages has.
        finished: How many of them are finished.
    """

    member: Member
    tasks: Mapping[str, int]
    finished: Mapping[str, int]

    @property
    def progress(self) -> str:
        """Finished tasks of all tasks, in words."""
        return f"{sum(self.finished.values())} of {sum(self.tasks.values())}"

    def seconds(self) -> float:
        """Estimate the time of the tasks that are not finished: a task or two of each stage are done.

        Returns:
            Time in seconds.
        """
        plan = analyses.load(self.member.analysis).plan(self.member.config)
        return sum(stage.seconds * (1 - self.finished[stage.name] / stage.tasks) for stage in plan.stages)


def work(
    file: Path,
    *,
    text: Path | None = None,
    dataset: str | None = None,
    out: Path | None = None,
    only: str = "*",
    also: Path | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> None:
    """Run what is missing of a study and write the ledger, or say what that would be.

    Args:
        file: The study's TOML.
        text: A UTF-8 file that replaces the data set of every run that reads a text.
        dataset: A data set that does so.
        out: Where runs and ledger go; by default runs/study/NAME.
        only: Comma list of patterns of the names of runs.
        also: Another folder to write the ledger to.
        dry_run: Print what is done and what is missing, and stop.
        quiet: Show no progress.

    Raises:
        InputError: If anything about study, options or run directories is wrong, before any run begins; or if all runs
            are done and none tests a claim of the study.
    """
    study = definition.read(file, text=text, dataset=dataset)
    out = out or Path("runs", "study", study.name)
    for member in study.members:
        _check_directory(member, out / member.name)
    waiting = _waiting(_chosen(study, only), out)
    if dry_run:
        _print_plan(study, out, waiting)
        return
    for place, one in enumerate(waiting, start=1):
        directory = out / one.member.name
        if not quiet:
            display.say(f"[{place}/{len(waiting)}] {one.member.name}: {one.progress} tasks are done, in {directory}")
        _run(one.member, directory, quiet=quiet)
        _write_ledger(study, out, also)
    page = _write_ledger(study, out, also)
    display.write_path(page)


def _run(member: Member, directory: Path, *, quiet: bool) -> None:
    """A function of its own, so that one run's results are gone from memory before the next begins."""
    analyses.load(member.analysis).run(member.config, out=directory, quiet=quiet).write_report()


def _write_ledger(study: Study, out: Path, also: Path | None) -> Path:
    """The ledger of the runs that are done; with all of them done, every claim must be in it."""
    results = {member.name: _read(member, out) for member in study.members if is_done(out / member.name)}
    found = ledger.gather(study, results, out)
    page = ledger.write(found, out, reports=out)
    if also is not None:
        page = ledger.write(found, also, reports=also)
    if not found.missing:
        ledger.check_complete(found, [claim.id for result in results.values() for claim in result.claims])
    return page


def _read(member: Member, out: Path) -> Result:
    result: Result = analyses.load(member.analysis).read(out / member.name)
    return result


def is_done(directory: Path) -> bool:
    """Tell if a run is finished.

    Args:
        directory: Its directory.

    Returns:
        True if it holds results, claims and report.
    """
    return all((directory / name).is_file() for name in FINISHED)


def _check_directory(member: Member, directory: Path) -> None:
    """Refuse a directory that holds a run with other options."""
    if not (directory / "config.json").is_file():
        return
    changed = changes(Run(directory).record, {"analysis": member.analysis, "config": member.config})
    if changed:
        raise InputError(
            f"a run of a study has the study's settings, but in {directory} {'; '.join(changed)}: "
            "move that directory away, or pass another out="
        )


def _chosen(study: Study, pattern: str) -> list[Member]:
    """The runs whose names match one of the patterns of a comma list."""
    names = [member.name for member in study.members]
    patterns = [part.strip() for part in pattern.split(",")]
    for part in patterns:
        if not fnmatch.filter(names, part):
            raise InputError(f"only= must match some run, got {part!r}: the runs are {', '.join(names)}")
    return [member for member in study.members if any(fnmatch.fnmatchcase(member.name, part) for part in patterns)]


def _waiting(members: Iterable[Member], out: Path) -> list[Waiting]:
    """The runs that are not done, with their tasks: bad options and absent inputs are refused here."""
    missing = [member for member in members if not is_done(out / member.name)]
    for member in missing:
        member.config.require_inputs()
    return [_counted(member, out / member.name) for member in missing]


def _counted(member: Member, directory: Path) -> Waiting:
    """A run with its tasks. The model is read for these, and is gone before the next one is."""
    analysis = analyses.load(member.analysis)
    analysis.check(member.config)
    stages = analysis.stages(analysis.subject(member.config))
    run = Run(directory)
    return Waiting(
        member,
        {stage.name: len(stage.tasks) for stage in stages},
        {stage.name: sum(run.has(task) for task in stage.tasks) for stage in stages},
    )


def _print_plan(study: Study, out: Path, waiting: Sequence[Waiting]) -> None:
    """One row a run: its model, how far it is, and the time of the rest."""
    from rich.table import Table

    by_name = {one.member.name: one for one in waiting}
    seconds = {name: one.seconds() for name, one in by_name.items()}
    table = Table(title=f"{study.name}, in {out}", show_footer=True)
    table.add_column("run", "in all")
    table.add_column("weights")
    table.add_column("tasks", justify="right")
    table.add_column("time, about", display.duration(sum(seconds.values())), justify="right")
    for member in study.members:
        if member.name in by_name:
            told = by_name[member.name].progress, display.duration(seconds[member.name])
        else:
            told = "done" if is_done(out / member.name) else "not chosen", "–"
        table.add_row(member.name, member.state, *told)
    display.show(table, sys.stdout)
