"""A run on causes as its claims read it: toys and transformers, whose intervals are over seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probe.analyses.causes.cells import Cell
from probe.analyses.causes.config import Thresholds
from probe.claims import Condition
from probe.claims.evidence import Floats, Reading, Sample

LAST = 0.2  # share of the steps over which continuity is averaged
TIMES = ("step 0", "mean of training")

Seeds = Float[np.ndarray, " seed"]


@dataclass(frozen=True)
class Grid(Reading[Thresholds]):
    """A run's toys and transformers, whose intervals are over seeds."""

    @property
    def sample(self) -> Sample:
        """The seeds."""
        return Sample("seeds", self.data.sizes["seed"], self.thresholds.threshold_seeds)

    def continuity(self, cell: Cell, weights: str = "W", space: str = "input") -> Seeds:
        """Average the continuity of a toy late in training."""
        values = self.get("cosine", dims=("step", "seed", "pair"), cell=cell.name, weights=weights, space=space)
        return self.late(values.mean(axis=-1))

    def holds(self, cell: Cell) -> bool:
        """Tell if a toy was trained."""
        return cell.name in self.data["cell"].values

    def coherence(self, cell: Cell) -> Float[np.ndarray, "time seed"]:
        """Read a toy's gradient coherence at the `TIMES`: at step 0, and the mean over the steps of the training."""
        values = self.get("gradient_coherence", dims=("step", "seed"), cell=cell.name, space="output")
        steps = self.data["step"].values
        mean = np.trapezoid(values, steps, axis=0) / (steps[-1] - steps[0])
        return np.stack([values[0], mean])

    def excess(self, cell: Cell, weights: str = "W") -> Float[np.ndarray, "seed k"]:
        """Subtract from best matches those of random frames, ``m_i² − null_i``, late in training."""
        values = self.get("match", dims=("step", "seed", "k"), cell=cell.name, weights=weights, space="input")
        return np.asarray(self.late(values) - self.data["null_match"].values)

    def late(self, values: Float[np.ndarray, "step seed *more"], along: str = "step") -> Floats:
        """Average over the snapshots of the last fifth of the steps."""
        steps = self.data[along].values
        return np.asarray(values[steps >= (1 - LAST) * steps[-1]].mean(axis=0))

    def loss(self, cell: Cell) -> float:
        """Average the held-out loss of a toy late in training; 1 is that of a constant guess."""
        return float(self.late(self.get("held_out_loss", dims=("step", "seed"), cell=cell.name)).mean())

    def learned(self, cell: Cell) -> bool:
        """Tell if a toy learned."""
        return self.loss(cell) < self.thresholds.threshold_learned

    def gap(self, cell: Cell) -> float:
        """Take the median of σ₁/σ₂ of a toy's matrices, late in training."""
        dims = ("step", "seed", "layer")
        return float(np.median(self.late(self.get("gap", dims=dims, cell=cell.name, weights="W", space="input"))))

    @property
    def arms(self) -> list[str]:
        """The arms of the transformer."""
        return [str(name) for name in self.data["arm"].values] if "arm" in self.data.coords else []

    def arm_continuity(self, arm: str, projection: str, weights: str = "W", space: str = "input") -> Seeds:
        """Average the continuity of a projection of a transformer late in training."""
        labels = {"arm": arm, "projection": projection, "weights": weights, "space": space}
        values = self.get("arm_cosine", dims=("arm_step", "seed", "arm_pair"), **labels)
        return self.late(values.mean(axis=-1), "arm_step")

    def arm_loss(self, arm: str) -> Seeds:
        """Read the held-out loss of a transformer at the end of training, in nat per byte."""
        return np.asarray(self.get("arm_held_out_loss", dims=("arm_step", "seed"), arm=arm)[-1])

    def arm_gap(self, arm: str, projection: str) -> float:
        """Take the median of σ₁/σ₂ of a projection of a transformer, late in training."""
        labels = {"arm": arm, "projection": projection, "weights": "W"}
        values = self.get("arm_gap", dims=("arm_step", "seed", "arm_layer"), **labels)
        return float(np.median(self.late(values, "arm_step")))

    def all_learned(self, wanted: Iterable[Cell]) -> Condition:
        """Require that each of some toys learned."""
        lazy = [f"{cell.name} (loss {self.loss(cell):.3g})" for cell in wanted if not self.learned(cell)]
        return Condition(not lazy, f"an arm did not learn: {', '.join(lazy)}")
