"""Whole runs of the communities analysis on tiny models: known answers, planted gains, resume, reuse, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import probe
from probe import InputError, graphs
from probe.analyses import communities, dynamics
from probe.analyses.communities import claims, coupling, gains, partitions, work
from probe.analyses.communities.stages import Communities
from probe.analyses.communities.work import CommunitySubject
from probe.analyses.dynamics.kept import Kept
from probe.analysis import Task
from probe.inference import partial_spearman
from probe.runs import Run
from tests.plant.saved import saved, write_text
from tests.plant.tiny import LAYERS, WIDTH, tiny_module

SMALL = {"windows": 3, "window_length": 32, "skip_first": 4, "graph_windows": 6, "graph_positions": 20}
SMALL |= {"neighbours": 6, "seeds": 3, "profile_seeds": 3, "profile_draws": 1, "null_graphs": 2, "graph_resamples": 2}
SMALL |= {"permutations": 9, "basis_draws": 1, "init_seeds": 1, "ablation_layers": 1, "drawn_layers": 1}


class Quick(Communities):
    """Intervals and the grid of choices are tested where they are made; here they would take most of the time."""

    grid_permutations, draws = 3, 5

    def claims(self, data, config, *, resamples=20):
        return super().claims(data, config, resamples=resamples)

    def figures(self, data, config, *, resamples=20):
        return super().figures(data, config, resamples=resamples)


QUICK = Quick()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("communities")


@pytest.fixture(scope="module")
def text(folder):
    return write_text(folder / "text.txt")


def _config(model, text, **changes):
    return communities.Config(model=str(model), text=text, **(SMALL | changes))


@pytest.fixture(scope="module")
def config(folder, text):
    return _config(saved(folder, "llama"), text)


@pytest.fixture(scope="module")
def loaded():
    """Seeds of the fresh weights of every model that the run loads."""
    return []


@pytest.fixture(scope="module")
def result(config, folder, loaded):
    load = probe.model.load_model

    def counted(*args, random_init, **options):
        loaded.append(random_init)
        return load(*args, random_init=random_init, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe.model, "load_model", counted)
        return QUICK.run(config, out=folder / "run", quiet=True)


@pytest.fixture(scope="module")
def subject(config):
    return CommunitySubject(config)


@pytest.fixture(scope="module")
def run(result):
    return Run(result.directory)


@pytest.fixture(scope="module")
def kept(folder, text, config):
    options = {"windows": 20, "window_length": 32, "skip_first": 4, "init_seeds": 0, "shuffled_seeds": 0}
    options |= {"alone": False, "interventions": False, "eigenvector_windows": 0, "mean": False, "perturb": False}
    own = dynamics.Config(model=config.model, text=text, kreiss_layers=0, keep_matrices=True, **options)
    return dynamics.run(own, out=folder / "dynamics", quiet=True)


class TestVariables:
    def test_views_layers_and_nodes(self, result):
        data = result.data
        assert data["view"].values.tolist() == ["model", "symmetrised", "no_outliers", "basis-0", "init-0"]
        sizes = {name: data.sizes[name] for name in ("layer", "node", "query", "permutation", "resample", "null_draw")}
        expected = {"layer": LAYERS, "node": WIDTH, "query": 6, "permutation": 9, "resample": 2, "null_draw": 2}
        assert sizes == expected
        for name in ("participation", "square_gain", "permuted_rho", "layer_ami", "half_ami", "resampled_half_ami"):
            assert name in data, name
        assert [claim.id for claim in result.claims] == [row.sentence.id for row in claims.ROWS]

    def test_each_model_is_loaded_once(self, result, loaded):
        assert sorted(loaded, key=str) == [0, None]

    def test_controls_are_measured_at_the_first_position_of_each_window(self, result):
        measured = result.data["square_gain"].notnull().any(("layer", "node")).transpose("view", "query").values
        assert measured[0].all()
        for view in measured[1:3]:
            assert view.tolist() in ([True] * 6, [True, False] * 3)
        assert measured[3].tolist() == measured[4].tolist() == [True, False] * 3

    def test_gains_are_column_norms_of_the_jacobian_on_the_other_half(self, result, subject):
        windows, positions = subject.scored_windows(), subject.scored_positions()
        K = probe.block_jacobian(subject.model, windows.tokens, 2, positions, of="update").double()
        found = result.data["square_gain"].sel(view="model", layer=2).transpose("query", "node").values
        np.testing.assert_allclose(found, K.square().sum(-2).flatten(0, 1), rtol=1e-5)
        symmetric = (K + K.mT)[:, 0].div(2).square().sum(-2)
        found = result.data["square_gain"].sel(view="symmetrised", layer=2).transpose("query", "node").values[::2]
        np.testing.assert_allclose(found, symmetric, rtol=1e-5)
        assert not set(subject.graph_windows("half_a").document.tolist()) & set(windows.document.tolist())

    def test_a_basis_turns_states_and_jacobian_alike(self, result, subject, run):
        basis = subject.basis("basis-0", WIDTH)
        torch.testing.assert_close(basis.mT @ basis, torch.eye(WIDTH), rtol=0, atol=1e-5)
        states = work.states_of(subject, run, "basis-0", 1)
        torch.testing.assert_close(states, work.states_of(subject, run, "model", 1) @ basis)
        total = result.data["square_gain"].isel(query=slice(None, None, 2)).sum("node").sel(layer=1)
        np.testing.assert_allclose(total.sel(view="basis-0"), total.sel(view="model"), rtol=1e-5)
        assert not np.allclose(*(result.data["square_gain"].sel(view=v, layer=1)[:, 0] for v in ("basis-0", "model")))

    def test_states_are_those_that_enter_the_block(self, subject, run):
        windows, positions = subject.graph_windows("half_b"), subject.graph_positions("half_b")
        stream = probe.capture(subject.model, windows)["blocks.3.hook_resid_pre"]
        expected = stream.gather(1, positions[..., None].expand(-1, -1, WIDTH)).flatten(0, 1)
        torch.testing.assert_close(work.states_of(subject, run, "half_b", 3), expected)

    def test_the_coupling_is_that_of_the_saved_graph(self, result, run):
        graph, labels, _ = partitions.load_graph(run, "model", 1)
        place = graphs.participation_coefficient(graph, labels)
        np.testing.assert_allclose(result.data["participation"].sel(view="model", layer=1), place, rtol=1e-6)
        gain = result.data["square_gain"].sel(view="model", layer=1).mean("query").values
        expected = partial_spearman(place, gain, list(partitions.load_given(run, "model", 1)))
        own = claims.Coupling(result.data, "model", np.ones(LAYERS, dtype=bool))
        assert own(np.ones(6))[1] == pytest.approx(float(expected), abs=1e-6)

    def test_covariates_hold_variance_mean_and_the_gains_of_the_norms(self, result, subject, run):
        given = result.data["covariate"].sel(view="model", layer=2).values
        states = work.states_of(subject, run, "model", 2).double()
        np.testing.assert_allclose(given[0], states.var(0), rtol=1e-5)
        np.testing.assert_allclose(given[1], states.mean(0).abs(), rtol=1e-5)
        block = subject.model.blocks[2]
        np.testing.assert_allclose(given[2], block.input_layernorm.weight)
        np.testing.assert_allclose(given[3], block.post_attention_layernorm.weight)
        assert given.shape == (5, WIDTH)

    def test_amplification_of_communities_is_that_of_the_mean_square(self, result, subject):
        tokens = subject.scored_windows().tokens
        J = probe.block_jacobian(subject.model, tokens, 1, subject.scored_positions()).double()
        labels = result.data["community"].sel(view="model", layer=1).values
        columns = J.square().sum(-2).mean((0, 1)).numpy()
        found = result.data["community_amplification"].sel(matrix="J", amplification="gain", layer=1).values
        for community in range(min(3, labels.max() + 1)):
            assert found[community] == pytest.approx(np.sqrt(columns[labels == community].mean()), rel=1e-5)

    def test_the_grid_holds_every_choice(self, result):
        assert result.data["grid_rho"].shape == (1, 2, 2, 3, 4, 3)
        assert result.data["grid_permuted_rho"].shape[-1] == 3
        assert claims.agreement(result.data).dtype == bool


class TestNeurons:
    def test_a_run_on_the_neurons_of_the_mlp(self, folder, text):
        config = _config(saved(folder, "gpt2"), text, nodes="mlp", layers="1,2", ablation_layers=0, drawn_layers=0)
        result = QUICK.run(config, out=folder / "mlp", quiet=True)
        assert result.data.sizes["node"] == 4 * WIDTH
        assert result.data["view"].values.tolist() == ["model", "no_outliers", "init-0"]
        claim = next(claim for claim in result.claims if claim.id == "communities.robust")
        assert "--ablation-layers" in claim.reason

    @pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3", "opt", "phi", "olmo3"])
    def test_terms_of_rank_one_add_up_to_the_mlps_jacobian(self, architecture):
        """A neuron's gain is the norm of what is lost when it is silenced: its column of W_down set to zero."""
        from probe.jacobian import JacobianOptions, analytic, mlp_neuron_gain, recorded_jacobian
        from probe.jacobian.primal import primal_point

        model = probe.load_model(tiny_module(architecture).double())
        tokens = torch.arange(12)[None]
        down = model.projections(1)["down"]
        part = "block" if model.parallel else "mlp"
        options = JacobianOptions(part=part, of="update", dtype=torch.float64)
        context = probe.replay.record(model, tokens, torch.tensor([[5, 11]]))
        found = mlp_neuron_gain(context, 1, torch.float64)
        if architecture in {
            "gemma3",
            "olmo3",
        }:  # behind a norm of the output, silencing moves the norm as well
            standard = analytic.StandardBlock.of(model, 1, torch.float64, probe.replay.LINEARISED)
            primal = primal_point(context, 1, standard.cuts, probe.replay.LINEARISED)
            for neuron in (0, 7):
                down = standard.matrices["down"]
                alone = torch.zeros_like(down)
                alone[:, neuron] = down[:, neuron]
                one = replace(
                    standard, matrices={**standard.matrices, "down": alone}
                )  # the norm's point stays that of the whole MLP
                term = analytic.update_jacobian(one, primal, slice(None), "mlp")
                torch.testing.assert_close(found[0, :, neuron], term.norm(dim=(-2, -1)), rtol=1e-9, atol=1e-12)
            return
        before = recorded_jacobian(context, 1, options)
        for neuron in (0, 7):
            kept = down.detach().clone()
            with torch.no_grad():
                down[:, neuron] = 0
                after = recorded_jacobian(context, 1, options)
                down.copy_(kept)
            term = (before - after).norm(dim=(-2, -1))
            torch.testing.assert_close(found[..., neuron], term, rtol=1e-6, atol=1e-9)

    def test_a_state_space_block_has_no_neurons(self, folder, text):
        with pytest.raises(InputError, match="nodes='residual'"):
            communities.run(_config(saved(folder, "mamba"), text, nodes="mlp"), out=folder / "no", quiet=True)


