"""The mutation check: one planted error in every formula must turn a test red.

    python -m tests.mutants                     # all of them, as many at a time as there are cores
    python -m tests.mutants --only inference    # those whose file or fragment holds the word
    python -m tests.mutants --jobs 4

Each mutant is a fragment of source that is found exactly once, and what stands in its place: a sign, a transpose, a
wrong denominator, an index. It is planted in a temporary copy of the package, where the tests that watch the formula
run until the first failure; the working tree is never touched. Before that, the same tests must pass on an unchanged
copy. The exit status is 1 if a mutant survives, a fragment is not found exactly once, or the unchanged copy fails.

Every run is a fork of this process, which has imported the large libraries once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

# Imported for the forks; nothing that a pytest plugin must see first.
import scipy.stats  # noqa: F401
import torch
import xarray  # noqa: F401
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("probe", "tests", "pyproject.toml")
TIME_LIMIT = 300.0  # seconds; a mutant that makes a test hang is found out


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant, or of the unchanged copy."""

    result: str  # killed, survived, or what is wrong with it
    seconds: float
    told: str  # the first failing test, or the end of pytest's output


@dataclass
class Trial:
    """One copy of the package, with a mutant or unchanged, and the process that tests it."""

    tests: str
    mutant: Mutant | None = None
    outcome: Outcome | None = field(default=None, init=False)

    def start(self) -> None:
        """Plants the mutant and forks the tests; an unusable fragment is an outcome already."""
        self.started = time.monotonic()
        self.folder = tempfile.TemporaryDirectory(prefix="mutant-")
        copy = Path(self.folder.name)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy / name)
        if self.mutant is not None:
            source = (copy / self.mutant.file).read_text(encoding="utf-8")
            if (count := source.count(self.mutant.fragment)) != 1:
                self.outcome = Outcome(f"fragment found {count} times", 0.0, "")
            mutated = source.replace(self.mutant.fragment, self.mutant.replacement)
            (copy / self.mutant.file).write_text(mutated, encoding="utf-8")
        self.process = multiprocessing.get_context("fork").Process(target=_test, args=(copy, self.tests))
        if self.outcome is None:
            self.process.start()

    def finish(self) -> None:
        """Reads how the tests ended; a process that is still at it has run out of time."""
        seconds = time.monotonic() - self.started
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            self.outcome = Outcome("killed", seconds, f"ran past {TIME_LIMIT:.0f} s")
        elif self.outcome is None:
            status = self.process.exitcode
            lines = (Path(self.folder.name) / "output").read_text(encoding="utf-8").strip().splitlines() or [""]
            told = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])
            told = told.removeprefix("FAILED ").removeprefix("ERROR ").split(" - ")[0]
            result = {0: "survived", 1: "killed"}.get(-1 if status is None else status, f"pytest status {status}")
            self.outcome = Outcome(result, seconds, told)
        self.folder.cleanup()

    @property
    def late(self) -> bool:
        return time.monotonic() - self.started > TIME_LIMIT


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="mutants whose file or fragment holds this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many run at a time")
    options = parser.parse_args(argv)
    mutants = [mutant for mutant in MUTANTS if options.only in mutant.file or options.only in mutant.fragment]
    console = Console(width=200)
    unchanged = _run([Trial(tests) for tests in sorted({mutant.tests for mutant in mutants})], options.jobs)
    red = {trial.tests: outcome.told for trial, outcome in unchanged if outcome.result != "survived"}
    for tests, told in red.items():
        console.print(f"without any mutant, {tests} fails: {told}", markup=False)
    if red:
        return 1
    tried = _run([Trial(mutant.tests, mutant) for mutant in mutants], options.jobs)
    console.print(_table(tried))
    killed = sum(outcome.result == "killed" for _, outcome in tried)
    console.print(f"{killed} of {len(tried)} mutants killed")
    return 0 if killed == len(tried) else 1


def _run(trials: list[Trial], jobs: int) -> list[tuple[Trial, Outcome]]:
    """Works the trials off, a few at a time."""
    waiting, running = list(reversed(trials)), list[Trial]()
    with tqdm(total=len(trials)) as bar:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop())
                running[-1].start()
            if all(trial.outcome is None for trial in running):
                wait([trial.process.sentinel for trial in running], timeout=5)
            for trial in [one for one in running if one.outcome or not one.process.is_alive() or one.late]:
                trial.finish()
                running.remove(trial)
                bar.update()
    return [(trial, trial.outcome) for trial in trials if trial.outcome is not None]


def _test(folder: Path, tests: str) -> None:
    """In the fork: runs pytest on the copy and exits with its status."""
    for name in [name for name in sys.modules if name.split(".")[0] in {"probe", "tests"}]:
        del sys.modules[name]
    os.chdir(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in {"", str(ROOT)})]
    sys.dont_write_bytecode = True
    output = os.open("output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import pytest

    options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    status = pytest.main([*options, *tests.split()])
    sys.stdout.flush()
    os._exit(status)


def _table(tried: Sequence[tuple[Trial, Outcome]]) -> Table:
    table = Table("file", "formula", "planted instead", "outcome", "by", "s")
    for trial, outcome in tried:
        assert trial.mutant is not None
        cells = (trial.mutant.file, trial.mutant.fragment, trial.mutant.replacement, outcome.result, outcome.told)
        style = "" if outcome.result == "killed" else "bold red"
        table.add_row(*(cell.replace("[", r"\[") for cell in cells), f"{outcome.seconds:.0f}", style=style)
    return table


if __name__ == "__main__":
    # The tests' small matrices gain nothing from threads, and the forks share the cores.
    os.environ |= {"OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    sys.exit(main())
