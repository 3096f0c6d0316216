"""The claims on the continuity of weights (arXiv 2605.04971), computed from a run's Dataset.

The unit is a block of adjacent pairs of layers, drawn on a circle: an interval is over depth, of one model. Every
statistic is recomputed on the resampled pairs. What a null fixes exactly (a p value under permuted orders, a mean that
lies inside its band) enters as an interval without width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float

from probe import weights
from probe.analyses.continuity.config import Config, Thresholds
from probe.analyses.continuity.schema import VECTORS
from probe.analyses.continuity.table import Pairs, Rows
from probe.claims import Claim, Condition, Criterion, Evidence, Sentence, enough_units, line
from probe.claims.evidence import AbsentError, Finding, Floats, Row, claims_of, number
from probe.inference import Interval, seed_interval, spearman

__all__ = ["ROWS", "Pairs", "Thresholds", "claims"]

PAPER = "arXiv 2605.04971"
RESAMPLES = 1000
OTHER = {"input": "output", "output": "input"}


def trained(table: Pairs) -> Finding:
    """Compare the mean adjacent |cosine| with random, permuted and fresh ones, and without outlier coordinates."""
    limits, claimed, fresh = table.thresholds, table.claimed, table.repeats("init")
    if not fresh:
        raise AbsentError("this run holds no fresh initialisation: give --init-seeds")
    own, trimmed = table.curves(claimed), table.curves(claimed, "trimmed")
    init = np.stack([table.curves(claimed, name) for name in fresh])

    def statistic(index: Rows) -> dict[str, float]:
        mean, twin = float(own[:, index].mean()), float(init[..., index].mean())
        return {"θ": mean, "Δ init": mean - twin, "trimmed": float(trimmed[:, index].mean())}

    found = table.intervals(statistic)
    low, high, highest = table.band(claimed)
    orders = weights.nulls.permuted_order(
        table.cosines(), _adjacent_mean, permutations=table.permutations, seed=table.seed
    )
    twin, bound = float(init.mean()), high + limits.threshold_trained
    return Finding(
        Evidence(
            [Criterion("mean |cos| of neighbours", found["θ"], bound)],
            [
                Criterion("p under permuted orders", table.exact(orders.p_value), limits.threshold_permuted, "below"),
                Criterion("Δ to fresh initialisation", found["Δ init"], limits.threshold_init),
                Criterion("without outlier coordinates", found["trimmed"], bound),
            ],
            preconditions=[
                enough_units(len(fresh), limits.threshold_seeds, "fresh initialisations"),
                table.enough_gap(),
            ],
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
        }
        | _with_a_gap(table)
        | _where_measured(table)
        | table.means(claimed),
        "blocks",
    )


def _with_a_gap(table: Pairs) -> dict[str, Interval]:
    """The mean over those pairs alone in which a leading vector means something, and the median gap."""
    gaps, needed = table.gaps, table.thresholds.threshold_gap
    clear = np.where(gaps >= needed, table.curves(table.claimed), np.nan)
    words = f"pairs with σ₁/σ₂ ≥ {needed:g} alone, {(gaps >= needed).mean():.0%} of them"

    def statistic(index: Rows) -> dict[str, float]:
        drawn = clear[:, index]
        return {words: float(np.nanmean(drawn)) if np.isfinite(drawn).any() else np.nan}

    return table.intervals(statistic) | {"median σ₁/σ₂": number(float(np.nanmedian(gaps)))}


def _where_measured(table: Pairs) -> dict[str, Interval]:
    """The mean with shuffled weights, and with gains folded in for projections whose norm is known."""
    folded = [
        table.find(f"{side}_continuity", dims=("layer",), variant="folded", projection=name)
        for name, side in table.claimed.items()
    ]
    means = {
        "weights shuffled within matrices": [
            table.curves(table.claimed, name).mean() for name in table.repeats("shuffled")
        ],
        "gains folded in, where there are any": [curve.mean() for curve in folded if curve is not None],
    }
    return {words: number(float(np.mean(values))) for words, values in means.items() if values}


def projections(table: Pairs) -> Finding:
    """Compare readers in v₁ and writers in u₁ with v, v with half the readers' mean, other sides with random ones."""
    claimed = {name: side for name, side in table.claimed.items() if name not in {"in", "out"}}
    readers, writers = (
        {name: side for name, side in claimed.items() if side == wanted} for wanted in ("input", "output")
    )
    if not readers or not writers:
        raise AbsentError("this model has no separate projections q, k, v, o and up, down")
    value = table.curves({"v": "input"})[0], table.curves({"v": "output"})[0]
    reading, writing = table.curves(readers), table.curves(writers)
    names = [f"{name} in {VECTORS[side]}" for name, side in claimed.items()]

    def statistic(index: Rows) -> dict[str, float]:
        v_in, v_out = (float(one[index].mean()) for one in value)
        read, write = reading[:, index].mean(axis=1), writing[:, index].mean(axis=1)
        return {
            "readers": float(read.min()) - v_in,
            "writers": float(write.min()) - max(v_in, v_out),
            "v": max(v_in, v_out) - float(read.mean()) / 2,
            "v in v₁": v_in,
            "v in u₁": v_out,
        } | dict(zip(names, map(float, [*read, *write]), strict=True))

    found = table.intervals(statistic)
    wrong_sides = {name: OTHER[side] for name, side in claimed.items()}
    wrong = table.exact(float(table.curves(wrong_sides).mean()))
    _, _, highest = table.band(wrong_sides)
    bound = table.thresholds.threshold_projections
    return Finding(
        Evidence(
            [
                Criterion("least reader − v, in v₁", found["readers"], bound),
                Criterion("least writer in u₁ − larger of v's two", found["writers"], bound),
                Criterion("larger of v's two − half the readers' mean", found["v"], 0.0, "below"),
            ],
            [Criterion("mean |cos| of the wrong sides", wrong, highest, "below")],
            preconditions=[table.enough_gap()],
        ),
        f"least of c_v over {', '.join(readers)} less c_v of v; least of c_u over {', '.join(writers)} less the larger "
        f"of v's two; means over {table.n_pairs} pairs; interval over depth of one model",
        line("99.5 % point of the wrong sides' mean if all directions were random", table.exact(highest)),
        {name: found[name] for name in ("v", "v in v₁", "v in u₁", *names)}
        | table.means(wrong_sides, ", the wrong side"),
        "blocks",
    )


