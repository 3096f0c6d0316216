"""A paper's sentence, the statistic that tests it, and the computed verdict.

A claim has one or more statistics θ, each with a threshold, and deciding contrasts Δ = θ − θ(control), each with a
margin. All intervals come from the same resamples of the claim's unit. `judge` reads them in this order:

1. a precondition fails (too few documents or seeds, an arm that did not learn): **inconclusive**;
2. the whole interval of a θ lies short of its threshold: **not supported**;
3. an interval of a θ contains its threshold, or is missing: **inconclusive**;
4. the interval of a deciding Δ contains or lies below its margin, or θ is fixed by an identity: **mechanical**
   (true, but the control does it too);
5. a deciding Δ is missing, or a side condition does not hold: **inconclusive**;
6. otherwise **supported**.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from probe import display
from probe.boundary import public
from probe.errors import InputError
from probe.inference import Interval
from probe.inference.resampling import Value

Verdict: TypeAlias = Literal["supported", "mechanical", "not supported", "inconclusive"]
Place: TypeAlias = Literal["beyond", "short", "astride", "missing"]
Direction: TypeAlias = Literal["<", ">"]

_OPPOSITE = {"above": "below", "below": "above"}

# the sign that stands before a verdict's name, so that colour is not alone
SIGNS: dict[Verdict, str] = {"supported": "✓", "mechanical": "=", "not supported": "✗", "inconclusive": "?"}


@public
@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row of ``claims.json``.

    Attributes:
        id: For example "updates.alignment".
        statement: What the paper says, in one sentence.
        source: Paper and place, or "ours".
        statistic: Description of θ.
        estimate: θ of the whole sample; NaN if it could not be computed.
        ci_low: Lower end of the 95 % interval of θ.
        ci_high: Upper end.
        threshold: θ₀.
        direction: The side of θ₀ on which the whole interval must lie: ">" above it, "<" below it.
        unit: The resampled units: "documents", "seeds", "blocks", "models".
        n_units: Number of units.
        null: The null line: name, estimate, ci_low, ci_high.
        controls: All contrasts and all values shown beside: name, role, estimate, ci_low, ci_high, threshold,
            direction.
        verdict: "supported", "mechanical", "not supported" or "inconclusive".
        reason: Reason of the verdict, with the numbers and the control that decided.
    """

    id: str
    statement: str
    source: str
    statistic: str
    estimate: float
    ci_low: float
    ci_high: float
    threshold: float
    direction: Direction
    unit: str
    n_units: int
    null: dict[str, Any]
    controls: list[dict[str, Any]]
    verdict: Verdict
    reason: str

    def __repr__(self) -> str:
        return f"Claim({self.id!r}, {self.verdict}: {self._interval()}, threshold {self.required})"

    def _repr_html_(self) -> str:
        return display.table(
            f"{self.statement} — {SIGNS[self.verdict]} {self.verdict}",
            {
                "estimate [95 % interval]": self._interval(),
                "threshold": self.required,
                self.unit: self.n_units,
                "reason": self.reason,
                "statistic": self.statistic,
                "source": f"{self.source} ({self.id})",
            },
        )

    @property
    def required(self) -> str:
        """The threshold with its side, for example "< 0.05"."""
        return bound_text(self.direction, self.threshold)

    def _interval(self) -> str:
        return _numbers(Interval(self.estimate, self.ci_low, self.ci_high, self.n_units, ""))

    def to_dict(self) -> dict[str, Any]:
        """Convert the claim to values that JSON can hold: a number that is not finite becomes None."""
        plain = _jsonable(asdict(self))
        assert isinstance(plain, dict)
        return plain

    @classmethod
    @public
    def from_dict(cls, values: Mapping[str, Any]) -> Claim:
        """Rebuild the claim that `to_dict` wrote; None becomes NaN again.

        Args:
            values: One object of ``claims.json``.

        Returns:
            The claim.

        Raises:
            InputError: If fields are missing or unknown.
        """
        expected = {entry.name for entry in fields(cls)}
        if set(values) != expected:
            odd = ", ".join(sorted(set(values) ^ expected))
            raise InputError(
                f"values= must have exactly the {len(expected)} fields of a claim, got a dict in which these are "
                f"missing or unknown: {odd}: "
                "judge the run again with this version"
            )
        read: dict[str, Any] = dict(values)
        for number in ("estimate", "ci_low", "ci_high", "threshold"):
            read[number] = math.nan if values[number] is None else values[number]
        return cls(**read)


