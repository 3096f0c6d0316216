"""Each claim on communities, on small Datasets in which the answer was planted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from probe.analyses.communities.claims import (
    ROWS,
    Coupling,
    adjusted_p,
    agreement,
    claims,
    pooled,
    pooled_layers,
    stable_layers,
)
from probe.analyses.communities.config import Config, Thresholds
from probe.claims import Claim
from probe.claims.evidence import Table
from probe.inference import benjamini_hochberg
from tests.plant.communities import CHOSEN, DOCUMENTS, HALVES_AMI, LAYERS, WIDTH, coupling_of, dataset
from tests.plant.judging import at, by_name, claim_named, shown

CLAIMS = ("exist", "coupling", "sign", "learned", "robust")
INITS = tuple(f"init-{seed}" for seed in range(5))
BASES = ("basis-0", "basis-1")
ONES = np.ones(DOCUMENTS * CHOSEN)
EVERY = np.ones(LAYERS, dtype=bool)


def table_of(data: xr.Dataset, **thresholds: float) -> Table[Thresholds]:
    return Table(data, replace(Thresholds(), **thresholds), seed=0, resamples=8)


def judged(data: xr.Dataset, row: str, **thresholds: float) -> Claim:
    return claim_named(table_of(data, **thresholds), ROWS, row)


def plant_rho(data: xr.Dataset, curve: np.ndarray | list[float], *views: str) -> None:
    """Gains whose rank correlation with the place, given the covariates, is about the curve's, by layer."""
    for view in views or ("model",):
        place, square, given = (at(data, name, view=view) for name in ("participation", "square_gain", "covariate"))
        for layer, rho in enumerate(curve):
            x = np.argsort(np.argsort(place[layer])) / WIDTH - 0.5
            noise = np.random.default_rng(layer).permutation(WIDTH) / WIDTH
            known = np.column_stack([np.ones(WIDTH), x, given[layer].T])
            noise = noise - known @ np.linalg.lstsq(known, noise)[0]
            gain = rho * x / x.std() + np.sqrt(1 - rho**2) * noise / noise.std()
            measured = np.isfinite(square[layer])
            square[layer] = np.where(measured, np.exp(gain)[:, None], np.nan)
            square[layer] *= np.exp(0.02 * np.random.default_rng(99 + layer).normal(size=square[layer].shape))


@pytest.fixture(scope="module")
def planted() -> dict[str, Claim]:
    return by_name(claims(dataset(), Config(), resamples=20))


