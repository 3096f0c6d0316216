"""A run as its claims read it: variables by label, intervals over documents where tokens are scored, a row a claim."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Float, Num, Shaped
from scipy import stats

from probe.claims.verdict import Claim, Condition, Criterion, Evidence, Sentence, decide, enough_units
from probe.inference import Interval, Ranking, bootstrap, seed_interval

Floats: TypeAlias = Float[np.ndarray, "..."]
Weights: TypeAlias = Num[np.ndarray, "..."]


@runtime_checkable
class Limits(Protocol):
    """Fields that the thresholds of every analysis have."""

    @property
    def threshold_documents(self) -> int:
        """Least number of scored documents for a verdict."""


T = TypeVar("T")
L = TypeVar("L", bound=Limits)


class AbsentError(LookupError):
    """A run lacks a variable, or a label of it, that a claim needs."""


@dataclass(frozen=True)
class Sample:
    """The sample over which the intervals of a run's claims are computed.

    Attributes:
        unit: Name of its members in the plural: "documents", "seeds".
        size: Number of members in the run.
        needed: Least number for a verdict.
    """

    unit: str
    size: int
    needed: int


@dataclass(frozen=True)
class Reading(ABC, Generic[T]):
    """A run's Dataset and the thresholds of its claims."""

    data: xr.Dataset
    thresholds: T
    seed: int

    @property
    @abstractmethod
    def sample(self) -> Sample:
        """The sample over which the intervals are computed."""

    def get(self, variable: str, *, dims: Sequence[str] = ("layer", "query"), **labels: object) -> Floats:
        """Select a variable at chosen labels as float64, with axes in the order of ``dims``.

        Args:
            variable: Name of the variable.
            dims: The dimensions that remain.
            **labels: The labels along the other dimensions.

        Returns:
            The values.

        Raises:
            AbsentError: If the variable or a label is absent, or holds no finite value.
        """
        name = variable + (f" ({', '.join(f'{key} {value}' for key, value in labels.items())})" if labels else "")
        if variable not in self.data.variables:
            raise AbsentError(f"this run holds no {name}")
        array = self.data[variable]
        for dim, label in labels.items():
            if dim not in array.dims or label not in array[dim].values:
                raise AbsentError(f"this run holds no {name}")
        values = np.asarray(array.sel(labels).transpose(*dims).values, dtype=np.float64)
        if not np.isfinite(values).any():
            raise AbsentError(f"this run holds no value of {name}")
        return values

    def find(self, variable: str, *, dims: Sequence[str] = ("layer", "query"), **labels: object) -> Floats | None:
        """Select as `get` does, but return None if absent: for values that are shown and decide nothing."""
        try:
            return self.get(variable, dims=dims, **labels)
        except AbsentError:
            return None

    def repeats(self, kind: str, *, along: str = "variant") -> list[str]:
        """List the measured controls of a kind, one a seed or draw, by their labels ``KIND-NUMBER``."""
        return [str(label) for label in self.data[along].values if str(label).startswith(f"{kind}-")]


@dataclass(frozen=True)
class Table(Reading[L]):
    """A run of scored tokens whose documents are resampled."""

    resamples: int

    @property
    def documents(self) -> Shaped[np.ndarray, " query"]:
        """The document of each scored token."""
        return np.asarray(self.data["document"].values)

    @property
    def sample(self) -> Sample:
        """The documents."""
        return Sample("documents", len(np.unique(self.documents)), self.thresholds.threshold_documents)

    def measured(self, values: Floats) -> Table[L]:
        """Restrict the run to the scored tokens at which something was measured.

        Expensive quantities are measured on fewer tokens than the rest: an interval must count the documents that it
        rests on, and a contrast must compare the same tokens.

        Args:
            values: (..., query), NaN where nothing was measured.

        Returns:
            A table of the tokens at which some value is finite.
        """
        finite = np.isfinite(values).reshape(-1, values.shape[-1]).any(axis=0)
        return replace(self, data=self.data.isel(query=np.flatnonzero(finite)))

    def intervals(self, statistic: Callable[[Weights], Mapping[str, float]]) -> dict[str, Interval]:
        """Compute intervals of several named statistics from the same resamples of documents."""
        n = len(self.documents)
        names = list(statistic(np.ones(n)))

        def values(index: Num[np.ndarray, " row"]) -> Float[np.ndarray, " name"]:
            return np.array([*statistic(np.bincount(index, minlength=n).astype(np.float64)).values()])

        interval = bootstrap(values, self.documents, resamples=self.resamples, seed=self.seed)
        return {name: interval[index] for index, name in enumerate(names)}


class Typical:
    """Median over tokens, then mean over layers (and draws), of a resample given by weights.

    Args:
        values: (..., layer, query); layers without a finite value are left out.
    """

    def __init__(self, values: Floats) -> None:
        rows = values.reshape(-1, values.shape[-1])
        rows = rows[np.isfinite(rows).any(axis=-1)]
        self.layers = len(rows)
        self._ranking = Ranking(rows)

    def __call__(self, weights: Weights) -> float:
        """Compute the statistic of the resample in which each token occurs as often as its weight says."""
        return float(self._ranking.median(weights).mean()) if self.layers else float("nan")


