"""Converted weights on the disk, so that a GGUF file is dequantised once.

An entry is a folder: a safetensors file in float32, written tensor by tensor, the configuration and the tokenizer, and
a checksum of each tensor, which is compared when the tensor is read. It is made under another name and renamed when it
is whole, so that two processes may make it at once. A cache is a convenience: what goes wrong with it is said in a line
and costs time, never the model.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from probe.errors import InputError

logger = logging.getLogger("probe.model")

CONVERSION = 2
"""Version of what is made of a file, raised when the same file gives other weights or tokens."""
LIMIT = 100 * 10**9
"""Bytes that all entries may take together, unless `PROBE_CACHE_LIMIT` says otherwise."""

_WEIGHTS, _ENTRY, _LOCK, _UNFINISHED = "model.safetensors", "entry.json", "lock", "unfinished-"
_GRACE = 60.0
"""Seconds for which an unfinished entry without a lock is left alone: its maker is about to take the lock."""


class Damaged(Exception):
    """An entry that is not what was written."""


def folder() -> Path:
    """Return the folder of the entries.

    Returns:
        The folder `gguf` of `$PROBE_CACHE`, or of `~/.cache/probe`.
    """
    return Path(os.environ.get("PROBE_CACHE") or "~/.cache/probe").expanduser() / "gguf"


def limit() -> int:
    """Return how many bytes all entries may take.

    Returns:
        `$PROBE_CACHE_LIMIT` in bytes, or `LIMIT`.

    Raises:
        InputError: If that is no number of bytes.
    """
    stated = os.environ.get("PROBE_CACHE_LIMIT") or str(LIMIT)
    try:
        size = int(float(stated))
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise InputError(f"PROBE_CACHE_LIMIT must be a number of bytes, got {stated!r}: set it to 20e9, for example")
    return size


def digest_of(paths: Sequence[Path]) -> str:
    """Hash a file.

    Args:
        paths: Its parts.

    Returns:
        The sha256 of the file; of several parts, that of their hashes.
    """
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


@dataclass(frozen=True)
class Entry:
    """An entry of the cache.

    Attributes:
        path: Its folder.
    """

    path: Path

    @cached_property
    def _stated(self) -> dict[str, Any]:
        stated: dict[str, Any] = json.loads((self.path / _ENTRY).read_text(encoding="utf-8"))
        return stated

    @cached_property
    def _header(self) -> tuple[int, dict[str, Any]]:
        with (self.path / _WEIGHTS).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return 8 + length, header

    @property
    def made_from(self) -> str:
        """Path of the file that was converted; the name of the folder if an older version made it and does not say."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(self._stated["file"])
        return self.path.name

    @property
    def bytes(self) -> int:
        """Size on the disk."""
        size = 0
        with contextlib.suppress(OSError):  # another process may be removing it
            for file in self.path.rglob("*"):
                size += file.stat().st_size if file.is_file() else 0
        return size

    @property
    def used(self) -> float:
        """Time of the last use, in seconds since 1970."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_mtime
        return 0.0

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._header[1])

    def check(self) -> None:
        """Make sure that the entry is as large as it says, without reading it.

        Raises:
            Damaged: If it is not.
        """
        try:
            start, header = self._header
            end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            whole = (self.path / _WEIGHTS).stat().st_size == end and set(header) == set(self._stated["checksums"])
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise Damaged(str(error) or type(error).__name__) from error
        if not whole:
            raise Damaged(f"{_WEIGHTS} is not of its size")

    def read(self, name: str) -> np.ndarray:
        """Read a tensor.

        Args:
            name: Its name.

        Returns:
            The values in float32, mapped into memory; writing to them changes no file.

        Raises:
            Damaged: If they are not what was written.
        """
        start, header = self._header
        shape, (first, last) = tuple(header[name]["shape"]), header[name]["data_offsets"]
        if first == last:
            return np.zeros(shape, dtype="<f4")
        values = np.memmap(self.path / _WEIGHTS, "<f4", mode="c", offset=start + first, shape=shape)
        if zlib.crc32(np.ascontiguousarray(values).data) != self._stated["checksums"][name]:
            raise Damaged(f"the checksum of {name} differs")
        return values


def _name_of(digest: str) -> str:
    from importlib.metadata import version

    return f"{digest}-{CONVERSION}-{version('transformers')}"


def find(digest: str) -> Entry | None:
    """Find the entry of a file.

    Args:
        digest: Hash of the file.

    Returns:
        The entry, or None if there is none that this version of the conversion made, or if it is damaged.
    """
    entry = Entry(folder() / _name_of(digest))
    if not entry.path.is_dir():
        return None
    try:
        entry.check()
    except Damaged as error:
        drop(entry, str(error))
        return None
    with contextlib.suppress(OSError):
        os.utime(entry.path)
    return entry


def drop(entry: Entry, why: str) -> None:
    """Remove a damaged entry, and say so.

    Args:
        entry: The entry.
        why: What is wrong with it.
    """
    logger.warning("the cached weights in %s are damaged (%s): they are made anew", entry.path, why)
    shutil.rmtree(entry.path, ignore_errors=True)


def keep(
    digest: str,
    made_from: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    more: Callable[[Path], object],
) -> Entry | None:
    """Make the entry of a file.

    Args:
        digest: Hash of the file.
        made_from: Its path, for people.
        shapes: Shape of each tensor.
        read: Function that gives a tensor by its name.
        more: Function that writes the other files into the entry's folder.

    Returns:
        The entry, also if another process was first; None if there is no room or no writing, which is said.
    """
    size, place = 4 * sum(math.prod(shape) for shape in shapes.values()), folder()
    if size > limit():
        logger.warning(
            "the weights of %s are not kept: they take %.1f GB and the cache may take %.1f (PROBE_CACHE_LIMIT)",
            made_from,
            size / 1e9,
            limit() / 1e9,
        )
        return None
    entry = Entry(place / _name_of(digest))
    try:
        place.mkdir(parents=True, exist_ok=True)
        _remove_unfinished()
        _make_room(size)
        with _unfinished(place) as new:
            checksums = _write(new / _WEIGHTS, shapes, read)
            more(new)
            stated = {"file": str(made_from), "checksums": checksums}
            (new / _ENTRY).write_text(json.dumps(stated), encoding="utf-8")
            (new / _LOCK).unlink()
            with contextlib.suppress(OSError):  # another process was first, and its entry is the same
                new.rename(entry.path)
        entry.check()
    except (OSError, Damaged) as error:
        logger.warning(
            "the weights of %s are not kept, and the next time takes as long: %s failed (%s); make room or set "
            "PROBE_CACHE to another folder",
            made_from,
            place,
            error,
        )
        return None
    return entry


@contextlib.contextmanager
def _unfinished(place: Path) -> Iterator[Path]:
    """Make a folder that nobody takes for an entry; it is gone afterwards unless it was renamed."""
    new = Path(tempfile.mkdtemp(dir=place, prefix=_UNFINISHED))
    try:
        with (new / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]) -> dict[str, int]:
    """Write a safetensors file one tensor at a time; return the checksums."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, checksums = 0, {}
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            values = np.ascontiguousarray(read(name), dtype="<f4").data.cast("B")
            checksums[name] = zlib.crc32(values)
            file.write(values)
        file.flush()
        os.fsync(file.fileno())
    return checksums


