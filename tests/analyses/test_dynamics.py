"""Whole runs of the dynamics analysis on tiny models: known answers, resume, the command line, bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import probe
from probe import InputError, spectra
from probe.analyses import dynamics
from probe.analyses.dynamics import means, nulls, perturb, subject
from probe.analyses.dynamics.schema import DIRECTIONS, NULLS, SCORES
from probe.analyses.dynamics.stages import Dynamics
from probe.analyses.dynamics.subject import DynamicsSubject
from probe.analysis.subject import draw_positions
from probe.plots import style
from probe.runs import Run
from probe.text import Windows
from tests.plant.saved import saved, write_text
from tests.plant.tiny import LAYERS, WIDTH, tiny_module


class Quick(Dynamics):
    """Intervals are tested where they are made; here they would take most of the time."""

    def claims(self, data, config, *, resamples=20):
        return super().claims(data, config, resamples=resamples)


def run(config, out):
    return Quick().run(config, out=out, quiet=True)


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dynamics")


@pytest.fixture(scope="module")
def text(folder):
    return write_text(folder / "text.txt")


SMALL = {"windows": 3, "window_length": 32, "control_windows": 2, "init_seeds": 2, "draws": 2, "order_windows": 1}
SMALL |= {"eigenvector_windows": 1, "kreiss_layers": 2, "grid": 6, "perturb_layers": 2}
OFF = {"alone": False, "init_seeds": 0, "shuffled_seeds": 0, "interventions": False, "eigenvector_windows": 0}
OFF |= {"mean": False, "perturb": False, "kreiss_layers": 0}


def _config(model, text, **changes):
    return dynamics.Config(model=str(model), text=text, **(SMALL | changes))


def _subject(folder, text):
    return DynamicsSubject(_config(saved(folder, "llama"), text))


@pytest.fixture(scope="module")
def loaded():
    """What the run of `result` loads: seeds of fresh and of shuffled weights."""
    return []


@pytest.fixture(scope="module")
def result(folder, text, loaded):
    load = probe.load_model

    def counted(*args, **options):
        loaded.append((options["random_init"], options["shuffled_weights"]))
        return load(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probe.model.load_model", counted)
        return run(_config(saved(folder, "llama"), text), folder / "run")


class TestVariables:
    def test_shapes_and_what_was_measured(self, result):
        data = result.data
        assert data["variant"].values.tolist() == ["model", "alone", "init-0", "init-1", "shuffled-0"]
        sizes = {name: data.sizes[name] for name in ("layer", "depth", "query", "draw", "start", "chosen")}
        assert sizes == {"layer": LAYERS, "depth": LAYERS, "query": 6, "draw": 2, "start": 2, "chosen": 2}
        for name in SCORES:
            scores = data[name].transpose("variant", "query", ...).values
            assert np.isfinite(scores[0]).all(), name
            assert np.isfinite(scores[1:, [0, 2]]).all(), name  # controls: first position of two windows
            assert np.isnan(scores[1:, [1, 3, 4, 5]]).all(), name
        nulls_held = set(data["null"].values.tolist())
        assert nulls_held == set(NULLS) - {"symmetrised_ov"}
        measured = data["null_participation_ratio"].notnull().any("depth").sum("draw").transpose("null", "query")
        drawn = dict(zip(data["null"].values.tolist(), measured.values.tolist(), strict=True))
        assert drawn["schur_shuffle"] == [2, 0, 2, 0, 0, 0]
        assert drawn["schur_normal_matched"] == [1, 0, 1, 0, 0, 0]
        assert drawn["schur_normal_rotated"] == [1, 0, 0, 0, 0, 0]
        assert all("units" in data[name].attrs for name in data.data_vars)

    def test_documents_are_as_many_as_windows(self, result):
        assert len(np.unique(result.data["document"].values)) == SMALL["windows"]
        assert (result.data["position"].values >= 16).all()

    def test_ranges_and_identities(self, result):
        data = result.data
        for name in ("antisymmetric_fraction", "henrici_departure", "rotation_fraction", "complex_fraction"):
            values = data[name].values
            assert ((values >= -1e-12) & (values <= 1 + 1e-12) | np.isnan(values)).all(), name
        np.testing.assert_allclose(  # J = I + K: eigenvalues and the numerical range move by one
            *(data["numerical_abscissa"].sel(matrix=m).values + (m == "K") for m in ("J", "K")), atol=1e-6
        )
        same = data["complex_fraction"].transpose("matrix", ...).values
        np.testing.assert_array_equal(same[0], same[1])
        rank = data["product_effective_rank"]
        assert ((rank <= WIDTH + 1e-9) | rank.isnull()).all()
        exponents = data["lyapunov_exponent"].transpose("exponent", ...).values
        assert (np.diff(exponents, axis=0) <= 1e-12).all()
        assert np.isnan(data["product_overlap"].isel(depth=0)).all()

    def test_initialisations_differ_and_shuffling_is_no_initialisation(self, result):
        scores = result.data["frobenius_norm"].sel(matrix="K").isel(query=0).transpose("variant", "layer").values
        for one in range(len(scores)):
            for other in range(one):
                assert not np.allclose(scores[one], scores[other])


@pytest.fixture(scope="module")
def jacobians(folder, text, result):
    """J of every block at the second position of the last window, by the public function."""
    config = _config(saved(folder, "llama"), text)
    model = probe.load_model(config.model)
    windows = probe.load_windows(
        model, text=text, windows=SMALL["windows"], window_length=SMALL["window_length"], seed=config.seed
    )
    positions = [int(result.data["position"][-1])]
    found = [probe.block_jacobian(model, windows.tokens[2:], layer, positions) for layer in range(LAYERS)]
    return torch.stack([one[0, 0].double() for one in found])


class TestAgainstTheJacobians:
    def test_every_score_is_that_of_its_block_and_position(self, result, jacobians):
        state = spectra.decompose(jacobians)
        for place, matrices in (("J", state), ("K", state.update)):
            for name in set(SCORES) - {"complex_fraction"}:
                found = result.data[name].sel(variant="model", matrix=place).isel(query=-1)
                np.testing.assert_allclose(found, getattr(matrices, name), rtol=1e-4, atol=1e-6, err_msg=name)

    def test_the_product_multiplies_later_blocks_on_the_left(self, result, jacobians):
        product = torch.eye(WIDTH, dtype=torch.float64)
        for depth, J in enumerate(jacobians):
            product = J @ product
            found = result.data.isel(query=-1, depth=depth).sel(variant="model")
            assert float(found["product_participation_ratio"]) == pytest.approx(
                float(spectra.participation_ratio(product)), rel=1e-4
            )
            assert float(found["product_effective_rank"]) == pytest.approx(
                float(spectra.effective_rank(product)), rel=1e-4
            )
            assert float(found["product_log_norm"]) == pytest.approx(float(product.norm().log()), rel=1e-4)
            alpha = float(product.trace()) / WIDTH
            share = alpha**2 * WIDTH / float(product.square().sum())
            assert float(found["product_identity_share"]) == pytest.approx(share, rel=1e-4)
            own = float(J.trace()) ** 2 / WIDTH / float(J.square().sum())
            assert float(result.data["identity_share"].sel(variant="model")[depth, -1]) == pytest.approx(own, rel=1e-4)
            largest = float(torch.linalg.svdvals(product)[0].log()) / (depth + 1)
            assert float(found["lyapunov_exponent"].sel(exponent=1)) == pytest.approx(largest, abs=1e-4)

    def test_the_clouds_are_the_eigenvalues_of_k(self, result, folder, text):
        ((_, J),) = _subject(folder, text).jacobians(slice(1, 2), layers=[2])
        expected = np.linalg.eigvals(J[0, 0].double().numpy() - np.eye(WIDTH))
        cloud = result.data.isel(layer=2, cloud=1)
        found = cloud["eigenvalue_real"].values + 1j * cloud["eigenvalue_imaginary"].values
        np.testing.assert_allclose(np.sort_complex(found.round(5)), np.sort_complex(expected.round(5)), atol=2e-4)

    def test_a_mean_of_matrices_is_scored_as_one_matrix(self, result, folder, text):
        ((_, J),) = _subject(folder, text).jacobians(slice(0, 2), layers=[1])
        mean = spectra.decompose(J[:, 0].double().mean(0))
        found = result.data["mean_henrici_departure"].sel(layer=1).transpose("bound", "matrix").values
        np.testing.assert_allclose(found[0], [mean.henrici_departure, mean.update.henrici_departure], rtol=1e-5)
        assert (found[1] <= found[0]).all()
        assert (found[0] <= found[2]).all()


def _planted(model, tokens, layers, positions, **options):
    """J = I + W with W = cos θ I + sin θ Ω, Ω² = −I, θ = 0.3 (l + 1): normal, and every score has a closed form."""
    half = torch.eye(WIDTH // 2)
    omega = torch.cat([torch.cat([0 * half, -half], 1), torch.cat([half, 0 * half], 1)])
    for layer in layers:
        angle = torch.tensor(0.3 * (layer + 1))
        planted = torch.eye(WIDTH) * (1 + angle.cos()) + angle.sin() * omega
        yield layer, planted.expand(len(tokens), positions.shape[1], -1, -1).clone()


def test_planted_rotations_come_out_in_closed_form(folder, text, monkeypatch):
    monkeypatch.setattr(subject, "iter_block_jacobians", _planted)
    changes = OFF | {"interventions": True, "kreiss_layers": 1, "mean": True}
    data = run(_config(saved(folder, "llama"), text, **changes), folder / "planted").data
    angle = 0.3 * np.arange(1, LAYERS + 1)
    k = data.sel(matrix="K", variant="model").isel(query=3)
    expected = {
        "antisymmetric_fraction": np.sin(angle),
        "rotation_fraction": np.sin(angle),
        "complex_fraction": np.ones(LAYERS),
        "henrici_departure": np.zeros(LAYERS),
        "commutator_norm": np.zeros(LAYERS),
        "numerical_abscissa": np.cos(angle),
        "spectral_abscissa": np.cos(angle),
        "spectral_radius": np.ones(LAYERS),
        "frobenius_norm": np.full(LAYERS, WIDTH**0.5),
        "stable_rank": np.full(LAYERS, float(WIDTH)),
        "effective_rank": np.full(LAYERS, float(WIDTH)),
        "participation_ratio": np.full(LAYERS, float(WIDTH)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(k[name], values, atol=1e-6, err_msg=name)
    growth = 2 * np.cos(angle / 2)  # the modulus of 1 + exp(iθ)
    np.testing.assert_allclose(k["product_participation_ratio"], np.full(LAYERS, float(WIDTH)), rtol=1e-6)
    np.testing.assert_allclose(k["identity_share"], np.cos(angle / 2) ** 2, atol=1e-6)  # |1 + exp(iθ)|² = 4 cos²(θ/2)
    turned = np.cumsum(angle / 2)  # the argument of 1 + exp(iθ): angles add
    np.testing.assert_allclose(k["product_identity_share"], np.cos(turned) ** 2, atol=1e-6)
    np.testing.assert_allclose(k["product_log_norm"], np.cumsum(np.log(growth)) + np.log(WIDTH) / 2, atol=1e-6)
    mean_growth = np.cumsum(np.log(growth)) / np.arange(1, LAYERS + 1)
    for exponent in (1, 32):
        np.testing.assert_allclose(k["lyapunov_exponent"].sel(exponent=exponent), mean_growth, atol=1e-6)
    np.testing.assert_allclose(data["kreiss_constant"], 1, atol=1e-3)  # normal
    np.testing.assert_allclose(
        data["mean_antisymmetric_fraction"].sel(matrix="K", bound="estimate"), np.sin(angle), atol=1e-6
    )
    np.testing.assert_allclose(data["mean_spread"], 0, atol=1e-6)
    for order in ("product_of_averages", "average_of_products"):
        np.testing.assert_allclose(data[order].sel(bound="estimate"), WIDTH, rtol=1e-6)
    raw = data["null_participation_ratio"].isel(query=0).sel(null=["schur_normal", "schur_normal_matched"]).isel(draw=0)
    np.testing.assert_allclose(raw, WIDTH, rtol=1e-5)  # K is normal already: nothing is removed
    fraction = data["null_antisymmetric_fraction"].isel(query=0).transpose("null", "layer")
    np.testing.assert_allclose(fraction.sel(null="schur_normal"), np.sin(angle), atol=1e-6)
    np.testing.assert_allclose(fraction.sel(null="symmetrised"), 0, atol=1e-6)
    random = data["null_participation_ratio"].sel(null="norm_matched").isel(query=0, depth=0)
    assert (random < 0.75 * WIDTH).all()


def test_blocks_that_write_nothing_are_the_identity(folder, text):
    changes = OFF | {"perturb": True}
    config = _config(saved(folder, "llama", silent=("self_attn.o_proj", "mlp.down_proj")), text, **changes)
    data = run(config, folder / "silent").data
    k = data.sel(matrix="K", variant="model")
    np.testing.assert_allclose(k["frobenius_norm"], 0, atol=1e-6)
    np.testing.assert_allclose(k["product_participation_ratio"], WIDTH, rtol=1e-6)
    np.testing.assert_allclose(k["lyapunov_exponent"], 0, atol=1e-6)


def test_the_other_context_and_another_architecture(folder, text):
    """A state-space model, token alone: finite everywhere, and no network to be compared with."""
    changes = OFF | {"context": "alone", "alone": True, "layers": "1,2", "init_seeds": 1, "shuffled_seeds": 1}
    config = _config(saved(folder, "mamba"), text, **(changes | {"perturb": True, "interventions": True}))
    result = run(config, folder / "mamba-run")
    assert result.data["variant"].values.tolist() == ["model", "init-0", "shuffled-0"]
    assert np.isfinite(result.data["henrici_departure"].sel(variant="model")).all()
    assert result.data.sizes["layer"] == 2
    assert result.data.sizes["depth"] == LAYERS  # the product goes through all blocks
    assert "perturb_error" not in result.data
    assert result.data.attrs["context"] == "alone"


class TestPerturbations:
    def test_small_steps_are_predicted_and_large_ones_are_not(self, result):
        error = result.data["perturb_error"].transpose("epsilon", ...).values
        held = np.isfinite(error).all(axis=0)
        assert (error[1][held] < 0.05).all()  # ε = 0.003
        assert np.median(error[-1][held]) > 10 * np.median(error[1][held])
        cosine = result.data["perturb_cosine"].transpose("epsilon", ...).values
        assert (cosine[1][held] > 0.998).all()

    def test_horizons_end_where_the_network_does(self, result):
        reached = result.data["perturb_error"].notnull().any(("direction", "epsilon", "query"))
        assert reached.transpose("start", "horizon").values.tolist() == [
            [True, True, True, False, True],  # from block 0 of 4
            [True, False, False, False, True],  # from block 3: one block on is the end
        ]
        last = result.data["perturb_error"].isel(start=1).transpose("horizon", ...).values
        np.testing.assert_array_equal(last[0], last[-1])

    def test_the_step_length_is_the_median_update(self, result, folder, text):
        measured = _subject(folder, text)
        windows = measured.windows()
        stream = probe.capture(measured.model, windows)
        update = stream["blocks.1.hook_resid_pre"][1] - stream["blocks.0.hook_resid_pre"][1]
        expected = update.norm(dim=-1)[windows.counted(16)[1]].median()
        assert float(result.data["step_length"].isel(start=0, query=2)) == pytest.approx(float(expected), rel=1e-5)

    def test_where_the_error_passes_a_level(self):
        epsilons = np.array([0.01, 0.1, 1.0])
        error = np.array([[0.01, 0.1, 1.0], [0.001, 0.01, 0.05], [0.2, 0.5, 1.0], [0.3, 0.01, 1.0], [0.01, np.nan, 1]])
        found = perturb.epsilon_at(error.T[None, None, :, None], epsilons, 0.1)[0, 0, 0]
        # on the grid; never reached; passed from the start; rounding at the smallest step; missing
        np.testing.assert_allclose(found, [0.1, 1.0, 0.01, 10**-0.5, np.nan])

    def test_between_two_points_the_scale_is_logarithmic(self):
        error = np.array([0.01, 1.0])[None, None, :, None, None]
        assert perturb.epsilon_at(error, np.array([0.1, 10.0]), 0.1).item() == pytest.approx(1.0)

    def test_directions_are_unit_and_as_named(self):
        draws = torch.Generator().manual_seed(0)
        states = torch.randn(12, 6, generator=draws, dtype=torch.float64)
        states[:, 2] *= 50
        states[:, 4] += 1e3  # a large mean is no direction of the states' spread
        J = torch.diag(torch.tensor([1.0, 9.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
        counted = torch.arange(12) >= 4
        found = perturb._directions(states, 7, counted, J, draws)
        named = dict(zip(DIRECTIONS, found, strict=True))
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(4, dtype=torch.float64))
        assert named["singular"].abs().argmax() == 1
        assert named["principal"].abs().argmax() == 2
        differences = states[counted] - states[7]
        cosines = torch.cosine_similarity(differences, named["other"][None], dim=-1)
        assert (cosines > 1 - 1e-12).sum() == 1


class TestNulls:
    def test_random_updates_keep_the_norm_of_each_block(self, folder, text):
        config = _config(saved(folder, "llama"), text, draws=3)
        J = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        changed = nulls._changed(config, J, 0, torch.Generator().manual_seed(0))
        eye = torch.eye(8, dtype=torch.float64)
        norm = (J - eye).norm(dim=(-2, -1))
        for null in ("norm_matched", "schur_shuffle", "schur_normal_matched", "schur_normal_transposed"):
            torch.testing.assert_close(
                (changed[null] - eye).norm(dim=(-2, -1)), norm.expand(len(changed[null]), -1), msg=null
            )
        assert len(changed["norm_matched"]) == len(changed["schur_shuffle"]) == 3
        own = np.sort_complex(np.linalg.eigvals((J - eye).numpy()).round(8))
        for null in ("schur_shuffle", "schur_normal"):
            kept = np.sort_complex(np.linalg.eigvals((changed[null][0] - eye).numpy()).round(8))
            np.testing.assert_allclose(kept, own, atol=1e-6, err_msg=null)
        torch.testing.assert_close(changed["symmetrised"], changed["symmetrised"].mT)
        torch.testing.assert_close(changed["symmetrised"][0].norm(dim=(-2, -1)), J.norm(dim=(-2, -1)))
        for null in ("schur_normal", "schur_normal_transposed", "schur_normal_rotated"):
            assert (spectra.commutator_norm(changed[null] - eye) < 1e-10).all(), null
        assert "schur_normal_rotated" not in nulls._changed(config, J, 1, torch.Generator().manual_seed(0))

    def test_a_normal_update_stays_as_it_is_in_any_basis(self, folder, text):
        config = _config(saved(folder, "llama"), text)
        draws = torch.Generator().manual_seed(2)
        rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=draws, dtype=torch.float64))
        block = torch.tensor([[0.3, -0.8], [0.8, 0.3]], dtype=torch.float64)
        K = rotation @ torch.block_diag(block, torch.diag(torch.linspace(-1, 2, 6, dtype=torch.float64))) @ rotation.mT
        J = (K + torch.eye(8, dtype=torch.float64))[None]
        changed = nulls._changed(config, J, 0, torch.Generator().manual_seed(0))
        for null in ("schur_normal", "schur_normal_matched", "schur_normal_transposed", "schur_normal_rotated"):
            torch.testing.assert_close(changed[null][0], J, msg=null)

    def test_a_product_multiplied_out_has_the_spectrum_of_the_exact_one(self):
        J = torch.eye(6, dtype=torch.float64) + 0.5 * torch.randn(
            2, 5, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        product = nulls.Product(6)
        for step in range(5):
            product.step(J[:, step])
        participation, rank = product.spectrum()
        exact = spectra.cumulative_spectra(J)
        torch.testing.assert_close(participation, exact.participation_ratio)
        torch.testing.assert_close(rank, exact.effective_rank[0])

    def test_symmetrised_ov_changes_what_a_head_carries_over_and_nothing_else(self):
        """Token alone: attention's K is W_O W_V D, D the norm's derivative, which stays."""
        from probe.jacobian import JacobianOptions, recorded_jacobian

        model = probe.load_model(tiny_module("llama").double())
        context = probe.replay.record(model, torch.arange(20)[None], torch.tensor([[7]])).alone()
        options = {"context": "alone", "part": "attention", "of": "update", "dtype": torch.float64}
        plain, changed = (
            recorded_jacobian(context, 1, JacobianOptions(**options, symmetrised_ov=on))[0, 0] for on in (False, True)
        )
        attention = model.blocks[1].self_attn
        value = attention.v_proj.weight.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
        carried = attention.o_proj.weight.detach() @ value.detach()
        x, norm = context.state(1)[0, 0], model.blocks[1].input_layernorm
        rho = (x.square().mean() + norm.variance_epsilon).sqrt()
        eye = torch.eye(WIDTH, dtype=torch.float64)
        norm = torch.diag(norm.weight.detach()) @ (eye / rho - torch.outer(x, x) / (WIDTH * rho**3))
        torch.testing.assert_close(plain, carried @ norm, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(changed, (carried + carried.mT) / 2 @ norm, rtol=1e-6, atol=1e-8)
        with pytest.raises(InputError, match="symmetrised_ov"):
            JacobianOptions(method="jacrev", symmetrised_ov=True).resolved(model)

    def test_a_run_with_symmetrised_ov_holds_its_product(self, folder, text):
        changes = OFF | {"interventions": True, "symmetrised_ov": True, "windows": 1, "order_windows": 0}
        config = _config(saved(folder, "llama"), text, **changes)
        data = run(config, folder / "ov").data
        found = data["null_participation_ratio"].sel(null="symmetrised_ov").isel(draw=0, query=0)
        own = data["product_participation_ratio"].sel(variant="model").isel(query=0)
        assert np.isfinite(found).all()
        assert not np.allclose(found, own, rtol=1e-3)

    def test_a_random_order_keeps_the_product_of_commuting_matrices(self):
        J = torch.diag_embed(torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5)
        shuffled, _ = nulls._shuffled_depth(J, 3, torch.Generator().manual_seed(1)).spectrum()
        expected = spectra.participation_ratio(torch.linalg.multi_dot(list(J)))
        torch.testing.assert_close(shuffled[:, -1], expected.expand(3))
        assert not torch.allclose(shuffled[0, :-1], shuffled[1, :-1])


class TestMeans:
    def test_one_document_is_left_out_at_a_time(self):
        matrices = torch.arange(4.0)[:, None, None].expand(4, 2, 2)
        rows = means.left_out_means(matrices, torch.tensor([7, 3, 7, 5]))
        # all; without 3 (value 1), 5 (value 3), 7 (values 0 and 2)
        torch.testing.assert_close(rows[:, 0, 0], torch.tensor([1.5, 5 / 3, 1.0, 2.0]))

    def test_the_jackknife_of_a_mean_is_the_t_interval(self):
        values = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        rows = torch.stack([values.mean(), *(torch.cat([values[:i], values[i + 1 :]]).mean() for i in range(9))])
        estimate, low, high = means.jackknifed(rows[:, None])[:, 0]
        from scipy import stats

        half = stats.t.ppf(0.975, 8) * float(values.std()) / 3
        assert (estimate, low, high) == pytest.approx((float(values.mean()), estimate - half, estimate + half))

    def test_one_document_has_no_interval(self):
        found = means.jackknifed(torch.tensor([[2.0], [3.0]]))
        assert found[0, 0] == 2.0
        assert np.isnan(found[1:]).all()


def test_a_run_that_lost_pieces_goes_on_and_ends_the_same(result, folder, text):
    again = folder / "resumed"
    shutil.copytree(result.directory, again)
    (again / "results.nc").unlink()
    pieces = sorted(again.glob("units/*/*.safetensors"))
    for lost in pieces[::2]:
        lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in pieces[1::2]}
    data = run(_config(saved(folder, "llama"), text), again).data
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    for name in result.data.data_vars:
        np.testing.assert_array_equal(data[name].values, result.data[name].values, err_msg=name)


def test_the_run_directory_keeps_the_contract(result):
    directory = result.directory
    assert result.write_report() == directory / "report.html"
    opened = xr.open_dataset(directory / "results.nc", engine="h5netcdf")
    assert json.loads(opened.attrs["provenance"])["config"]["windows"] == SMALL["windows"]
    judged = json.loads((directory / "claims.json").read_text())
    assert [claim["id"] for claim in judged] == [
        f"dynamics.{row}"
        for row in ("gradient", "late_symmetric", "bottleneck", "learned", "nonnormal_origin", "linear_holds")
    ]
    assert {claim["verdict"] for claim in judged} == {"inconclusive"}  # three documents
    drawn = {path.stem for path in (directory / "figures").glob("*.png")}
    assert {"depth", "clouds", "bottleneck", "perturbation", "linear-range", "pseudospectra", "coupling"} <= drawn
    assert "jacobian" not in Run(directory).piece("scores")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": 0}, "windows="),
        ({"draws": 0}, "draws="),
        ({"init_seeds": -1}, "init_seeds="),
        ({"kreiss_layers": -1}, "kreiss_layers="),
        ({"symmetrised_ov": True, "interventions": False}, "symmetrised_ov="),
        ({"layers": "1,9"}, "9"),
        ({"skip_first": 40}, "skip_first"),
        ({"window_length": 4000}, "4000"),
    ],
)
def test_wrong_options_are_refused_before_any_work(folder, text, changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(_config(saved(folder, "llama"), text, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_windows_without_a_position_that_counts_are_refused():
    tokens = torch.zeros((1, 4), dtype=torch.int64)
    windows = Windows(tokens, torch.zeros(1, dtype=torch.int64), ("a",), frozenset({0}), "text", "0")
    with pytest.raises(InputError, match="skip_first="):
        draw_positions(windows, 2, skip_first=1, seed=0)


def test_a_windows_positions_do_not_depend_on_the_other_windows():
    tokens = torch.randint(1, 100, (6, 50), generator=torch.Generator().manual_seed(0))

    def drawn(rows, seed=0):
        windows = Windows(tokens[rows], torch.arange(6)[rows], ("a",) * 6, frozenset({0}), "text", "0")
        return draw_positions(windows, 3, skip_first=10, seed=seed)

    whole = drawn(slice(None))
    assert torch.equal(drawn(slice(3, None)), whole[3:])
    assert torch.equal(drawn([5, 0]), whole[[5, 0]])
    assert len(set(map(tuple, whole.tolist()))) == 6
    assert not torch.equal(drawn(slice(None), seed=1), whole)
    assert bool((whole >= 10).all() and (whole.diff(dim=1) > 0).all())


def test_a_plan_names_every_stage(folder, text):
    plan = dynamics.plan(_config(saved(folder, "llama"), text))
    assert {stage.name: stage.tasks for stage in plan.stages} == {
        "scores": 2,
        "controls": 4,
        "products": 2,
        "eigenvectors": 1,
        "means": LAYERS,
        "mean_products": 1,
        "perturb": 3,
        "pseudospectra": 2,
    }
    assert all(stage.seconds > 0 for stage in plan.stages)
    bare = dynamics.plan(_config(saved(folder, "llama"), text, **OFF))
    assert [stage.name for stage in bare.stages] == ["scores"]


def test_each_variant_is_loaded_once(result, loaded):
    assert sorted(loaded, key=str) == [(0, None), (1, None), (None, 0), (None, None)]


def test_controls_are_never_the_model_itself(folder, text):
    config = _config("x", text, random_init=1, init_seeds=3)
    assert config.controls == ("init-0", "init-2", "init-3", "shuffled-0")
    assert _config("x", text, shuffled_weights=0).controls[-1] == "shuffled-1"
    assert DynamicsSubject(config).control("shuffled-0") == (None, 0)
    assert DynamicsSubject(config).control("init-2") == (2, None)


def test_the_command_line_runs_two_models_and_says_that_they_are_one(folder, text, tmp_path):
    """Two directories with the same weights, matrices kept: a report each, a page that says so."""
    first = saved(folder, "llama")
    second = tmp_path / "copy"
    shutil.copytree(first, second)
    words = [sys.executable, "-m", "probe.analyses.dynamics", f"--model={first},{second}", f"--text={text}"]
    words += ["--windows=2", "--window-length=32", "--positions-per-window=1", "--init-seeds=0", "--shuffled-seeds=0"]
    words += ["--no-alone", "--no-interventions", "--no-mean", "--no-perturb", "--kreiss-layers=0", "--keep-matrices"]
    words += ["--eigenvector-windows=0", f"--out={tmp_path / 'runs'}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "scores" in done.stderr  # the outline, before work begins
    *reports, page = done.stdout.split()
    assert [path.endswith("report.html") for path in reports] == [True, True]
    said = (tmp_path / "runs" / "comparison.html").read_text()
    assert page.endswith("comparison.html")
    assert "The same weights," in said
    model = probe.load_model(str(first))
    windows = probe.load_windows(model, text=text, windows=2, window_length=32)
    kept = probe.analyses.open_run(Path(reports[0]).parent)
    position = torch.from_numpy(kept.data["position"].values.reshape(2, 1))
    expected = probe.block_jacobian(model, windows.tokens, 1, position)
    found = Run(kept.directory).piece("scores", ["jacobian"], layer=1)["jacobian"]
    torch.testing.assert_close(found[:, None], expected)


def test_help_names_the_options_in_time():
    done = subprocess.run(
        [sys.executable, "-m", "probe.analyses.dynamics", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--init-seeds", "--no-perturb", "--kreiss-layers", "--keep-matrices", "--revision", "--dry-run"):
        assert option in done.stdout
