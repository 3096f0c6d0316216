from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from probe import inference
from probe.errors import InputError
from probe.inference import (
    Ranking,
    benjamini_hochberg,
    bootstrap,
    bootstrap_interval,
    circular_block_bootstrap,
    fisher_mean,
    jackknife,
    partial_spearman,
    permutation_null,
    permutation_p_value,
    resampled_rows,
    seed_interval,
    spearman,
)

SMALL_INTEGERS = hnp.arrays(np.float64, 9, elements=st.integers(0, 4).map(float))
MULTIPLICITIES = hnp.arrays(np.int64, 9, elements=st.integers(0, 3))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class TestBootstrap:
    def test_t_interval_of_a_mean_is_students(self):
        x = normal(12)
        found = bootstrap(lambda rows: x[rows].mean(), np.arange(12), resamples=8000)
        low, high = stats.t.interval(0.95, 11, loc=x.mean(), scale=stats.sem(x))
        assert found.estimate == x.mean()
        assert found.low == pytest.approx(low, abs=0.015)  # without sqrt(n / (n − 1)) 0.026 is missing
        assert found.high == pytest.approx(high, abs=0.015)
        assert found.n_units == 12

    @pytest.mark.parametrize("documents", [9, 50])
    def test_values_computed_apart_give_the_same_interval(self, documents):
        x, groups = normal(3 * documents), np.arange(3 * documents) % documents
        whole = bootstrap(lambda rows: x[rows].mean(), groups, resamples=50, seed=3)
        draws = np.array([x[rows].mean() for rows in resampled_rows(groups, resamples=50, seed=3)])
        assert bootstrap_interval(x.mean(), draws, documents) == whole

    def test_percentile_interval_of_a_mean_is_as_wide_as_students(self):
        x = normal(62)
        found = bootstrap(lambda rows: x[rows].mean(), np.arange(62), resamples=8000)
        low, high = stats.t.interval(0.95, 61, loc=x.mean(), scale=stats.sem(x))
        assert found.low == pytest.approx(low, abs=0.01)
        assert found.high == pytest.approx(high, abs=0.01)

    def test_percentile_interval_keeps_the_skew_that_a_t_interval_loses(self):
        x = np.exp(2 * normal(60))
        found = bootstrap(lambda rows: x[rows].mean(), np.arange(60))
        assert found.high - found.estimate > 1.1 * (found.estimate - found.low)

    def test_interval_switches_at_forty_documents(self):
        x = np.exp(2 * normal(40))
        below = bootstrap(lambda rows: x[rows].mean(), np.arange(39).repeat([1] * 38 + [2]))
        above = bootstrap(lambda rows: x[rows].mean(), np.arange(40))
        assert below.high - below.estimate == pytest.approx(below.estimate - below.low)
        assert above.high - above.estimate != pytest.approx(above.estimate - above.low)

    @pytest.mark.parametrize("n", [12, 50])
    def test_repeating_rows_of_a_document_does_not_narrow_the_interval(self, n: int):
        x = normal(n)
        once = bootstrap(lambda rows: x[rows].mean(), np.arange(n), resamples=200)
        many = np.repeat(x, 7)
        often = bootstrap(lambda rows: many[rows].mean(), np.repeat(np.arange(n), 7), resamples=200)
        assert (often.low, often.high) == (pytest.approx(once.low), pytest.approx(once.high))

    def test_a_resample_holds_whole_documents(self):
        documents = np.array(["b", "a", "c", "a", "b", "a"])
        seen = []
        bootstrap(lambda rows: seen.append(rows) or 0.0, documents, resamples=20)
        for rows in seen[1:]:
            assert len(np.unique(rows)) > 0
            for name in "abc":
                counts = np.bincount(rows, minlength=6)[documents == name]
                assert np.ptp(counts) == 0

    def test_components_share_their_resamples(self):
        x = normal(15)
        both = bootstrap(lambda rows: np.array([x[rows].mean(), 1 - x[rows].mean()]), np.arange(15), resamples=100)
        assert both[0].low == pytest.approx(1 - both[1].high)
        assert (both[1].estimate, both[1].low, both[1].high) == (both.estimate[1], both.low[1], both.high[1])
        assert both[1].low < both[1].estimate < both[1].high
        difference = bootstrap(lambda rows: x[rows].mean() - x[rows].mean(), np.arange(15), resamples=100)
        assert difference.high - difference.low == 0

    def test_equal_seeds_give_equal_intervals(self):
        x = normal(45)
        first, second, third = (
            bootstrap(lambda rows: x[rows].mean(), np.arange(45), resamples=50, seed=seed) for seed in (3, 3, 4)
        )
        assert first == second
        assert first != third

    @pytest.mark.parametrize(("level", "n"), [(0.5, 12), (0.5, 62), (0.9, 12), (0.9, 62)])
    def test_level(self, level: float, n: int):
        x = normal(n)
        found = bootstrap(lambda rows: x[rows].mean(), np.arange(n), resamples=5000, level=level)
        low, high = stats.t.interval(level, n - 1, loc=x.mean(), scale=stats.sem(x))
        assert found.high - found.low == pytest.approx(high - low, rel=0.05)

    def test_one_document_has_no_interval(self):
        found = bootstrap(lambda rows: float(rows.mean()), np.zeros(5), resamples=10)
        assert found.estimate == 2.0
        assert np.isnan([found.low, found.high]).all()

    @pytest.mark.parametrize("n", [12, 60])
    def test_a_few_missing_resamples_are_left_out_and_many_void_the_interval(self, n: int):
        x = normal(n)

        def often_missing(rows: np.ndarray) -> np.ndarray:
            rare = np.nan if (rows == 0).sum() >= 5 else x[rows].mean()
            common = np.nan if 0 not in rows else x[rows].mean()
            return np.array([rare, common, x[rows].mean()])

        found = bootstrap(often_missing, np.arange(n), resamples=500)
        assert found[0].low == pytest.approx(found[2].low, abs=0.03)
        assert np.isnan([found[1].low, found[1].high]).all()
        assert found[1].estimate == x.mean()

    @pytest.mark.parametrize("n", [9, 60])
    def test_statistic_missing_in_the_whole_sample_has_no_interval(self, n: int):
        found = bootstrap(lambda rows: np.nan if len(np.unique(rows)) == n else 1.0, np.arange(n), resamples=50)
        assert np.isnan([found.estimate, found.low, found.high]).all()

    def test_no_rows(self):
        with pytest.raises(InputError, match="at least one row"):
            bootstrap(lambda rows: 0.0, np.array([], dtype=np.int64))


