"""A plan's run, in which a task or two of each stage stand for all."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from probe.errors import InputError
from probe.runs import Piece, Schema, Task, Variable
from probe.runs.rehearsal import Rehearsal
from tests.plant import toy

SCHEMA = Schema({
    "state": Variable("layer query coordinate", kept=False),
    "error": Variable("variant layer query"),
    "edge": Variable("variant query", kept=False),
})
TASKS = [Task("states", {"start": start}, {"stop": start + 4}) for start in (0, 4, 8)]


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    """Three batches of four windows with two positions each, of which the middle one was done."""
    found = Piece({"state": torch.arange(48.0).view(2, 8, 3)}, {"layer": [0, 5], "query": range(8, 16)})
    made = Rehearsal(tmp_path)
    made.rehearse(TASKS, TASKS[1], found, SCHEMA)
    return made


def test_a_later_stage_finds_as_much_as_in_the_real_run(rehearsal: Rehearsal) -> None:
    piece = rehearsal.piece("states")
    assert piece["state"].shape == (2, 24, 3)
    assert piece.labels["query"] == range(24)
    done = torch.arange(48.0).view(2, 8, 3)
    assert torch.equal(piece["state"], torch.cat([done] * 3, 1))
    assert torch.equal(rehearsal.piece("states", layer=5)["state"], torch.cat([done[1]] * 3, 0))


def test_what_only_the_first_batch_holds_is_found(rehearsal: Rehearsal) -> None:
    """A first batch that was done as well stands for itself alone."""
    labels = {"layer": [0, 5], "query": range(8)}
    first = Piece({"state": -torch.ones(2, 8, 3), "edge": torch.ones(8)}, labels | {"variant": "model"})
    rehearsal.rehearse(TASKS, TASKS[0], first, SCHEMA)
    middle = Piece({"state": torch.ones(2, 8, 3)}, {"layer": [0, 5], "query": range(8, 16)})
    rehearsal.rehearse(TASKS, TASKS[1], middle, SCHEMA)
    piece = rehearsal.piece("states", ["state"])
    assert piece["state"][0, :, 0].tolist() == [-1] * 8 + [1] * 16
    assert rehearsal.piece("states", ["edge"], start=0)["edge"].tolist() == [1] * 8
    assert "edge" not in rehearsal.piece("states", start=8)


def test_a_batch_of_it_is_found_under_its_own_label(rehearsal: Rehearsal) -> None:
    for start in (0, 4, 8):
        assert rehearsal.piece("states", start=start).labels["query"] == range(2 * start, 2 * start + 8)


def test_what_no_task_would_leave_is_not_there(rehearsal: Rehearsal) -> None:
    for labels in ({"start": 5}, {"layer": 1}):
        with pytest.raises(InputError, match=r"states has none at (start 5|layer 1): its tasks are start-00004"):
            rehearsal.piece("states", **labels)
    with pytest.raises(InputError, match="holds nothing of errors"):
        rehearsal.piece("errors")


def test_every_variant_stands_where_one_was_measured(rehearsal: Rehearsal) -> None:
    tasks = [
        Task("errors", {"variant": variant, "start": start}, {"stop": start + 4})
        for variant in ("model", "init-0")
        for start in (0, 4)
    ]
    found = Piece({"error": torch.ones(2, 4), "edge": torch.ones(1)}, {"layer": [0, 5], "query": range(4, 8)})
    with pytest.raises(ValueError, match=r"edge must have the axes .*\(query: 4\)"):
        rehearsal.rehearse(tasks, tasks[1], found, SCHEMA)
    found = Piece({"error": torch.ones(2, 4)}, found.labels)
    rehearsal.rehearse(tasks, tasks[1], found, SCHEMA)
    piece = rehearsal.piece("errors")
    assert (piece.labels["variant"], piece["error"].shape) == (["model", "init-0"], (2, 2, 8))
    assert rehearsal.piece("errors", variant="init-0", layer=0)["error"].shape == (8,)
    data = rehearsal.combine(SCHEMA, {"variant": ["init-0", "model"], "layer": [0, 5], "query": range(8)})
    assert data["error"].sizes == {"variant": 2, "layer": 2, "query": 8}
    assert data["error"].notnull().all()


def test_what_is_not_in_batches_keeps_its_labels(rehearsal: Rehearsal) -> None:
    """An axis that does not begin where its batch does is not the batch's."""
    found = Piece({"error": torch.ones(1, 3)}, {"variant": "model", "layer": range(1), "query": range(1, 4)})
    rehearsal.rehearse(TASKS, TASKS[1], found, SCHEMA)
    assert rehearsal.piece("states")["error"].shape == (1, 3)


def test_a_plan_does_one_task_of_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = toy.Toy().plan(toy.Config(dataset="sample"))
    assert [(stage.name, stage.tasks) for stage in plan.stages] == [("draw", toy.TASKS), ("add", toy.TASKS)]
    assert all(math.isfinite(stage.seconds) and stage.seconds > 0 and stage.bytes > 1e6 for stage in plan.stages)
    assert not list(tmp_path.iterdir())
