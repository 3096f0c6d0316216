"""Each claim on the lens, on small Datasets in which the answer was planted, and the means that they rest on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from probe.analyses.lens import claims as judging
from probe.analyses.lens.claims import ROWS, claims
from probe.analyses.lens.config import Config, Thresholds
from probe.analyses.lens.figures import figures
from probe.analyses.lens.means import Distances, Participation, between_share, curve, jackknife, masked
from probe.analyses.lens.panels import participation, rank_above_noise
from probe.claims import Claim
from tests.plant.judging import at, by_name, shown
from tests.plant.lens import (
    ALPHA,
    COSINE,
    DOCUMENTS,
    FITTED,
    KL,
    LAYERS,
    WIDTH,
    dataset,
    grams,
    matrices,
    plant_fits,
    plant_means,
    quartics,
    without_trace,
)

CLAIMS = ("stable", "reads", "own_context", "corpus", "learned", "causal")
KINDS = ("init", "shuffled", "blocks")


def judged(data: xr.Dataset, row: str, **thresholds: float) -> Claim:
    config = replace(Config(), thresholds=replace(Thresholds(), **thresholds))
    chosen = [one for one in ROWS if one.sentence.id == f"lens.{row}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "ROWS", chosen)
        (claim,) = claims(data, config, resamples=40)
    return claim


@pytest.fixture(scope="module", autouse=True)
def few_permutations():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "PERMUTATIONS", 99)
        yield


@pytest.fixture(scope="module")
def planted() -> dict[str, Claim]:
    return by_name(claims(dataset(), Config(), resamples=60))


class TestSupported:
    def test_every_row_is_there_once_in_order(self, planted: dict[str, Claim]):
        assert tuple(planted) == CLAIMS

    @pytest.mark.parametrize("row", CLAIMS)
    def test_supported(self, planted: dict[str, Claim], row: str):
        claim = planted[row]
        assert claim.verdict == "supported", claim.reason
        assert claim.ci_low <= claim.estimate <= claim.ci_high

    def test_estimates_are_the_planted_ones(self, planted: dict[str, Claim]):
        noise = 0.3 * math.sqrt(2 / FITTED)  # of two means of fits, beside a mean of norm 1
        expected = {
            "stable": noise,
            "reads": KL["logit"] - KL["jacobian"],
            "own_context": COSINE["own"] - COSINE["first"],
            "corpus": 0.0,
            "learned": math.log(2 / WIDTH),
        }
        for row, value in expected.items():
            assert planted[row].estimate == pytest.approx(value, rel=0.08, abs=0.02), row

    def test_documents_are_those_that_a_claim_rests_on(self, planted: dict[str, Claim]):
        units = {row: claim.n_units for row, claim in planted.items()}
        read = dict.fromkeys(("reads", "own_context", "causal"), DOCUMENTS)
        assert units == read | {"stable": 2 * FITTED, "corpus": 3 * FITTED, "learned": 12}

    def test_what_stands_beside(self, planted: dict[str, Claim]):
        stable = planted["stable"]
        assert shown(stable, "slope of log distance") == pytest.approx(-0.5, abs=0.06)
        assert shown(stable, "J itself") < 0.3 * stable.estimate  # the identity is in both
        share = ALPHA**2 * WIDTH / (ALPHA**2 * WIDTH + 1)
        for row in ("stable", "learned"):
            assert shown(planted[row], "share of ‖J‖² that the identity has") == pytest.approx(share, abs=0.01)
        learned = planted["learned"]
        assert shown(learned, "participation ratio, the model") == pytest.approx(2, rel=0.1)
        assert shown(learned, "participation ratio, shuffled") == pytest.approx(WIDTH, rel=0.1)
        assert shown(planted["reads"], "KL, tuned") == pytest.approx(KL["tuned"], rel=0.1)
        assert planted["own_context"].null["estimate"] == pytest.approx(0.0095, rel=0.3)  # .01 √2 · .674
        assert planted["causal"].null["estimate"] < shown(planted["causal"], "ρ along logit-lens")


class TestStable:
    def test_documents_that_disagree(self):
        data = dataset()
        plant_fits(data, matrices(np.random.default_rng(1), 3 * FITTED, noise=3.0))
        claim = judged(data, "stable")
        assert claim.verdict == "not supported", claim.reason

    def test_the_identity_makes_no_lens_stable(self):
        """J is dominated by α I and looks stable; M is not."""
        data = dataset()
        plant_fits(data, matrices(np.random.default_rng(1), 3 * FITTED, noise=3.0))
        assert shown(judged(data, "stable"), "J itself") < 0.3

    def test_a_third_fit_does_not_count(self):
        data = dataset()
        found = matrices(np.random.default_rng(2), 3 * FITTED)
        plant_fits(data, found)
        before = judged(data, "stable").estimate
        found[:, 2 * FITTED :] *= 50
        plant_fits(data, found)
        assert judged(data, "stable").estimate == before

    def test_eleven_documents_in_a_fit_decide_nothing(self):
        claim = judged(dataset(fitted=11, controlled=11), "stable")
        assert (claim.verdict, claim.reason) == (
            "inconclusive",
            "only 11 documents in a fit: 12 are needed for a verdict",
        )


class TestReads:
    def test_a_lens_that_reads_no_more_than_the_logit_lens(self):
        data = dataset()
        at(data, "kl", lens="logit")[:] = 0.4
        assert judged(data, "reads").verdict == "not supported"

    @pytest.mark.parametrize(("control", "words"), [("displaced", "another layer"), ("blocks", "fresh blocks")])
    def test_a_control_that_reads_as_well(self, control: str, words: str):
        data = dataset()
        noise = np.random.default_rng(3).normal(size=at(data, "kl", lens=control).shape)
        at(data, "kl", lens=control)[:] = at(data, "kl", lens="jacobian") + 0.1 * noise
        claim = judged(data, "reads")
        assert claim.verdict == "mechanical", claim.reason
        assert words in claim.reason

    def test_the_last_third_does_not_count(self):
        data = dataset()
        at(data, "kl", lens="logit")[2 * LAYERS // 3 :] = 0.0
        claim = judged(data, "reads")
        assert claim.estimate == pytest.approx(KL["logit"] - KL["jacobian"], rel=0.05)
        at(data, "kl", lens="logit")[2 * LAYERS // 3 - 1] = 0.0
        assert judged(data, "reads").estimate == pytest.approx(0.75 * KL["logit"] - KL["jacobian"], rel=0.05)

    def test_without_fresh_blocks_nothing_is_decided(self):
        data = dataset()
        at(data, "kl", lens="blocks")[:] = np.nan
        claim = judged(data, "reads")
        assert claim.verdict == "inconclusive"
        assert "fresh blocks" in claim.reason


class TestOwnContext:
    def test_a_context_that_adds_nothing(self):
        data = dataset()
        at(data, "cosine", predictor="own")[:] = at(data, "cosine", predictor="first") + 0.01
        assert judged(data, "own_context").verdict == "not supported"

    def test_fits_that_differ_as_much(self):
        """Half the positions gain by the second fit what the others lose: the median difference is 0, its size not."""
        data = dataset()
        view = at(data, "cosine", predictor="second")
        view += np.where(np.arange(view.shape[-1]) // 2 % 2, 0.24, -0.24)
        claim = judged(data, "own_context")
        assert claim.verdict == "mechanical", claim.reason
        assert "refit floor" in claim.reason

    def test_later_positions_are_no_context(self):
        """The mean at the source's own position predicts as well: what failed was the sum over later ones."""
        data = dataset()
        at(data, "cosine", predictor="same")[:] = at(data, "cosine", predictor="own")
        claim = judged(data, "own_context")
        assert claim.verdict == "mechanical", claim.reason
        assert "own position" in claim.reason

    def test_a_lens_of_the_same_position_needs_no_second_one(self):
        data = dataset().assign_attrs(targets="same")
        at(data, "cosine", predictor="same")[:] = np.nan
        assert judged(data, "own_context").verdict == "supported"
        assert judged(data.assign_attrs(targets="later"), "own_context").verdict == "inconclusive"