def entries() -> list[Entry]:
    """List the entries.

    Returns:
        The entries, that used last first; those of other versions too.
    """
    if not folder().is_dir():
        return []
    found = [Entry(path) for path in folder().iterdir() if path.is_dir() and not path.name.startswith(_UNFINISHED)]
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> int:
    """Remove all entries, and unfinished ones that no process is making.

    Returns:
        The number of bytes that were freed.

    Raises:
        InputError: If an entry cannot be removed.
    """
    freed = 0
    _remove_unfinished()
    for entry in entries():
        size = entry.bytes
        try:
            shutil.rmtree(entry.path)
        except OSError as error:
            raise InputError(f"the cache must be writable to be cleared, and {entry.path} is not ({error})") from error
        freed += size
    return freed


def _make_room(size: int) -> None:
    """Remove the entries that were not used for the longest time."""
    kept = entries()
    sizes = [entry.bytes for entry in kept]
    while kept and sum(sizes) + size > limit():
        shutil.rmtree(kept.pop().path, ignore_errors=True)
        sizes.pop()


def _remove_unfinished() -> None:
    """Remove what a process left that was stopped: its lock is free."""
    for path in folder().glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            lock = path / _LOCK
            if not lock.exists():
                if time.time() - path.stat().st_mtime > _GRACE:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
