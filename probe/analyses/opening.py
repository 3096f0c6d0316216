"""Finished runs, opened by their paths: of any analysis that is built in, installed, or defined in this program."""

from __future__ import annotations

import fnmatch
import glob
import inspect
import warnings
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from probe import analyses
from probe.boundary import public
from probe.errors import InputError

if TYPE_CHECKING:
    from probe.analysis.contract import Analysis
    from probe.report import Result

Location: TypeAlias = str | PathLike[str]

RECORD = "config.json"


@public
def open_run(path: Location) -> Result:
    """Open a finished run, of whatever analysis it is; nothing is computed and no model is read.

    Args:
        path: The run directory.

    Returns:
        The result, as `run` returned it: `data`, `table(name)`, `claims`, `figure(name)`, `paired(other, name)` …

    Raises:
        InputError: If it is no run directory, the run is not finished, it is of another version, or no analysis of its
            name is installed.
    """
    directory = Path(path)
    if directory.is_file() and (directory.parent / RECORD).is_file():
        raise InputError(f"a run is opened by its directory, got the file {directory}: open {directory.parent}")
    if directory.is_dir() and not (directory / RECORD).is_file() and (found := sorted(_beneath(directory))):
        raise InputError(
            f"open_run opens one run, but {directory} is a folder of {len(found)}: name one of them ({found[0]}), or "
            "open all with open_runs"
        )
    return _analysis(_record(directory)["analysis"]).read(directory)


@public
def open_runs(
    paths: Location | Iterable[Location], *, model: str | None = None, analysis: str | None = None
) -> list[Result]:
    """Open finished runs: all in a folder, or those that are named.

    Args:
        paths: A folder, in which run directories are looked for at any depth; a pattern such as `runs/tokenwise/*`; or
            several paths, each of a run, a folder or a pattern.
        model: Only runs of this model, as it was named in their options; a pattern such as `pythia-*`.
        analysis: Only runs of this analysis; a pattern too.

    Returns:
        The results, in the order of the paths, those of a folder or pattern sorted by path. Runs in a folder that
        cannot be opened, because they are not finished for example, are left out with one warning that says why.

    Raises:
        InputError: If a path leads to no run, a run that is named itself cannot be opened, or the filters leave none.
    """
    named = [paths] if isinstance(paths, str | PathLike) else list(paths)
    alone: dict[Path, bool] = {}
    for directory, single in (place for path in named for place in _places(path)):
        alone[directory] = single or alone.get(directory, False)
    records = {directory: _record(directory) for directory in alone}
    wanted = {
        directory
        for directory, record in records.items()
        if (model is None or fnmatch.fnmatchcase(_model(record), model))
        and (analysis is None or fnmatch.fnmatchcase(record["analysis"], analysis))
    }
    if not records:
        raise InputError("paths= must name at least one run, got none: name a folder of runs")
    if not wanted:
        kinds = {f"{record['analysis']} of {_model(record) or 'no model'}" for record in records.values()}
        asked = " and ".join(f"{name}={value!r}" for name, value in (("model", model), ("analysis", analysis)) if value)
        raise InputError(f"{asked} must match a run, got {'; '.join(sorted(kinds))}: change it")
    results, refused = [], []
    for directory in (directory for directory in alone if directory in wanted):
        try:
            results.append(open_run(directory))
        except InputError as error:
            if alone[directory]:
                raise
            refused.append(str(error))
    if refused:
        warnings.warn(f"{len(refused)} runs cannot be opened and are left out: {' | '.join(refused)}", stacklevel=2)
    return results


def _places(path: Location) -> Iterator[tuple[Path, bool]]:
    """Run directories of a path, and whether it names a single one."""
    directory = Path(path)
    if (directory / RECORD).is_file():
        yield directory, True
        return
    found = (
        sorted(_beneath(directory)) if directory.exists() else sorted(filter(_is_run, map(Path, glob.glob(str(path)))))
    )
    if not found:
        raise InputError(
            f"runs are opened from the path of a run directory, a folder of them or a pattern, but {directory} leads "
            "to no "
            "run: name another"
        )
    yield from ((one, False) for one in found)


def _beneath(folder: Path) -> Iterator[Path]:
    return (record.parent for record in folder.rglob(RECORD) if _is_run(record.parent))


def _is_run(directory: Path) -> bool:
    """Tell a run's record from the config.json of other programs."""
    try:
        return bool(_record(directory))
    except InputError:
        return False


def _record(directory: Path) -> dict[str, Any]:
    from probe.runs import Run

    return Run(directory).record


def _model(record: dict[str, Any]) -> str:
    return str(record["config"].get("model", ""))


def _analysis(name: str) -> Analysis[Any]:
    """The analysis of a name: one that is registered, or the newest class that this program defines."""
    from probe.analysis.contract import Analysis

    if name in analyses.names():
        return analyses.load(name)
    kinds = [kind for kind in _subclasses(Analysis) if vars(kind).get("name") == name and not inspect.isabstract(kind)]
    if kinds:
        newest: Analysis[Any] = kinds[-1]()
        return newest
    raise InputError(
        f"an analysis must be one of {', '.join(analyses.names())} or of a class in this program, got {name!r}: "
        "install its package, or import its class first"
    )


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)
