"""Intervals that resample whole documents or seeds, and permutation nulls.

Tokens and windows of one article are not independent, so the sampling unit is the document: a resample draws
documents with replacement and takes all their rows. The statistic is recomputed on the rows of every resample.

Below 40 documents the interval is ``estimate ± t(n − 1) · bootstrap standard error · sqrt(n / (n − 1))``, from 40 on
the percentile interval at levels widened as for t(n − 1) (Hesterberg 2015). For the mean of skewed data
(skewness of a document's mean: 1) they cover 94 % at n = 12 and 95 % at n = 62; the plain percentile interval covers
90 % at n = 12. The simulation is a test; its long form is marked `study`.

A resample whose statistic is not finite is left out of that statistic's interval, and an interval that would lose more
than a twentieth of its resamples, or whose estimate is not finite, is NaN.

Cost: one call of the statistic for each resample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from probe import display
from probe.boundary import at_least, between, public
from probe.errors import InputError

Floats: TypeAlias = Float[np.ndarray, "..."]
Ints: TypeAlias = Int[np.ndarray, "..."]
Value: TypeAlias = float | Floats
Statistic: TypeAlias = Callable[[Ints], Value]
Alternative: TypeAlias = Literal["greater", "less", "two-sided"]

# Below this many documents the percentile interval is too short (88 % at n = 8).
SMALL_SAMPLE = 40
# Share of resamples that may lack a finite statistic before the interval is given up.
MISSING_SHARE = 0.05


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided interval; all three are floats, or arrays of one shape.

    Attributes:
        estimate: The statistic of the whole sample.
        low: Lower end, in the statistic's unit; NaN where there is no interval.
        high: Upper end.
        n_units: Number of documents, seeds or blocks that were resampled.
        method: Construction of the interval, in words.
        level: Nominal coverage.
    """

    estimate: Value
    low: Value
    high: Value
    n_units: int
    method: str
    level: float = 0.95

    @public
    def __getitem__(self, index: int) -> Interval:
        """The interval of one component of an array-valued statistic."""
        estimate, low, high = (float(np.asarray(end)[index]) for end in (self.estimate, self.low, self.high))
        return Interval(estimate, low, high, self.n_units, self.method, self.level)