class TestPlanted:
    """Participation that drives the gain must be found, with its sign; noise must not."""

    def _graph(self, seed=0, nodes=200):
        rng = np.random.default_rng(seed)
        labels = np.arange(nodes) % 5
        factors = rng.standard_normal((3000, 5))
        mixed = rng.uniform(0, 1, nodes)[:, None]  # how much a node belongs to a second community as well
        other = factors[:, (labels + 1) % 5].T
        states = ((1 - 0.5 * mixed) * factors[:, labels].T + 0.5 * mixed * other).T
        states = states + 0.7 * rng.standard_normal((3000, nodes))
        graph = graphs.correlation_graph(states, top_k=60)
        return graph, labels, graphs.participation_coefficient(graph, labels), rng

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_planted_coupling_is_beyond_its_null(self, sign):
        graph, _, place, rng = self._graph()
        strata = graphs.degree_deciles(graph)
        beyond = place - np.array([place[strata == stratum].mean() for stratum in strata])
        gain = np.exp(sign * 2 * beyond / beyond.std() + rng.standard_normal(len(place)))
        given = np.abs(rng.standard_normal((2, len(place))))
        rho = float(partial_spearman(place, gain, list(given)))
        null = coupling.permuted(graph, place, gain, given, 99, 0)
        assert np.sign(rho) == sign
        assert (np.abs(null) < abs(rho)).all()

    def _rejected(self, trials):
        """Share of couplings with noise that permuted labels call significant at 5 %."""
        found = []
        for trial in range(trials):
            graph, _, place, rng = self._graph(seed=trial)
            driver = place + np.nanstd(place) * rng.standard_normal(len(place))  # of the gain, and bound to the place
            gain = np.exp(driver / np.nanstd(driver) + rng.standard_normal(len(place)))
            rho = float(partial_spearman(place, gain, [driver]))
            null = coupling.permuted(graph, place, gain, driver[None], 39, trial)
            found.append((1 + (np.abs(null) >= abs(rho)).sum()) / 40 <= 0.05)
        return float(np.mean(found))

    def test_noise_is_rejected_no_more_often_than_it_should(self):
        assert self._rejected(30) <= 0.2

    @pytest.mark.study
    def test_noise_is_rejected_at_the_nominal_rate_in_many_trials(self):
        assert 0.01 <= self._rejected(400) <= 0.09

    def test_a_covariate_that_drives_both_is_taken_out(self):
        _, _, place, rng = self._graph()
        spread = np.nanstd(place)
        drives = place + 0.2 * spread * rng.standard_normal(len(place))
        gain = np.exp(drives + 0.2 * spread * rng.standard_normal(len(place)))
        assert float(partial_spearman(place, gain, [])) > 0.9
        assert abs(float(partial_spearman(place, gain, [drives]))) < 0.3