class TestCorpus:
    def test_a_text_that_matters(self):
        data = dataset()
        rng = np.random.default_rng(4)
        found = matrices(rng, 3 * FITTED)
        found[:, 2 * FITTED :] += without_trace(rng.normal(size=(LAYERS, 1, WIDTH, WIDTH)) / WIDTH)
        plant_fits(data, found)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(judging, "PERMUTATIONS", 199)
            claim = judged(data, "corpus")
        assert claim.verdict == "not supported", claim.reason
        # σ²(corpora) is half the square of a distance of norm 1, σ²(documents) .09
        assert claim.estimate == pytest.approx(0.5 / (0.5 + 0.09), rel=0.1)
        assert claim.null["estimate"] == 1 / 200
        assert claim.statistic.endswith(" are different")

    def test_one_text_is_not_told_apart(self, planted: dict[str, Claim]):
        assert planted["corpus"].null["estimate"] > 0.01
        assert planted["corpus"].statistic.endswith("not told apart")

    def test_without_a_second_text_it_says_so(self):
        data = dataset().isel(fitted=slice(0, 2 * FITTED), fitted_other=slice(0, 2 * FITTED))
        claim = judged(data, "corpus")
        assert claim.verdict == "inconclusive"
        assert "other fit" in claim.reason
        assert "corpora" not in {figure.name for figure in figures(data, Config())}
        assert judged(data, "stable").verdict == "supported"

    def test_eleven_documents_of_a_corpus_decide_nothing(self):
        claim = judged(dataset().isel(fitted=slice(0, -3), fitted_other=slice(0, -3)), "corpus")
        assert "only 11 documents of a corpus" in claim.reason


