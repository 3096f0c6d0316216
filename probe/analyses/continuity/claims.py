"""The claims on the continuity of weights (arXiv 2605.04971), computed from a run's Dataset.

The unit is a block of adjacent pairs of layers, drawn on a circle: an interval is over depth, of one model. Every
statistic is recomputed on the resampled pairs. What a null fixes exactly (a p value under permuted orders, a mean that
lies inside its band) enters as an interval without width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from probe import weights
from probe.analyses.continuity.thresholds import Thresholds
from probe.claims import Claim, Condition, Criterion, Evidence, Sentence, enough_units, line
from probe.inference import Interval, circular_block_bootstrap, seed_interval, spearman
from probe.table import AbsentError, Finding, Floats, Reading, Row, Sample, claim_of, number

__all__ = ["ROWS", "Pairs", "Thresholds", "claims"]

PAPER = "arXiv 2605.04971"
CLAIMED = dict.fromkeys(("q", "k", "gate", "up", "in"), "input") | dict.fromkeys(("o", "down", "out"), "output")
"""The projections that are said to be continuous, and the space: the residual stream's side."""
OTHER = {"input": "output", "output": "input"}
VECTOR = {"input": "v₁", "output": "u₁"}
BAND = np.array([0.005, 0.99, 0.995])
Rows: TypeAlias = Int[np.ndarray, " pair"]


@runtime_checkable
class Settings(Protocol):
    """The part of a configuration that its claims read."""

    @property
    def thresholds(self) -> Thresholds:
        """What each statistic must clear."""

    @property
    def seed(self) -> int:
        """Of the resamples and of the permuted orders."""

    @property
    def permutations(self) -> int:
        """Random orders of the blocks."""

    @property
    def block_length(self) -> int:
        """Adjacent pairs that are resampled together."""


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
        """Intervals of several named statistics from the same resampled pairs."""
        names = list(statistic(np.arange(self.n_pairs)))

        def values(index: Rows) -> Float[np.ndarray, " name"]:
            return np.array([*statistic(index).values()])

        found = circular_block_bootstrap(
            values, self.n_pairs, block=self._block, resamples=self.resamples, seed=self.seed
        )
        return {name: found[place] for place, name in enumerate(names)}

    def exact(self, value: float) -> Interval:
        """What is not sampled, as an interval without width."""
        return Interval(value, value, value, self.sample.size, "exact")

    @cached_property
    def claimed(self) -> dict[str, str]:
        """The continuous projections of this model, with their space.

        Raises:
            AbsentError: the model has none of them.
        """
        held = set(self.data["projection"].values.tolist())
        found = {name: side for name, side in CLAIMED.items() if name in held}
        if not found:
            raise AbsentError("this model has none of the projections q, k, gate, up, o, down, in, out")
        return found

    def curves(self, sides: Mapping[str, str], variant: str = "model") -> Float[np.ndarray, "projection pair"]:
        """The continuity of projections, each in one space."""
        return np.stack([
            self.get(f"{side}_continuity", dims=("layer",), variant=variant, projection=name)
            for name, side in sides.items()
        ])

    def cosines(self) -> Float[np.ndarray, "projection block block"]:
        """The L × L matrices of the claimed projections, each in its space."""
        dims = ("block", "other_block")
        return np.stack([self.get(f"{side}_cosine", dims=dims, projection=name) for name, side in self.claimed.items()])

    def band(self, sides: Mapping[str, str]) -> tuple[float, float, float]:
        """0.5 %, 99 % and 99.5 % points of the mean over projections and pairs if all directions were random."""
        pairs: dict[int, int] = {}
        for name, side in sides.items():
            width = int(self.data[f"{side}_width"].sel(projection=name))
            pairs[width] = pairs.get(width, 0) + self.n_pairs
        low, high, highest = weights.haar_mean_quantiles(pairs, BAND, seed=self.seed)
        return float(low), float(high), float(highest)

    def seeds(self, kind: str) -> list[str]:
        """The variants of a kind of control that were measured."""
        return [str(name) for name in self.data["variant"].values if str(name).startswith(f"{kind}-")]

    def gap(self) -> Condition:
        """The precondition that leading vectors mean something: the median gap over the claimed projections."""
        gaps = self.get("gap", dims=("projection", "layer"), variant="model")
        held = [place for place, name in enumerate(self.data["projection"].values) if name in self.claimed]
        median, needed = float(np.nanmedian(gaps[held])), self.thresholds.threshold_gap
        return Condition(
            median >= needed,
            f"the median gap σ₁/σ₂ of the claimed projections is {median:.3g}: {needed} is needed for a leading vector "
            "to mean anything",
        )


