"""Works off the runs that a study misses, one after another, and writes its ledger anew after each."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from probe import analyses, display
from probe.errors import InputError
from probe.report import Result
from probe.runs import Run, changes
from probe.runs.engine import Plan
from probe.study import definition, ledger
from probe.study.definition import Member, Study

FINISHED = ("results.nc", "claims.json", "report.html")
"""What a run that is done holds."""


@dataclass(frozen=True)
class Waiting:
    """A run that is not done.

    Attributes:
        member: The run.
        plan: What the whole of it would take.
        units: How many of its units are finished.
        seconds: Estimated time of those that are not.
    """

    member: Member
    plan: Plan
    units: int
    seconds: float


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
        InputError: If anything about study, options or run directories is wrong, before any run begins; or if, with all
            runs done, a claim came out of none.
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
        if not quiet:
            about = display.duration(one.seconds)
            display.say(f"[{place}/{len(waiting)}] {one.member.name}: about {about}, in {out / one.member.name}")
        _run(one.member, out / one.member.name, quiet=quiet)
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
    """Whether a run is finished.

    Args:
        directory: Its directory.

    Returns:
        True if it holds results, claims and report.
    """
    return all((directory / name).is_file() for name in FINISHED)


def _check_directory(member: Member, directory: Path) -> None:
    """Refuses a directory that holds a run with other options."""
    if not (directory / "config.json").is_file():
        return
    changed = changes(Run(directory).record, {"analysis": member.analysis, "config": member.config})
    if changed:
        raise InputError(
            f"a run of a study has the study's settings, but in {directory} {'; '.join(changed)}: "
            "move that directory away, or pass another --out"
        )


def _chosen(study: Study, pattern: str) -> list[Member]:
    """The runs whose names match one of the patterns of a comma list."""
    names = [member.name for member in study.members]
    patterns = [part.strip() for part in pattern.split(",")]
    for part in patterns:
        if not fnmatch.filter(names, part):
            raise InputError(f"--only must match some run, got {part!r}: the runs are {', '.join(names)}")
    return [member for member in study.members if any(fnmatch.fnmatchcase(member.name, part) for part in patterns)]


def _waiting(members: Iterable[Member], out: Path) -> list[Waiting]:
    """The runs that are not done, with what they take: bad options and absent inputs are refused here."""
    missing = [member for member in members if not is_done(out / member.name)]
    for member in missing:
        member.config.require_inputs()
    return [_estimated(member, out / member.name) for member in missing]


def _estimated(member: Member, directory: Path) -> Waiting:
    plan = analyses.load(member.analysis).plan(member.config)
    finished = {
        stage.name: min(stage.units, len(list((directory / "units" / stage.name).glob("*.safetensors"))))
        for stage in plan.stages
    }
    seconds = sum(stage.seconds * (1 - finished[stage.name] / stage.units) for stage in plan.stages if stage.units)
    return Waiting(member, plan, sum(finished.values()), seconds)


def _print_plan(study: Study, out: Path, waiting: Sequence[Waiting]) -> None:
    """One row a run: its model, how far it is, and what the rest takes."""
    from rich.table import Table

    by_name = {one.member.name: one for one in waiting}
    table = Table(title=f"{study.name}, in {out}", show_footer=True)
    table.add_column("run", "in all")
    table.add_column("weights")
    table.add_column("units", justify="right")
    table.add_column("time, about", display.duration(sum(one.seconds for one in waiting)), justify="right")
    for member in study.members:
        one = by_name.get(member.name)
        if one is not None:
            units = f"{one.units} of {sum(stage.units for stage in one.plan.stages)}"
            table.add_row(member.name, member.state, units, display.duration(one.seconds))
        else:
            table.add_row(member.name, member.state, "done" if is_done(out / member.name) else "not chosen", "–")
    display.show(table, sys.stdout)
