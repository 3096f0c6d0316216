"""The words of lower floors that an author of an analysis needs, as far as they import no array library."""

from __future__ import annotations

from probe.runs.tasks import Plan, Schema, StagePlan, Task, Variable

__all__ = ["Plan", "Schema", "StagePlan", "Task", "Variable"]