def coverage(n: int, trials: int, resamples: int, seed: int) -> float:
    """Share of intervals that cover the known mean of skewed, clustered data (skewness of a document's mean: 1)."""
    generator = np.random.default_rng(seed)
    documents = np.repeat(np.arange(n), 3)
    covered = 0
    for trial in range(trials):
        effect = generator.gamma(4, 0.5, size=n) - 2
        x = effect[documents] + 0.3 * generator.normal(size=3 * n)
        found = bootstrap(lambda rows, x=x: x[rows].mean(), documents, resamples=resamples, seed=trial)
        covered += found.low <= 0 <= found.high
    return covered / trials


@pytest.mark.parametrize("n", [12, 62])
def test_intervals_cover_a_known_mean_at_the_nominal_rate(n: int):
    trials = 250
    low, high = stats.binom.interval(0.999, trials, 0.945)
    assert low / trials <= coverage(n, trials, 120, seed=1) <= high / trials


@pytest.mark.study
@pytest.mark.parametrize("n", [12, 20, 62])
def test_intervals_cover_a_known_mean_at_the_nominal_rate_in_many_trials(n: int):
    assert 0.925 <= coverage(n, 4000, 600, seed=2) <= 0.965


class TestOtherResampling:
    def test_blocks_keep_neighbours_together_and_wrap(self):
        seen = []
        circular_block_bootstrap(lambda rows: seen.append(rows) or 0.0, 7, block=3, resamples=100)
        draws = np.stack(seen[:-1])
        assert draws.shape == (100, 7)
        steps = np.diff(draws, axis=1) % 7
        assert (steps[:, [0, 1, 3, 4]] == 1).all()
        assert set(draws[:, 0]) == set(range(7))

    def test_blocks_widen_the_interval_of_a_smooth_curve(self):
        x = np.sin(np.linspace(0, 2 * np.pi, 60))
        single, blocks = (
            circular_block_bootstrap(lambda rows: x[rows].mean(), 60, block=block, resamples=500) for block in (1, 5)
        )
        assert blocks.high - blocks.low > 1.7 * (single.high - single.low)
        assert blocks.n_units == 12

    def test_one_block_has_no_interval(self):
        found = circular_block_bootstrap(lambda rows: float(rows.mean()), 9, block=5, resamples=20)
        assert found.estimate == 4.0
        assert np.isnan([found.low, found.high]).all()

    @pytest.mark.parametrize("block", [0, 8])
    def test_block_longer_than_the_curve(self, block: int):
        with pytest.raises(InputError, match="between 1 and n = 7"):
            circular_block_bootstrap(lambda rows: 0.0, 7, block=block)

    def test_jackknife_of_a_mean_is_students(self):
        x = normal(20)
        found = jackknife(lambda rows: x[rows].mean(), np.arange(20))
        low, high = stats.t.interval(0.95, 19, loc=x.mean(), scale=stats.sem(x))
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))

    def test_jackknife_takes_the_bias_out_of_a_variance(self):
        x = normal(20)
        found = jackknife(lambda rows: x[rows].var(), np.arange(20))
        assert found.estimate == pytest.approx(x.var(ddof=1))

    def test_jackknife_leaves_out_whole_documents(self):
        x = normal(10)
        once = jackknife(lambda rows: x[rows].mean(), np.arange(10))
        twice = jackknife(lambda rows: np.tile(x, 2)[rows].mean(), np.tile(np.arange(10), 2))
        assert twice.low == pytest.approx(once.low)
        assert twice.n_units == 10

    def test_jackknife_of_one_document(self):
        with pytest.raises(InputError, match="at least two"):
            jackknife(lambda rows: 0.0, np.zeros(4))

    def test_seed_interval(self):
        x, control = normal(6), 5 + normal(6, seed=1)
        found = seed_interval(x)
        assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 5, loc=x.mean(), scale=stats.sem(x)))
        paired = seed_interval(x, control)
        test = stats.ttest_rel(x, control).confidence_interval(0.95)
        assert (paired.low, paired.high) == (pytest.approx(test.low), pytest.approx(test.high))

    def test_seed_interval_of_arrays_and_of_one_seed(self):
        x = normal(6, 2)
        assert seed_interval(x)[1].high == pytest.approx(seed_interval(x[:, 1]).high)
        assert np.isnan(seed_interval(x[:1, 0]).low)