def trained(table: Pairs) -> Finding:
    """Mean adjacent |cosine| of the claimed projections, above random, permuted and fresh, outlier coordinates out."""
    limits, claimed = table.thresholds, table.claimed
    fresh = table.seeds("init")
    if not fresh:
        raise AbsentError("this run holds no fresh initialisation: give --init-seeds")
    own = table.curves(claimed)
    init = np.stack([table.curves(claimed, name) for name in fresh])
    trimmed = table.curves(claimed, "trimmed")
    low, high, highest = table.band(claimed)
    gaps = np.stack([table.get("gap", dims=("layer",), variant="model", projection=name) for name in claimed])
    shuffled = [float(table.curves(claimed, name).mean()) for name in table.seeds("shuffled")]
    beside = {"weights shuffled within matrices": float(np.mean(shuffled)) if shuffled else None}
    beside["gains folded in, where there are any"] = _folded(table)

    def statistic(index: Rows) -> dict[str, float]:
        mean, twin = float(own[:, index].mean()), float(init[..., index].mean())
        clear = np.where(gaps >= limits.threshold_gap, own, np.nan)[:, index]
        values = {"θ": mean, "Δ init": mean - twin, "trimmed": float(trimmed[:, index].mean())}
        values["clear"] = float(np.nanmean(clear)) if np.isfinite(clear).any() else np.nan
        return values | {name: float(own[place, index].mean()) for place, name in enumerate(claimed)}

    found = table.intervals(statistic)
    orders = weights.permuted_order(table.cosines(), _adjacent_mean, permutations=table.permutations, seed=table.seed)
    twin = float(init.mean())
    bound = high + limits.threshold_trained
    return Finding(
        Evidence(
            [Criterion("mean |cos| of neighbours", found["θ"], bound)],
            [
                Criterion("p under permuted orders", table.exact(orders.p_value), limits.threshold_permuted, "below"),
                Criterion("Δ to fresh initialisation", found["Δ init"], limits.threshold_init),
                Criterion("without outlier coordinates", found["trimmed"], bound),
            ],
            preconditions=[enough_units(len(fresh), limits.threshold_seeds, "fresh initialisations"), table.gap()],
            conditions=[
                Condition(
                    low <= twin <= highest,
                    f"fresh initialisations, mean {twin:.3g}, lie outside the band of random directions "
                    f"[{low:.3g}, {highest:.3g}]",
                )
            ],
        ),
        f"mean of |cos| of neighbouring blocks' leading vectors over {_words(claimed)} and {table.n_pairs} pairs; "
        f"interval over depth of one model, circular blocks of {table.block_length}",
        line("99 % point of the mean if all directions were random", table.exact(high)),
        {
            "fresh initialisation": seed_interval(init.mean(axis=(1, 2))),
            "blocks in permuted order": _spread(orders.values),
            f"pairs with σ₁/σ₂ ≥ {limits.threshold_gap:g} alone, {(gaps >= limits.threshold_gap).mean():.0%} of them": (
                found["clear"]
            ),
            "median σ₁/σ₂": number(float(np.nanmedian(gaps))),
        }
        | {words: number(value) for words, value in beside.items() if value is not None}
        | {f"{name} in {VECTOR[side]}": found[name] for name, side in claimed.items()},
        "blocks",
    )


