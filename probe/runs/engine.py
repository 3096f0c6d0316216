"""Where the tasks of a run are done: here, one after another.

A task is done by a plain function of picklable arguments, so that another executor can stand behind the same call.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn, TypeAlias

from tqdm.auto import tqdm

from probe.runs.directory import Run
from probe.runs.pieces import Piece
from probe.runs.tasks import Schema, Task

_QUIET = ContextVar("quiet", default=False)  # whether the tasks that are done show nothing

Measure: TypeAlias = Callable[[Any, Task, Run], Piece | Mapping[str, Any]]
"""`measure(subject, task, run)` to what the task found."""


def work(
    measure: Measure,
    tasks: Sequence[Task],
    subject: Any,
    run: Run,
    schema: Schema,
    *,
    description: str,
    quiet: bool = False,
) -> None:
    """Do the tasks that are not finished, and save what each returns.

    Args:
        measure: Called as `measure(subject, task, run)` for each task; a function of a module or a method, so that
            another process can find it. Its result must depend on its arguments and finished earlier stages alone, not
            on the tasks before it: then a resumed run equals an uninterrupted one.
        tasks: The tasks, each with its own stage and labels.
        subject: What they measure.
        run: Where the pieces go.
        schema: The variables that they return.
        description: What the progress bar says.
        quiet: Show no progress bar.

    Raises:
        ValueError: If two tasks share stage and labels, or the function cannot be found from its module.
    """
    require_findable(measure)
    twice = [name for name, count in Counter((task.stage, task.key) for task in tasks).items() if count > 1]
    if twice:
        raise ValueError(f"each task must have its own stage and labels, but {twice[0]} comes more than once")
    waiting = [task for task in tasks if not run.has(task)]
    token = _QUIET.set(quiet)
    try:
        with tqdm(total=len(tasks), initial=len(tasks) - len(waiting), desc=description, disable=quiet) as bar:
            for task in waiting:
                do(measure, task, subject, run, schema)
                bar.update()
    finally:
        _QUIET.reset(token)


def do(measure: Measure, task: Task, subject: Any, run: Run, schema: Schema) -> None:
    """Do one task and save its piece: what a worker in another process calls.

    Args:
        measure: The stage's function.
        task: The task.
        subject: What it measures.
        run: Where its piece goes.
        schema: The variables that it returns.
    """
    start = time.perf_counter()
    try:
        found = measure(subject, task, run)
        run.save(task, found, schema, time.perf_counter() - start)
    except Exception as error:
        error.add_note(f"in task {task.key} of stage {task.stage}")
        raise


def require_findable(measure: Measure) -> None:
    """Refuse a function that another process cannot find.

    Args:
        measure: The function.

    Raises:
        ValueError: If it is defined inside another one.
    """
    name = getattr(measure, "__qualname__", type(measure).__qualname__)
    if "<" in name:  # <locals>, <lambda>
        raise ValueError(f"a task's function must be defined in a module or a class of one, got {name}: move it there")


def task_bar(total: int, description: str, *, step: str) -> tqdm[NoReturn]:
    """Make a progress bar for the inside of a long task; shown on a terminal only, and not in a quiet run.

    Args:
        total: Number of steps.
        description: What it says.
        step: What a step is called.

    Returns:
        The bar, a context manager.
    """
    return tqdm(total=total, desc=description, unit=step, leave=False, disable=True if _QUIET.get() else None)