@public
@dataclass(frozen=True)
class Sentence:
    """A claimed statement and its source, apart from any data."""

    id: str
    statement: str
    source: str


@public
@dataclass(frozen=True)
class Criterion:
    """An interval that must lie beyond a bound: a θ and its threshold, or a contrast Δ and its margin.

    Attributes:
        name: For a contrast the control's name, as the reason prints it.
        interval: Interval of θ or Δ; NaN or None where it could not be computed.
        bound: Threshold or margin; −0 becomes 0.
        direction: "above": the interval must lie above the bound; "below": below it.
    """

    name: str
    interval: Interval | None
    bound: float
    direction: Literal["above", "below"] = "above"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bound", self.bound + 0.0)  # −0, as a sign turned round leaves it, reads as a mistake

    @property
    def side(self) -> Direction:
        """The direction as a sign: ">" for "above", "<" for "below"."""
        return ">" if self.direction == "above" else "<"

    @property
    def place(self) -> Place:
        """The place of the whole interval; with an end on the bound it is astride."""
        ends = self._ends()
        if not all(map(math.isfinite, ends)):
            return "missing"
        low, high = ends if self.direction == "above" else (-ends[1], -ends[0])
        bound = self.bound if self.direction == "above" else -self.bound
        if low > bound:
            return "beyond"
        return "short" if high < bound else "astride"

    def __str__(self) -> str:
        return f"{self.name} {_numbers(self.interval)}"

    def _ends(self) -> tuple[float, float]:
        return (math.nan, math.nan) if self.interval is None else (float(self.interval.low), float(self.interval.high))


@public
@dataclass(frozen=True)
class Condition:
    """A condition of a verdict, and the reason to give if it does not hold."""

    holds: bool
    otherwise: str


@public
@dataclass(frozen=True)
class Evidence:
    """All that decides one claim.

    Attributes:
        parts: The statistics θ, the headline first; all must lie beyond their thresholds.
        contrasts: The deciding contrasts Δ.
        preconditions: If one of these fails, nothing is decided.
        conditions: If one of these fails, the claim is neither supported nor refuted.
        fixed_by: The identity that fixes θ whatever the model does; θ beyond its threshold is then mechanical.
    """

    parts: Sequence[Criterion]
    contrasts: Sequence[Criterion] = ()
    preconditions: Sequence[Condition] = ()
    conditions: Sequence[Condition] = ()
    fixed_by: str | None = None


@public
def judge(evidence: Evidence) -> tuple[Verdict, str]:
    """Judge the evidence in the order given at the head of this module.

    Args:
        evidence: Statistics, contrasts and conditions of one claim.

    Returns:
        The verdict, and a reason that names the numbers and the control.
    """
    parts, contrasts = evidence.parts, evidence.contrasts
    failed = [condition.otherwise for condition in evidence.preconditions if not condition.holds]
    if failed:
        return "inconclusive", "; ".join(failed)
    short = [
        f"{part} lies wholly {_OPPOSITE[part.direction]} {_number(part.bound)}"
        for part in parts
        if part.place == "short"
    ]
    if short:
        return "not supported", "; ".join(short)
    unclear = [f"{part} has no interval" for part in parts if part.place == "missing"]
    unclear += [f"{part} contains {_number(part.bound)}" for part in parts if part.place == "astride"]
    if unclear:
        return "inconclusive", "; ".join(unclear)
    beyond = "; ".join(f"{part} lies {part.direction} {_number(part.bound)}" for part in parts)
    if evidence.fixed_by is not None:
        return "mechanical", f"{beyond}, but {evidence.fixed_by}"
    level = [contrast for contrast in contrasts if contrast.place in {"short", "astride"}]
    if level:
        return "mechanical", f"{beyond}, but so it is under a control: " + "; ".join(
            f"{contrast} does not lie wholly {contrast.direction} {_number(contrast.bound)}" for contrast in level
        )
    open_ends = [f"{contrast} could not be computed" for contrast in contrasts if contrast.place == "missing"]
    open_ends += [condition.otherwise for condition in evidence.conditions if not condition.holds]
    if open_ends:
        return "inconclusive", f"{beyond}, but " + "; ".join(open_ends)
    cleared = "; ".join(f"{contrast} lies {contrast.direction} {_number(contrast.bound)}" for contrast in contrasts)
    return "supported", f"{beyond}; {cleared}" if cleared else beyond