def projections(table: Pairs) -> Finding:
    """Readers in v₁ and writers in u₁ exceed v, which is below half the readers' mean; the other sides are random."""
    limits = table.thresholds
    claimed = {name: side for name, side in table.claimed.items() if name not in {"in", "out"}}
    readers = {name: side for name, side in claimed.items() if side == "input"}
    writers = {name: side for name, side in claimed.items() if side == "output"}
    if not readers or not writers:
        raise AbsentError("this model has no separate projections q, k, v, o and up, down")
    value = table.curves({"v": "input"})[0], table.curves({"v": "output"})[0]
    reading, writing = table.curves(readers), table.curves(writers)
    wrong_sides = {name: OTHER[side] for name, side in claimed.items()}
    wrong = table.curves(wrong_sides)
    _, _, highest = table.band(wrong_sides)

    def statistic(index: Rows) -> dict[str, float]:
        v_in, v_out = (float(one[index].mean()) for one in value)
        read, write = reading[:, index].mean(axis=1), writing[:, index].mean(axis=1)
        values = {
            "readers": float(read.min()) - v_in,
            "writers": float(write.min()) - max(v_in, v_out),
            "v": max(v_in, v_out) - float(read.mean()) / 2,
            "v in v₁": v_in,
            "v in u₁": v_out,
        }
        each = zip([*readers, *writers], [*read, *write], strict=True)
        values |= {f"{name} in {VECTOR[claimed[name]]}": float(mean) for name, mean in each}
        inner = {f"{name} in {VECTOR[side]}": place for place, (name, side) in enumerate(wrong_sides.items())}
        return values | {f"{name}, the wrong side": float(wrong[place, index].mean()) for name, place in inner.items()}

    found = table.intervals(statistic)
    bound = limits.threshold_projections
    return Finding(
        Evidence(
            [
                Criterion("least reader − v, in v₁", found["readers"], bound),
                Criterion("least writer in u₁ − larger of v's two", found["writers"], bound),
                Criterion("larger of v's two − half the readers' mean", found["v"], 0.0, "below"),
            ],
            [Criterion("mean |cos| of the wrong sides", table.exact(float(wrong.mean())), highest, "below")],
            preconditions=[table.gap()],
        ),
        f"least of c_v over {', '.join(readers)} less c_v of v; least of c_u over {', '.join(writers)} less the larger "
        f"of v's two; means over {table.n_pairs} pairs; interval over depth of one model",
        line("99.5 % point of the wrong sides' mean if all directions were random", table.exact(highest)),
        {name: interval for name, interval in found.items() if name not in {"readers", "writers"}},
        "blocks",
    )


