"""Intervals that resample whole documents, rank correlation, permutation nulls: how sure is a number?

Tokens and windows of one article are not independent, so the unit is the document: a resample draws documents with
replacement and takes all their rows. The statistic is recomputed on the rows of every resample.

Below 40 documents the interval is ``estimate ± t(n − 1) · bootstrap standard error · sqrt(n / (n − 1))``, from 40 on
the percentile interval at levels widened as for t(n − 1) (Hesterberg 2015). For the mean of skewed data
(skewness of a document's mean: 1) they cover 94 % at n = 12 and 95 % at n = 62; the plain percentile interval covers
90 % at n = 12. The simulation is a test, its long form is marked `study`.

Missing values are explicit: a row that is not finite has weight zero in `Ranking`, `spearman` and `partial_spearman`;
a resample whose statistic is not finite is left out of that statistic's interval, and an interval that would lose more
than a twentieth of its resamples, or whose estimate is not finite, is NaN.

Cost: one call of the statistic a resample. `Ranking` sorts once, so that weighted medians and ranks of a resample cost
a cumulative sum, not a sort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped
from scipy import stats

from probe.errors import InputError

Floats: TypeAlias = Float[np.ndarray, "..."]
Ints: TypeAlias = Int[np.ndarray, "..."]
Value: TypeAlias = float | Floats
Statistic: TypeAlias = Callable[[Ints], Value]

# Below this many documents the percentile interval is too short (88 % at n = 8).
SMALL_SAMPLE = 40
# Share of resamples that may lack a finite statistic before the interval is given up.
MISSING_SHARE = 0.05
# |ρ| = 1 has no finite atanh; this bounds what one layer can add to a mean of atanh ρ.
LARGEST_RHO = 1.0 - 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided interval; all three are floats, or arrays of one shape.

    Attributes:
        estimate: the statistic of the whole sample.
        low: lower end, in the statistic's unit; NaN where there is no interval.
        high: upper end.
        n_units: how many documents, seeds or blocks were resampled.
        method: how the interval was made, in words.
        level: nominal coverage.
    """

    estimate: Value
    low: Value
    high: Value
    n_units: int
    method: str
    level: float = 0.95

    def __getitem__(self, index: int) -> Interval:
        """The interval of one component of an array-valued statistic."""
        estimate, low, high = (float(np.asarray(end)[index]) for end in (self.estimate, self.low, self.high))
        return Interval(estimate, low, high, self.n_units, self.method, self.level)


