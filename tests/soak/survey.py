"""Runs of drawn cases: each in a process of its own, with a limit of time, its result kept at once."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from tests.plant.apart import NoAnswerError, answer_of
from tests.soak.asking import OUTCOMES, Result, Step, run
from tests.soak.drawing import SEED


def survey(numbers: Iterable[int], seed: int, *, limit: float = 300, kept: Path | None = None) -> Iterator[Result]:
    """Run cases one after the other.

    Args:
        numbers: Their numbers.
        seed: Seed of the drawing.
        limit: Seconds that a case may take.
        kept: A file of JSON lines to which each result is added at once.

    Yields:
        The results, in the order of the numbers.
    """
    quiet()
    importlib.import_module("transformer_lens")
    run(0, SEED)  # what is imported here is there for all processes that are forked
    for number in numbers:
        try:
            found = answer_of(run, number, seed, limit=limit)
        except NoAnswerError as error:
            found = Result(number, "", "traceback", str(error))
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": seed, **asdict(found)}) + "\n")
        yield found


def quiet() -> None:
    """Let torch use one thread, and transformers say nothing."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def read(kept: Path, seed: int) -> dict[int, Result]:
    """The results that a file holds of one drawing, the last of each number; a line that was cut off is left out."""
    results = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if found.pop("seed") == seed:
            result = Result(**{**found, "steps": [Step(**step) for step in found["steps"]]})
            results[result.number] = result
    return results


def counted(results: Iterable[Result]) -> str:
    """A line of counts."""
    outcomes = Counter(result.outcome for result in results)
    return ", ".join(f"{outcomes[one]} {one}" for one in OUTCOMES) + f" of {outcomes.total()}"


def failed(results: Iterable[Result]) -> list[Result]:
    """Those that no case may come to."""
    return [result for result in results if result.outcome in ("traceback", "wrong")]


def refused(results: Iterable[Result]) -> dict[str, list[int]]:
    """Reasons why valid cases were refused, each with the numbers of the cases."""
    reasons: dict[str, list[int]] = {}
    for result in results:
        if result.outcome == "refused" and not result.due:
            reasons.setdefault(result.line, []).append(result.number)
    return reasons
