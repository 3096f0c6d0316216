"""A run directory: finished tasks, resume, results.

Every file is written whole or not at all: to a temporary file in the same folder, flushed to the disk, then renamed
over the old one. So a process that is killed at any moment leaves finished files and, at worst, a temporary one that
the next opening removes. A directory belongs to one analysis, configuration, model, text and set of library versions;
opened with another it is refused, so that pieces of two kinds are never mixed.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import xarray as xr
from torch import Tensor

from probe.claims import Claim
from probe.errors import InputError
from probe.runs import provenance
from probe.runs.files import PARTIAL, write_file, writing
from probe.runs.pieces import Piece, PieceFile, combined, encode, joined, labelled
from probe.runs.results import encoded
from probe.runs.tasks import Label, Schema, Task

logger = logging.getLogger("probe.runs")

_LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
FORMAT = 2
"""How a run directory is laid out: raised when older ones cannot be read; they are refused, not misread."""
_AGAIN = "repeat the command of the run, which does no finished task again"


@dataclass(frozen=True)
class Run:
    """One run directory. It pickles as its path, so that a task can be done in another process.

    Use the one that `create_run` returns as a context manager: it holds the directory's lock until it is closed.

    Attributes:
        directory: The run directory.
    """

    directory: Path
    _lock: IO[str] | None = dataclasses.field(default=None, repr=False, compare=False)
    _headers: dict[Path, PieceFile] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Run], tuple[Path]]:
        return Run, (self.directory,)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory."""
        if self._lock is not None:
            self._lock.close()

    @property
    def record(self) -> dict[str, Any]:
        """Content of `config.json`: `format`, `analysis`, `config`, `fingerprint`, `versions` and `provenance`.

        Raises:
            InputError: If there is no such file, or it is damaged.
        """
        try:
            record: dict[str, Any] = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
            _ = record["analysis"]
            return record
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                "a run directory holds a config.json that names its analysis, and "
                f"{self.directory} {'does not' if self.directory.exists() else 'does not exist'}: name another"
            ) from None

    def has(self, task: Task) -> bool:
        """Tell whether a task is finished.

        Args:
            task: The task.

        Returns:
            True if its piece was saved.
        """
        return self._file(task).is_file()

    def save(self, task: Task, found: Piece | Mapping[str, Any], schema: Schema, seconds: float | None = None) -> None:
        """Save what a task measured, whole or not at all, as `units/STAGE/KEY.safetensors`.

        Args:
            task: The task.
            found: Its piece, or arrays by name, which get the task's labels.
            schema: The variables of the analysis: the arrays must have the axes that it declares.
            seconds: What the task took; kept in the file's header.

        Raises:
            ValueError: If a variable is not declared, or its array does not have the declared axes.
        """
        write_file(self._file(task), encode(labelled(found, task.labels, schema), seconds))

    @property
    def seconds(self) -> float | None:
        """Time that the finished tasks took, in seconds, over all sessions; None where they do not tell."""
        times = [file.seconds for file in self.files()]
        told = [time for time in times if time is not None]
        return math.fsum(told) if told and len(told) == len(times) else None

    def files(self, stage: str = "*") -> list[PieceFile]:
        """List the saved pieces; nothing but their labels is read.

        Args:
            stage: Of one stage; all by default.

        Returns:
            Files, by stage and key.
        """
        found = sorted((self.directory / "units").glob(f"{stage}/*.safetensors"))
        for path in found:
            if path not in self._headers:  # a piece that is written never changes
                self._headers[path] = PieceFile.open(path)
        return [self._headers[path] for path in found]

    def piece(self, stage: str, names: Sequence[str] | None = None, **labels: Label) -> Piece:
        """Read what the tasks of a stage measured, put together by label.

        Args:
            stage: The stage.
            names: The arrays wanted; only they are read. By default all.
            **labels: Where: a label of some axes (then the arrays do not have these), or what names tasks.

        Returns:
            The piece, its arrays bit for bit as they were saved.

        Raises:
            InputError: If no finished task has these labels, or its file is damaged.
        """
        files = self.files(stage)
        found = [file for file in files if file.has(**labels)]
        if not found and files:
            wanted = ", ".join(f"{name} {label}" for name, label in labels.items())
            held = "; ".join(sorted({file.path.stem for file in files})[:8])
            raise InputError(
                f"a piece is read by labels that some task of its stage has, but {stage} has none at {wanted}: "
                f"its tasks are {held}{' ...' if len(files) > 8 else ''}"
            )
        if not found:
            raise InputError(
                f"a stage must be finished before it is read, but {self.directory} holds nothing of {stage}: "
                "run the same command again"
            )
        pieces = [
            file.read(names, **{axis: label for axis, label in labels.items() if axis in file.labels}) for file in found
        ]
        return joined([piece for piece in pieces if piece] or pieces)

    def load_checkpoint(self, task: Task) -> dict[str, Tensor] | None:
        """Read how far a long task is.

        Args:
            task: The task.

        Returns:
            What was saved last; None if nothing was.

        Raises:
            InputError: If the file is damaged.
        """
        path = self._checkpoint(task)
        return dict(PieceFile.open(path).read()) if path.is_file() else None

    def save_checkpoint(self, task: Task, state: Mapping[str, Tensor]) -> None:
        """Keep how far a long task is, and nothing older.

        Args:
            task: The task.
            state: Tensors by name.
        """
        write_file(self._checkpoint(task), encode(labelled(state, {}, None), None))

    def combine(self, schema: Schema, coordinates: Mapping[str, Any]) -> xr.Dataset:
        """Put the pieces of all stages together.

        Args:
            schema: The variables of the analysis.
            coordinates: Of the Dataset: they order the labels and give axes their lengths.

        Returns:
            The Dataset, without attributes.
        """
        return combined(self.files(), schema, coordinates)

    def write_results(self, data: xr.Dataset) -> None:
        """Write `results.nc` (netCDF by h5netcdf), with the attributes `analysis` and `provenance`, the run's record.

        Args:
            data: The results.

        Raises:
            InputError: If netCDF cannot hold them (`results.encoded`).
        """
        record = self.record
        data = data.assign_attrs(analysis=record["analysis"], provenance=json.dumps(record, ensure_ascii=False))
        write_file(self.directory / "results.nc", encoded(data))

    def read_results(self) -> xr.Dataset:
        """Read `results.nc`.

        Returns:
            The Dataset, in memory.

        Raises:
            InputError: If the run has no results yet, or their file is damaged.
        """
        path = self._finished("results.nc")
        try:
            return xr.load_dataset(path, engine="h5netcdf")
        except (OSError, ValueError) as error:
            raise InputError(f"results must be whole, but {path} cannot be read ({error}): {_AGAIN}") from error

    def write_claims(self, claims: Sequence[Claim]) -> None:
        """Write `claims.json`.

        Args:
            claims: The claims, in the order in which they are to be read.
        """
        write_file(self.directory / "claims.json", _dumps([claim.to_dict() for claim in claims]))

    def read_claims(self) -> list[Claim]:
        """Read `claims.json`.

        Returns:
            The claims, in the order in which they were written.

        Raises:
            InputError: If the run has none yet, or their file is damaged or of another version.
        """
        path = self._finished("claims.json")
        try:
            return [Claim.from_dict(values) for values in json.loads(path.read_text(encoding="utf-8"))]
        except ValueError as error:  # of which InputError is one
            raise InputError(
                f"claims must be whole and of this version, but {path} is not ({error}): {_AGAIN}"
            ) from error

    def _finished(self, name: str) -> Path:
        path = self.directory / name
        if not path.is_file():
            raise InputError(f"a finished run holds {name}, but {self.directory} does not: run it to its end")
        return path

    def _file(self, task: Task) -> Path:
        return self.directory / "units" / task.stage / f"{task.key}.safetensors"

    def _checkpoint(self, task: Task) -> Path:
        return self.directory / "checkpoints" / task.stage / f"{task.key}.safetensors"


