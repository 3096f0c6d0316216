"""What all claims share: errors over documents and seeds joined, a missing variable, few documents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from probe.analyses.dynamics.config import Thresholds
from probe.claims import Criterion, Evidence, Sentence
from probe.claims.evidence import AbsentError, Finding, Row, Table, Typical, claim_of, claims_of, crossed, joined
from probe.inference import Interval


def table(values: np.ndarray, documents: np.ndarray) -> Table[Thresholds]:
    data = xr.Dataset({"score": (("layer", "query"), values)}, coords={"document": ("query", documents)})
    return Table(data, Thresholds(), seed=0, resamples=400)


class TestJoined:
    def test_equal_errors_and_freedoms_add_in_squares(self):
        half = stats.t.ppf(0.975, 9)  # standard error 1, nine degrees of freedom
        one = Interval(2.0, 2.0 - half, 2.0 + half, 10, "t")
        both = joined(one, one)
        assert both.estimate == 2.0
        # two equal variances: twice the degrees of freedom
        assert both.high - 2.0 == pytest.approx(np.sqrt(2) * stats.t.ppf(0.975, 18))
        assert 2.0 - both.low == pytest.approx(both.high - 2.0)

    def test_unequal_freedoms_are_welchs(self):
        documents, seeds = (
            Interval(2.0, 2.0 - half, 2.0 + half, n, "t")
            for n, half in (
                (21, 0.5 * stats.t.ppf(0.975, 20)),
                (5, 2 * stats.t.ppf(0.975, 4)),
            )
        )
        freedom = 4.25**2 / (0.25**2 / 20 + 4**2 / 4)
        expected = np.sqrt(4.25) * stats.t.ppf(0.975, freedom)
        assert joined(documents, seeds).high - 2.0 == pytest.approx(expected)

    def test_seeds_without_spread_leave_the_documents_interval(self):
        documents = Interval(1.0, 0.5, 1.5, 20, "t")
        both = joined(documents, Interval(1.0, 1.0, 1.0, 5, "t"))
        assert (both.low, both.high, both.n_units) == pytest.approx((0.5, 1.5, 20))

    def test_few_seeds_with_a_wide_spread_decide(self):
        seeds = Interval(1.0, 0.0, 2.0, 5, "t")
        both = joined(Interval(1.0, 0.99, 1.01, 50, "t"), seeds)
        assert (both.low, both.high) == pytest.approx((0.0, 2.0), abs=1e-3)

    def test_no_error_at_all_is_a_point(self):
        point = Interval(3.0, 3.0, 3.0, 6, "t")
        assert (joined(point, point).low, joined(point, point).high) == (3.0, 3.0)

    def test_a_missing_end_stays_missing(self):
        both = joined(Interval(1.0, np.nan, np.nan, 1, "none"), Interval(1.0, 0.0, 2.0, 5, "t"))
        assert np.isnan([both.low, both.high]).all()


def test_crossed_intervals_cover_a_mean_over_documents_and_seeds():
    """Values a_document + b_seed, both of variance 1: 95 % intervals of the mean cover zero that often."""
    covered = []
    for trial in range(60):
        draws = np.random.default_rng(trial)
        document, seed = draws.normal(size=20), draws.normal(size=5)
        one = Table(table(document[None], np.arange(20)).data, Thresholds(), seed=trial, resamples=200)
        found = crossed(one, lambda weights, d=document, s=seed: {"mean": np.average(d, weights=weights) + s})["mean"]
        covered.append(found.low < 0 < found.high)
        assert found.estimate == pytest.approx(document.mean() + seed.mean())
    assert 0.87 <= np.mean(covered) <= 1.0


def test_one_value_is_resampled_over_documents_alone():
    values = np.random.default_rng(0).normal(size=(1, 30))
    one = table(values, np.arange(30))
    typical = Typical(values)
    alone = one.intervals(lambda weights: {"x": typical(weights)})["x"]
    assert crossed(one, lambda weights: {"x": np.array([typical(weights)])})["x"] == alone


def test_controls_are_told_by_their_kind():
    data = table(np.ones((1, 3)), np.arange(3)).data.expand_dims(variant=["model", "init-0", "initial", "init-12"])
    one = Table(data, Thresholds(), seed=0, resamples=2)
    assert one.repeats("init") == ["init-0", "init-12"]
    assert one.repeats("shuffled") == []


def test_a_table_of_what_was_measured_counts_its_documents():
    values = np.random.default_rng(0).normal(size=(2, 30))
    control = np.where(np.arange(30) < 18, values[None], np.nan)
    control[0, 0] = np.nan  # one layer is enough
    part = table(values, np.arange(30) // 2).measured(control)
    assert part.documents.tolist() == (np.arange(18) // 2).tolist()
    np.testing.assert_array_equal(part.get("score"), values[:, :18])
    typical = Typical(part.get("score"))
    assert part.intervals(lambda weights: {"x": typical(weights)})["x"].n_units == 9


class TestRows:
    row = Row(
        Sentence("a.b", "It is so.", "here"),
        "threshold_bottleneck",
        lambda t: Finding(
            Evidence([Criterion("θ", Interval(t.get("score").mean(), 0.5, 0.9, 20, "t"), 0.1)]), "mean", {}
        ),
    )

    def test_enough_documents(self):
        claim = claim_of(table(np.ones((1, 20)), np.arange(20)), self.row)
        assert (claim.verdict, claim.estimate) == ("supported", 1.0)

    def test_claims_come_in_the_order_of_their_rows(self):
        other = replace(self.row, sentence=Sentence("a.c", "And so.", "there"))
        rows = [other, self.row, other]
        found = claims_of(table(np.ones((1, 20)), np.arange(20)), rows)
        assert [claim.id for claim in found] == ["a.c", "a.b", "a.c"]

    def test_a_row_and_its_statistic_point_one_way(self):
        with pytest.raises(AssertionError, match=r"a\.b"):
            claim_of(table(np.ones((1, 20)), np.arange(20)), replace(self.row, direction="below"))

    def test_too_few_documents_decide_nothing(self):
        claim = claim_of(table(np.ones((1, 20)), np.arange(20) % 11), self.row)
        assert claim.verdict == "inconclusive"
        assert "only 11 documents: 12 are needed" in claim.reason

    def test_a_missing_variable_is_named(self):
        empty = table(np.full((1, 20), np.nan), np.arange(20))
        claim = claim_of(empty, self.row)
        assert claim.verdict == "inconclusive"
        assert "no value of score" in claim.reason
        assert claim.threshold == Thresholds().threshold_bottleneck
        assert (claim.direction, claim_of(empty, replace(self.row, direction="below")).direction) == (">", "<")
        with pytest.raises(AbsentError, match="no score \\(fit x\\)"):
            empty.get("score", fit="x")