class TestRuns:
    def test_a_resumed_run_equals_an_uninterrupted_one(self, result, config, folder):
        """Tasks of a layer are removed and done again, with another history of what is kept in memory."""
        again = folder / "again"
        small = replace(config, ablation_layers=0, layers="0,2")
        first = QUICK.run(small, out=again, quiet=True).data
        for stage in ("graphs", "jacobians", "coupling"):
            removed = sorted((again / "units" / stage).glob("*layer-00002*"))
            assert removed
            for path in removed:
                path.unlink()
        assert QUICK.run(small, out=again, quiet=True).data.drop_attrs().identical(first.drop_attrs())

    def test_the_report_opens_and_claims_are_on_disk(self, result):
        page = result.write_report().read_text(encoding="utf-8")
        assert "communities.coupling" in page
        assert len(json.loads((result.directory / "claims.json").read_text())) == len(claims.ROWS)

    def test_a_plan_names_every_stage(self, config, subject):
        plan = QUICK.plan(config)
        tasks = {stage.name: len(stage.tasks) for stage in QUICK.stages(subject)}
        assert {stage.name: stage.tasks for stage in plan.stages} == tasks
        assert all(stage.seconds > 0 for stage in plan.stages)

    def test_the_command_line_runs_it(self, folder, text, config):
        options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
        command = [sys.executable, "-m", "probe.analyses.communities", "--model", config.model, "--text", str(text)]
        command += [*options, "--layers=1", "--ablation-layers=0", "--quiet", "--out", str(folder / "cli")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("report.html")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"seeds": 2}, "seeds= must be at least 3"),
            ({"resolution": -1.0}, "resolution= must be positive"),
            ({"windows": 0}, "windows="),
            ({"method": "louvain", "objective": "modularity"}, "Louvain"),
            ({"windows": 4000}, "half_b part"),
        ],
    )
    def test_wrong_options_are_refused_before_any_work(self, folder, text, changes, message, tmp_path):
        with pytest.raises(InputError, match=message):
            communities.run(_config(saved(folder, "llama"), text, **changes), out=tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


class TestReuse:
    """What a dynamics run holds of the same text and weights is used instead of being computed again."""

    @pytest.fixture
    def task(self):
        return Task("jacobians", {"layer": 1}, {"draws": Quick.draws})

    def test_the_result_is_the_same_and_nothing_is_recorded(self, kept, config, run, task, monkeypatch):
        monkeypatch.setattr(CommunitySubject, "recorded", lambda *_: pytest.fail("a Jacobian was computed again"))
        subject = CommunitySubject(replace(config, dynamics=kept.directory))
        found = gains.measure_jacobians(subject, task, run)
        saved = run.piece("jacobians", layer=1)
        assert set(found.arrays) == set(saved)
        for name, values in found.arrays.items():
            torch.testing.assert_close(values, saved[name], rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)

    def test_places_are_found_by_the_text_before_them(self, kept, subject):
        reader = Kept(kept.directory, subject.fingerprint, LAYERS, "sequence")
        tokens, position = subject.scored_windows().tokens[0].clone(), int(subject.scored_positions()[0, 0])
        place = reader.find(tokens, position)
        assert place is not None
        J = probe.block_jacobian(subject.model, tokens[None], 1, [position])[0, 0]
        torch.testing.assert_close(reader.jacobian(place, 1), J)
        score = reader.score("rotation_fraction", place, 1)
        assert score == pytest.approx(float(probe.spectra.rotation_fraction(J - torch.eye(WIDTH))), rel=1e-6)
        tokens[position + 1 :] = 7  # what follows does not matter
        assert reader.find(tokens, position) == place
        tokens[position] = 9
        assert reader.find(tokens, position) is None

    def test_a_run_of_another_model_is_refused(self, kept, folder, text, run, task):
        other = CommunitySubject(_config(saved(folder, "gpt2"), text, dynamics=kept.directory))
        with pytest.raises(InputError, match="same weights"):
            gains.measure_jacobians(other, task, run)

    def test_a_folder_without_a_run_is_refused(self, config, run, task, tmp_path):
        subject = CommunitySubject(replace(config, dynamics=tmp_path))
        with pytest.raises(InputError, match=r"holds config\.json"):
            gains.measure_jacobians(subject, task, run)