class TestPermutations:
    def test_p_value_counts_what_is_at_least_as_extreme_and_the_data(self):
        x = np.arange(5.0)
        null = permutation_null(lambda order: float(x @ x[order]), 5, permutations=199)
        ties = int((null.values >= null.observed).sum())
        assert null.observed == 30.0
        assert null.p_value == (1 + ties) / 200
        assert null.p_value < 0.05

    def test_alternatives(self):
        x = np.arange(8.0) - 3.5
        p = {
            side: permutation_null(lambda order: float(-x @ x[order]), 8, permutations=499, alternative=side).p_value
            for side in ("greater", "less", "two-sided")
        }
        assert p["less"] == 1 / 500
        assert p["greater"] == 1.0
        assert p["two-sided"] == pytest.approx(p["less"], abs=0.01)

    def test_what_cannot_be_computed_speaks_for_no_claim(self):
        assert np.isnan(permutation_null(lambda order: np.nan, 4, permutations=19).p_value)
        draws = np.array([0.0, np.nan, np.nan])
        for side, observed in (("greater", 1.0), ("less", -1.0), ("two-sided", 1.0)):
            assert permutation_p_value(observed, draws, alternative=side) == 3 / 4

    def test_p_values_are_uniform_under_the_null(self):
        x, y = normal(2, 40, 15)
        p = [permutation_null(lambda o, a=a, b=b: float(a @ b[o]), 15, permutations=99).p_value for a, b in zip(x, y)]  # noqa: B905
        assert stats.kstest(p, "uniform").pvalue > 0.01

    def test_rows_stay_in_their_group(self):
        groups = np.array([0, 1, 0, 1, 0, 2])
        seen = []
        permutation_null(lambda order: seen.append(order) or 0.0, 6, groups=groups, permutations=30)
        moved = np.stack(seen)
        assert (groups[moved] == groups).all()
        assert len(np.unique(moved[:, 0])) == 3

    def test_benjamini_hochberg_is_scipys_and_ignores_missing(self):
        p = np.array([0.01, 0.2, np.nan, 0.011, 0.04, 0.9])
        adjusted = benjamini_hochberg(p)
        assert np.isnan(adjusted[2])
        assert adjusted[[0, 1, 3, 4, 5]] == pytest.approx(stats.false_discovery_control(p[[0, 1, 3, 4, 5]]))


