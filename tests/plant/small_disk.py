"""A full disk, for `tests.runs.test_directory`: a run on a file system of 64 kB that this process alone sees.

    python -m tests.plant.small_disk FOLDER    # exits with CANNOT_MOUNT where mounting is not allowed

A process of its own and not a fork: the parent's OpenMP threads do not live on in a fork, which would wait for them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CANNOT_MOUNT = 77
NEW_NAMESPACES = 0x20000 | 0x10000000  # of mounts and of users, so that no rights are needed


def mount_small_disk(path: Path) -> None:
    """Mounts 64 kB on `path`; the process must have one thread, so this comes before libraries that start more."""
    library, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if library.unshare(NEW_NAMESPACES):
        sys.exit(CANNOT_MOUNT)
    for file, content in {"setgroups": "deny", "uid_map": f"0 {user} 1", "gid_map": f"0 {group} 1"}.items():
        Path("/proc/self", file).write_text(content)
    if library.mount(b"none", bytes(path), b"tmpfs", 0, b"size=64k"):
        sys.exit(CANNOT_MOUNT)


def fill_disk(path: Path) -> None:
    """Saves a piece that fits and one that does not: the first stands, the second is refused and leaves nothing."""
    import pytest

    from probe.errors import InputError
    from probe.runs import create_run
    from tests.runs.test_directory import Config, save, saved, task

    with create_run("toy", Config(), {}, out=path / "run") as run:
        save(run, 1, [1.0] * 4)
        with pytest.raises(InputError, match="No space left on device"):
            save(run, 2, [1.0] * 100_000)
        assert saved(run, 1) == [1, 1, 1, 1]
        assert not run.has(task(2))
        assert not list(run.directory.rglob("*.partial"))


if __name__ == "__main__":
    mount_small_disk(Path(sys.argv[1]))
    fill_disk(Path(sys.argv[1]))