class TestCoupling:
    """The coupling of one layer."""

    def test_it_is_the_correlation_of_what_the_covariates_leave(self):
        data = dataset(layers=3)
        found = Coupling(data, "model", np.ones(3, dtype=bool))(ONES)
        for layer in range(3):
            square = at(data, "square_gain", view="model")[layer].mean(axis=1)
            variables = np.vstack([
                at(data, "participation", view="model")[layer],
                square,
                at(data, "covariate", view="model")[layer],
            ])
            ranks = np.array([_midranks(row) for row in variables])
            given = np.column_stack([np.ones(WIDTH), ranks[2:].T])
            left = ranks[:2].T - given @ np.linalg.lstsq(given, ranks[:2].T)[0]
            assert found[layer] == pytest.approx(np.corrcoef(left.T)[0, 1], abs=1e-9)

    def test_planted(self):
        found = Coupling(dataset(), "model", EVERY)(ONES)
        np.testing.assert_allclose(found, coupling_of(LAYERS), atol=0.12)
        assert np.abs(found - coupling_of(LAYERS)).mean() < 0.04

    def test_controls_are_read_where_they_were_measured(self):
        data = dataset()
        coupling = Coupling(data, "init-0", EVERY)
        other = ONES.copy()
        other[1::CHOSEN] = 7.0  # positions at which the control has no value
        np.testing.assert_array_equal(coupling(ONES), coupling(other))
        assert np.abs(coupling(ONES)).max() < 0.2

    def test_a_document_counts_as_often_as_it_was_drawn(self):
        data = dataset(layers=2)
        once = np.zeros(len(ONES))
        once[4] = 3.0
        expected = Coupling(data.isel(query=[4]), "model", np.ones(2, dtype=bool))(np.ones(1))
        np.testing.assert_allclose(Coupling(data, "model", np.ones(2, dtype=bool))(once), expected)

    def test_one_community_couples_nothing(self):
        data = dataset()
        at(data, "participation", view="model")[3] = 0.0
        at(data, "permuted_rho", view="model")[3] = np.nan
        coupling = Coupling(data, "model", EVERY)
        assert coupling(ONES)[3] == 0.0
        assert coupling.strength(ONES) < Coupling(dataset(), "model", EVERY).strength(ONES)
        assert adjusted_p(data)[3] == 1.0

    def test_strength_and_quantile(self):
        coupling = Coupling(dataset(), "model", EVERY)
        square, null = np.square(coupling(ONES)).mean(), np.square(coupling.permuted).mean(axis=0)
        assert coupling.strength(ONES) == pytest.approx(square - null.mean())
        assert coupling.beyond(ONES, 0.9) == pytest.approx(square - np.quantile(null, 0.9))

    def test_p_counts_both_sides_and_is_adjusted_over_layers(self):
        data = dataset()
        rho = Coupling(data, "model", EVERY)(ONES)
        null = np.abs(at(data, "permuted_rho", view="model"))
        p = (1 + (null >= np.abs(rho)[:, None]).sum(axis=1)) / (1 + null.shape[1])
        np.testing.assert_allclose(adjusted_p(data), benjamini_hochberg(p))
        assert adjusted_p(data)[-1] < 0.05  # a negative coupling is significant too

    def test_pooled_over_seeds(self):
        table = table_of(dataset())
        found = pooled(table, EVERY, INITS)
        own = Coupling(table.data.isel(query=slice(None, None, CHOSEN)), "model", EVERY)
        first = np.ones(DOCUMENTS)
        values = [Coupling(table.data, view, EVERY).strength(ONES) for view in INITS]
        assert found["A"].estimate == pytest.approx(np.mean(values))
        assert found["√A"].estimate == pytest.approx(np.mean([math.copysign(abs(v) ** 0.5, v) for v in values]))
        assert found["Δ"].estimate == pytest.approx(own.strength(first) - np.mean(values))
        assert found["Δ"].method.startswith("documents × seeds")
        single = pooled(table, EVERY, ["model"])
        assert single["mean ρ"].estimate == pytest.approx(np.tanh(np.arctanh(coupling_of(LAYERS)).mean()), abs=0.02)


def _midranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


class TestSupported:
    def test_every_row_is_there_once_in_order(self, planted: dict[str, Claim]):
        assert tuple(planted) == CLAIMS

    @pytest.mark.parametrize("row", CLAIMS)
    def test_supported(self, planted: dict[str, Claim], row: str):
        claim = planted[row]
        assert claim.verdict == "supported", claim.reason
        assert claim.ci_low <= claim.estimate <= claim.ci_high
        assert claim.n_units == (144 if row == "robust" else DOCUMENTS)

    def test_estimates_are_the_planted_ones(self, planted: dict[str, Claim]):
        square = np.square(coupling_of(LAYERS)).mean()
        expected = {
            "exist": HALVES_AMI,
            "coupling": math.sqrt(square - 1 / WIDTH),
            "sign": -1.0,
            "learned": square,  # nothing in the controls
            "robust": 1.0,
        }
        for row, value in expected.items():
            assert planted[row].estimate == pytest.approx(value, rel=0.06), row

    def test_the_unit_says_what_was_resampled(self, planted: dict[str, Claim]):
        units = {row: claim.unit for row, claim in planted.items()}
        assert units == dict.fromkeys(CLAIMS, "documents") | {"learned": "documents × seeds", "robust": "choices"}

    def test_every_control_is_shown(self, planted: dict[str, Claim]):
        coupling = planted["coupling"]
        assert coupling.null["estimate"] == pytest.approx(1 / WIDTH, rel=0.1)
        assert shown(coupling, "A in random orthogonal bases") == pytest.approx(-1 / WIDTH, abs=0.005)
        for name in ("A with K's symmetric part", "A without outlier coordinates"):
            assert shown(coupling, name) == pytest.approx(shown(coupling, "A"), rel=0.15)
        significant = int((adjusted_p(dataset()) < 0.05).sum())
        assert shown(coupling, "layers with a significant coupling") == significant > 10
        assert shown(coupling, "mean ρ") == pytest.approx(np.tanh(np.arctanh(coupling_of(LAYERS)).mean()), abs=0.02)
        assert shown(planted["sign"], "Spearman(coupling, rotation") == pytest.approx(-1.0, abs=0.05)
        assert planted["exist"].null["estimate"] == pytest.approx(0.3 + 1.64 * 0.01, abs=0.005)
        assert shown(planted["robust"], "share that agrees, method infomap") == 1.0


