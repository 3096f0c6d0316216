"""Runs of the checks over the zoo: each type in a process of its own, with a limit of time, its result kept at once."""

from __future__ import annotations

import importlib
import json
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from probe.jacobian import method_of
from tests.architectures import checks as _checks  # noqa: F401 - enter their checks into the table
from tests.architectures import zoo
from tests.architectures.case import SIDE, WORST, Case, Finding, Outcome, measure
from tests.architectures.oracle import NotADecoderError
from tests.plant.apart import NoAnswerError, answer_of


@dataclass
class Result:
    """What was found about one type.

    Attributes:
        name: The type, and its variant behind a colon.
        outcome: The worst of the checks; "unbuilt" where there is no model to ask about.
        method: The method of its Jacobians.
        line: The reason of a refusal, or the check that failed.
        facts: What the oracle says of the model: "decoder", or why it is none.
        findings: One a check.
        seconds: Time.
    """

    name: str
    outcome: str
    method: str = ""
    line: str = ""
    facts: str = ""
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0


def judge(findings: Sequence[Finding]) -> tuple[Outcome, str]:
    """The worst of some findings and its line."""
    counted = [one for one in findings if not (one.check in SIDE and one.outcome == "refused")]
    if not counted:
        return "nothing", ""
    worst = max(counted, key=lambda one: WORST.index(one.outcome))
    if worst.outcome in ("exact", "nothing"):
        return "exact", f"error {max(one.error for one in counted):.0e}"
    error = f" ({worst.error:.1e})" if worst.outcome == "wrong" else ""
    return worst.outcome, f"{worst.check}: {worst.line}{error}"


def examine(name: str, checks: Sequence[str], *, n_rows: int | None = 2, layers: int = zoo.DEEP) -> Result:
    """Build one type, or a variant of it, and run checks on it, in this process.

    Args:
        name: The type; a variant of it behind a colon.
        checks: Names of checks.
        n_rows: Number of random vectors v whose vᵀJ are compared; None: whole matrices.
        layers: Number of layers.
    """
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = zoo.tiny(name, layers=layers)
        except Exception as error:  # noqa: BLE001 - the reason is the result
            return Result(name, "unbuilt", line=_line(error))
        case = Case(module, n_rows=n_rows)
        facts = facts_of(case)
        findings = [measure(case, "load")]
        if findings[0].outcome == "exact" and facts in TAKEABLE:
            findings += [measure(case, one) for one in checks if one != "load"]
        elif findings[0].outcome == "exact":
            findings.append(Finding("load", "wrong", math.inf, f"taken, though it {facts}"))
        outcome, line = judge(findings)
        return Result(name, outcome, _method(case), line, facts, findings, time.perf_counter() - start)


TAKEABLE = (
    "decoder",
    "is not causal",
    "hands a layer more than the one before it gave",
    "has logits of more than the last layer's output",
)
"""Facts under which the oracle has answers: whatever the library says of such a model is compared."""


def facts_of(case: Case) -> str:
    """What the oracle sees: "decoder", or why the model is no plain one."""
    try:
        oracle = case.oracle
    except NotADecoderError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - said in the result
        return f"breaks the oracle: {_line(error)}"
    if not oracle.causal:
        return "is not causal"
    if not oracle.continuous:
        return "hands a layer more than the one before it gave"
    return "decoder" if oracle.ends else "has logits of more than the last layer's output"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _method(case: Case) -> str:
    try:
        return str(method_of(case.double))
    except Exception:  # noqa: BLE001 - the checks say what happens
        return "–"


def survey(names: Iterable[str], options: dict[str, Any], *, limit: float, kept: Path | None) -> Iterator[Result]:
    """Examine types one after the other, each in a process of its own.

    Args:
        names: Types and variants.
        options: Of `examine`.
        limit: Seconds that a type may take.
        kept: A file of JSON lines to which each result is added at once.

    Yields:
        The results, in the order of the names.
    """
    importlib.import_module("transformer_lens")
    examine("llama", options["checks"], layers=2)  # what is imported here is there for all processes that are forked
    for name in names:
        try:
            found = answer_of(partial(examine, **options), name, limit=limit)
        except NoAnswerError as error:
            found = Result(name, "crash", line=str(error))
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
        yield found


def restored(found: dict[str, Any]) -> Result:
    """A result from its JSON."""
    return Result(**{**found, "findings": [Finding(**one) for one in found["findings"]]})


def read(kept: Path) -> dict[str, Result]:
    """The results that a file holds, the last of each name; a line that was cut off is left out."""
    results = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []:
        try:
            result = restored(json.loads(line))
        except json.JSONDecodeError:
            continue
        results[result.name] = result
    return results


def counted(results: Iterable[Result]) -> str:
    """The line of counts, of the models that could be built."""
    outcomes = [result.outcome for result in results]
    counts = ", ".join(f"{outcomes.count(word)} {word}" for word in ("exact", "refused", "crash", "wrong"))
    return f"{counts} of {len(outcomes) - outcomes.count('unbuilt')}"