def adjacency(table: Pairs) -> Finding:
    """Spearman's ρ of lag and mean |cosine|: a trajectory falls with lag, one direction that all share does not."""
    cosines = table.cosines()
    together = np.concatenate([cosines.mean(axis=0, keepdims=True), cosines])
    if cosines.shape[-1] < 4:
        raise AbsentError(f"a lag curve needs four blocks or more: this run measured {cosines.shape[-1]}")

    def statistic(index: Rows) -> dict[str, float]:
        counts = np.bincount(index, minlength=table.n_pairs).astype(np.float64)
        return dict(zip(["θ", *table.claimed], _trends(_lag_curves(together, counts)).tolist(), strict=True))

    def decline(reordered: Floats) -> float:
        return float(_trends(_lag_curves(reordered.mean(axis=0), np.ones(table.n_pairs))))

    found = table.intervals(statistic)
    orders = weights.permuted_order(cosines, decline, permutations=table.permutations, seed=table.seed, greater=False)
    whole = _lag_curves(together[0], np.ones(table.n_pairs))
    far = whole[len(whole) // 2]
    return Finding(
        Evidence(
            [Criterion("ρ(lag, |cos|)", found["θ"], table.thresholds.threshold_adjacency, "below")],
            [
                Criterion(
                    "p under permuted orders", table.exact(orders.p_value), table.thresholds.threshold_permuted, "below"
                )
            ],
            preconditions=[table.gap()],
        ),
        f"Spearman's ρ of lag and |cos| at that lag, mean over blocks and over {_words(table.claimed)}, "
        f"{len(whole)} lags; interval over depth of one model, starting blocks resampled in circular blocks",
        line("ρ with the blocks in permuted order", _spread(orders.values)),
        {"|cos| at lag 1": number(float(whole[0])), f"|cos| at lag {len(whole) // 2 + 1}": number(float(far))}
        | {f"ρ of {name} in {VECTOR[side]}": found[name] for name, side in table.claimed.items()},
        "blocks",
    )


# In the order in which they are printed.
ROWS = (
    Row(
        Sentence(
            "continuity.trained",
            "Leading singular vectors of trained weights are continuous over depth, those at initialisation are not.",
            f"{PAPER}, abstract",
        ),
        "threshold_trained",
        trained,
    ),
    Row(
        Sentence(
            "continuity.projections",
            "Q, K, gate and up are continuous in their input space, O and down in their output space, V in neither.",
            f"{PAPER}, section on projections",
        ),
        "threshold_projections",
        projections,
    ),
    Row(
        Sentence(
            "continuity.adjacency",
            "The directions follow a path through depth, they are not one direction that all layers share.",
            f"{PAPER}, Figure 4; the test is ours",
        ),
        "threshold_adjacency",
        adjacency,
    ),
)


def claims(data: xr.Dataset, config: Settings, *, resamples: int = 1000) -> list[Claim]:
    """All claims on the continuity of weights that one model's run can speak to.

    A claim whose variables are absent is inconclusive and says what is missing.

    Args:
        data: the Dataset of the continuity analysis.
        config: thresholds, seed, number of permuted orders and length of a block.
        resamples: bootstrap resamples of blocks of adjacent pairs.

    Returns:
        The claims in the order in which they are printed.
    """
    table = Pairs(data, config.thresholds, config.seed, resamples, config.permutations, config.block_length)
    return [claim_of(table, row) for row in ROWS]


def _adjacent_mean(cosines: Floats) -> float:
    return float(np.diagonal(cosines, 1, -2, -1).mean())


def _lag_curves(cosines: Floats, counts: Floats) -> Float[np.ndarray, "*lead lag"]:
    """Mean |cosine| by lag over starting blocks, each as often as it counts; NaN where none does."""
    size = cosines.shape[-1]
    found = np.full((*cosines.shape[:-2], size - 1), np.nan)
    for lag in range(1, size):
        starts = counts[: size - lag]
        if starts.sum() > 0:
            found[..., lag - 1] = np.diagonal(cosines, lag, -2, -1) @ starts / starts.sum()
    return found


def _trends(curves: Floats) -> Floats:
    """Spearman's ρ of lag and value; lags without a value are left out."""
    return spearman(np.arange(curves.shape[-1], dtype=np.float64), curves)


def _spread(values: Floats) -> Interval:
    """Mean and middle 95 % of null values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), len(values), "permuted orders")


def _folded(table: Pairs) -> float | None:
    """Mean continuity of the claimed projections whose norm is known, gains folded in."""
    found = [
        table.find(f"{side}_continuity", dims=("layer",), variant="folded", projection=name)
        for name, side in table.claimed.items()
    ]
    known = [one.mean() for one in found if one is not None]
    return float(np.mean(known)) if known else None


def _words(claimed: Mapping[str, str]) -> str:
    """The claimed projections by space, for example "q, k in v₁; o, down in u₁"."""
    sides: Sequence[str] = list(dict.fromkeys(claimed.values()))
    return "; ".join(f"{', '.join(n for n, s in claimed.items() if s == side)} in {VECTOR[side]}" for side in sides)