class TestExist:
    def test_communities_of_the_halves_that_differ(self):
        data = dataset()
        data["half_ami"] -= 0.5
        data["resampled_half_ami"] -= 0.5
        assert judged(data, "exist").verdict == "not supported"

    def test_null_graphs_of_the_same_quality(self):
        data = dataset()
        data["null_quality"] += 0.2
        claim = judged(data, "exist")
        assert claim.verdict == "mechanical", claim.reason
        assert "null graphs" in claim.reason

    def test_halves_that_agree_by_the_draw_of_documents(self):
        data = dataset()
        data["half_ami"] -= HALVES_AMI - 0.22
        data["resampled_half_ami"] += np.random.default_rng(0).normal(scale=0.2, size=20)
        assert judged(data, "exist").verdict == "inconclusive"

    def test_fewer_tokens_than_twice_the_nodes(self):
        data = dataset()
        data.attrs["n_graph_tokens"] = 2 * WIDTH - 1
        claim = judged(data, "exist")
        assert claim.verdict == "inconclusive"
        assert "twice as many are needed" in claim.reason
        data.attrs["n_graph_tokens"] = 2 * WIDTH
        assert judged(data, "exist").verdict == "supported"

    @pytest.mark.parametrize("half", ["n_graph_documents", "n_other_documents"])
    def test_the_documents_of_the_smaller_half_count(self, half: str):
        data = dataset()
        data.attrs[half] = 11
        assert judged(data, "exist").reason == "only 11 documents: 12 are needed for a verdict"

    def test_without_resamples_it_says_so(self):
        data = dataset().isel(resample=slice(0))
        assert "--graph-resamples" in judged(data, "exist").reason


class TestPooledCoupling:
    def test_no_coupling(self):
        data = dataset()
        plant_rho(data, [0.0] * LAYERS)
        claim = judged(data, "coupling")
        assert claim.verdict == "not supported", claim.reason

    def test_what_permuted_labels_reach_too(self):
        data = dataset()
        null = at(data, "permuted_rho", view="model")
        null[:, ::10] = 1.5 * np.sign(null[:, ::10]) * np.abs(coupling_of(LAYERS))[:, None]
        claim = judged(data, "coupling")  # one permutation in ten lies beyond
        assert claim.verdict == "mechanical", claim.reason
        assert "permuted within degree deciles" in claim.reason

    def test_a_coupling_in_any_basis(self):
        data = dataset()
        plant_rho(data, 1.05 * coupling_of(LAYERS), *BASES)
        claim = judged(data, "coupling")
        assert claim.verdict == "mechanical", claim.reason
        assert "random orthogonal bases" in claim.reason

    def test_neurons_have_no_other_basis(self):
        data = dataset(nodes="mlp")
        claim = judged(data, "coupling")
        assert claim.verdict == "supported", claim.reason
        assert not any("bases" in control["name"] for control in claim.controls)

    def test_without_bases_it_says_so(self):
        assert "--basis-draws" in judged(dataset(bases=0), "coupling").reason

    def test_layers_without_stable_communities_are_left_out(self):
        data = dataset()
        data["excess"][4:] = 0.1
        assert stable_layers(data, 0.2).sum() == 4
        claim = judged(data, "coupling", threshold_layers=4)
        expected = math.sqrt(np.square(coupling_of(LAYERS)[:4]).mean() - 1 / WIDTH)
        assert claim.estimate == pytest.approx(expected, rel=0.05)

    @pytest.mark.parametrize("row", ["coupling", "sign", "learned"])
    def test_too_few_stable_layers_decide_nothing(self, row: str):
        data = dataset()
        data["excess"][4:] = 0.1
        claim = judged(data, row)
        assert claim.verdict == "inconclusive"
        assert "4 of 24 layers have stable communities: 5 are needed" in claim.reason
        layers, condition = pooled_layers(table_of(data))
        assert layers.all()  # all layers are printed instead
        assert not condition.holds


