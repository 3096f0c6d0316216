"""A continuity run as its claims read it: adjacent pairs of layers, drawn in blocks on a circle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from probe import weights
from probe.analyses.continuity.config import Thresholds
from probe.analyses.continuity.schema import VECTORS
from probe.claims import Condition
from probe.claims.evidence import AbsentError, Reading, Sample
from probe.inference import Interval, circular_block_bootstrap

CLAIMED = dict.fromkeys(("q", "k", "gate", "up", "in"), "input") | dict.fromkeys(("o", "down", "out"), "output")
"""The projections that are said to be continuous, and the space: the residual stream's side."""
BAND = np.array([0.005, 0.99, 0.995])
Rows: TypeAlias = Int[np.ndarray, " pair"]


@dataclass(frozen=True)
class Pairs(Reading[Thresholds]):
    """A run of adjacent pairs of layers, of which blocks are resampled."""

    resamples: int
    permutations: int
    block_length: int

    @property
    def n_pairs(self) -> int:
        """Adjacent pairs of layers."""
        return int(self.data.sizes["layer"])

    @property
    def sample(self) -> Sample:
        """Whole blocks of adjacent pairs."""
        return Sample("blocks of adjacent layers", self.n_pairs // self._block, self.thresholds.threshold_blocks)

    @property
    def _block(self) -> int:
        return min(self.block_length, self.n_pairs)

    def intervals(self, statistic: Callable[[Rows], Mapping[str, float]]) -> dict[str, Interval]:
        """Estimate several named statistics, with intervals from the same resampled pairs."""
        names = list(statistic(np.arange(self.n_pairs)))

        def values(index: Rows) -> Float[np.ndarray, " name"]:
            return np.array([*statistic(index).values()])

        found = circular_block_bootstrap(
            values, self.n_pairs, block=self._block, resamples=self.resamples, seed=self.seed
        )
        return {name: found[place] for place, name in enumerate(names)}

    def exact(self, value: float) -> Interval:
        """Give a number that is not sampled as an interval without width."""
        return Interval(value, value, value, self.sample.size, "exact")

    @cached_property
    def claimed(self) -> dict[str, str]:
        """The continuous projections of this model, with their space.

        Raises:
            AbsentError: If the model has none of them.
        """
        held = set(self.data["projection"].values.tolist())
        found = {name: side for name, side in CLAIMED.items() if name in held}
        if not found:
            raise AbsentError("this model has none of the projections q, k, gate, up, o, down, in, out")
        return found

    def curves(self, sides: Mapping[str, str], variant: str = "model") -> Float[np.ndarray, "projection pair"]:
        """Read the continuity of projections, each in one space."""
        return np.stack([
            self.get(f"{side}_continuity", dims=("layer",), variant=variant, projection=name)
            for name, side in sides.items()
        ])

    def cosines(self) -> Float[np.ndarray, "projection block block"]:
        """Read the L × L matrices of the claimed projections, each in its space."""
        dims = ("block", "other_block")
        return np.stack([self.get(f"{side}_cosine", dims=dims, projection=name) for name, side in self.claimed.items()])

    def band(self, sides: Mapping[str, str]) -> tuple[float, float, float]:
        """Find the 0.5 %, 99 % and 99.5 % points of the mean over projections and pairs of random directions."""
        pairs: dict[int, int] = {}
        for name, side in sides.items():
            width = int(self.data[f"{side}_width"].sel(projection=name))
            pairs[width] = pairs.get(width, 0) + self.n_pairs
        low, high, highest = weights.nulls.haar_mean_quantiles(pairs, BAND, seed=self.seed)
        return float(low), float(high), float(highest)

    def means(self, sides: Mapping[str, str], ending: str = "") -> dict[str, Interval]:
        """Average the continuity of each projection in one space; it is named, say, "q in v₁" with the ending."""
        curves = {f"{name} in {VECTORS[side]}{ending}": self.curves({name: side})[0] for name, side in sides.items()}
        return self.intervals(lambda index: {words: float(curve[index].mean()) for words, curve in curves.items()})

    @property
    def gaps(self) -> Float[np.ndarray, "projection pair"]:
        """The smaller gap σ₁/σ₂ of each pair of the claimed projections."""
        projections = self.data["projection"].values.tolist()
        gaps = self.get("gap", dims=("projection", "layer"), variant="model")
        return np.asarray(gaps[[projections.index(name) for name in self.claimed]])

    def enough_gap(self) -> Condition:
        """Require that leading vectors mean something: the median gap over the claimed projections."""
        median, needed = float(np.nanmedian(self.gaps)), self.thresholds.threshold_gap
        return Condition(
            median >= needed,
            f"the median gap σ₁/σ₂ of the claimed projections is {median:.3g}: {needed} is needed for a leading vector "
            "to mean anything",
        )
