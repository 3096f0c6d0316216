"""Each claim on dynamics, on small Datasets in which the answer was planted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from probe.analyses.dynamics.claims import ROWS, claims
from probe.analyses.dynamics.config import Config, Thresholds
from probe.analyses.dynamics.figures import figures
from probe.claims import Claim
from probe.claims.evidence import Table
from tests.plant.dynamics import CHOSEN, DOCUMENTS, IDENTITY, LAYERS, NULL_WHOLE, WHOLE, WIDTH, dataset
from tests.plant.judging import at, by_name, claim_named, shown

CLAIMS = ("gradient", "late_symmetric", "bottleneck", "learned", "nonnormal_origin", "linear_holds")


def judged(data: xr.Dataset, row: str, **thresholds: float) -> Claim:
    return claim_named(Table(data, replace(Thresholds(), **thresholds), seed=0, resamples=40), ROWS, row)


def plant_curve(data: xr.Dataset, score: str, curve: list[float], variants: tuple[str, ...] = ("model",)) -> None:
    for variant in variants:
        view = at(data, score, variant=variant, matrix="K")
        view[:] = np.asarray(curve)[:, None] + 0.005 * np.random.default_rng(1).normal(size=view.shape)


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
        assert claim.n_units == DOCUMENTS

    def test_estimates_are_the_planted_ones(self, planted: dict[str, Claim]):
        inner = np.linspace(0.9, 0.25, LAYERS)[1:-1]
        drop = inner[:2].mean() - inner[-2:].mean()
        expected = {
            "gradient": -1.0,
            "late_symmetric": np.linspace(0.65, 0.1, LAYERS)[-2:].mean(),
            "bottleneck": WHOLE["model"],
            "learned": drop,
            "nonnormal_origin": 1
            - math.log(NULL_WHOLE["norm_matched"] / NULL_WHOLE["schur_shuffle"])
            / math.log(NULL_WHOLE["norm_matched"] / WHOLE["model"]),
            "linear_holds": 0.4,
        }
        for row, value in expected.items():
            assert planted[row].estimate == pytest.approx(value, rel=0.08, abs=0.02), row

    def test_the_unit_says_where_seeds_were_resampled(self, planted: dict[str, Claim]):
        over_seeds = {row for row, claim in planted.items() if claim.unit == "documents × seeds"}
        assert over_seeds == {"late_symmetric", "bottleneck", "learned"}

    def test_first_and_last_block_are_named_apart(self, planted: dict[str, Claim]):
        claim = planted["gradient"]
        assert shown(claim, "Henrici departure of K, first block") == pytest.approx(0.9, abs=0.02)
        assert shown(claim, "Henrici departure of K, last block") == pytest.approx(0.25, abs=0.02)
        assert shown(planted["late_symmetric"], "last block by itself") == pytest.approx(0.1, abs=0.02)

    def test_every_null_and_control_is_shown(self, planted: dict[str, Claim]):
        bottleneck = planted["bottleneck"]
        assert bottleneck.null["estimate"] == pytest.approx(NULL_WHOLE["norm_matched"], rel=0.1)
        assert shown(bottleneck, "shuffled depth") == pytest.approx(NULL_WHOLE["shuffled_depth"], rel=0.1)
        assert shown(bottleneck, "fresh initialisation") == pytest.approx(WHOLE["init"], rel=0.1)
        assert shown(bottleneck, "effective rank") == pytest.approx(1.5 * WHOLE["model"], rel=0.1)
        assert shown(bottleneck, "share of ‖C‖² that the identity has") == IDENTITY
        names = " ".join(control["name"] for control in planted["nonnormal_origin"].controls)
        assert all(word in names for word in ("schur_normal of Kᵀ", "rotated K", "J symmetrised", "antisymmetric"))
        names = " ".join(control["name"] for control in planted["linear_holds"].controls)
        assert all(word in names for word in ("direction singular", "horizon 8", "horizon all"))


class TestGradient:
    def test_a_flat_score_is_not_a_gradient(self):
        data = dataset()
        plant_curve(data, "henrici_departure", [0.9, *np.linspace(0.4, 0.5, LAYERS - 2), 0.2])
        claim = judged(data, "gradient")  # the ends fall, what lies between them rises
        assert claim.verdict == "not supported", claim.reason
        assert claim.estimate == pytest.approx(1.0)

    def test_the_slower_of_the_two_scores_decides(self):
        data = dataset()
        plant_curve(data, "antisymmetric_fraction", [0.6, *np.linspace(0.4, 0.5, LAYERS - 2), 0.2])
        assert judged(data, "gradient").verdict == "not supported"

    def test_a_trend_with_steps_up_is_what_a_random_order_reaches(self):
        data = dataset()
        curve = [0.9, 0.7, 0.8, 0.5, 0.6, 0.3, 0.4, 0.1, 0.05]
        plant_curve(data, "henrici_departure", curve)
        claim = judged(data, "gradient")
        assert claim.verdict == "mechanical", claim.reason
        assert "share of falling steps" in claim.reason
        # six of the inner steps: three fall; a random order of seven reaches 0.5 + 2 sqrt(8/12)/6
        assert shown(claim, "share of falling steps, the smaller") == pytest.approx(0.5)
        assert claim.null["estimate"] == pytest.approx(0.5 + 2 * math.sqrt(8 / 12) / 6)

    def test_the_states_own_scores_decide_nothing(self):
        data = dataset()
        for score in ("henrici_departure", "antisymmetric_fraction"):
            at(data, score, variant="model", matrix="J")[:] = np.linspace(0, 1, LAYERS)[:, None]
        claim = judged(data, "gradient")
        assert claim.verdict == "supported"
        assert shown(claim, "ρ, Henrici departure of J (does not decide)") == pytest.approx(1.0)

    def test_documents_that_disagree_leave_it_open(self):
        data = dataset()
        view = at(data, "henrici_departure", variant="model", matrix="K")
        view[:, ::3] = view[::-1, ::3]
        view += 0.4 * np.random.default_rng(3).normal(size=view.shape)
        claim = judged(data, "gradient")
        assert claim.verdict == "inconclusive", claim.reason
        assert -1 <= claim.ci_low <= claim.ci_high <= 1

    def test_four_layers_have_no_gradient(self):
        claim = judged(dataset(layers=4), "gradient")
        assert (claim.verdict, claim.reason[:10]) == ("inconclusive", "a gradient")


class TestLateSymmetric:
    def test_rotating_to_the_end(self):
        data = dataset()
        plant_curve(data, "antisymmetric_fraction", [0.7] * LAYERS)
        assert judged(data, "late_symmetric").verdict == "not supported"

    def test_symmetric_from_the_start_is_mechanical(self):
        data = dataset()
        plant_curve(data, "antisymmetric_fraction", [0.1] * LAYERS, tuple(f"init-{seed}" for seed in range(5)))
        claim = judged(data, "late_symmetric")
        assert claim.verdict == "mechanical", claim.reason
        assert "fresh initialisation" in claim.reason

    def test_four_seeds_are_too_few(self):
        claim = judged(dataset(seeds=4), "late_symmetric")
        assert claim.verdict == "inconclusive"
        assert "only 4 fresh initialisations: 5 are needed" in claim.reason


class TestBottleneck:
    def test_many_directions_left(self):
        data = dataset()
        at(data, "product_participation_ratio", variant="model")[-1] = 0.3 * WIDTH
        assert judged(data, "bottleneck").verdict == "not supported"

    @pytest.mark.parametrize("control", ["norm", "init"])
    def test_a_control_that_collapses_too(self, control: str):
        data = dataset()
        own = at(data, "product_participation_ratio", variant="model")
        if control == "norm":
            at(data, "null_participation_ratio", null="norm_matched")[:] = own * 1.0001 ** np.resize([1, -1], own.shape)
        else:
            for seed in range(5):
                at(data, "product_participation_ratio", variant=f"init-{seed}")[:] = own * 1.01 ** (seed - 2)
        claim = judged(data, "bottleneck")
        assert claim.verdict == "mechanical", claim.reason
        assert {"norm": "norm-matched", "init": "initialisation"}[control] in claim.reason

    def test_the_identity_stands_beside_every_rank(self):
        captions = {figure.name: figure.caption for figure in figures(dataset(), Config())}
        for name, part in {"size": "25.0% of ‖J‖²", "bottleneck": "25.0% of ‖C‖²", "directions": "of ‖C‖²"}.items():
            assert part in captions[name], name

    def test_seeds_that_disagree_widen_the_contrast(self):
        data = dataset()
        for seed, factor in enumerate((1e-4, 1e-2, 1, 1, 1)):
            at(data, "product_participation_ratio", variant=f"init-{seed}")[:] *= factor
        claim = judged(data, "bottleneck")
        assert claim.verdict == "mechanical"
        contrast = next(c for c in claim.controls if c["name"] == "Δ log to fresh initialisation")
        assert contrast["ci_high"] - contrast["ci_low"] > 5


class TestLearned:
    def test_shuffled_weights_that_do_it_too_make_it_mechanical(self):
        data = dataset()
        for score in ("henrici_departure", "antisymmetric_fraction"):
            at(data, score, variant="shuffled-0", matrix="K")[:] = at(data, score, variant="model", matrix="K")
        at(data, "product_participation_ratio", variant="shuffled-0")[:] = at(
            data, "product_participation_ratio", variant="model"
        )
        claim = judged(data, "learned")
        assert claim.verdict == "mechanical", claim.reason
        assert "shuffled weights" in claim.reason

    def test_a_steeper_fall_at_initialisation_refutes(self):
        data = dataset()
        for seed in range(5):
            plant_curve(data, "henrici_departure", np.linspace(0.95, 0.05, LAYERS).tolist(), (f"init-{seed}",))
        claim = judged(data, "learned")
        assert claim.verdict == "not supported", claim.reason
        assert claim.estimate < 0

    def test_a_bottleneck_at_initialisation_refutes(self):
        data = dataset()
        for seed in range(5):
            at(data, "product_participation_ratio", variant=f"init-{seed}")[:] = 1.0
        claim = judged(data, "learned")
        assert claim.verdict == "not supported"
        assert "log participation ratio" in claim.reason

    def test_four_seeds_are_too_few(self):
        assert "5 are needed" in judged(dataset(seeds=4), "learned").reason

    def test_without_controls_it_says_so(self):
        data = dataset(seeds=0)
        assert "--init-seeds" in judged(data, "learned").reason


class TestNonnormalOrigin:
    def test_a_bottleneck_that_survives_the_shuffle(self):
        data = dataset()
        own = at(data, "product_participation_ratio", variant="model")
        first = np.isfinite(at(data, "null_participation_ratio", null="schur_shuffle"))
        at(data, "null_participation_ratio", null="schur_shuffle")[:] = np.where(first, 1.1 * own, np.nan)
        claim = judged(data, "nonnormal_origin")
        assert claim.verdict == "not supported", claim.reason

    def test_without_a_bottleneck_there_is_nothing_to_dissolve(self):
        data = dataset()
        view = at(data, "null_participation_ratio", null="norm_matched")
        view[:] = WHOLE["model"] * WIDTH * np.exp(0.2 * np.random.default_rng(0).normal(size=view.shape))
        claim = judged(data, "nonnormal_origin")
        assert claim.verdict == "inconclusive"
        assert "no bottleneck beyond norm-matched" in claim.reason

    def test_the_schur_normal_family_is_shown_but_does_not_decide(self):
        data = dataset()
        for null in ("schur_normal_matched", "schur_normal_transposed", "schur_normal_rotated"):
            at(data, "null_participation_ratio", null=null)[:] = 0.02 * WIDTH
        claim = judged(data, "nonnormal_origin")
        assert claim.verdict == "supported"
        assert shown(claim, "dissolved by schur_normal of Kᵀ") == pytest.approx(0.0, abs=0.05)

    def test_halfway_is_open(self):
        data = dataset()
        half = math.sqrt(NULL_WHOLE["norm_matched"] * WHOLE["model"]) * WIDTH
        view = at(data, "null_participation_ratio", null="schur_shuffle")
        view[:] = half * np.exp(0.1 * np.random.default_rng(0).normal(size=view.shape))
        assert judged(data, "nonnormal_origin").verdict == "inconclusive"


class TestLinearHolds:
    def test_a_map_that_fails_at_small_steps(self):
        data = dataset()
        data["epsilon_at_tenth"] *= 0.05
        assert judged(data, "linear_holds").verdict == "not supported"

    def test_the_horizon_of_one_block_decides(self):
        data = dataset()
        for horizon in ("2", "4", "8", "all"):
            at(data, "epsilon_at_tenth", horizon=horizon)[:] *= 1e-3
        claim = judged(data, "linear_holds")
        assert claim.verdict == "supported"
        assert shown(claim, "horizon 4") < 1e-3

    def test_all_directions_count(self):
        data = dataset()
        at(data, "epsilon_at_tenth", direction="singular", horizon="1")[:] *= 1e-4
        claim = judged(data, "linear_holds")  # the geometric mean falls tenfold
        assert claim.estimate == pytest.approx(0.04, rel=0.1)
        assert claim.verdict == "not supported"


@pytest.mark.parametrize("row", CLAIMS)
def test_eleven_documents_decide_nothing(row: str):
    claim = judged(dataset(documents=11), row)
    assert claim.verdict == "inconclusive"
    assert "only 11 documents: 12 are needed" in claim.reason


class TestFewerDocumentsThanTheRun:
    """What costs much is measured in some windows only: the documents of these are what a claim rests on."""

    def test_the_documents_with_the_control_are_counted(self):
        data = dataset()
        data["null_participation_ratio"][..., 12 * CHOSEN :] = np.nan
        claim = judged(data, "nonnormal_origin")
        assert (claim.verdict, claim.n_units) == ("supported", 12)
        assert judged(data, "bottleneck").n_units == DOCUMENTS

    @pytest.mark.parametrize("row", ["bottleneck", "nonnormal_origin"])
    def test_products_in_eleven_documents_decide_nothing(self, row: str):
        data = dataset()
        data["null_participation_ratio"][..., 11 * CHOSEN :] = np.nan
        claim = judged(data, row)
        assert (claim.verdict, claim.reason) == ("inconclusive", "only 11 documents: 12 are needed for a verdict")

    @pytest.mark.parametrize("row", ["late_symmetric", "bottleneck", "learned"])
    def test_fresh_weights_in_eleven_documents_decide_nothing(self, row: str):
        data = dataset()
        fresh = [str(name).startswith("init-") for name in data["variant"].values]
        for variable in ("antisymmetric_fraction", "henrici_departure", "product_participation_ratio"):
            data[variable].values[fresh, ..., 11 * CHOSEN :] = np.nan
        claim = judged(data, row)
        assert (claim.verdict, claim.reason) == ("inconclusive", "only 11 documents: 12 are needed for a verdict")

    def test_a_contrast_compares_the_tokens_of_the_control(self):
        """The model's other positions are no part of a contrast with controls that were not measured there."""
        data = dataset()
        other = np.arange(data.sizes["query"]) % CHOSEN == 1
        at(data, "antisymmetric_fraction", variant="model", matrix="K")[:, other] = 0.0
        claim = judged(data, "late_symmetric")
        contrast = next(c for c in claim.controls if c["role"] == "deciding contrast")
        assert contrast["estimate"] == pytest.approx(np.linspace(0.65, 0.1, LAYERS)[-2:].mean() - 0.7, abs=0.02)


@pytest.mark.parametrize(
    ("row", "variable"),
    [
        ("gradient", "antisymmetric_fraction"),
        ("late_symmetric", "antisymmetric_fraction"),
        ("bottleneck", "null_participation_ratio"),
        ("learned", "product_participation_ratio"),
        ("nonnormal_origin", "null_participation_ratio"),
        ("linear_holds", "epsilon_at_tenth"),
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
        ("gradient", "threshold_gradient", -1.5),
        ("late_symmetric", "threshold_late_symmetric", 0.01),
        ("bottleneck", "threshold_bottleneck", 0.01),
        ("learned", "threshold_learned", 0.9),
        ("nonnormal_origin", "threshold_nonnormal_origin", 0.99),
        ("linear_holds", "threshold_linear_holds", 0.9),
    ],
)
def test_thresholds_stand_in_the_configuration(row: str, threshold: str, value: float):
    claim = judged(dataset(), row, **{threshold: value})
    assert claim.verdict == "not supported", claim.reason
    assert claim.threshold == value