def create_run(
    analysis: str,
    config: Any,
    fingerprint: Mapping[str, str],
    *,
    out: Path | str | None = None,
    fresh: bool = False,
    typed: str | None = None,
) -> Run:
    """Open a run directory, new or to be resumed, and lock it.

    Args:
        analysis: Name of the analysis.
        config: Its configuration, a dataclass.
        fingerprint: What the results depend on besides the configuration, by name: hashes of weights and text, the
            attention implementation.
        out: The directory, used as it is; by default `runs/ANALYSIS/MODEL-KEY` in the current folder, where KEY is a
            hash of analysis, configuration and fingerprint.
        fresh: Move an old run in this directory aside (`DIRECTORY.TIME`) and begin anew; nothing is deleted.
        typed: The command that was typed, for the record; by default the call from Python.

    Returns:
        The run; close it, or use it in a `with` statement.

    Raises:
        InputError: If the directory cannot be written, holds something else, is in use by another process, or belongs
            to a run with another analysis, configuration, fingerprint or library version.
    """
    identity = {
        "format": FORMAT,
        "analysis": analysis,
        "config": _plain(config),
        "fingerprint": dict(fingerprint),
        "versions": provenance.versions(),
    }
    directory = Path(out) if out is not None else _default_directory(analysis, config, identity)
    _check_is_run(directory)
    lock = _lock(directory)
    try:
        if fresh and (directory / "config.json").exists():
            _move_aside(directory)
            lock.close()
            lock = _lock(directory)
        run = Run(directory, lock)
        for partial in directory.rglob(f"*{PARTIAL}"):
            partial.unlink()
        if (directory / "config.json").exists():
            _check_same(run, identity | {"config": config})  # whose class knows its defaults
        else:
            begun = provenance.describe(config, typed or provenance.call(config, out))
            write_file(directory / "config.json", _dumps(identity | {"provenance": begun}))
    except BaseException:
        lock.close()
        raise
    return run


