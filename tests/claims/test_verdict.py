from __future__ import annotations

import json
import math

import pytest

from probe.claims import (
    Claim,
    Condition,
    Criterion,
    Evidence,
    Sentence,
    bound_text,
    decide,
    enough_units,
    judge,
    line,
)
from probe.errors import InputError
from probe.inference import Interval

VERDICTS = ("supported", "mechanical", "not supported", "inconclusive")


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 20, "documents, t")


ABOVE, ACROSS, BELOW = interval(0.8, 0.9), interval(0.6, 0.8), interval(0.5, 0.6)
CLEAR, LEVEL, WORSE = interval(0.1, 0.3), interval(-0.1, 0.3), interval(-0.3, -0.1)
MISSING = Interval(0.8, math.nan, math.nan, 20, "none")


def part(value: Interval | None, name: str = "ρ") -> Criterion:
    return Criterion(name, value, 0.7)


def contrast(value: Interval | None, name: str = "Δ to random residuals", margin: float = 0.0) -> Criterion:
    return Criterion(name, value, margin)


class TestPlace:
    @pytest.mark.parametrize(
        ("low", "high", "direction", "place"),
        [
            (0.71, 0.9, "above", "beyond"),
            (0.7, 0.9, "above", "astride"),
            (0.6, 0.7, "above", "astride"),
            (0.6, 0.69, "above", "short"),
            (0.6, 0.69, "below", "beyond"),
            (0.6, 0.7, "below", "astride"),
            (0.7, 0.8, "below", "astride"),
            (0.71, 0.9, "below", "short"),
            (math.nan, 0.9, "above", "missing"),
            (0.8, math.inf, "above", "missing"),
        ],
    )
    def test_whole_interval_against_the_bound(self, low: float, high: float, direction, place: str):
        assert Criterion("θ", interval(low, high), 0.7, direction).place == place

    def test_negative_bound_below(self):
        assert Criterion("θ", interval(-0.8, -0.6), -0.5, "below").place == "beyond"
        assert Criterion("θ", interval(-0.4, -0.3), -0.5, "below").place == "short"


