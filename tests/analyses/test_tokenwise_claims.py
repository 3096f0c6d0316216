"""Each claim on layer updates, on small Datasets in which the answer was planted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import xarray as xr

from probe.analyses.tokenwise.claims import ROWS, Table, claims, universal
from probe.analyses.tokenwise.config import Config, Thresholds
from probe.analyses.tokenwise.schema import SCHEMA
from probe.claims import Claim
from tests.plant.judging import at, by_name, claim_named

LAYERS, DOCUMENTS, TOKENS, DRAWS = 3, 15, 8, 2
FITS = ["zero", "mean", "linear", "local", "mlp", "mlp_random"]


def noise(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def dataset(documents: int = DOCUMENTS) -> xr.Dataset:
    """A run in which every claim is supported."""
    n = documents * TOKENS
    cell = (LAYERS, n)
    data = xr.Dataset(
        coords={
            "layer": np.arange(LAYERS),
            "map": FITS,
            "target": ["update", "state"],
            "control": ["random", "other", "covariance"],
            "centring": ["centred", "uncentred", "no_outliers"],
            "vector": ["update", "fit", "residual", "other"],
            "k": [1, 4, 8],
            "neighbours": [32, 256],
            "rank": [4, 64],
            "document": ("query", np.arange(n) % documents),
            "position": ("query", np.random.default_rng(9).integers(1, 50, n)),
        },
        attrs={"model": "planted", "deciding_fit": "local", "d_model": 64, "kind": "transformer"},
    )
    log_error = -1.5 + 0.4 * noise(*cell, seed=1)
    third = np.arange(n) // documents % 3  # a document has tokens of every regime
    gain = np.where(third == 2, 0.3, 0.05) + 0.02 * noise(*cell, seed=2)
    errors = np.stack([
        np.zeros(cell),
        np.full(cell, -0.1),
        log_error + gain,
        log_error,
        log_error,
        log_error + 0.01 * noise(*cell, seed=3),
    ])
    data["relative_error"] = SCHEMA.entry("relative_error", np.exp(np.stack([errors, errors - 2], axis=1)))
    cosine = {"zero": 0.0, "mean": 0.3, "linear": 0.9, "local": 0.96, "mlp": 0.96, "mlp_random": 0.96}
    cosines = np.stack([cosine[fit] + 0.01 * noise(2, *cell, seed=i) for i, fit in enumerate(FITS)])
    data["cos_update_fit"] = SCHEMA.entry("cos_update_fit", cosines)
    data["cos_permuted"] = SCHEMA.entry("cos_permuted", 0.2 + 0.05 * noise(len(FITS), *cell, seed=4))
    share = {"update": 0.5, "fit": 0.6, "residual": 0.1, "other": 0.5}
    shares = np.stack([
        mean + 0.05 * noise(3, *cell, seed=5 + i) for i, mean in enumerate(share.values())
    ])  # (v, k, ...)
    everywhere = np.broadcast_to(shares, (len(FITS), 3, *shares.shape))
    data["share"] = SCHEMA.entry("share", everywhere.copy())
    kl = 2 * log_error + 0.2 * noise(*cell, seed=12)
    data["kl"] = SCHEMA.entry("kl", np.exp(np.broadcast_to(kl, (len(FITS), *cell)).copy()))
    control = log_error - 2.2 + 0.8 * noise(3, DRAWS, *cell, seed=13)
    data["kl_control"] = SCHEMA.entry("kl_control", np.exp(control))
    data["update_norm"] = SCHEMA.entry("update_norm", np.exp(noise(*cell, seed=14)))
    data["state_norm"] = SCHEMA.entry("state_norm", np.exp(noise(*cell, seed=15)))
    data["entropy"] = SCHEMA.entry("entropy", noise(n, seed=16) ** 2)
    data["frequency"] = SCHEMA.entry("frequency", np.round(noise(n, seed=17), 1))
    regime = np.broadcast_to(third, cell).astype("int8")
    data["regime"] = SCHEMA.entry("regime", regime.copy())
    data["explained_variance"] = SCHEMA.entry("explained_variance", np.full((len(FITS), LAYERS), 0.6))
    data["mlp_flat"] = SCHEMA.entry("mlp_flat", np.ones((len(FITS), LAYERS), dtype=bool))
    sweep = np.stack([[noise(*cell, seed=18) * 0.1 + fall for fall in (0.0, -0.2)] for _ in range(2)])
    data["sweep_error"] = SCHEMA.entry("sweep_error", np.exp(sweep))
    data["sweep_error_in_sample"] = SCHEMA.entry("sweep_error_in_sample", np.exp(np.median(sweep, axis=-1) * 2))
    unsteady = np.stack([0.1 * noise(*cell, seed=19), 0.1 * noise(*cell, seed=20) - 0.5])
    data["instability"] = SCHEMA.entry("instability", np.exp(unsteady))
    return data


def judged(data: xr.Dataset, row: str, **thresholds: float) -> Claim:
    return claim_named(Table(data, replace(Thresholds(), **thresholds), seed=0, resamples=40), ROWS, row)


SUPPORTED = (
    "alignment",
    "residual_distinct",
    "error_predicts_output",
    "residual_matters",
    "mlp_helps",
    "low_dimensional",
)


@pytest.fixture(scope="module")
def planted() -> dict[str, Claim]:
    return by_name(claims(dataset(), Config(), resamples=40))


class TestSupported:
    def test_every_row_is_there_once_in_order(self, planted: dict[str, Claim]):
        assert list(planted) == [SUPPORTED[0], "alignment_next_state", *SUPPORTED[1:], "universal"]

    @pytest.mark.parametrize("row", SUPPORTED)
    def test_supported(self, planted: dict[str, Claim], row: str):
        claim = planted[row]
        assert claim.verdict == "supported", claim.reason
        assert claim.ci_low < claim.estimate < claim.ci_high
        assert (claim.unit, claim.n_units) == ("documents", DOCUMENTS)

    def test_estimates_are_the_planted_ones(self, planted: dict[str, Claim]):
        data = dataset()
        expected = {
            "alignment": 0.96,
            "residual_distinct": 0.4,
            "mlp_helps": 0.3,
            "low_dimensional": 0.2,
        }
        assert {row: planted[row].estimate for row in expected} == pytest.approx(expected, abs=0.02)
        log_ratio = np.log(at(data, "kl", map="local")) - np.log(at(data, "kl_control", control="covariance"))
        assert planted["residual_matters"].estimate == pytest.approx(np.median(log_ratio, axis=-1).mean())
        contrasts = {control["name"]: control["estimate"] for control in planted["alignment"].controls}
        assert contrasts["Δ to targets permuted within windows"] == pytest.approx(0.76, abs=0.02)
        assert contrasts["Δ to the mean baseline"] == pytest.approx(0.66, abs=0.02)
        assert planted["alignment"].null["estimate"] == pytest.approx(0.2, abs=0.02)

    def test_steadiness_in_sample_curve_and_lines_are_shown(self, planted: dict[str, Claim]):
        shown = {
            control["name"]: control["estimate"]
            for claim in planted.values()
            for control in claim.controls
            if "estimate" in control
        }
        assert shown["log instability(k = 32)/instability(k = 256)"] == pytest.approx(0.5, abs=0.03)
        assert shown["log e(rank 4)/e(rank 64) in sample"] == pytest.approx(0.4)
        assert shown["share of a random direction, k/d"] == 4 / 64
        assert shown["share₄(r)"] == pytest.approx(0.1, abs=0.02)

    def test_rho_is_the_fisher_mean_of_the_layers(self, planted: dict[str, Claim]):
        from scipy import stats

        data = dataset()
        error, kl = at(data, "relative_error", map="local", target="update"), at(data, "kl", map="local")
        rho = [stats.spearmanr(error[layer], kl[layer]).statistic for layer in range(LAYERS)]
        claim = planted["error_predicts_output"]
        assert claim.estimate == pytest.approx(np.tanh(np.arctanh(rho).mean()))
        matched = at(data, "kl_control", control="covariance")
        rho = [[stats.spearmanr(error[layer], draw[layer]).statistic for layer in range(LAYERS)] for draw in matched]
        assert claim.null["estimate"] == pytest.approx(np.tanh(np.arctanh(rho).mean()))


class TestMechanical:
    @pytest.mark.parametrize("control", ["permuted", "mean"])
    def test_alignment(self, control: str):
        data = dataset()
        if control == "permuted":
            at(data, "cos_permuted", map="local")[:] = at(data, "cos_update_fit", map="local", target="update")
        else:
            at(data, "cos_update_fit", map="mean", target="update")[:] = 0.93 + 0.0 * at(
                data, "cos_permuted", map="mean"
            )
        claim = judged(data, "alignment")
        assert claim.verdict == "mechanical"
        assert {"permuted": "permuted within windows", "mean": "mean baseline"}[control] in claim.reason

    def test_mean_baseline_margin(self):
        data = dataset()
        at(data, "cos_update_fit", map="mean", target="update")[:] = 0.88
        assert judged(data, "alignment").verdict == "supported"
        assert judged(data, "alignment", threshold_alignment_over_mean=0.1).verdict == "mechanical"

    def test_next_state_is_fixed_by_the_error(self, planted: dict[str, Claim]):
        claim = planted["alignment_next_state"]
        assert claim.verdict == "mechanical"
        assert "fixed by the error" in claim.reason
        error = at(dataset(), "relative_error", map="local", target="state")
        assert claim.null["estimate"] == pytest.approx(np.median(np.sqrt(1 - error**2), axis=-1).mean())

    def test_residual_distinct(self):
        data = dataset()
        at(data, "share", map="local", centring="no_outliers", vector="other")[:] = 0.1
        claim = judged(data, "residual_distinct")
        assert claim.verdict == "mechanical"
        assert "another token's update" in claim.reason

    @pytest.mark.parametrize("control", ["covariance", "random"])
    def test_error_predicts_output_under_a_control(self, control: str):
        data = dataset()
        at(data, "kl_control", control=control)[:] = at(data, "kl", map="local")
        claim = judged(data, "error_predicts_output")
        assert claim.verdict == "mechanical"
        assert f"Δ to {control}" in claim.reason

    @pytest.mark.parametrize("covariate", ["update_norm", "state_norm", "entropy", "frequency", "position"])
    def test_error_predicts_output_given_a_covariate(self, covariate: str):
        data = dataset()
        cause = noise(data.sizes["query"], seed=30)
        shape = (LAYERS, data.sizes["query"])
        at(data, "relative_error", map="local", target="update")[:] = np.exp(cause + 0.3 * noise(*shape, seed=31))
        at(data, "kl", map="local")[:] = np.exp(cause + 0.3 * noise(*shape, seed=32))
        if covariate == "position":
            data = data.assign_coords(position=("query", cause))
        else:
            data[covariate].values[:] = cause
        claim = judged(data, "error_predicts_output")
        assert claim.verdict == "mechanical"
        assert "partial ρ" in claim.reason

    def test_mlp_helps_everywhere_alike(self):
        data = dataset()
        error = at(data, "relative_error", map="mlp_random", target="update")
        at(data, "relative_error", map="linear", target="update")[:] = error * np.exp(
            0.3 + 0.02 * noise(*error.shape, seed=3)
        )
        claim = judged(data, "mlp_helps")
        assert claim.verdict == "mechanical"
        assert "low regime" in claim.reason


class TestNotSupported:
    def test_alignment(self):
        data = dataset()
        at(data, "cos_update_fit", map="local")[:] = 0.5
        assert judged(data, "alignment").verdict == "not supported"
        assert judged(data, "alignment_next_state").verdict == "not supported"

    def test_residual_distinct(self):
        data = dataset()
        at(data, "share", map="local", centring="no_outliers", vector="residual", k=4)[:] = 0.45
        assert judged(data, "residual_distinct").verdict == "not supported"

    def test_error_predicts_output(self):
        data = dataset()
        at(data, "kl", map="local")[:] = np.exp(noise(LAYERS, data.sizes["query"], seed=33))
        assert judged(data, "error_predicts_output").verdict == "not supported"

    def test_residual_matters(self):
        data = dataset()
        at(data, "kl_control", control="covariance")[:] = 3 * at(data, "kl", map="local")
        claim = judged(data, "residual_matters")
        assert claim.verdict == "not supported"
        assert claim.estimate == pytest.approx(-math.log(3))

    def test_mlp_helps(self):
        data = dataset()
        at(data, "relative_error", map="mlp_random")[:] = at(data, "relative_error", map="linear")
        assert judged(data, "mlp_helps").verdict == "not supported"

    @pytest.mark.parametrize("half", ["sweep_error", "instability"])
    def test_low_dimensional_needs_both(self, half: str):
        data = dataset()
        at(data, "sweep_error", rank=64)[:] *= 2 if half == "sweep_error" else 1
        at(data, "instability", neighbours=256)[:] *= 2 if half == "instability" else 1
        claim = judged(data, "low_dimensional")
        assert claim.verdict == "not supported"
        assert {"sweep_error": "rank 4", "instability": "instability"}[half] in claim.reason


class TestInconclusive:
    @pytest.mark.parametrize("row", [*SUPPORTED, "alignment_next_state"])
    def test_eleven_documents(self, row: str):
        claim = judged(dataset(documents=11), row)
        assert claim.verdict == "inconclusive"
        assert "11 documents" in claim.reason
        assert math.isfinite(claim.ci_low)

    def test_twelve_documents(self):
        assert judged(dataset(documents=12), "alignment").verdict == "supported"

    @pytest.mark.parametrize(
        ("row", "threshold"),
        [
            ("alignment", "threshold_alignment"),
            ("alignment_next_state", "threshold_alignment"),
            ("residual_distinct", "threshold_residual_distinct"),
            ("error_predicts_output", "threshold_error_predicts_output"),
            ("residual_matters", "threshold_residual_matters"),
            ("mlp_helps", "threshold_mlp_helps"),
            ("low_dimensional", "threshold_low_dimensional"),
        ],
    )
    def test_interval_contains_the_threshold(self, planted: dict[str, Claim], row: str, threshold: str):
        claim = judged(dataset(), row, **{threshold: planted[row].estimate})
        assert claim.verdict == "inconclusive"
        assert "contains" in claim.reason
        assert claim.threshold == planted[row].estimate

    def test_no_spread_of_the_error(self):
        data = dataset()
        error = at(data, "relative_error", map="local", target="update")
        error[:] = np.exp(np.log(error) * 0.2)
        claim = judged(data, "error_predicts_output")
        assert claim.verdict == "inconclusive"
        assert "spread" in claim.reason
        assert judged(data, "error_predicts_output", threshold_error_spread=0.05).verdict == "supported"

    def test_sign_changes_with_k(self):
        data = dataset()
        at(data, "share", map="local", centring="no_outliers", vector="residual", k=1)[:] = 0.9
        claim = judged(data, "residual_distinct")
        assert claim.verdict == "inconclusive"
        assert "sign changes" in claim.reason

    def test_mlp_that_did_not_learn(self):
        data = dataset()
        at(data, "explained_variance", map="mlp_random")[:2] = -0.1
        claim = judged(data, "mlp_helps")
        assert claim.verdict == "inconclusive"
        assert "1 of 3 layers" in claim.reason

    def test_unfinished_mlp_is_marked(self):
        data = dataset()
        at(data, "mlp_flat", map="mlp_random")[1] = False
        claim = judged(data, "mlp_helps")
        assert "not flat at the end in 1 layers" in claim.statistic

    @pytest.mark.parametrize(
        ("row", "variable"),
        [
            ("alignment", "cos_permuted"),
            ("alignment_next_state", "cos_update_fit"),
            ("residual_distinct", "share"),
            ("error_predicts_output", "kl"),
            ("error_predicts_output", "entropy"),
            ("residual_matters", "kl_control"),
            ("mlp_helps", "regime"),
            ("low_dimensional", "instability"),
        ],
    )
    def test_absent_variable(self, row: str, variable: str):
        claim = judged(dataset().drop_vars(variable), row)
        assert claim.verdict == "inconclusive"
        assert f"this run holds no {variable}" in claim.reason
        assert math.isnan(claim.estimate)

    def test_absent_label_and_absent_values(self):
        without = dataset().sel(map=["zero", "local", "linear"])
        assert "cos_update_fit (map mean" in judged(without, "alignment").reason
        assert judged(without, "alignment_next_state").verdict == "mechanical"
        data = dataset()
        at(data, "kl", map="local")[:] = np.nan
        assert "no value of kl (map local)" in judged(data, "residual_matters").reason


class TestMissingValues:
    def test_a_layer_without_values_and_single_tokens_are_left_out(self, planted: dict[str, Claim]):
        data = dataset()
        for variable in ("cos_update_fit", "kl"):
            at(data, variable, map="local")[..., 1, :] = np.nan
        at(data, "kl", map="local")[0, :5] = np.nan
        at(data, "kl_control", control="covariance")[0, 2, 7] = np.nan
        found = {row: judged(data, row) for row in ("alignment", "error_predicts_output", "residual_matters")}
        assert found["alignment"].statistic.endswith("mean over 2 layers")
        assert "over 2 layers" in found["error_predicts_output"].statistic
        for row, claim in found.items():
            assert claim.verdict == "supported"
            assert claim.estimate == pytest.approx(planted[row].estimate, abs=0.1)

    def test_deciding_fit_is_the_runs(self):
        data = dataset()
        data.attrs["deciding_fit"] = "linear"
        claim = judged(data, "alignment")
        assert "class linear" in claim.statistic
        assert claim.estimate == pytest.approx(0.9, abs=0.02)


def verdicts(**rows: str) -> list[Claim]:
    """Claims of one model with the given verdicts on the first three."""
    template = universal({}, {})
    names = ("alignment", "residual_distinct", "error_predicts_output")
    return [replace(template, id=f"updates.{name}", verdict=rows.get(name, "supported")) for name in names]


class TestUniversal:
    KINDS: ClassVar = {"a": "transformer", "b": "transformer", "m": "state-space", "r": "control"}

    def test_same_verdicts(self):
        rows = verdicts(residual_distinct="mechanical")
        claim = universal(dict.fromkeys("abm", rows), self.KINDS)
        assert claim.verdict == "supported"
        assert (claim.estimate, claim.n_units, claim.unit) == (1.0, 3, "models")
        assert claim.required == "> 0.667"  # of three claims: all

    def test_controls_do_not_count(self):
        others = dict.fromkeys("abm", verdicts())
        assert universal(others | {"r": verdicts(alignment="not supported")}, self.KINDS).verdict == "supported"
        assert universal({"a": verdicts(), "m": verdicts(), "r": verdicts()}, self.KINDS).verdict == "inconclusive"

    @pytest.mark.parametrize("models", ["a", "ab", "am", "m"])
    def test_too_few_models(self, models: str):
        claim = universal(dict.fromkeys(models, verdicts()), self.KINDS)
        assert claim.verdict == "inconclusive"
        assert "at least 2 pretrained Transformers and 1 pretrained state-space model" in claim.reason

    def test_one_model_differs(self):
        claim = universal(dict.fromkeys("ab", verdicts()) | {"m": verdicts(alignment="not supported")}, self.KINDS)
        assert claim.verdict == "inconclusive"
        assert "m not supported" in claim.reason
        assert claim.estimate == pytest.approx(2 / 3)

    def test_agreement_on_inconclusive_is_none(self):
        claim = universal(dict.fromkeys("abm", verdicts(alignment="inconclusive")), self.KINDS)
        assert claim.verdict == "inconclusive"

    def test_a_row_that_a_model_lacks(self):
        claim = universal(dict.fromkeys("ab", verdicts()) | {"m": verdicts()[1:]}, self.KINDS)
        assert claim.verdict == "inconclusive"

    def test_of_one_run(self, planted: dict[str, Claim]):
        assert planted["universal"].verdict == "inconclusive"
        assert "there are 1 and 0" in planted["universal"].reason