class TestLearned:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_kind_of_control_decides(self, kind: str):
        data, rng = dataset(), np.random.default_rng(5)
        for seed in range(5):
            plant_means(data, f"{kind}-{seed}", matrices(rng, 12, rank=1))
        claim = judged(data, "learned")
        assert claim.verdict == "not supported", claim.reason
        assert judging.CONTROLS[kind] in claim.reason

    def test_seeds_that_disagree_leave_it_open(self):
        data, rng = dataset(), np.random.default_rng(6)
        for seed, rank in enumerate((1, 1, 2, 5, 10)):
            plant_means(data, f"init-{seed}", matrices(rng, 12, rank=rank))
        assert judged(data, "learned").verdict == "inconclusive"

    def test_four_seeds_are_too_few(self):
        reason = judged(dataset(seeds=4), "learned").reason
        assert all(f"only 4 seeds of {words}" in reason for words in judging.CONTROLS.values())

    def test_without_a_control_it_says_so(self):
        assert "--init-seeds" in judged(dataset(seeds=0), "learned").reason

    def test_eleven_documents_decide_nothing(self):
        assert "only 11 documents" in judged(dataset(controlled=11), "learned").reason


class TestCausal:
    def test_directions_that_do_not_say(self):
        data = dataset()
        at(data, "measured", direction="lens")[:] = np.random.default_rng(7).normal(
            size=at(data, "measured", direction="lens").shape
        )
        assert judged(data, "causal").verdict == "not supported"

    @pytest.mark.parametrize("control", ["logit", "random"])
    def test_directions_that_say_as_much(self, control: str):
        data = dataset()
        for name in ("predicted", "measured"):
            at(data, name, direction=control)[:] = at(data, name, direction="lens")
        claim = judged(data, "causal")
        assert claim.verdict == "mechanical", claim.reason
        assert control in claim.reason

    def test_a_scale_between_documents_is_no_prediction(self):
        """Documents that move more by themselves would correlate over all, and do not inside each."""
        data = dataset()
        rng, view = np.random.default_rng(8), at(data, "measured", direction="lens")
        shift = 10.0 * (np.arange(view.shape[-1]) // 2)
        at(data, "predicted", direction="lens")[:] = rng.normal(size=view.shape) + shift
        view[:] = rng.normal(size=view.shape) + shift
        assert abs(judged(data, "causal").estimate) < 0.1


@pytest.mark.parametrize("row", ["reads", "own_context", "causal"])
def test_eleven_held_out_documents_decide_nothing(row: str):
    claim = judged(dataset(documents=11), row)
    assert (claim.verdict, claim.reason) == ("inconclusive", "only 11 documents: 12 are needed for a verdict")


@pytest.mark.parametrize("row", ["stable", "corpus", "learned"])
def test_claims_on_fits_need_no_held_out_documents(row: str):
    assert judged(dataset(documents=5), row).verdict == "supported"


@pytest.mark.parametrize(
    ("row", "variable"),
    [
        ("stable", "gram"),
        ("reads", "kl"),
        ("own_context", "cosine"),
        ("corpus", "gram"),
        ("learned", "quartic"),
        ("causal", "measured"),
    ],
)
def test_what_was_not_measured_is_named(row: str, variable: str):
    claim = judged(dataset().drop_vars(variable), row)
    assert claim.verdict == "inconclusive"
    assert variable in claim.reason
    assert math.isnan(claim.estimate)


@pytest.mark.parametrize(
    ("row", "threshold", "value"),
    [
        ("stable", "threshold_stable", 0.01),
        ("reads", "threshold_reads", 3.0),
        ("own_context", "threshold_own_context", 0.5),
        ("corpus", "threshold_corpus", -0.5),
        ("learned", "threshold_learned", -5.0),
        ("causal", "threshold_causal", 0.99),
    ],
)
def test_thresholds_stand_in_the_configuration(row: str, threshold: str, value: float):
    claim = judged(dataset(), row, **{threshold: value})
    assert claim.verdict == "not supported", claim.reason
    assert claim.threshold == value


def coverage(trials: int, n: int, apart: float, seed: int) -> float:
    """How often the interval of a distance of fits holds the mean distance of such fits, of unequal spectra."""
    rng, spectrum, d = np.random.default_rng(seed), 0.6 * np.arange(1, 26) ** -0.7, 25
    groups = [list(range(n)), list(range(n, 2 * n))]

    def distances() -> Distances:
        rows = spectrum * rng.normal(size=(2 * n, d))
        rows[:, 0] += 1
        rows[n:, 1] += apart
        return Distances((rows @ rows.T)[None])

    def distance(found: Distances, weights: np.ndarray) -> float:
        return float(found.between(masked(weights, groups[0]), masked(weights, groups[1])).mean())

    whole = np.ones(2 * n)
    truth = np.mean([distance(distances(), whole) for _ in range(500)])
    covered = 0
    for _ in range(trials):
        drawn = distances()
        found = jackknife(lambda weights, of=drawn: distance(of, weights), groups, 2 * n)
        covered += found.low <= truth <= found.high
    return covered / trials


class TestJackknife:
    def test_of_a_difference_of_means_it_is_the_t_interval_of_two_samples(self):
        x, y = np.random.default_rng(0).normal(size=(2, 9))

        def difference(weights: np.ndarray) -> float:
            one, other = weights[:9], weights[9:18]
            return float(x @ one / one.sum() - y @ other / other.sum())

        found = jackknife(difference, [list(range(9)), list(range(9, 18))], 20)
        expected = stats.ttest_ind(x, y).confidence_interval(0.95)  # equal numbers: pooled and not are the same
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.n_units == 18

    def test_of_arrays_it_is_that_of_each(self):
        x = np.random.default_rng(1).normal(size=(10, 3))
        found = jackknife(lambda weights: weights @ x / weights.sum(), [range(10)], 10)
        assert found.high == pytest.approx(stats.t.interval(0.95, 9, x.mean(0), stats.sem(x))[1])

    def test_it_covers_distances_of_fits_that_differ_at_the_nominal_rate(self):
        trials = 120
        low, high = stats.binom.interval(0.999, trials, 0.94)
        assert low / trials <= coverage(trials, 12, 1.0, seed=1) <= high / trials

    def test_it_covers_distances_of_fits_that_do_not_differ_at_least_as_often(self):
        assert coverage(120, 12, 0.0, seed=1) >= stats.binom.ppf(0.0005, 120, 0.95) / 120

    @pytest.mark.study
    @pytest.mark.parametrize("n", [12, 24])
    def test_it_covers_in_many_trials(self, n: int):
        assert 0.925 <= coverage(2000, n, 1.0, seed=2) <= 0.965
        assert 0.94 <= coverage(2000, n, 0.0, seed=2) <= 1.0


class TestMeans:
    def test_distances_are_those_of_the_means(self):
        found = matrices(np.random.default_rng(0), 7)
        one, other = np.array([1.0, 1, 0, 2, 0, 0, 0]), np.array([0.0, 0, 1, 0, 1, 1, 1])
        means = [np.average(found, axis=1, weights=weights) for weights in (one, other)]
        norms = [np.linalg.norm(mean, axis=(-2, -1)) for mean in (*means, means[0] - means[1])]
        distance = Distances(grams(found)).between(one, other)
        np.testing.assert_allclose(distance, norms[2] / np.sqrt(norms[0] * norms[1]))

    def test_the_curve_doubles_and_ends_with_all(self):
        found = matrices(np.random.default_rng(0), 13)
        sizes, values = curve(Distances(grams(found)), list(range(6)), list(range(6, 13)))
        assert sizes == [1, 2, 4, 6]
        means = [found[:, :4].mean(1), found[:, 6:10].mean(1)]
        norms = [np.linalg.norm(mean, axis=(-2, -1)) for mean in (*means, means[0] - means[1])]
        np.testing.assert_allclose(values[2], norms[2] / np.sqrt(norms[0] * norms[1]))

    def test_participation_is_that_of_the_weighted_means_singular_values(self):
        found = matrices(np.random.default_rng(1), 5)
        of = Participation(*quartics(found))
        assert of.documents == 5
        for weights in (np.ones(5), np.array([3.0, 0, 1, 1, 2]), np.array([0, 1.0, 1, 1, 1])):
            squares = np.linalg.svd(np.average(found, axis=1, weights=weights), compute_uv=False) ** 2
            expected = 2 * np.log(squares.sum(-1)) - np.log((squares**2).sum(-1))
            np.testing.assert_allclose(of(weights), expected, rtol=1e-9)

    def test_two_draws_of_one_corpus_share_no_variance(self):
        rng = np.random.default_rng(2)
        rows = rng.normal(size=(30, 4000))
        share = between_share((rows @ rows.T)[None], np.ones(30), list(range(20)), list(range(20, 30)))
        assert share[0] == pytest.approx(0.0, abs=0.01)  # without the correction (1/20 + 1/10)/2 = .075

    def test_a_planted_half_is_recovered(self):
        rng = np.random.default_rng(3)
        rows = rng.normal(size=(14, 8000))
        rows[:10] += rng.normal(size=8000)
        rows[10:] += rng.normal(size=8000)
        share = between_share((rows @ rows.T)[None], np.ones(14), list(range(10)), list(range(10, 14)))
        assert share[0] == pytest.approx(0.5, abs=0.015)

    def test_left_out_documents_do_not_count(self):
        rng = np.random.default_rng(4)
        rows = rng.normal(size=(9, 50))
        kept = np.array([0, 1, 2, 4, 5, 6, 8])
        weights = masked(np.ones(9), kept.tolist())
        whole = between_share((rows @ rows.T)[None], weights, [0, 1, 2, 3], [4, 5, 6, 7, 8])
        fewer = rows[kept]
        expected = between_share((fewer @ fewer.T)[None], np.ones(7), [0, 1, 2], [3, 4, 5, 6])
        np.testing.assert_allclose(whole, expected)


def test_a_p_of_the_corpora_is_no_smaller_than_it_says_where_there_is_one_corpus():
    """Of 40 runs of one text, no more have p ≤ .1 and p ≤ .3 than chance gives, and they are not all large."""
    data, found = dataset()[["gram"]].isel(source=[0]), []
    for seed in range(40):
        one = data.copy(deep=True)
        plant_fits(one, matrices(np.random.default_rng(seed), 3 * FITTED, layers=1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(judging, "PERMUTATIONS", 19)
            found.append(judged(one, "corpus").null["estimate"])
    for level in (0.1, 0.3):
        low, high = stats.binom.interval(0.999, 40, level)
        assert low <= sum(p <= level for p in found) <= high


class TestFigures:
    def test_each_has_a_short_caption_that_says_what_was_measured_on_what(self):
        data = dataset()
        made = {figure.name: figure for figure in figures(data, Config())}
        expected = {"stable", "reads", "own-context", "ranks", "spectrum", "learned", "causal", "corpora"}
        assert set(made) == expected
        for figure in made.values():
            assert len(figure.caption.split()) <= 60, figure.name
            assert "planted-7x10" in figure.caption
            assert "documents" in figure.caption
            assert "ull" in figure.caption

    def test_the_identity_stands_beside_every_rank(self):
        made = {figure.name: figure for figure in figures(dataset(), Config())}
        table = made["ranks"].table()
        share = ALPHA**2 * WIDTH / (ALPHA**2 * WIDTH + 1)
        for text in table["identity's share of ‖J‖²"]:
            assert float(text[:-1]) / 100 == pytest.approx(share, abs=0.01)
        assert "identity's share of ‖J‖²" in made["learned"].caption
        legend = made["spectrum"].draw().legends[0].get_texts()
        assert all("identity 9" in text.get_text() for text in legend)

    def test_ranks_are_those_of_the_mean(self):
        data = dataset()
        ratio = participation(data).sel(variant="model")
        of = Participation(at(data, "quartic", variant="model"), at(data, "pair_trace", variant="model"))
        np.testing.assert_allclose(ratio, np.exp(of(np.ones(12))))
        assert rank_above_noise(data).values.tolist() == [2] * LAYERS
