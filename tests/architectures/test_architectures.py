"""Every decoder that transformers knows is taken exactly, or refused in one true line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.architectures import zoo
from tests.architectures.case import CHECKS, QUICK
from tests.architectures.refusals import REFUSED, ROUGH, UNBUILT
from tests.architectures.survey import counted, examine, read, survey

SHORT = ("load", "capture", "head", "jacobian")
EXACT = 174
"""At least so many types are taken exactly."""


@pytest.mark.guards(
    "every causal type of transformers: the stream, the head and the Jacobians are those of its own pass",
    when="a model is loaded",
    gives="exact, or refused with a reason that the pass shows",
)
@pytest.mark.parametrize("name", zoo.types())
def test_a_type_is_taken_exactly_or_refused_in_one_true_line(name):
    result = examine(name, SHORT, layers=2)
    if name in UNBUILT:
        assert result.outcome == "unbuilt", f"{name} can be built: take it out of UNBUILT"
        assert UNBUILT[name] in result.line
    elif name in REFUSED:
        assert result.outcome == "refused", f"{name} is taken: take it out of REFUSED"
        said, fact = REFUSED[name]
        assert re.search(said, result.line), result.line
        assert re.search(fact, result.facts), result.facts
        assert "\n" not in result.line
    elif name in ROUGH:
        assert all(one.outcome in ("exact", "nothing") or one.error < ROUGH[name] for one in result.findings), result
    else:
        assert result.outcome == "exact", f"{result.outcome}: {result.line}"


def test_most_types_are_taken():
    # A type that is in no table is exact, by the test above.
    named = set(REFUSED) | set(UNBUILT) | set(ROUGH)
    assert named <= set(zoo.types())
    assert len(zoo.types()) - len(named) >= EXACT


@pytest.mark.soak
def test_all_that_is_asked_of_each_type_and_its_variants(capsys):
    """Resumable: finished types are kept in the file that PROBE_ZOO names, `.soak/architectures.jsonl` by default."""
    kept = Path(os.environ.get("PROBE_ZOO", ".soak/architectures.jsonl"))
    kept.parent.mkdir(parents=True, exist_ok=True)
    types = list(zoo.types())
    variants = [f"{name}:{variant}" for name in types for variant in zoo.variants(name)]
    for names, how in ((types, {"checks": list(CHECKS), "n_rows": None}), (variants, {"checks": QUICK})):
        left = [name for name in names if name not in read(kept)]
        for _ in survey(left, how, limit=600, kept=kept):
            pass
    results = read(kept)
    with capsys.disabled():
        print("\narchitectures:", counted(results[name] for name in types))  # noqa: T201 - what `make soak` prints
        print("variants of them:", counted(results[name] for name in variants))  # noqa: T201
    failed = [result for result in results.values() if result.outcome in ("crash", "wrong")]
    assert not failed, "\n".join(f"{one.name}: {one.outcome}: {one.line}" for one in failed)
