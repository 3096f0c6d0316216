"""Runs of the checks over the zoo: each type in a process of its own, with a limit of time, its result kept at once."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from probe.jacobian import method_of
from tests.architectures import checks as _checks  # noqa: F401 - enters the checks into their table
from tests.architectures import zoo
from tests.architectures.case import CHECKS, SIDE, WORST, Case, Finding, Outcome, measure
from tests.architectures.oracle import NotADecoderError


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


def examine(name: str, checks: Sequence[str], *, n_rows: int | None = 3, layers: int = 4) -> Result:
    """Build one type and run the checks on it, in this process."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = zoo.tiny(name, layers=layers)
        except Exception as error:  # noqa: BLE001 - the reason is the result
            return Result(name, "unbuilt", line=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        case = Case(module, n_rows=n_rows)
        result = Result(name, "exact")
        try:
            oracle = case.oracle
            missing = [word for word, has in (("causal", oracle.causal), ("continuous", oracle.continuous)) if not has]
            result.facts = "decoder" if not missing else f"not {' and not '.join(missing)}"
        except NotADecoderError as error:
            result.facts = str(error)
        try:
            result.method = str(method_of(case.double))
        except Exception:  # noqa: BLE001 - the checks say what happens
            result.method = "–"
        result.findings = [_guarded(case, check, result.facts) for check in checks]
        result.outcome, result.line = judge(result.findings)
    result.seconds = time.perf_counter() - start
    return result


def _guarded(case: Case, check: str, facts: str) -> Finding:
    finding = measure(case, check)
    if finding.outcome == "crash" and finding.line.startswith("NotADecoderError"):
        # The oracle knows no stream: the library has to refuse, and is asked alone.
        try:
            _ = case.double
        except Exception:  # noqa: BLE001
            return measure_load(case)
        return Finding(check, "wrong", float("inf"), f"taken, although the oracle finds no stream: {facts}")
    return finding


def measure_load(case: Case) -> Finding:
    """Load the model alone."""
    CHECKS.setdefault("load", _load)
    return measure(case, "load")


def _load(case: Case) -> float:
    _ = case.double
    return 0.0


def _child(name: str, options: dict[str, Any], pipe: Any) -> None:
    torch.set_num_threads(1)
    try:
        pipe.send(asdict(examine(name, **options)))
    except BaseException:  # noqa: BLE001 - said to the parent
        pipe.send({"name": name, "outcome": "crash", "line": traceback.format_exc().strip().splitlines()[-1]})


def survey(names: Iterable[str], options: dict[str, Any], *, limit: float, kept: Path | None) -> Iterator[Result]:
    """Examine types one after the other, each in a process of its own; results are added to a file of JSON lines."""
    context = multiprocessing.get_context("fork")
    examine("mixtral", ["jacobian"])  # imports for all processes that are forked from here
    for name in names:
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(name, options, send))
        child.start()
        send.close()
        try:
            found = (
                receive.recv()
                if receive.poll(limit)
                else {"name": name, "outcome": "crash", "line": f"no answer in {limit:.0f} s"}
            )
        except EOFError:
            found = {"name": name, "outcome": "crash", "line": "its process died"}
        child.kill()
        child.join()
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        yield restored(found)


def restored(found: dict[str, Any]) -> Result:
    """A result from its JSON."""
    return Result(**{**found, "findings": [Finding(**one) for one in found.get("findings", [])]})


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
    """The line of counts."""
    outcomes = [result.outcome for result in results]
    built = [outcome for outcome in outcomes if outcome != "unbuilt"]
    counts = ", ".join(f"{built.count(word)} {word}" for word in ("exact", "refused", "crash", "wrong"))
    return f"{counts} of {len(built)}"