@public
def decide(
    sentence: Sentence,
    evidence: Evidence,
    *,
    statistic: str,
    unit: str,
    null: Mapping[str, Any],
    shown: Mapping[str, Interval] | None = None,
) -> Claim:
    """Decide a claim: verdict, headline numbers, and every control with its numbers.

    Args:
        sentence: The claimed sentence.
        evidence: The deciding evidence; its first part gives estimate, interval and threshold.
        statistic: Description of θ.
        unit: The resampled units.
        null: The null line (`line` makes one of an interval).
        shown: Values printed beside the claim, which decide nothing.

    Returns:
        The claim.
    """
    verdict, reason = judge(evidence)
    headline = evidence.parts[0]
    interval = headline.interval or Interval(math.nan, math.nan, math.nan, 0, "none")
    controls = [
        line(criterion.name, criterion.interval)
        | {"role": role, "threshold": criterion.bound, "direction": criterion.side}
        for role, criteria in (("also decides", evidence.parts[1:]), ("deciding contrast", evidence.contrasts))
        for criterion in criteria
    ]
    decides_nothing = {"role": "shown", "threshold": None, "direction": None}
    controls += [line(name, value) | decides_nothing for name, value in (shown or {}).items()]
    return Claim(
        id=sentence.id,
        statement=sentence.statement,
        source=sentence.source,
        statistic=statistic,
        estimate=float(interval.estimate),
        ci_low=float(interval.low),
        ci_high=float(interval.high),
        threshold=headline.bound,
        direction=headline.side,
        unit=unit,
        n_units=interval.n_units,
        null=dict(null),
        controls=controls,
        verdict=verdict,
        reason=reason,
    )


@public
def line(name: str, interval: Interval | None) -> dict[str, Any]:
    """Name a value with its interval, in the form of a claim's ``null`` and ``controls``.

    Args:
        name: Name of the value.
        interval: Its estimate and ends, or None.

    Returns:
        Name, estimate, ci_low, ci_high; None for a number that is not finite.
    """
    values = (None, None, None) if interval is None else (interval.estimate, interval.low, interval.high)
    keys = ("estimate", "ci_low", "ci_high")
    return {"name": name} | {key: _jsonable(value) for key, value in zip(keys, values, strict=True)}


@public
def bound_text(direction: Direction, bound: float) -> str:
    """Write a bound with the side on which an interval must lie.

    >>> bound_text("<", -0.5)
    '< −0.5'

    Args:
        direction: ">" above it, "<" below it.
        bound: Threshold or margin.

    Returns:
        Side and number, to three digits.
    """
    return f"{direction} {_number(bound)}"


@public
def enough_units(n_units: int, needed: int, unit: str) -> Condition:
    """State the precondition that enough documents or seeds were resampled.

    Args:
        n_units: Number of units.
        needed: Least number for a verdict.
        unit: Name of the units in the plural.

    Returns:
        The condition.
    """
    return Condition(n_units >= needed, f"only {n_units} {unit}: {needed} are needed for a verdict")


def _numbers(interval: Interval | None) -> str:
    if interval is None:
        return "—"
    return f"{_number(interval.estimate)} [{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: Value) -> str:
    return f"{value:z.3g}".replace("-", "−")


def _jsonable(value: Any) -> Any:
    """Convert to plain Python values; a number that is not finite becomes None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
