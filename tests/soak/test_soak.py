"""Drawn cases come to nothing but exact numbers and refusals of one line; and what else there is would be seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import probe
from probe.errors import InputError
from tests.architectures import zoo
from tests.soak import asking
from tests.soak.asking import Answers, Judge, judged, run
from tests.soak.drawing import AROUND, COUNT, DTYPES, FILES, OBJECTS, SEED, TOKENS, Drawn, draw
from tests.soak.survey import counted, failed, quiet, read, refused, survey

SHORT = {4: "exact", 7: "exact", 22: "exact", 52: "exact", 25: "refused", 74: "refused", 99: "refused"}
"""Cases of little time: in inference_mode, of GGUF, of a folder, hooked; of a file, an object, tokens that are none."""


@pytest.fixture(autouse=True)
def _silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    before = torch.get_num_threads()
    quiet()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", SHORT)
def test_a_drawn_case_is_exact_or_refused_where_it_must_be(number: int) -> None:
    result = run(number, SEED)
    assert result.outcome == SHORT[number], result
    assert bool(result.due) == (result.outcome == "refused"), result


def test_a_drawing_is_the_same_again_and_holds_all_there_is() -> None:
    cases = [draw(number) for number in range(COUNT)]
    assert cases[:9] == [draw(number) for number in range(9)]
    assert cases[:9] != [draw(number, SEED + 1) for number in range(9)]
    for name, kinds in (
        ("object", OBJECTS),
        ("dtype", DTYPES),
        ("file", FILES),
        ("tokens", TOKENS),
        ("around", AROUND),
    ):
        assert {getattr(case, name) for case in cases} == set(kinds)


PLAIN = Drawn(0, SEED, 0, "llama", "module", "float64", "", "float32", "plain", "nothing", 1, 5, 1)


def planted(monkeypatch: pytest.MonkeyPatch, case: Drawn = PLAIN, **functions: Any) -> asking.Result:
    """What comes of a case if functions of the library are exchanged."""
    monkeypatch.setattr(asking, "draw", lambda *_: case)
    for name, function in functions.items():
        monkeypatch.setattr(probe, name, function)
    return run(0, SEED)


def test_a_wrong_number_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    jacobian = probe.block_jacobian
    result = planted(monkeypatch, block_jacobian=lambda *given: jacobian(*given) + 1e-5)
    assert (result.outcome, result.line[:9]) == ("wrong", "jacobian:")
    assert [step.outcome for step in result.steps] == ["exact", "exact", "wrong", "exact"]


def test_an_answer_where_there_is_none_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    load, whole = probe.load_model, zoo.tiny("llama", layers=2)
    taken = planted(monkeypatch, replace(PLAIN, object="trunk"), load_model=lambda _: load(whole))
    assert (taken.outcome, taken.line) == ("wrong", "load: taken, though a trunk has no head (inf)")


def test_what_is_no_refusal_of_one_line_is_a_traceback() -> None:
    for error, outcome in (
        (RuntimeError("planted"), "traceback"),
        (InputError("planted\nin two lines"), "traceback"),
        (InputError("planted"), "refused"),
    ):
        (step,) = judged(Answers(found={"jacobian": error}), Judge(None, PLAIN))  # type: ignore[arg-type]
        assert step.outcome == outcome
        assert "planted" in step.line


@pytest.mark.soak
def test_all_cases_of_a_drawing(capsys: pytest.CaptureFixture[str]) -> None:
    """Resumable: finished cases are kept in the file that PROBE_SOAK names, `.soak/cases.jsonl` by default."""
    kept = Path(os.environ.get("PROBE_SOAK", ".soak/cases.jsonl"))
    kept.parent.mkdir(parents=True, exist_ok=True)
    left = [number for number in range(COUNT) if number not in read(kept, SEED)]
    for _ in survey(left, SEED, kept=kept):
        pass
    results = [result for number, result in read(kept, SEED).items() if number < COUNT]
    with capsys.disabled():
        print(f"\ndrawn cases, seed {SEED}:", counted(results))  # noqa: T201 - what `make soak` prints
        for reason, numbers in refused(results).items():
            print(f"  refused, though valid: {numbers}: {reason}")  # noqa: T201
    assert len(results) == COUNT
    bad = failed(results)
    assert not bad, "\n".join(f"{one.number}: {one.outcome}: {one.name}: {one.line}" for one in bad)