class TestSign:
    def test_the_other_sign(self):
        data = dataset()
        plant_rho(data, coupling_of(LAYERS)[::-1])
        assert judged(data, "sign").verdict == "not supported"

    def test_a_relation_that_shifted_layers_reach_too(self):
        data = dataset()
        wave = 0.6 * np.resize([1.0, 1.0, -1.0, -1.0], LAYERS)
        plant_rho(data, wave)
        rng = np.random.default_rng(0)
        data["antisymmetric_fraction"].values[:] = (0.5 - 0.3 * wave)[:, None]
        data["antisymmetric_fraction"].values[:] += 0.002 * rng.normal(size=(LAYERS, len(ONES)))
        claim = judged(data, "sign")  # a wave shifted by its length is itself
        assert claim.verdict == "mechanical", claim.reason
        assert "circular shifts" in claim.reason

    def test_twenty_layers_are_too_few_for_shifts(self):
        claim = judged(dataset(layers=20), "sign")
        assert claim.verdict == "inconclusive"
        assert "20 layers are too few for circular shifts to reach p < 0.05" in claim.reason
        assert claim.ci_high < 0
        assert judged(dataset(layers=21), "sign").verdict == "supported"

    def test_twenty_layers_can_refute(self):
        data = dataset(layers=20)
        plant_rho(data, coupling_of(20)[::-1])
        assert judged(data, "sign").verdict == "not supported"

    @pytest.mark.parametrize(("shift", "words"), [(0.6, "and 0 with negative"), (-0.8, "0 layers couple")])
    def test_both_signs_are_needed(self, shift: float, words: str):
        data = dataset()
        plant_rho(data, np.clip(coupling_of(LAYERS) + shift, -0.9, 0.9))
        claim = judged(data, "sign")
        assert claim.verdict == "inconclusive"
        assert words in claim.reason
        assert "3 of each are needed" in claim.reason

    def test_significant_layers_alone_have_a_sign(self):
        data = dataset()
        at(data, "permuted_rho", view="model")[:] *= 6  # nothing is significant
        assert "0 layers couple significantly with positive and 0 with negative" in judged(data, "sign").reason


class TestLearned:
    def test_as_strong_at_initialisation(self):
        data = dataset()
        plant_rho(data, np.clip(1.2 * coupling_of(LAYERS), -0.95, 0.95), *INITS)
        assert judged(data, "learned").verdict == "not supported"

    def test_half_as_strong_at_initialisation_is_not_absent(self):
        data = dataset()
        plant_rho(data, coupling_of(LAYERS) / 2, *INITS)
        claim = judged(data, "learned")
        assert claim.verdict == "mechanical", claim.reason
        assert "√A of fresh initialisations" in claim.reason

    def test_a_small_coupling_outside_the_band_is_not_absent(self):
        data = dataset()
        for view in INITS:
            at(data, "permuted_rho", view=view)[:] *= 0.05  # a null so narrow that little lies beyond
        plant_rho(data, [0.05] * LAYERS, *INITS)
        claim = judged(data, "learned")
        assert claim.verdict == "mechanical", claim.reason
        assert "95 % point of permuted places" in claim.reason
        assert "√A of fresh initialisations" not in claim.reason.split("under a control")[1]

    def test_seeds_that_disagree_decide_nothing(self):
        data = dataset()
        for view, size in zip(INITS, (0.0, 0.0, 1.25, 1.25, 1.25), strict=True):
            plant_rho(data, np.clip(size * coupling_of(LAYERS), -0.95, 0.95), view)
        assert judged(data, "learned").verdict == "inconclusive"

    def test_four_seeds_are_too_few(self):
        claim = judged(dataset(seeds=4), "learned")
        assert claim.verdict == "inconclusive"
        assert "only 4 fresh initialisations: 5 are needed" in claim.reason

    def test_without_controls_it_says_so(self):
        assert "--init-seeds" in judged(dataset(seeds=0), "learned").reason

    def test_controls_in_eleven_documents_decide_nothing(self):
        data = dataset()
        for view in INITS:
            at(data, "square_gain", view=view)[..., 11 * CHOSEN :] = np.nan
        assert judged(data, "learned").reason == "only 11 documents: 12 are needed for a verdict"
        assert judged(data, "coupling").verdict == "supported"


