"""Peak memory of a call, in a fresh process: what it needs beyond what is resident before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def in_fresh_process(script: str, *arguments: str) -> float:
    """MB that a script's own call needs: it is run with the arguments, and prints `measured` as its last line."""
    # what is freed goes back at once, so that the peak is what is held and not how the heap has broken up
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=settings)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measured(call: Callable[[], object]) -> float:
    """MB of resident memory at the call's peak, less what was resident before it."""
    before = begin()
    kept = call()
    peak = resident("VmHWM") - before
    del kept
    return peak


def begin() -> float:
    """MB that are resident now; the process's peak is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> float:
    """`VmRSS` now or `VmHWM` at most, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
