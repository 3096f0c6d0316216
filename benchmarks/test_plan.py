"""Is a plan right? The time that a task or two of each stage predict, against the time of the whole run.

The plan does the middle task of every stage, and of batches the first; the run then does all of them on the same
machine. A ratio of 1 is a perfect plan; within a factor of two is what one needs to decide when to come back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probe import analyses
from probe.runs import Run

BUNDLED = {"model": "bundled/transformer", "dataset": "sample"}
DEFAULT = {"model": "smollm2-135m-instruct-q4", "dataset": "sample"}
SMALL_MAPS = {"classes": ("mean", "linear", "local", "mlp_random"), "replaced": ("linear", "local")}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tokenwise, bundled": ("tokenwise", BUNDLED | SMALL_MAPS | {"windows": 24, "window_length": 64, "fit_windows": 64}),
    "dynamics, bundled": ("dynamics", BUNDLED | {"windows": 8, "window_length": 64, "init_seeds": 2}),
    "communities, bundled": ("communities", BUNDLED | {"windows": 8, "window_length": 64, "init_seeds": 2}),
    "continuity, bundled": ("continuity", {"model": "bundled/transformer"}),
    "lens, bundled": (
        "lens",
        BUNDLED
        | {"windows": 4, "fit_windows": 6, "window_length": 64, "control_windows": 3, "tuned_steps": 20}
        | {"init_seeds": 1, "shuffled_seeds": 1, "blocks_seeds": 1},
    ),
    "causes": ("causes", {"cells": "stream-gelu,stream-identity", "steps": 300, "seeds": 2}),
    "tokenwise, default": (
        "tokenwise",
        DEFAULT | SMALL_MAPS | {"windows": 8, "window_length": 64, "fit_windows": 64, "layers": "5,15,25"},
    ),
    "dynamics, default": (
        "dynamics",
        DEFAULT
        | {"windows": 3, "window_length": 64, "init_seeds": 1, "shuffled_seeds": 0, "control_windows": 2}
        | {"product_windows": 2, "eigenvector_windows": 1, "kreiss_layers": 2, "alone": False},
    ),
    "continuity, default": ("continuity", {"model": "smollm2-135m-instruct-q4", "init_seeds": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_plan_against_run(case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    analysis = analyses.load(name)
    config = analysis.config(**options)
    planned = analysis.plan(config)
    analysis.run(config, out=tmp_path / "run", quiet=True)
    run, lines = Run(tmp_path / "run"), []
    for stage in planned.stages:
        taken = sum(file.seconds or 0.0 for file in run.files(stage.name))
        lines.append(f"    {stage.name:14} {stage.tasks:4} tasks  planned / taken {stage.seconds / taken:5.2f}")
    seconds = sum(stage.seconds for stage in planned.stages)
    print(f"\n{case}: planned / taken {seconds / (run.seconds or 1.0):.2f} of {run.seconds:.0f} s")
    print("\n".join(lines))