def bootstrap(
    statistic: Statistic,
    documents: Shaped[np.ndarray, " row"],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of a statistic under resampling of whole documents.

    Below 40 documents ``estimate ± t · se · sqrt(n / (n − 1))`` with the standard deviation ``se`` of the resampled
    statistic (a bootstrap of n documents has the variance of the plug-in, short by the factor (n − 1) / n); from 40 on
    the percentile interval at the levels ``Φ(± sqrt(n / (n − 1)) · t)``, which is as wide and may be skewed.
    Components of an array-valued statistic share their resamples: a difference of two is a paired contrast.

    Args:
        statistic: called with row indices (with repeats) into the sample; returns a float or an array of fixed shape.
        documents: the document of each row (any dtype that can be compared).
        resamples: number of bootstrap resamples.
        seed: of the draw of documents; equal seeds and documents give equal resamples.
        level: nominal coverage, in (0, 1).

    Returns:
        The interval; NaN ends for fewer than two documents.

    Raises:
        InputError: if there are no rows or fewer than two resamples.

    Source: Hesterberg (2015), "What teachers should know about the bootstrap", The American Statistician 69(4).
    """
    if len(documents) == 0 or resamples < 2:
        raise InputError(
            f"a bootstrap needs at least one row and two resamples, not {len(documents)} and {resamples}: pass more"
        )
    estimate = statistic(np.arange(len(documents)))
    rows = resampled_rows(documents, resamples=resamples, seed=seed)
    draws = np.stack([np.asarray(statistic(index), dtype=np.float64) for index in rows])
    return bootstrap_interval(estimate, draws, len(np.unique(documents)), level=level)


def resampled_rows(
    documents: Shaped[np.ndarray, " row"], *, resamples: int, seed: int = 0
) -> Iterator[Int[np.ndarray, " row"]]:
    """The rows of each resample of whole documents, for statistics that are computed apart from each other.

    Args:
        documents: the document of each row.
        resamples: how many.
        seed: of the draw of documents.

    Yields:
        Row indices, with repeats: equal ones for equal documents and seed.
    """
    groups = _rows_of_groups(documents)
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.concatenate([groups[g] for g in generator.integers(len(groups), size=len(groups))])


def bootstrap_interval(
    estimate: Value, draws: Float[np.ndarray, "draw ..."], n_documents: int, *, level: float = 0.95
) -> Interval:
    """The interval of `bootstrap` from a statistic's values on `resampled_rows`.

    Args:
        estimate: the statistic of the whole sample.
        draws: the statistic of each resample, along the first axis.
        n_documents: how many documents were resampled.
        level: nominal coverage.

    Returns:
        The interval.
    """
    whole = np.asarray(estimate, dtype=np.float64)
    return _interval_of_draws(whole, draws, n_documents, level, "documents", t=n_documents < SMALL_SAMPLE)


def circular_block_bootstrap(
    statistic: Statistic,
    n: int,
    *,
    block: int = 3,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval over blocks of adjacent layers, the curve closed to a circle.

    Args:
        statistic: called with n indices into the n adjacent units; returns a float or an array of fixed shape.
        n: number of units (for example adjacent pairs of layers).
        block: length of a block; neighbours within it stay together.
        resamples: number of resamples.
        seed: of the draw of block starts.
        level: nominal coverage.

    Returns:
        The interval: over depth, of one model. ``n_units`` is the number of whole blocks.

    Raises:
        InputError: unless 1 <= block <= n.

    Source: Politis & Romano (1992), circular block resampling.
    """
    if not 1 <= block <= n:
        raise InputError(f"a block holds between 1 and n = {n} units, not {block}: choose a shorter block")
    generator = np.random.default_rng(seed)
    offsets = np.arange(block)
    draws = []
    for _ in range(resamples):
        starts = generator.integers(n, size=-(-n // block))
        draws.append(np.asarray(statistic(((starts[:, None] + offsets) % n).ravel()[:n]), dtype=np.float64))
    estimate = np.asarray(statistic(np.arange(n)), dtype=np.float64)
    return _interval_of_draws(estimate, np.stack(draws), n // block, level, f"circular blocks of {block}", t=False)


def jackknife(statistic: Statistic, documents: Shaped[np.ndarray, " row"], *, level: float = 0.95) -> Interval:
    """Delete-one-document jackknife: estimate without first-order bias, t interval.

    ``estimate = n θ − (n − 1) mean θ(i)`` and ``se² = (n − 1)/n Σ (θ(i) − mean θ(i))²``, θ(i) without document i.
    Meant for smooth statistics, such as the scores of a mean matrix; not for medians of few values.

    Args:
        statistic: called with row indices; returns a float or an array of fixed shape.
        documents: the document of each row.
        level: nominal coverage.

    Returns:
        The interval.

    Raises:
        InputError: for fewer than two documents.

    Source: Efron & Tibshirani (1993), ch. 11.
    """
    groups = _rows_of_groups(documents)
    n = len(groups)
    if n < 2:
        raise InputError(f"a jackknife leaves out one document of at least two, and there is {n}: pass more documents")
    left_out = np.stack([
        np.asarray(statistic(np.sort(np.concatenate(groups[:i] + groups[i + 1 :]))), dtype=np.float64) for i in range(n)
    ])
    whole = np.asarray(statistic(np.arange(len(documents))), dtype=np.float64)
    estimate = n * whole - (n - 1) * left_out.mean(axis=0)
    error = np.sqrt((n - 1) / n * np.square(left_out - left_out.mean(axis=0)).sum(axis=0))
    reach = stats.t.ppf(0.5 + level / 2, n - 1) * error
    return _interval(estimate, estimate - reach, estimate + reach, n, "documents, jackknife", level)


def seed_interval(
    values: Float[np.ndarray, "seed ..."],
    control: Float[np.ndarray, "seed ..."] | None = None,
    *,
    level: float = 0.95,
) -> Interval:
    """Student's t interval over seeds, of the mean or of the paired difference to a control with the same seeds.

    Args:
        values: one value (or array) a seed.
        control: the control's value of the same seed (same initialisation, same data).
        level: nominal coverage.

    Returns:
        The interval of ``mean(values)`` or of ``mean(values − control)``; NaN ends for fewer than two seeds.
    """
    difference = values if control is None else values - control
    n = len(difference)
    mean = difference.mean(axis=0)
    if n < 2:
        return _interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan), n, "seeds, t", level)
    reach = stats.t.ppf(0.5 + level / 2, n - 1) * difference.std(axis=0, ddof=1) / np.sqrt(n)
    return _interval(mean, mean - reach, mean + reach, n, "seeds, t" if control is None else "seeds, paired t", level)


@dataclass(frozen=True)
class PermutationNull:
    """What a statistic is when the pairing is broken.

    Attributes:
        observed: the statistic of the data.
        values: the statistic of each permutation, (permutation,).
        p_value: ``(1 + #{values at least as extreme}) / (1 + permutations)``.
    """

    observed: float
    values: Float[np.ndarray, " permutation"]
    p_value: float


def permutation_null(
    statistic: Callable[[Int[np.ndarray, " row"]], float],
    n: int,
    *,
    groups: Shaped[np.ndarray, " row"] | None = None,
    permutations: int = 999,
    seed: int = 0,
    alternative: Literal["greater", "less", "two-sided"] = "greater",
) -> PermutationNull:
    """Null distribution of a statistic under permutation of rows, optionally only within groups.

    Args:
        statistic: called with a permutation of ``arange(n)``; the identity gives the observed value.
        n: number of rows.
        groups: rows move only within a group (within a window, within a degree decile).
        permutations: how many.
        seed: of the permutations.
        alternative: which end of the null counts as extreme; "two-sided" compares absolute values.

    Returns:
        Observed value, null values, p value.

    Source: Phipson & Smyth (2010): p values of permutations are never zero.
    """
    members = [np.arange(n)] if groups is None else _rows_of_groups(groups)
    generator = np.random.default_rng(seed)
    values = np.empty(permutations)
    for draw in range(permutations):
        order = np.arange(n)
        for rows in members:
            order[rows] = generator.permutation(rows)
        values[draw] = statistic(order)
    observed = float(statistic(np.arange(n)))
    if alternative == "greater":
        extreme = values >= observed
    elif alternative == "less":
        extreme = values <= observed
    else:
        extreme = np.abs(values) >= abs(observed)
    return PermutationNull(observed, values, float((1 + extreme.sum()) / (1 + permutations)))


def benjamini_hochberg(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjust p values so that rejecting those <= q keeps the false discovery rate at q.

    ``min over j >= i of p(j) · m / j`` for the i-th smallest of m; a NaN stays NaN and is not counted in m.

    Args:
        p_values: one a test.

    Returns:
        Adjusted p values in the order given, at most 1.

    Source: Benjamini & Hochberg (1995).
    """
    adjusted = np.full_like(p_values, np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested])]
    scaled = p_values[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


class Ranking:
    """Values sorted once along their last axis, for medians and ranks of many weighted resamples.

    A weight is how often a row occurs in a resample; weights broadcast against the values. Rows that are not finite
    have weight zero.

    Args:
        values: (..., row); each leading index (layer, draw) is sorted by itself.
    """

    def __init__(self, values: Num[np.ndarray, "*lead row"]) -> None:
        self.finite: Bool[np.ndarray, "*lead row"] = np.isfinite(values)
        self._complete = bool(self.finite.all())
        self._order = np.argsort(values, axis=-1, kind="stable")
        self._sorted = np.take_along_axis(values, self._order, axis=-1)
        self._first, self._last = self._ties()
        self._tied = bool((self._last - self._first > 1).any())

    def median(self, weights: Num[np.ndarray, "... row"]) -> Floats:
        """Median of the rows, each counted as often as its weight says: (...,), NaN where all weights are zero."""
        cumulated = self._cumulated(weights)
        half = cumulated[..., -1:] / 2
        at = [np.argmax(cumulated[..., 1:] >= half, axis=-1), np.argmax(cumulated[..., 1:] > half, axis=-1)]
        lower, upper = (_gather(self._sorted, index[..., None])[..., 0] for index in at)
        return np.where(cumulated[..., -1] > 0, (lower + upper) / 2, np.nan)

    def midranks(self, weights: Num[np.ndarray, "... row"]) -> Floats:
        """Average rank of each row among all rows of the resample, from 1; equal to ranking the repeated rows."""
        cumulated = self._cumulated(weights)
        below = _gather(cumulated, self._first)
        if self._tied:
            return np.asarray((below + _gather(cumulated, self._last) + 1) / 2)
        return np.asarray(below + (self._present(weights) + 1) / 2)

    def _cumulated(self, weights: Num[np.ndarray, "... row"]) -> Floats:
        """Weight of the rows before each sorted place, with the total at the end: (..., row + 1)."""
        in_order = _gather(self._present(weights), self._order)
        cumulated = np.zeros((*in_order.shape[:-1], in_order.shape[-1] + 1))
        np.cumsum(in_order, axis=-1, out=cumulated[..., 1:])
        return cumulated

    def _present(self, weights: Num[np.ndarray, "... row"]) -> Num[np.ndarray, "... row"]:
        return weights if self._complete else weights * self.finite

    def _ties(self) -> tuple[Ints, Ints]:
        """For each row, the sorted places at which its group of equal values begins and ends."""
        n = self._sorted.shape[-1]
        place = np.broadcast_to(np.arange(n), self._sorted.shape)
        edge = np.ones((*self._sorted.shape[:-1], 1), dtype=bool)
        differs = np.concatenate([edge, self._sorted[..., 1:] != self._sorted[..., :-1], edge], axis=-1)
        first_sorted = np.maximum.accumulate(np.where(differs[..., :-1], place, 0), axis=-1)
        last_sorted = np.minimum.accumulate(np.where(differs[..., 1:], place + 1, n)[..., ::-1], axis=-1)[..., ::-1]
        first, last = np.empty_like(self._order), np.empty_like(self._order)
        np.put_along_axis(first, self._order, first_sorted, axis=-1)
        np.put_along_axis(last, self._order, last_sorted, axis=-1)
        return first, last


def spearman(
    a: Num[np.ndarray, "... row"] | Ranking,
    b: Num[np.ndarray, "... row"] | Ranking,
    *,
    weights: Num[np.ndarray, "... row"] | None = None,
) -> Floats:
    """Spearman's ρ along the last axis: the correlation of the midranks.

    Args:
        a: (..., row), or a `Ranking` of it, so that a bootstrap sorts once.
        b: (..., row) or a `Ranking`; leading axes broadcast.
        weights: how often each row occurs; default once.

    Returns:
        ρ, (...,); pairs with a value that is not finite are left out; NaN for fewer than three rows or a constant side.
    """
    first, second = _ranking(a), _ranking(b)
    weights = _joint_weights([first, second], weights)
    x, y = _centred_ranks(first, weights), _centred_ranks(second, weights)
    weighted = x * weights
    rho = _cosine_of(np.vecdot(weighted, y), np.vecdot(weighted, x), np.vecdot(y * weights, y))
    return np.where((weights > 0).sum(axis=-1) >= 3, rho, np.nan)


def partial_spearman(
    a: Num[np.ndarray, "... row"] | Ranking,
    b: Num[np.ndarray, "... row"] | Ranking,
    covariates: Sequence[Num[np.ndarray, "... row"] | Ranking],
    *,
    weights: Num[np.ndarray, "... row"] | None = None,
) -> Floats:
    """Spearman's ρ of a and b given covariates: the correlation of what a linear fit on the covariates' ranks leaves.

    ``S_ab − S_ac S_cc⁺ S_cb`` over the geometric mean of the two residual variances, S the covariance of midranks.

    Args:
        a: (..., row), or a `Ranking` of it.
        b: (..., row) or a `Ranking`.
        covariates: each (..., row) or a `Ranking`; collinear and constant ones do no harm.
        weights: how often each row occurs; default once.

    Returns:
        Partial ρ, (...,); rows with any value that is not finite are left out; NaN where the covariates explain a or b
        whole, or fewer than three rows are left.
    """
    rankings = [_ranking(a), _ranking(b), *map(_ranking, covariates)]
    weights = _joint_weights(rankings, weights)
    ranks = np.stack(np.broadcast_arrays(*(_centred_ranks(ranking, weights) for ranking in rankings)), axis=-2)
    covariance = (ranks * weights[..., None, :]) @ np.swapaxes(ranks, -1, -2)
    scale = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    scale = np.where(scale > 0, scale, 1.0)
    unit = covariance / (scale[..., :, None] * scale[..., None, :])
    pair, cross, given = unit[..., :2, :2], unit[..., :2, 2:], unit[..., 2:, 2:]
    left = pair - cross @ np.linalg.pinv(given, rcond=1e-10, hermitian=True) @ np.swapaxes(cross, -1, -2)
    undefined = (left[..., 0, 0] < 1e-10) | (left[..., 1, 1] < 1e-10) | ((weights > 0).sum(axis=-1) < 3)
    return np.where(undefined, np.nan, _cosine_of(left[..., 0, 1], left[..., 0, 0], left[..., 1, 1]))


def fisher_mean(rho: Floats, axis: int | tuple[int, ...] = -1) -> Floats:
    """Mean of correlations on Fisher's scale: ``tanh(mean(atanh ρ))``.

    Args:
        rho: correlations in [−1, 1]; |ρ| = 1 counts as 1 − 1e-12.
        axis: axes to average over.

    Returns:
        The mean correlation; NaN where any ρ is NaN.
    """
    return np.asarray(np.tanh(np.arctanh(np.clip(rho, -LARGEST_RHO, LARGEST_RHO)).mean(axis=axis)))


def _ranking(values: Num[np.ndarray, "... row"] | Ranking) -> Ranking:
    return values if isinstance(values, Ranking) else Ranking(values)


def _joint_weights(
    rankings: Sequence[Ranking], weights: Num[np.ndarray, "... row"] | None
) -> Num[np.ndarray, "... row"]:
    """Weights that are zero wherever any of the variables is missing."""
    joint = np.ones(rankings[0].finite.shape[-1]) if weights is None else weights
    for ranking in rankings:
        if not ranking.finite.all():
            joint = joint * ranking.finite
    return joint


def _centred_ranks(ranking: Ranking, weights: Num[np.ndarray, "... row"]) -> Floats:
    """Midranks less their mean, which is (total weight + 1) / 2."""
    return np.asarray(ranking.midranks(weights) - (weights.sum(axis=-1, keepdims=True) + 1) / 2)


def _cosine_of(product: Value, a: Value, b: Value) -> Floats:
    """``product / sqrt(a b)``, NaN where a or b is zero."""
    square = np.asarray(a * b)
    defined = square > 0
    return np.where(defined, product / np.sqrt(np.where(defined, square, 1.0)), np.nan)


def _gather(values: Shaped[np.ndarray, "... n"], index: Int[np.ndarray, "... m"]) -> Any:
    """``values[..., index]`` with leading axes broadcast."""
    if values.ndim == 1:
        return values[index]
    lead = np.broadcast_shapes(values.shape[:-1], index.shape[:-1])
    values, index = np.broadcast_to(values, (*lead, values.shape[-1])), np.broadcast_to(index, (*lead, index.shape[-1]))
    starts = np.arange(math.prod(lead)).reshape(*lead, 1) * values.shape[-1]
    return np.take(values.ravel(), index + starts)  # several times as fast as take_along_axis


def _rows_of_groups(groups: Shaped[np.ndarray, " row"]) -> list[Int[np.ndarray, " member"]]:
    _, label = np.unique(groups, return_inverse=True)
    order = np.argsort(label, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(label[order])) + 1)


def _interval_of_draws(
    estimate: Floats,
    draws: Float[np.ndarray, "draw ..."],
    n: int,
    level: float,
    unit: str,
    *,
    t: bool,
) -> Interval:
    """The t or percentile interval from resampled values; NaN where the statistic is missing too often."""
    missing = ~np.isfinite(draws)
    lost = (missing.mean(axis=0) > MISSING_SHARE) | ~np.isfinite(estimate) | (n < 2)
    draws = np.where(lost, 0.0, np.where(missing, np.nan, draws))
    inflation = np.sqrt(n / max(n - 1, 1))
    reach = stats.t.ppf(0.5 + level / 2, max(n - 1, 1)) * inflation
    if t:
        half = reach * np.nanstd(draws, axis=0, ddof=1)
        low, high = estimate - half, estimate + half
    else:
        low, high = np.nanquantile(draws, stats.norm.cdf([-reach, reach]), axis=0)
    low, high = np.where(lost, np.nan, low), np.where(lost, np.nan, high)
    return _interval(estimate, low, high, n, f"{unit}, {'t with the bootstrap error' if t else 'percentile'}", level)


def _interval(estimate: Value, low: Value, high: Value, n: int, method: str, level: float) -> Interval:
    """An `Interval` of plain floats where the statistic is a number."""
    number = np.ndim(estimate) == 0
    estimate, low, high = (float(end) if number else np.asarray(end) for end in (estimate, low, high))
    return Interval(estimate, low, high, n, method, level)
