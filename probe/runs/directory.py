"""A run directory: units of work, resume, results.

Every file is written whole or not at all: to a temporary file in the same folder, flushed to the disk, then renamed
over the old one. So a process that is killed at any moment leaves finished files and, at worst, a temporary one that
the next opening removes. A directory belongs to one analysis, configuration, model, text and set of library versions;
opened with another it is refused, so that units of two kinds are never mixed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from probe.runs import provenance
from probe.claims import Claim
from probe.errors import InputError

_PARTIAL = ".partial"  # suffix of a file that is being written
_LOCK = ".lock"
_SECONDS = "seconds"  # in the header of a unit's file
_UNIT_NAME = re.compile(r"[\w=+,.-]+")


@dataclass(frozen=True)
class Run:
    """One run directory. It pickles as its path, so that a unit can be worked off in another process.

    Use the one that `open_run` returns as a context manager: it holds the directory's lock until it is closed.

    Attributes:
        directory: The run directory.
    """

    directory: Path
    _lock: IO[str] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Run], tuple[Path]]:
        return Run, (self.directory,)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory free for other processes."""
        if self._lock is not None:
            self._lock.close()

    @property
    def record(self) -> dict[str, Any]:
        """What `config.json` holds: `analysis`, `config`, `fingerprint`, `versions` and `provenance`."""
        record: dict[str, Any] = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        return record

    def has(self, stage: str, key: str) -> bool:
        """Whether a unit is finished.

        Args:
            stage: The unit's stage.
            key: The unit's key within its stage.

        Returns:
            True if its arrays were saved.
        """
        return self._unit(stage, key).is_file()

    def save(
        self,
        stage: str,
        key: str,
        arrays: Mapping[str, Shaped[Tensor, ...] | Shaped[np.ndarray, ...]],
        seconds: float | None = None,
    ) -> None:
        """Save a finished unit's arrays, whole or not at all, as `units/stage/key.safetensors`.

        Args:
            stage: The unit's stage.
            key: The unit's key within its stage.
            arrays: Arrays by name; saved from any device, layout and dtype that safetensors knows.
            seconds: What the unit took; kept in the file's header.
        """
        tensors: dict[str, Tensor] = {}
        storages = set()
        for name, array in arrays.items():
            tensor = torch.as_tensor(array).detach().cpu().contiguous()
            storage = tensor.untyped_storage()
            if storage.data_ptr() in storages:  # safetensors refuses two names for one storage
                tensor = tensor.clone()
            storages.add(storage.data_ptr())
            tensors[name] = tensor
        header = None if seconds is None else {_SECONDS: f"{seconds:.3f}"}
        write_file(self._unit(stage, key), safetensors.torch.save(tensors, header))

    @property
    def seconds(self) -> float | None:
        """Time that the finished units took, in seconds, over all sessions; None where they do not tell."""
        times = [_seconds_of(path) for path in (self.directory / "units").glob("*/*.safetensors")]
        told = [time for time in times if time is not None]
        return math.fsum(told) if told and len(told) == len(times) else None

    def load(self, stage: str, key: str, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Read a finished unit's arrays.

        Args:
            stage: The unit's stage.
            key: The unit's key within its stage.
            names: The arrays wanted; only they are read. None for all.

        Returns:
            Tensors by name, bit for bit as they were saved.

        Raises:
            InputError: If the unit is not there or its file is damaged.
        """
        path = self._unit(stage, key)
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
        except FileNotFoundError:
            raise InputError(f"unit {stage}/{key} must be finished, but {path} is not there: run again") from None
        except SafetensorError as error:
            raise InputError(
                f"a unit must be readable, but {path} is not ({error}): delete it and run again"
            ) from error

    def write_results(self, data: xr.Dataset) -> None:
        """Write `results.nc` (netCDF by h5netcdf), with the attributes `analysis` and `provenance`, the run's record.

        Args:
            data: The results. NUL characters in text, which netCDF cannot hold, are written as "␀".
        """
        record = self.record
        data = data.assign_attrs(analysis=record["analysis"], provenance=json.dumps(record, ensure_ascii=False))
        for name, variable in data.variables.items():
            if variable.dtype.kind in "OU":
                data[name] = variable.copy(data=np.vectorize(_without_nul, otypes=[object])(variable.values))
        write_file(self.directory / "results.nc", bytes(data.to_netcdf(engine="h5netcdf")))

    def read_results(self) -> xr.Dataset:
        """Read `results.nc`.

        Returns:
            The Dataset, in memory.

        Raises:
            InputError: If the run has no results yet.
        """
        path = self.directory / "results.nc"
        if not path.is_file():
            raise InputError(f"a finished run holds results.nc, but {self.directory} does not: run it to its end")
        return xr.load_dataset(path, engine="h5netcdf")

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
            InputError: If the run has none yet.
        """
        path = self.directory / "claims.json"
        if not path.is_file():
            raise InputError(f"a finished run holds claims.json, but {self.directory} does not: run it to its end")
        return [Claim.from_dict(values) for values in json.loads(path.read_text(encoding="utf-8"))]

    def _unit(self, stage: str, key: str) -> Path:
        for name in (stage, key):
            if not _UNIT_NAME.fullmatch(name) or name.startswith("."):
                raise ValueError(f"stages and keys of units are file names ({_UNIT_NAME.pattern}), got {name!r}")
        return self.directory / "units" / stage / f"{key}.safetensors"


def open_run(
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
        for partial in directory.rglob(f"*{_PARTIAL}"):
            partial.unlink()
        if (directory / "config.json").exists():
            _check_same(run, identity)
        else:
            begun = provenance.describe(config, typed or provenance.call(config, out))
            write_file(directory / "config.json", _dumps(identity | {"provenance": begun}))
    except BaseException:
        lock.close()
        raise
    return run


def _seconds_of(unit: Path) -> float | None:
    with safe_open(unit, framework="pt") as file:
        header = file.metadata() or {}
    return float(header[_SECONDS]) if _SECONDS in header else None


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename.

    Args:
        path: The file; its folder is made if it is not there.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        InputError: If the disk is full or the folder cannot be written; what was there before is kept.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turn what the disk says into what the user can do."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            cure = "free some space and run the same command again: finished units are kept"
        else:
            cure = "pass another --out; finished units are kept"
        raise InputError(f"the run directory must be writable, but {directory}: {error.strerror}; {cure}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_is_run(directory: Path) -> None:
    """A new or empty directory, one that holds a run, or one whose run was killed before its first file."""
    if not directory.exists() or (directory / "config.json").is_file():
        return
    if not directory.is_dir():
        raise InputError(f"a run needs a directory, but {directory} is a file: pass another --out")
    if any(entry.name != _LOCK and entry.suffix != _PARTIAL for entry in directory.iterdir()):
        raise InputError(f"a run needs a directory of its own, but {directory} holds other files: pass another --out")


def _lock(directory: Path) -> IO[str]:
    """Take the directory's lock; the system gives it back when this process ends, however it ends."""
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / _LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"only one process may work in a run directory, but another holds {directory}: "
            "wait for it or pass another --out"
        ) from None
    return file


def _move_aside(directory: Path) -> None:
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    with _writing(directory.parent):
        directory.rename(directory.with_name(f"{directory.name}.{stamp}"))


def _check_same(run: Run, identity: Mapping[str, Any]) -> None:
    if changed := changes(run.record, identity):
        raise InputError(
            f"a run directory belongs to one configuration, but in {run.directory} {'; '.join(changed)}: "
            "pass --fresh to move the old run aside, or another --out"
        )


def changes(record: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What differs between a run's record and what it would be opened with.

    Args:
        record: As `Run.record` holds it.
        identity: Entries of such a record by name, a configuration as a dataclass; only these are compared.

    Returns:
        One "NAME was OLD, is NEW" for each entry that differs; options stand under their own names.
    """
    old = _flat({name: value for name, value in record.items() if name in identity})
    new = _flat(json.loads(_dumps(identity)))
    return [
        f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


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
    model = re.sub(r"[^\w.-]+", "-", Path(getattr(config, "model", None) or analysis).name)
    return Path("runs", analysis, f"{model}-{key}")


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "␀") if isinstance(value, str) else value


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
