"""A run in which a task or two of each stage stand for all of them: what a plan is timed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from probe.runs.directory import Run
from probe.runs.pieces import Labels, Piece, PieceFile
from probe.runs.tasks import Label, Schema, Task


@dataclass(frozen=True)
class Rehearsal(Run):
    """A run directory whose stages look finished when one task of each is.

    A later stage that reads an earlier one finds as much as it would in the real run: the pieces of the tasks that were
    done, and copies of the last of them under the labels of the others.
    """

    _stages: dict[str, tuple[Sequence[Task], list[Task]]] = field(default_factory=dict)

    def rehearse(self, tasks: Sequence[Task], done: Task, found: Piece | Mapping[str, Any], schema: Schema) -> None:
        """Let a task stand for those of its stage that are not done.

        Args:
            tasks: All tasks of the stage.
            done: The one that was done.
            found: What it returned.
            schema: The variables of the analysis.
        """
        self.save(done, found, schema)
        _, before = self._stages.get(done.stage, (tasks, []))
        self._stages[done.stage] = tasks, [*(task for task in before if task != done), done]

    def files(self, stage: str = "*") -> list[PieceFile]:
        """List the pieces of all tasks: those that were done, and copies of the last.

        Args:
            stage: Of one stage; all by default.

        Returns:
            Files, by stage and task.
        """
        names = [name for name in self._stages if stage in ("*", name)]
        return [file for name in names for file in self._of_stage(name)]

    def _of_stage(self, stage: str) -> list[PieceFile]:
        tasks, done = self._stages[stage]
        own = {task.key: PieceFile.open(self._file(task)) for task in done}
        file = own[done[-1].key]
        return [
            own.get(task.key, _Neighbour(file.path, _moved(file.labels, task, done[-1]), file.axes, file.seconds))
            for task in tasks
        ]


@dataclass(frozen=True)
class _Neighbour(PieceFile):
    """The piece of the task that was done under a neighbour's labels, cut where the neighbour's batch is smaller."""

    def read(self, names: Sequence[str] | None = None, **chosen: Label) -> Piece:
        piece = super().read(names, **chosen)
        arrays = {}
        for name, array in piece.items():
            for place, axis in enumerate(piece.inside(name)):
                own = self.labels.get(axis)
                array = array.narrow(place, 0, len(own)) if isinstance(own, range) else array
            arrays[name] = array
        return Piece(arrays, piece.labels, piece.axes)


def _moved(labels: Mapping[str, Labels], task: Task, done: Task) -> dict[str, Labels]:
    """The labels of a neighbour's piece; along the axis of a batch it stands where its batch does."""
    found = {**labels, **task.labels}
    if "start" not in task.labels or "stop" not in task.arguments:
        return found
    batch = done["stop"] - done["start"]
    for axis, own in labels.items():
        rows = len(own) // batch if isinstance(own, range) else 0  # of each window
        if isinstance(own, range) and own == range(done["start"] * rows, done["stop"] * rows):
            found[axis] = range(task["start"] * rows, task["stop"] * rows)
    return found