def each(parts: Mapping[str, Callable[[Weights], float]]) -> Callable[[Weights], dict[str, float]]:
    """Combine statistics to one that returns the value of each by name."""
    return lambda weights: {name: part(weights) for name, part in parts.items()}


def crossed(table: Table[Any], statistic: Callable[[Weights], Mapping[str, Floats | float]]) -> dict[str, Interval]:
    """Compute intervals over documents and, where a statistic has a value for each seed of a control, over seeds too.

    Documents are resampled with all seeds in place, and seeds vary with all documents in place; `joined` adds the two
    errors.

    Args:
        table: The run.
        statistic: Function of the tokens' weights that gives named values; an array holds one value a seed, and its
            mean counts.

    Returns:
        Intervals by name; over documents alone where there is one value or one seed.
    """

    def means(weights: Weights) -> dict[str, float]:
        return {name: float(np.mean(value)) for name, value in statistic(weights).items()}

    intervals = table.intervals(means)
    for name, value in statistic(np.ones(len(table.documents))).items():
        if np.size(value) > 1:
            intervals[name] = joined(intervals[name], seed_interval(np.asarray(value, dtype=np.float64)))
    return intervals


def joined(documents: Interval, seeds: Interval) -> Interval:
    """Compute the interval of a mean that varies with documents and, independently, with seeds.

    The two standard errors, each half an interval's width over its t quantile, add in squares; the degrees of freedom
    are Welch and Satterthwaite's ``(a² + b²)² / (a⁴/(n − 1) + b⁴/(m − 1))``.

    Args:
        documents: Interval over n documents, all seeds in place.
        seeds: Interval over m seeds, all documents in place, of the same level.

    Returns:
        A t interval around the documents' estimate.

    Source: Satterthwaite (1946), Biometrics Bulletin 2(6).
    """
    level, n = 0.5 + documents.level / 2, documents.n_units
    freedom = np.array([n - 1, seeds.n_units - 1])
    half = np.array([np.subtract(interval.high, interval.low) / 2 for interval in (documents, seeds)])
    variances = np.square(half / stats.t.ppf(level, freedom))
    total = reach = variances.sum()  # 0 without any spread, NaN where an end is missing
    if total > 0:
        joint_freedom = total**2 / np.square(variances).dot(1 / freedom)
        reach = stats.t.ppf(level, joint_freedom) * np.sqrt(total)
    low, high = float(documents.estimate - reach), float(documents.estimate + reach)
    return Interval(float(documents.estimate), low, high, n, "documents × seeds, t", documents.level)


@dataclass(frozen=True)
class Finding:
    """The outcome of a row, to which `decide` adds the verdict."""

    evidence: Evidence
    statistic: str
    null: Mapping[str, Any]
    shown: Mapping[str, Interval] = field(default_factory=dict)
    unit: str = "documents"


@dataclass(frozen=True)
class Row:
    """One claim: its sentence, the field of the thresholds that holds its θ₀, its computation, and the side of θ₀."""

    sentence: Sentence
    threshold: str
    compute: Callable[[Any], Finding]
    direction: Literal["above", "below"] = "above"


def claim_of(table: Reading[Any], row: Row) -> Claim:
    """Decide the claim of one row; inconclusive, with the reason, where the run lacks what it needs.

    Args:
        table: The run.
        row: A claim and its computation.

    Returns:
        The claim.
    """
    sample = table.sample
    try:
        finding = row.compute(table)
    except AbsentError as absent:
        bound = float(getattr(table.thresholds, row.threshold))
        nothing = Interval(float("nan"), float("nan"), float("nan"), sample.size, "none")
        evidence = Evidence(
            [Criterion("θ", nothing, bound, row.direction)], preconditions=[Condition(False, str(absent))]
        )
        finding = Finding(evidence, "not computed", {}, unit=sample.unit)
    assert finding.evidence.parts[0].direction == row.direction, row.sentence.id
    criteria = (*finding.evidence.parts, *finding.evidence.contrasts)
    deciding = [criterion.interval for criterion in criteria if criterion.interval is not None]
    fewest = min([sample.size, *(interval.n_units for interval in deciding)])
    enough = enough_units(fewest, sample.needed, sample.unit)
    evidence = replace(finding.evidence, preconditions=[*finding.evidence.preconditions, enough])
    return decide(
        row.sentence, evidence, statistic=finding.statistic, unit=finding.unit, null=finding.null, shown=finding.shown
    )


def claims_of(table: Reading[Any], rows: Sequence[Row]) -> list[Claim]:
    """Decide the claims of all rows, in the order in which they are printed.

    Args:
        table: The run.
        rows: Claims and their computations.

    Returns:
        A claim a row; those that the run cannot decide are inconclusive, and their reasons name what is missing.
    """
    return [claim_of(table, row) for row in rows]


def number(value: float) -> Interval:
    """Wrap a value without an interval, to be printed beside a claim."""
    return Interval(value, float("nan"), float("nan"), 0, "none")