def adjacency(table: Pairs) -> Finding:
    """Correlate lag and mean |cosine|: a trajectory falls with lag, one direction that all share does not."""
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
    orders = weights.nulls.permuted_order(
        cosines, decline, permutations=table.permutations, seed=table.seed, greater=False
    )
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
            preconditions=[table.enough_gap()],
        ),
        f"Spearman's ρ of lag and |cos| at that lag, mean over blocks and over {_words(table.claimed)}, "
        f"{len(whole)} lags; interval over depth of one model, starting blocks resampled in circular blocks",
        line("ρ with the blocks in permuted order", _spread(orders.values)),
        {"|cos| at lag 1": number(float(whole[0])), f"|cos| at lag {len(whole) // 2 + 1}": number(float(far))}
        | {f"ρ of {name} in {VECTORS[side]}": found[name] for name, side in table.claimed.items()},
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
        "below",
    ),
)


def claims(data: xr.Dataset, config: Config, *, resamples: int = RESAMPLES) -> list[Claim]:
    """Judge all claims on the continuity of weights, from one model's run and resamples of blocks of adjacent pairs."""
    table = Pairs(data, config.thresholds, config.seed, resamples, config.permutations, config.block_length)
    return claims_of(table, ROWS)


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


def _words(claimed: Mapping[str, str]) -> str:
    """The claimed projections by space, for example "q, k in v₁; o, down in u₁"."""
    names = {side: ", ".join(name for name, own in claimed.items() if own == side) for side in claimed.values()}
    return "; ".join(f"{held} in {VECTORS[side]}" for side, held in names.items())