@public(resamples=at_least(1), seed=at_least(0), level=between(0, 1))
def bootstrap(
    statistic: Statistic,
    documents: Shaped[np.ndarray, " row"],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Estimate the interval of a statistic by resampling whole documents.

    Below 40 documents it is ``estimate ± t · se · sqrt(n / (n − 1))`` with the standard deviation ``se`` of the
    resampled statistic: a bootstrap of n documents has the variance of the plug-in, short by the factor (n − 1) / n.
    From 40 on it is the percentile interval at the levels ``Φ(± sqrt(n / (n − 1)) · t)``, which is as wide and may be
    skewed.
    Components of an array-valued statistic share their resamples: a difference of two is a paired contrast.

    >>> values, documents = np.arange(60.0), np.repeat(np.arange(20), 3)
    >>> interval = bootstrap(lambda rows: float(values[rows].mean()), documents)
    >>> interval.estimate, interval.n_units, bool(interval.low < 29.5 < interval.high)
    (29.5, 20, True)

    Args:
        statistic: Called with row indices (with repeats) into the sample; returns a float or an array of fixed shape.
        documents: The document of each row (any dtype that can be compared).
        resamples: Number of bootstrap resamples.
        seed: Seed of the draw of documents; equal seeds and documents give equal resamples.
        level: Nominal coverage, in (0, 1).

    Returns:
        The interval; NaN ends for fewer than two documents.

    Raises:
        InputError: If there are no rows or fewer than two resamples.

    Source: Hesterberg (2015), "What teachers should know about the bootstrap", The American Statistician 69(4).
    """
    if len(documents) == 0 or resamples < 2:
        raise InputError(
            f"a bootstrap needs the documents of at least one row and two resamples, got {len(documents)} and "
            f"{resamples}: "
            "pass more"
        )
    estimate = statistic(np.arange(len(documents)))
    rows = resampled_rows(documents, resamples=resamples, seed=seed)
    draws = np.stack([np.asarray(statistic(index), dtype=np.float64) for index in rows])
    return bootstrap_interval(estimate, draws, len(np.unique(documents)), level=level)


@public(resamples=at_least(1), seed=at_least(0))
def resampled_rows(
    documents: Shaped[np.ndarray, " row"], *, resamples: int, seed: int = 0
) -> Iterator[Int[np.ndarray, " row"]]:
    """Draw the rows of each resample of whole documents, for statistics that are computed separately.

    Args:
        documents: The document of each row.
        resamples: Number of resamples.
        seed: Seed of the draw of documents.

    Yields:
        Row indices, with repeats: equal ones for equal documents and seed.
    """
    groups = _rows_of_groups(documents)
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.concatenate([groups[g] for g in generator.integers(len(groups), size=len(groups))])


@public
def bootstrap_interval(
    estimate: Value, draws: Float[np.ndarray, "draw ..."], n_documents: int, *, level: float = 0.95
) -> Interval:
    """Build the interval of `bootstrap` from a statistic's values on `resampled_rows`.

    Args:
        estimate: The statistic of the whole sample.
        draws: The statistic of each resample, along the first axis.
        n_documents: Number of documents that were resampled.
        level: Nominal coverage.

    Returns:
        The interval.

    Raises:
        InputError: If the draws are not of the estimate's shape.
    """
    whole = np.asarray(estimate, dtype=np.float64)
    if draws.shape[1:] != whole.shape or not draws.size:
        raise InputError(
            f"draws= must be (draw, …) with the shape {whole.shape} of estimate= behind, got {draws.dtype} of shape "
            f"{draws.shape}: pass the same statistic of each resample"
        )
    return _interval_of_draws(whole, draws, n_documents, level, "documents", t=n_documents < SMALL_SAMPLE)


@public(resamples=at_least(1), seed=at_least(0), level=between(0, 1))
def circular_block_bootstrap(
    statistic: Statistic,
    n: int,
    *,
    block: int = 3,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Estimate a percentile interval by resampling blocks of adjacent layers, the curve closed to a circle.

    Args:
        statistic: Called with n indices into the n adjacent points; returns a float or an array of fixed shape.
        n: Number of points of the curve (for example adjacent pairs of layers).
        block: Length of a block; neighbours within it stay together.
        resamples: Number of resamples.
        seed: Seed of the draw of block starts.
        level: Nominal coverage.

    Returns:
        The interval: over depth, of one model. ``n_units`` is the number of whole blocks.

    Raises:
        InputError: If block is not in 1 … n.

    Source: Politis & Romano (1992), circular block resampling.
    """
    if not 1 <= block <= n:
        raise InputError(f"block must lie between 1 and n = {n}, got {block}: choose another length")
    generator = np.random.default_rng(seed)
    offsets = np.arange(block)
    draws = []
    for _ in range(resamples):
        starts = generator.integers(n, size=-(-n // block))
        draws.append(np.asarray(statistic(((starts[:, None] + offsets) % n).ravel()[:n]), dtype=np.float64))
    estimate = np.asarray(statistic(np.arange(n)), dtype=np.float64)
    return _interval_of_draws(estimate, np.stack(draws), n // block, level, f"circular blocks of {block}", t=False)


@public
def jackknife(statistic: Statistic, documents: Shaped[np.ndarray, " row"], *, level: float = 0.95) -> Interval:
    """Estimate a statistic by the delete-one-document jackknife: no first-order bias, and a t interval.

    ``estimate = n θ − (n − 1) mean θ(i)`` and ``se² = (n − 1)/n Σ (θ(i) − mean θ(i))²``, θ(i) without document i.
    Meant for smooth statistics, such as the scores of a mean matrix; not for medians of few values.

    Args:
        statistic: Called with row indices; returns a float or an array of fixed shape.
        documents: The document of each row.
        level: Nominal coverage.

    Returns:
        The interval.

    Raises:
        InputError: If there are fewer than two documents.

    Source: Efron & Tibshirani (1993), ch. 11.
    """
    groups = _rows_of_groups(documents)
    n = len(groups)
    if n < 2:
        raise InputError(
            f"a jackknife needs at least two documents to leave one out, got {n if len(documents) else 0}: pass more"
        )
    left_out = np.stack([
        np.asarray(statistic(np.sort(np.concatenate(groups[:i] + groups[i + 1 :]))), dtype=np.float64) for i in range(n)
    ])
    whole = np.asarray(statistic(np.arange(len(documents))), dtype=np.float64)
    estimate = n * whole - (n - 1) * left_out.mean(axis=0)
    error = np.sqrt((n - 1) / n * np.square(left_out - left_out.mean(axis=0)).sum(axis=0))
    reach = stats.t.ppf(0.5 + level / 2, n - 1) * error
    return _interval(estimate, estimate - reach, estimate + reach, n, "documents, jackknife", level)


@public
def seed_interval(
    values: Float[np.ndarray, "seed ..."],
    control: Float[np.ndarray, "seed ..."] | None = None,
    *,
    level: float = 0.95,
) -> Interval:
    """Estimate Student's t interval over seeds, of the mean or of the paired difference to a control.

    >>> interval = seed_interval(np.array([1.0, 2.0, 3.0]))
    >>> round(float(interval.low), 2), float(interval.estimate), round(float(interval.high), 2)
    (-0.48, 2.0, 4.48)

    Args:
        values: One value (or array) for each seed.
        control: The control's value of the same seed (same initialisation, same data).
        level: Nominal coverage.

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


@dataclass(frozen=True, repr=False)
class PermutationNull(display.Shown):
    """A statistic beside its values when the pairing is broken.

    Attributes:
        observed: The statistic of the data.
        values: The statistic of each permutation, (permutation,).
        p_value: The result of `permutation_p_value`.
    """

    observed: float
    values: Float[np.ndarray, " permutation"]
    p_value: float

    def _facts(self) -> dict[str, object]:
        low, high = np.quantile(self.values, [0.025, 0.975])
        null = f"{self.values.mean():.4g}, 95 % from {low:.4g} to {high:.4g}"
        facts: dict[str, object] = {"observed": self.observed, "p_value": self.p_value, "null": null}
        return facts | {"permutations": len(self.values)}


@public(permutations=at_least(1), seed=at_least(0))
def permutation_null(
    statistic: Callable[[Int[np.ndarray, " row"]], float],
    n: int,
    *,
    groups: Shaped[np.ndarray, " row"] | None = None,
    permutations: int = 999,
    seed: int = 0,
    alternative: Alternative = "greater",
) -> PermutationNull:
    """Draw the null distribution of a statistic under permutation of rows, optionally only within groups.

    Args:
        statistic: Called with a permutation of ``arange(n)``; the identity gives the observed value.
        n: Number of rows.
        groups: Rows move only within a group (within a window, within a degree decile).
        permutations: Number of permutations.
        seed: Seed of the permutations.
        alternative: The end of the null that counts as extreme; "two-sided" compares absolute values.

    Returns:
        The observed value, the null values and the p value.
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
    return PermutationNull(observed, values, permutation_p_value(observed, values, alternative=alternative))


@public
def permutation_p_value(
    observed: float, values: Float[np.ndarray, " draw"], *, alternative: Alternative = "greater"
) -> float:
    """Compute the p value of a statistic from draws of its null, ``(1 + #{draws at least as extreme}) / (1 + draws)``.

    >>> permutation_p_value(2.0, np.array([0.0, 1.0, 2.0]))
    0.5

    Args:
        observed: The statistic of the data.
        values: The statistic of each draw; one that is NaN counts as extreme, so that it never favours the claim.
        alternative: The end of the null that counts as extreme; "two-sided" compares absolute values.

    Returns:
        The p value, in (0, 1]; NaN where the observed statistic is NaN.

    Source: Phipson & Smyth (2010): p values of permutations are never zero.
    """
    short = {
        "greater": values < observed,
        "less": values > observed,
        "two-sided": np.abs(values) < abs(observed),
    }[alternative]
    return float("nan") if np.isnan(observed) else float((1 + (~short).sum()) / (1 + len(values)))


@public
def benjamini_hochberg(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjust p values so that rejecting those <= q keeps the false discovery rate at q.

    ``min over j >= i of p(j) · m / j`` for the i-th smallest of m; a NaN stays NaN and is not counted in m.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.5]))
    array([0.03, 0.06, 0.5 ])

    Args:
        p_values: One for each test.

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


def _rows_of_groups(groups: Shaped[np.ndarray, " row"]) -> list[Int[np.ndarray, " member"]]:
    if groups.dtype == object and len({type(one) for one in groups}) > 1:
        raise InputError(
            "documents= and groups= must hold names of one type, which can be sorted, got an array of "
            f"{len({type(one) for one in groups})} types (object): pass numbers or texts"
        )
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
