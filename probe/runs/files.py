"""Files that are written whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from probe.errors import InputError

PARTIAL = ".partial"  # suffix of a file that is being written


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename.

    Args:
        path: The file; its folder is made if it is not there.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        InputError: If the disk is full or the folder cannot be written; what was there before is kept.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with writing(path.parent):
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
def writing(directory: Path) -> Iterator[None]:
    """Turn what the disk says into what the user can do."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            cure = "free some space and run the same command again: finished tasks are kept"
        else:
            cure = "pass another out=; finished tasks are kept"
        raise InputError(f"the run directory must be writable, but {directory}: {error.strerror}; {cure}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
