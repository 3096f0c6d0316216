"""The machine of a run: processor, cores, memory."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Describe the machine, without which a measured time means little.

    Returns:
        `cpu`, the processor's name; `cores` that this process may use; `memory`, in bytes, None where the system does
        not report it.
    """
    return {"cpu": _processor(), "cores": cores(), "memory": _memory()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Count the cores that this process may use.

    Returns:
        At least 1.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


@dataclass
class Peak:
    """The largest memory that a piece of work took.

    Attributes:
        bytes: Memory of this process, in bytes; NaN while the work goes on, or where the system does not report it.
    """

    bytes: float = math.nan


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the largest memory of this process while a piece of work is done.

    Yields:
        The measurement, which is there when the work is done.
    """
    peak, status, reset = Peak(), Path("/proc/self/status"), Path("/proc/self/clear_refs")
    with contextlib.suppress(OSError):
        reset.write_text("5")  # the high-water mark begins anew
    yield peak
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    marks = [line.split() for line in lines if line.startswith("VmHWM:")]
    if marks:
        peak.bytes = float(marks[0][1]) * 1024