class TestRobust:
    def plant(self, share: float, factor: float) -> xr.Dataset:
        """This share of the choices finds the coupling times a factor."""
        data = dataset()
        flat = data["grid_rho"].values.reshape(data.sizes["ablated"], -1)
        flat[:, : round(share * flat.shape[1])] *= factor
        return data

    @pytest.mark.parametrize(
        ("share", "verdict"), [(0.15, "supported"), (0.3, "inconclusive"), (0.5, "not supported"), (1, "not supported")]
    )
    @pytest.mark.parametrize("factor", [-1.0, 0.0], ids=["another sign", "not significant"])
    def test_the_share_that_agrees(self, share: float, verdict: str, factor: float):
        claim = judged(self.plant(share, factor), "robust")
        assert claim.verdict == verdict, claim.reason
        assert claim.estimate == pytest.approx(1 - share, abs=0.01)

    def test_a_choice_with_one_community_does_not_agree(self):
        """Not where the default's mean is negative either, nor is it significant."""
        for reverse in (False, True):
            data = dataset()
            if reverse:
                plant_rho(data, -coupling_of(LAYERS))
                data["grid_rho"] *= -1
            assert agreement(data).all()
            one = {"edges": "partial", "method": "infomap"}
            for name in ("grid_rho", "grid_permuted_rho"):
                data[name].loc[one] = np.nan
            agreed = agreement(data)
            assert not agreed.sel(one).any()
            assert float(agreed.mean()) == pytest.approx(7 / 8)

    def test_one_layer_with_one_community_counts_as_none(self):
        data = dataset()
        for name in ("grid_rho", "grid_permuted_rho"):
            data[name].values[1] = np.nan  # the layer in the middle, where ρ is small
        assert agreement(data).all()
        for name in ("grid_rho", "grid_permuted_rho"):
            data[name].values[:] = np.nan
        assert not agreement(data).any()

    def test_a_default_without_significance(self):
        """Choices agree that find nothing either, with the same sign."""
        data = dataset()
        at(data, "permuted_rho", view="model")[:] *= 8
        assert not agreement(data).any()
        data["grid_permuted_rho"] *= 8
        assert agreement(data).all()

    def test_the_layers_of_the_default_are_the_varied_ones(self):
        data = dataset()
        curve = -np.abs(coupling_of(LAYERS))
        curve[data["ablated"].values] = coupling_of(LAYERS)[data["ablated"].values]
        plant_rho(data, curve)
        assert agreement(data).all()

    def test_without_other_choices_it_says_so(self):
        assert "--ablation-layers" in judged(dataset(ablated=0), "robust").reason


@pytest.mark.parametrize("row", CLAIMS)
def test_eleven_documents_decide_nothing(row: str):
    claim = judged(dataset(documents=11), row)
    assert claim.verdict == "inconclusive"
    assert "only 11 documents: 12 are needed" in claim.reason


@pytest.mark.parametrize(
    ("row", "threshold", "value"),
    [
        ("exist", "threshold_exist", 0.7),
        ("coupling", "threshold_coupling", 0.5),
        ("sign", "threshold_sign", -1.5),
        ("learned", "threshold_learned", 0.3),
        ("robust", "threshold_robust", 1.1),
    ],
)
def test_thresholds_stand_in_the_configuration(row: str, threshold: str, value: float):
    others = {"threshold_fragile": 1.05} if row == "robust" else {}
    claim = judged(dataset(), row, **{threshold: value}, **others)
    assert claim.verdict == "not supported", claim.reason
    assert claim.threshold == value


@pytest.mark.parametrize(
    ("row", "threshold", "value", "words"),
    [
        ("coupling", "threshold_layers", 25, "25 are needed"),
        ("coupling", "threshold_excess", 0.9, "0 of 24 layers have stable communities"),
        ("sign", "threshold_signed_layers", 20, "20 of each are needed"),
        ("learned", "threshold_seeds", 6, "6 are needed"),
        ("exist", "threshold_documents", 17, "17 are needed"),
    ],
)
def test_preconditions_stand_in_the_configuration(row: str, threshold: str, value: float, words: str):
    claim = judged(dataset(), row, **{threshold: value})
    assert claim.verdict == "inconclusive"
    assert words in claim.reason


def test_absence_at_initialisation_has_its_own_threshold():
    assert judged(dataset(), "learned", threshold_learned_init=-0.2).verdict == "mechanical"
