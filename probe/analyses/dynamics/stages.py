"""The analysis of the dynamics: its stages in their order, its Dataset, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from probe import replay
from probe.analyses.dynamics import claims, figures, means, nulls, perturb, work
from probe.analyses.dynamics.config import Config
from probe.analyses.dynamics.schema import EPSILONS, MATRICES, SCHEMA
from probe.analyses.dynamics.subject import DynamicsSubject
from probe.analysis import Analysis, Claim, Figure, Stage, Task
from probe.analysis.subject import OWN, spread
from probe.jacobian import JacobianOptions, method_of
from probe.runs import Run
from probe.runs.engine import Measure

TENTH = 0.1  # relative error at which the linear prediction is said to end
TIMED = 2  # blocks of a long task that a plan goes through


class Dynamics(Analysis[Config]):
    """Exact Jacobians of every block, their product over depth, and what of both is learned."""

    name = "dynamics"
    config = Config
    schema = SCHEMA
    compared: ClassVar = {
        score: {"variant": OWN, "matrix": "K"}
        for score in ("antisymmetric_fraction", "rotation_fraction", "henrici_departure", "participation_ratio")
    }

    def subject(self, config: Config) -> DynamicsSubject:
        """Make models and text of a run."""
        return DynamicsSubject(config)

    def stages(self, subject: DynamicsSubject) -> list[Stage]:
        """List scores of the model and of its controls, then what costs more, on fewer windows."""
        config = subject.config
        options = JacobianOptions(context=config.context, method=config.method, symmetrised_ov=config.symmetrised_ov)
        options.resolved(subject.model)  # refuses what the model's blocks do not have
        if config.context == "sequence":
            replay.require_chain(subject.model, 0, subject.depth)
        n_windows, few = len(subject.positions), subject.control_windows
        controls = [
            task for variant in subject.variants[1:] for task in _batches("controls", variant, few, subject.batch(1))
        ]
        products = min(few, config.product_windows) if config.interventions else 0
        perturbed = n_windows if config.perturb and config.context == "sequence" else 0
        averaged = subject.layers if config.mean else []
        drawn = spread(subject.layers, config.kreiss_layers)
        return [
            _long(
                "scores",
                work.score,
                _batches("scores", OWN, n_windows, subject.batch(subject.chosen)),
                "every block of the model",
            ),
            _long("controls", work.score, controls, "token alone, fresh and shuffled"),
            _long("products", nulls.products, _single("products", products), "products under nulls"),
            _long(
                "eigenvectors",
                work.eigenvectors,
                _single("eigenvectors", min(config.eigenvector_windows, n_windows)),
                "eigenvectors",
            ),
            Stage("means", means.means, [Task("means", {"layer": layer}) for layer in averaged], "mean matrices"),
            _long("mean_products", means.mean_products, [Task("mean_products")] if averaged else [], "their product"),
            Stage("perturb", perturb.perturb, _single("perturb", perturbed), "perturbations"),
            Stage(
                "pseudospectra",
                work.pseudospectra,
                [Task("pseudospectra", {"chosen": layer}) for layer in drawn],
                "pseudospectra",
            ),
        ]

    def coordinates(self, subject: DynamicsSubject) -> Mapping[str, Any]:
        """Name tokens, layers, variants, and what is kept of the product."""
        return subject.token_coordinates(subject.windows(), subject.positions) | {
            "layer": subject.layers,
            "depth": np.arange(1, subject.depth + 1),
            "variant": subject.variants,
            "matrix": list(MATRICES),
            "k": [k for k in work.OVERLAPS if k <= subject.model.d_model],
            "exponent": subject.exponents,
        }

    def finish(self, data: xr.Dataset, subject: DynamicsSubject, run: Run) -> xr.Dataset:
        """Add how far the linear prediction reaches, and what the run was made of."""
        config = subject.config
        if "perturb_error" in data:
            crossing = perturb.epsilon_at(data["perturb_error"].values, np.array(EPSILONS), TENTH)
            data["epsilon_at_tenth"] = self.schema.entry("epsilon_at_tenth", crossing)
        if config.mean:
            data.attrs["n_mean_windows"] = subject.control_windows
        method = method_of(subject.model) if config.method == "auto" else config.method
        data.attrs |= subject.attributes(subject.windows()) | {"context": config.context, "method": method}
        return data

    def claims(self, data: xr.Dataset, config: Config, *, resamples: int = 1000) -> list[Claim]:
        """Judge the paper's sentences.

        Args:
            data: The Dataset.
            config: The options, with the thresholds.
            resamples: Of the documents, for each interval.

        Returns:
            The claims.
        """
        return claims.claims(data, config, resamples=resamples)

    def figures(self, data: xr.Dataset, config: Config) -> list[Figure]:
        """Draw scores, products and perturbations over depth."""
        return figures.figures(data, config)

    def title(self, config: Config) -> str:
        """Name the report."""
        return f"Dynamics of {config.model}"


def _batches(stage: str, variant: str, windows: int, size: int) -> list[Task]:
    return [
        Task(stage, {"variant": variant, "start": start}, {"stop": min(start + size, windows)})
        for start in range(0, windows, size)
    ]


def _single(stage: str, windows: int) -> list[Task]:
    return [Task(stage, {"window": window}) for window in range(windows)]


def _long(name: str, measure: Measure, tasks: list[Task], description: str) -> Stage:
    """A stage whose tasks are too long for a plan."""
    return Stage(name, measure, tasks, description, partial(_seconds, measure))


def _seconds(measure: Measure, subject: DynamicsSubject, task: Task) -> float:
    """Time a task on the first blocks, which stand for all."""
    part = subject.first_blocks(TIMED)
    start = time.perf_counter()
    measure(part, task, Run(Path()))  # reads no earlier stage
    return (time.perf_counter() - start - part.loading) * subject.depth / part.depth


analysis = Dynamics()
run, plan = analysis.run, analysis.plan