class TestJudge:
    @pytest.mark.parametrize(
        ("theta", "deltas", "verdict"),
        [
            (ABOVE, [], "supported"),
            (ABOVE, [CLEAR], "supported"),
            (ABOVE, [CLEAR, CLEAR], "supported"),
            (ABOVE, [LEVEL], "mechanical"),
            (ABOVE, [WORSE], "mechanical"),
            (ABOVE, [CLEAR, LEVEL], "mechanical"),
            (ABOVE, [MISSING, LEVEL], "mechanical"),
            (ABOVE, [CLEAR, MISSING], "inconclusive"),
            (ABOVE, [None], "inconclusive"),
            (BELOW, [CLEAR], "not supported"),
            (BELOW, [LEVEL], "not supported"),
            (BELOW, [MISSING], "not supported"),
            (ACROSS, [CLEAR], "inconclusive"),
            (ACROSS, [LEVEL], "inconclusive"),
            (MISSING, [CLEAR], "inconclusive"),
            (None, [CLEAR], "inconclusive"),
        ],
    )
    def test_one_statistic(self, theta: Interval | None, deltas: list[Interval | None], verdict: str):
        assert judge(Evidence([part(theta)], [contrast(delta) for delta in deltas]))[0] == verdict

    @pytest.mark.parametrize(
        ("first", "second", "verdict"),
        [
            (ABOVE, ABOVE, "supported"),
            (ABOVE, BELOW, "not supported"),
            (ACROSS, BELOW, "not supported"),
            (ABOVE, ACROSS, "inconclusive"),
            (MISSING, ABOVE, "inconclusive"),
        ],
    )
    def test_two_statistics_must_both_clear(self, first: Interval, second: Interval, verdict: str):
        assert judge(Evidence([part(first), part(second)]))[0] == verdict
        assert judge(Evidence([part(second), part(first)]))[0] == verdict

    def test_margin_of_a_contrast(self):
        assert judge(Evidence([part(ABOVE)], [contrast(CLEAR, margin=0.05)]))[0] == "supported"
        assert judge(Evidence([part(ABOVE)], [contrast(CLEAR, margin=0.2)]))[0] == "mechanical"

    def test_a_contrast_may_point_down(self):
        assert judge(Evidence([part(ABOVE)], [Criterion("Δ to init", WORSE, 0.0, "below")]))[0] == "supported"
        assert judge(Evidence([part(ABOVE)], [Criterion("Δ to init", CLEAR, 0.0, "below")]))[0] == "mechanical"

    @pytest.mark.parametrize("theta", [ABOVE, ACROSS, BELOW, MISSING])
    def test_a_failed_precondition_decides_nothing(self, theta: Interval):
        few = enough_units(11, 12, "documents")
        verdict, reason = judge(Evidence([part(theta)], [contrast(LEVEL)], preconditions=[few]))
        assert verdict == "inconclusive"
        assert reason == "only 11 documents: 12 are needed for a verdict"
        assert enough_units(12, 12, "documents").holds

    @pytest.mark.parametrize(
        ("theta", "delta", "verdict"),
        [(ABOVE, CLEAR, "inconclusive"), (ABOVE, LEVEL, "mechanical"), (BELOW, CLEAR, "not supported")],
    )
    def test_a_failed_side_condition_takes_only_support_away(self, theta: Interval, delta: Interval, verdict: str):
        unmet = Condition(False, "its sign changes with k")
        assert judge(Evidence([part(theta)], [contrast(delta)], conditions=[unmet]))[0] == verdict
        met = Condition(True, "its sign changes with k")
        assert judge(Evidence([part(ABOVE)], [contrast(CLEAR)], conditions=[met]))[0] == "supported"

    @pytest.mark.parametrize(
        ("theta", "verdict"), [(ABOVE, "mechanical"), (BELOW, "not supported"), (ACROSS, "inconclusive")]
    )
    def test_what_an_identity_fixes_is_never_supported(self, theta: Interval, verdict: str):
        found, reason = judge(Evidence([part(theta)], [contrast(CLEAR)], fixed_by="fixed by the error"))
        assert found == verdict
        assert ("fixed by the error" in reason) == (verdict == "mechanical")

    def test_reasons_name_numbers_and_the_control(self):
        reason = judge(Evidence([part(ABOVE)], [contrast(CLEAR, "Δ to good"), contrast(LEVEL, "Δ to bad")]))[1]
        assert "ρ 0.85 [0.8, 0.9] lies above 0.7" in reason
        assert "Δ to bad 0.1 [−0.1, 0.3] does not lie wholly above 0" in reason
        assert "Δ to good" not in reason
        assert "ρ 0.55 [0.5, 0.6] lies wholly below 0.7" in judge(Evidence([part(BELOW)]))[1]
        assert "ρ 0.7 [0.6, 0.8] contains 0.7" in judge(Evidence([part(ACROSS)]))[1]
        assert "Δ to gone — could not be computed" in judge(Evidence([part(ABOVE)], [contrast(None, "Δ to gone")]))[1]
        good = judge(Evidence([part(ABOVE)], [contrast(CLEAR, "Δ to good")]))[1]
        assert "Δ to good 0.2 [0.1, 0.3] lies above 0" in good

    def test_reasons_of_a_claim_that_points_down_say_below(self):
        def down(value: Interval, bound: float = 0.7) -> Criterion:
            return Criterion("ρ", value, bound, "below")

        assert judge(Evidence([down(BELOW)])) == ("supported", "ρ 0.55 [0.5, 0.6] lies below 0.7")
        assert judge(Evidence([down(ABOVE)])) == ("not supported", "ρ 0.85 [0.8, 0.9] lies wholly above 0.7")
        assert judge(Evidence([down(BELOW)], [down(LEVEL, 0.0)])) == (
            "mechanical",
            "ρ 0.55 [0.5, 0.6] lies below 0.7, but so it is under a control: ρ 0.1 [−0.1, 0.3] does not lie wholly "
            "below 0",
        )
        assert judge(Evidence([down(BELOW)], [down(WORSE, 0.0)]))[1].endswith("ρ −0.2 [−0.3, −0.1] lies below 0")