def repeated(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.repeat(values, counts)


class TestRanking:
    @given(SMALL_INTEGERS, MULTIPLICITIES)
    def test_median_is_that_of_the_repeated_rows(self, values: np.ndarray, counts: np.ndarray):
        found = Ranking(values).median(counts)
        if counts.sum() == 0:
            assert np.isnan(found)
        else:
            assert found == np.median(repeated(values, counts))

    @given(SMALL_INTEGERS, MULTIPLICITIES)
    def test_midranks_are_those_of_the_repeated_rows(self, values: np.ndarray, counts: np.ndarray):
        ranks = repeated(Ranking(values).midranks(counts), counts)
        assert ranks == pytest.approx(stats.rankdata(repeated(values, counts)))

    def test_untied_midranks_are_those_of_the_repeated_rows(self):
        values, counts = normal(20), np.random.default_rng(1).integers(0, 4, 20)
        ranks = repeated(Ranking(values).midranks(counts), counts)
        assert ranks == pytest.approx(stats.rankdata(repeated(values, counts)))

    def test_layers_and_weights_broadcast(self):
        values, counts = normal(3, 4, 11), np.random.default_rng(0).integers(0, 3, (4, 11))
        median, ranks = Ranking(values).median(counts), Ranking(values).midranks(counts)
        for draw in range(3):
            for layer in range(4):
                one = repeated(values[draw, layer], counts[layer])
                assert median[draw, layer] == np.median(one)
                assert repeated(ranks[draw, layer], counts[layer]) == pytest.approx(stats.rankdata(one))

    def test_missing_values_weigh_nothing(self):
        values = np.array([[3.0, np.nan, 1.0, 2.0, np.inf], [np.nan] * 5])
        median = Ranking(values).median(np.ones(5))
        assert median[0] == 2.0
        assert np.isnan(median[1])


class TestSpearman:
    @given(SMALL_INTEGERS, SMALL_INTEGERS, MULTIPLICITIES)
    @settings(max_examples=60)
    def test_is_scipys_on_the_repeated_rows(self, a: np.ndarray, b: np.ndarray, counts: np.ndarray):
        found = spearman(a, b, weights=counts)
        x, y = repeated(a, counts), repeated(b, counts)
        if (counts > 0).sum() < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(stats.spearmanr(x, y).statistic)

    def test_layers_draws_and_rankings(self):
        a, b = normal(4, 30), normal(3, 4, 30, seed=1)
        found = spearman(Ranking(a), Ranking(b))
        assert found.shape == (3, 4)
        assert found[2, 1] == pytest.approx(stats.spearmanr(a[1], b[2, 1]).statistic)
        assert found == pytest.approx(spearman(a, b))

    def test_missing_values_are_left_out_in_pairs(self):
        a, b = normal(2, 12), normal(2, 12, seed=1)
        a[0, 3], b[0, 5], b[0, 6] = np.nan, np.inf, np.nan
        keep = np.delete(np.arange(12), [3, 5, 6])
        found = spearman(a, b)
        assert found[0] == pytest.approx(stats.spearmanr(a[0, keep], b[0, keep]).statistic)
        assert found[1] == pytest.approx(stats.spearmanr(a[1], b[1]).statistic)

    def test_partial_is_the_correlation_of_rank_regression_residuals(self):
        counts = np.random.default_rng(5).integers(0, 3, 40)
        a, b = normal(2, 40)
        c, d = normal(40, seed=1) + a, np.round(normal(40, seed=2) + b)
        ranks = [stats.rankdata(repeated(x, counts)) for x in (a, b, c, d)]
        design = np.stack([np.ones_like(ranks[0]), *ranks[2:]], axis=1)
        left = [rank - design @ np.linalg.lstsq(design, rank, rcond=None)[0] for rank in ranks[:2]]
        found = partial_spearman(a, b, [c, d], weights=counts)
        assert found == pytest.approx(np.corrcoef(left)[0, 1])

    def test_partial_takes_out_a_common_cause_and_keeps_a_link(self):
        cause = normal(3000)
        a, b = cause + 0.5 * normal(3000, seed=1), cause + 0.5 * normal(3000, seed=2)
        assert spearman(a, b) > 0.7
        assert abs(partial_spearman(a, b, [cause])) < 0.06
        assert partial_spearman(a, b + a, [cause]) > 0.5

    def test_partial_with_layers_useless_and_missing_covariates(self):
        a, b = normal(3, 25), normal(3, 25, seed=1)
        position, constant = normal(25, seed=2)[None], np.ones((1, 25))
        plain = partial_spearman(a, b, [position])
        assert partial_spearman(a, b, [position, position, constant]) == pytest.approx(plain)
        a[1, 4] = np.nan
        keep = np.delete(np.arange(25), 4)
        found = partial_spearman(a, b, [position])
        assert found[[0, 2]] == pytest.approx(plain[[0, 2]])
        assert found[1] == pytest.approx(partial_spearman(a[1, keep], b[1, keep], [position[0, keep]]))

    def test_partial_is_undefined_where_a_covariate_says_it_all(self):
        a, b = normal(2, 20)
        assert np.isnan(partial_spearman(a, b, [np.exp(a)]))
        assert np.isnan(partial_spearman(a[:2], b[:2], [b[:2]]))
        assert np.isnan(partial_spearman(a[:2], b[:2], [np.ones(2)])), "two rows are always on a line"

    def test_partial_takes_what_rounding_leaves_for_nothing(self):
        a, b, c, d = normal(4, 50, 20)
        for explained in ((a, b), (b, a)):
            assert np.isnan(partial_spearman(*explained, [c, np.exp(a), d])).all()

    def test_fisher_mean(self):
        rho = np.array([[0.2, 0.9], [0.5, 0.5]])
        assert fisher_mean(rho)[0] == pytest.approx(np.tanh((np.arctanh(0.2) + np.arctanh(0.9)) / 2))
        assert fisher_mean(rho)[1] == pytest.approx(0.5)
        assert fisher_mean(np.array([1.0, 1.0])) == pytest.approx(1.0)
        assert np.isnan(fisher_mean(np.array([0.3, np.nan])))


def test_constants_are_no_public_names() -> None:
    assert not [name for name in inference.__all__ if name.isupper()]
    with pytest.warns(DeprecationWarning, match=r"use probe\.inference\.ranks\.LARGEST_RHO$"):
        assert inference.LARGEST_RHO == 1 - 1e-12