def _check_is_run(directory: Path) -> None:
    """A new or empty directory, one that holds a run, or one whose run was killed before its first file."""
    if not directory.exists() or (directory / "config.json").is_file():
        return
    if not directory.is_dir():
        raise InputError(f"a run needs a directory, but {directory} is a file: pass another out=")
    if any(entry.name != _LOCK and entry.suffix != PARTIAL for entry in directory.iterdir()):
        raise InputError(f"a run needs a directory of its own, but {directory} holds other files: pass another out=")


def _lock(directory: Path) -> IO[str]:
    """Take the directory's lock; the system gives it back when this process ends, however it ends."""
    try:
        import fcntl
    except ModuleNotFoundError:
        raise InputError(
            "a run needs the file locks of Linux or macOS, and this system has none: on Windows, run it in WSL"
        ) from None
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / _LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"only one process may work in a run directory, but another holds {directory}: "
            "wait for it or pass another out="
        ) from None
    except OSError as error:  # some network file systems have no locks
        if error.errno not in _NO_LOCKS:
            file.close()
            raise InputError(
                f"a run directory must be locked, and {directory} cannot be ({error.strerror}): pass another out="
            ) from error
        logger.warning(
            "%s lies on a file system without locks (%s): let no other process work in it", directory, error.strerror
        )
    return file


def _move_aside(directory: Path) -> None:
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    with writing(directory.parent):
        directory.rename(directory.with_name(f"{directory.name}.{stamp}"))


def require_format(run: Run) -> None:
    """Refuse a directory that another version of the library has laid out.

    Args:
        run: The run.

    Raises:
        InputError: If it has another format.
    """
    if (written := run.record.get("format", 1)) != FORMAT:
        raise InputError(
            f"a run is read by the version of probe that wrote it, but {run.directory} has format {written} and this "
            f"version reads {FORMAT}: pass fresh=True to move it aside and run again"
        )


def _check_same(run: Run, identity: Mapping[str, Any]) -> None:
    require_format(run)
    recorded, now = run.record["config"].get("model"), getattr(identity["config"], "model", None)
    if isinstance(recorded, dict) and isinstance(now, str):
        raise InputError(
            f"the run in {run.directory} is of a model in memory, {recorded['name']} (weights "
            f"{recorded['weights'][:12]}), which no name loads: pass the model itself again, Config(model=...), or "
            "another out="
        )
    if changed := changes(run.record, identity):
        raise InputError(
            f"a run directory belongs to one configuration, but in {run.directory} {'; '.join(changed)}: "
            "pass fresh=True to move the old run aside, or another out="
        )


def changes(record: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """List the differences between a run's record and what it would be opened with.

    Args:
        record: As `Run.record` holds it.
        identity: Entries of such a record by name, a configuration as a dataclass; only these are compared.

    Returns:
        One "NAME was OLD, is NEW" for each entry that differs; options stand under their own names. An option that is
        newer than the record counts as its default, which is what the library did without it.
    """
    old = _flat({name: value for name, value in record.items() if name in identity})
    free: set[str] = set()
    if "config" in record and dataclasses.is_dataclass(config := identity.get("config")):
        newer = {name: value for name, value in _defaults(config).items() if name not in record["config"]}
        old = _flat(json.loads(_dumps(newer))) | old
        free = set(_uncompared(config))
    new = _flat(json.loads(_dumps(identity)))
    return [
        f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}"
        for name in sorted((old.keys() | new.keys()) - free)
        if old.get(name) != new.get(name)
    ]


def _uncompared(value: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of fields that a dataclass leaves out when it compares itself with another."""
    for field in dataclasses.fields(value):
        name, inner = f"{prefix}{field.name}", getattr(value, field.name)
        if not field.compare:
            yield name
        elif dataclasses.is_dataclass(inner):
            yield from _uncompared(inner, f"{name}.")


def _defaults(config: Any) -> dict[str, Any]:
    """The defaults of a configuration, by option; those that must be given have none."""
    found = {}
    for option in dataclasses.fields(config):
        if option.default is not dataclasses.MISSING:
            found[option.name] = option.default
        elif option.default_factory is not dataclasses.MISSING:
            found[option.name] = option.default_factory()
    return found


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings, under dotted names; `config.` is left out, for these are the user's own options."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix(".").removeprefix("config."): tree}
    return {name: leaf for key, value in tree.items() for name, leaf in _flat(value, f"{prefix}{key}.").items()}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _default_directory(analysis: str, config: Any, identity: Mapping[str, Any]) -> Path:
    # versions do not enter: after an upgrade the old run is found and refused by name, not silently left behind
    text = json.dumps([identity[name] for name in ("analysis", "config", "fingerprint")], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:8]
    model = re.sub(r"[^\w.-]+", "-", Path(str(getattr(config, "model", None) or analysis)).name)
    return Path("runs", analysis, f"{model}-{key}")


def _dumps(value: Any) -> str:
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """The value in the types that JSON has; numbers that are not finite become None."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case np.generic():
            return _plain(value.item())
        case Path():
            return str(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            raise TypeError(f"a configuration holds numbers, text, paths and collections of them, got {value!r}")