SENTENCE = Sentence("updates.alignment", "The update is aligned.", "arXiv 2604.02459")


def decided(evidence: Evidence) -> Claim:
    return decide(
        SENTENCE,
        evidence,
        statistic="median cosine",
        unit="documents",
        null=line("permuted", LEVEL),
        shown={"bound": ABOVE, "k/d": Interval(0.01, math.nan, math.nan, 0, "none")},
    )


class TestClaim:
    def test_fields_are_the_contract(self):
        claim = decided(Evidence([part(ABOVE, "a"), part(ABOVE, "b")], [contrast(CLEAR, margin=0.05)]))
        written = claim.to_dict()
        assert list(written) == [
            *("id", "statement", "source", "statistic", "estimate", "ci_low", "ci_high", "threshold"),
            *("direction", "unit", "n_units", "null", "controls", "verdict", "reason"),
        ]
        assert (claim.estimate, claim.ci_low, claim.ci_high, claim.threshold) == (ABOVE.estimate, 0.8, 0.9, 0.7)
        assert (claim.unit, claim.n_units, claim.verdict) == ("documents", 20, "supported")
        assert claim.null == {"name": "permuted", "estimate": LEVEL.estimate, "ci_low": -0.1, "ci_high": 0.3}
        shown = [
            tuple(control[key] for key in ("name", "role", "threshold", "direction")) for control in claim.controls
        ]
        assert shown == [
            ("b", "also decides", 0.7, ">"),
            ("Δ to random residuals", "deciding contrast", 0.05, ">"),
            ("bound", "shown", None, None),
            ("k/d", "shown", None, None),
        ]
        assert claim.controls[1]["ci_low"] == 0.1
        assert claim.controls[3]["ci_low"] is None

    def test_the_threshold_is_told_with_its_side(self):
        up, down = decided(Evidence([part(ABOVE)])), decided(Evidence([Criterion("ρ", BELOW, -0.5, "below")]))
        assert (up.direction, up.required) == (">", "> 0.7")
        assert (down.direction, down.required) == ("<", "< −0.5")
        assert repr(down).endswith("threshold < −0.5)")
        assert "&lt; −0.5" in down._repr_html_()

    def test_a_bound_of_minus_zero_is_zero(self):
        claim = decided(Evidence([Criterion("ρ", WORSE, -0.0, "below")], [Criterion("Δ", WORSE, -0.0, "below")]))
        assert claim.required == "< 0"
        assert math.copysign(1, claim.threshold) == math.copysign(1, claim.controls[0]["threshold"]) == 1
        assert "−0 " not in f"{claim.reason} "
        assert bound_text("<", -0.0001) == "< −0.0001"

    def test_survives_strict_json(self):
        claim = decided(Evidence([part(MISSING)], [contrast(None)]))
        text = json.dumps(claim.to_dict(), allow_nan=False)
        again = Claim.from_dict(json.loads(text))
        assert math.isnan(again.ci_low)
        assert again.to_dict() == claim.to_dict()
        assert again.estimate == 0.8

    def test_missing_headline(self):
        claim = decided(Evidence([part(None)]))
        assert math.isnan(claim.estimate)
        assert claim.n_units == 0
        assert claim.verdict == "inconclusive"

    def test_unknown_and_missing_fields(self):
        written = decided(Evidence([part(ABOVE)])).to_dict()
        del written["reason"]
        with pytest.raises(InputError, match="extra, reason"):
            Claim.from_dict(written | {"extra": 1})
