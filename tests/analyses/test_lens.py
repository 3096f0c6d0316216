"""Whole runs of the lens analysis on tiny models: known answers, resume, a second corpus, few documents, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import probe
from probe import InputError
from probe.analyses import lens
from probe.analyses.lens.claims import Participation
from probe.analyses.lens.panels import participation
from probe.analyses.lens.schema import LENSES, PREDICTORS
from probe.analyses.lens.stages import Lens
from probe.analyses.lens.subject import LensSubject, with_own_ends
from probe.analysis import command
from probe.plots import style
from probe.runs import Run
from tests.plant.saved import saved, write_text
from tests.plant.tiny import LAYERS, WIDTH

SOURCES = LAYERS - 1
SMALL = {"windows": 2, "fit_windows": 3, "window_length": 24, "positions_per_window": 2, "control_windows": 2}
SMALL |= {"init_seeds": 1, "shuffled_seeds": 1, "blocks_seeds": 1, "tuned_steps": 2, "steered": 2}
BARE = {"init_seeds": 0, "shuffled_seeds": 0, "blocks_seeds": 0, "affine": False}


class Quick(Lens):
    """Intervals are tested where they are made; here they would take most of the time."""

    def claims(self, data, config, *, resamples=20):
        return super().claims(data, config, resamples=resamples)


def run(config, out):
    return Quick().run(config, out=out, quiet=True)


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "RESAMPLES", 20)
        patch.setattr("probe.analyses.lens.claims.PERMUTATIONS", 19)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lens")


@pytest.fixture(scope="module")
def text(folder):
    return write_text(folder / "text.txt")


@pytest.fixture(scope="module")
def other(folder):
    return write_text(folder / "other.txt", articles=4, words=40)


def _config(folder, text, **changes):
    return lens.Config(model=str(saved(folder, "llama")), text=text, **(SMALL | changes))


@pytest.fixture(scope="module")
def loaded():
    """What the run of `result` loads: seeds of fresh and of shuffled weights."""
    return []


@pytest.fixture(scope="module")
def result(folder, text, other, loaded):
    load = probe.load_model

    def counted(*args, **options):
        loaded.append((options["random_init"], options["shuffled_weights"]))
        return load(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probe.model.load_model", counted)
        return run(_config(folder, text, other_text=other), folder / "run")


@pytest.fixture(scope="module")
def subject(folder, text, other):
    return LensSubject(_config(folder, text, other_text=other))


def matrices(subject, group, rows=None):
    """J of the documents of a fit, by the public function, (document, source, d, d)."""
    places = subject.places(group, rows)
    found = [probe.lens.document_jacobian(subject.model, subject.tokens(at), subject.estimator) for at in places]
    return torch.stack(found).double()


def rest(found):
    """J − α I."""
    return found - torch.einsum("...ii->...", found)[..., None, None] / WIDTH * torch.eye(WIDTH, dtype=torch.float64)


class TestDocuments:
    def test_no_document_is_in_two_fits_or_read_and_fitted(self, subject):
        titles = subject.drawn.document.tolist()
        assert len(set(titles)) == len(titles) == 2 + 2 * 3
        rows = [*range(2), *subject.fits["first"].tolist(), *subject.fits["second"].tolist()]
        assert sorted(rows) == list(range(8))
        assert subject.held.document.tolist() == titles[:2]

    def test_the_fits_are_those_that_are_named(self, result):
        groups = result.data["group"].values.tolist()
        assert groups == ["first"] * 3 + ["second"] * 3 + ["other"] * 3
        assert result.data["controlled"].values.tolist() == [True] * 2 + [False] * 7
        assert (result.data.attrs["n_first"], result.data.attrs["n_other"]) == (3, 3)
        assert "other.txt" in result.data.attrs["other_text"]

    def test_few_documents_are_divided(self, folder, text):
        config = _config(folder, text, windows=12, fit_windows=24)
        few = LensSubject(config)
        assert few.drawn.n_windows == 20
        assert (few.n_held, len(few.fits["first"]), len(few.fits["second"])) == (6, 7, 7)

    def test_too_few_documents_are_refused(self, folder, tmp_path):
        short = write_text(folder / "short.txt", articles=5)
        with pytest.raises(InputError, match="at least 6 documents"):
            run(_config(folder, short), tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestAgainstTheJacobians:
    def test_inner_products_of_documents(self, result, subject):
        found = torch.cat([matrices(subject, group) for group in ("first", "second", "other")])
        for part, values in (("J", found), ("M", rest(found))):
            flat = values.flatten(2).transpose(0, 1)
            gram = result.data["gram"].sel(part=part).transpose("source", "fitted", "fitted_other")
            np.testing.assert_allclose(gram, flat @ flat.mT, rtol=1e-4, atol=1e-5, err_msg=part)

    def test_the_mean_of_the_controlled_documents(self, result, subject):
        mean = matrices(subject, "first", 2).mean(0)
        data = result.data.sel(variant="model")
        for part, values in (("J", mean), ("M", rest(mean))):
            singular = data["singular_value"].sel(part=part).transpose("source", "index")
            np.testing.assert_allclose(singular, torch.linalg.svdvals(values), rtol=1e-3, atol=1e-5, err_msg=part)
        alpha = mean.diagonal(dim1=-2, dim2=-1).mean(-1)
        np.testing.assert_allclose(data["mean_alpha"], alpha, rtol=1e-5)
        np.testing.assert_allclose(data["identity_share"], alpha**2 * WIDTH / mean.square().sum((-2, -1)), rtol=1e-5)

    def test_the_edge_of_noise_of_two_documents(self, result, subject):
        """They lie ± half their difference D from the mean: five draws of signs give 0 or ‖D‖₂ / √2 each."""
        one, other = rest(matrices(subject, "first", 2))
        share = result.data["noise_edge"].values / (torch.linalg.matrix_norm(one - other, 2).numpy() / 2**0.5)
        np.testing.assert_allclose(5 * share, np.round(5 * share[0]), atol=1e-3)
        assert 0 < share[0] <= 1

    @pytest.mark.parametrize("variant", ["model", "init-0", "shuffled-0", "blocks-0"])
    def test_participation_follows_from_the_quartics(self, result, variant):
        data = result.data.sel(variant=variant)
        of = Participation(
            data["quartic"].transpose("source", "pair", "pair_other").values,
            data["pair_trace"].transpose("source", "pair").values,
        )
        np.testing.assert_allclose(np.exp(of(np.ones(2))), participation(result.data).sel(variant=variant), rtol=1e-3)

    def test_lenses_read_as_the_public_function_does(self, result, subject):
        mean = matrices(subject, "first").mean(0).float()
        fitted = probe.lens.JacobianLens(tuple(subject.sources), mean, LAYERS - 1, 3)
        moved = probe.lens.JacobianLens(tuple(subject.sources), mean.roll(1, 0), LAYERS - 1, 3)
        beside = {"jacobian": fitted, "logit": "logit", "own": "own", "displaced": moved}
        where = subject.positions[1]
        read = probe.lens.readout(
            subject.model, subject.held.tokens[1], beside, layers=subject.sources, positions=where, k=1
        )
        data = result.data.isel(query=[2, 3])
        for at, name in enumerate(beside):
            kl = data["kl"].sel(lens=name).transpose("source", "query")
            np.testing.assert_allclose(kl, read.kl[at].reshape(SOURCES, 2), rtol=1e-3, atol=1e-5, err_msg=name)
        assert (data["agrees"] == (data["output_rank"] == 0)).all()

    def test_a_small_step_is_what_the_own_jacobian_says(self, result):
        assert (result.data["cosine"].sel(predictor="own") > 0.99).all()
        assert result.data["cosine"].notnull().all()

    def test_means_predict_as_the_fitted_matrices_do(self, result, subject):
        """At the last source, whose next block is the last: the step is known, and so is every prediction."""
        model, window, layer = subject.model, 1, SOURCES - 1
        where = subject.positions[window : window + 1]
        stream = probe.capture(model, subject.held.tokens[window : window + 1])
        before, state = (stream[f"blocks.{block}.hook_resid_pre"][0, where[0]].double() for block in (layer, layer + 1))
        own = probe.lens.own_lens(model, subject.held.tokens[window : window + 1], where, layers=[layer])[0, :, 0]
        documents = subject.drawn.tokens[subject.fits["first"]]
        same = probe.lens.fit(model, documents, targets="same", sources=2, layers=[layer], quiet=True)
        step = (state - before) / (state - before).norm(dim=-1, keepdim=True)
        exact = torch.einsum("pij,pj->pi", own.double(), step)
        for name, mean in {"first": matrices(subject, "first").mean(0)[layer], "same": same[layer].double()}.items():
            expected = torch.nn.functional.cosine_similarity(step @ mean.mT, exact)
            found = result.data["cosine"].sel(predictor=name, source=layer).isel(query=[2, 3])
            np.testing.assert_allclose(found, expected, atol=0.01, err_msg=name)

    def test_a_step_is_as_long_as_it_says(self, result, subject):
        """Along logit-lens directions what is predicted is the step itself, behind the last block."""
        model, token = subject.model, subject.steered[0]
        stream = probe.capture(model, subject.held.tokens[:1])
        where = subject.positions[0]
        final = stream[f"blocks.{LAYERS - 1}.hook_resid_post"][0, where]
        state = stream["blocks.1.hook_resid_pre"][0, where]
        row = dict(model.module.named_parameters())["lm_head.weight"][token].detach()
        step = 0.05 * state.norm(dim=-1, keepdim=True) * row / row.norm()
        expected = (model.unembed(final + step) - model.unembed(final))[:, token].detach()
        found = result.data["predicted"].sel(direction="logit", source=0, steered=token).isel(query=[0, 1])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_everything_that_is_declared_is_measured(result):
    data = result.data
    assert data["variant"].values.tolist() == ["model", "init-0", "shuffled-0", "blocks-0"]
    assert data["lens"].values.tolist() == list(LENSES)
    assert data["predictor"].values.tolist() == list(PREDICTORS)
    assert data.sizes["source"] == SOURCES
    for name in ("gram", "kl", "cosine", "quartic", "singular_value", "predicted", "measured", "noise_edge"):
        assert data[name].notnull().all(), name
    assert data["token"].dims == ("query",)
    assert len(data["steered_text"]) == 2
    assert all("units" in data[name].attrs for name in data.data_vars)


def test_fresh_blocks_keep_the_ends(folder):
    own = probe.load_model(str(saved(folder, "llama")))
    fresh = with_own_ends(probe.load_model(str(saved(folder, "llama")), random_init=3), own)
    again = probe.load_model(str(saved(folder, "llama")), random_init=3)
    theirs, drawn = dict(own.module.named_parameters()), dict(again.module.named_parameters())
    for name, values in fresh.module.named_parameters():
        expected = drawn if "layers." in name else theirs
        torch.testing.assert_close(values, expected[name])
    assert not torch.equal(drawn["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])


def test_each_variant_is_loaded_once(loaded, result):
    # the last fresh one keeps the model's embedding and head
    assert sorted(loaded, key=str) == [(0, None), (0, None), (None, 0), (None, None)]


def test_a_lens_of_the_same_position_has_no_second_mean(folder, text):
    config = _config(folder, text, targets="same", layers="0,2", **BARE)
    data = run(config, folder / "same").data
    assert data["cosine"].sel(predictor="same").isnull().all()
    assert data["cosine"].sel(predictor="first").notnull().all()
    assert data["kl"].sel(lens=["affine", "tuned", "blocks"]).isnull().all()
    assert data["source"].values.tolist() == [0, 2]


def test_a_run_that_lost_pieces_goes_on_and_ends_the_same(result, folder, text, other):
    again = folder / "resumed"
    shutil.copytree(result.directory, again)
    (again / "results.nc").unlink()
    for lost in sorted(again.glob("units/*/*.safetensors"))[::6]:
        lost.unlink()
    data = run(_config(folder, text, other_text=other), again).data
    for name in result.data.data_vars:
        np.testing.assert_array_equal(data[name].values, result.data[name].values, err_msg=name)


def test_the_run_directory_keeps_the_contract(result):
    directory = result.directory
    assert result.write_report() == directory / "report.html"
    judged = json.loads((directory / "claims.json").read_text())
    rows = ("stable", "reads", "own_context", "corpus", "learned", "causal")
    assert [claim["id"] for claim in judged] == [f"lens.{row}" for row in rows]
    assert {claim["verdict"] for claim in judged} == {"inconclusive"}  # few documents
    drawn = {path.stem for path in (directory / "figures").glob("*.png")}
    assert drawn == {"stable", "reads", "own-context", "ranks", "spectrum", "learned", "causal", "corpora"}
    assert "jacobian" not in result.data
    assert Run(directory).piece("documents", ["jacobian"], variant="model", fitted=0)["jacobian"].shape[-1] == WIDTH


def test_a_plan_names_every_stage(folder, text):
    plan = lens.plan(_config(folder, text))
    assert {stage.name: stage.tasks for stage in plan.stages} == {
        "documents": 6 + 3 * 2,
        "same": 3,
        "grams": SOURCES,
        "quartics": 4 * SOURCES,
        "edges": SOURCES,
        "translators": 1,
        "reads": 2,
        "own": 2,
        "steer": 2,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": 0}, "windows="),
        ({"fit_windows": 1}, "fit_windows="),
        ({"window_length": 10}, "window_length="),
        ({"layers": "3"}, "before the last"),
        ({"other_text": Path("a"), "other_dataset": "b"}, "only one second text"),
    ],
)
def test_wrong_options_are_refused_before_any_work(folder, text, changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(_config(folder, text, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_what_it_would_take(folder, text, tmp_path, capsys):
    words = [f"--model={saved(folder, 'llama')}", f"--text={text}", "--windows=2", "--fit-windows=3", "--dry-run"]
    words += ["--window-length=24", "--no-affine", "--init-seeds=0", "--shuffled-seeds=0", "--blocks-seeds=0"]
    assert command.main("lens", lens.Config, lambda: lens.analysis, [*words, f"--out={tmp_path / 'runs'}"]) == 0
    said = capsys.readouterr().out
    assert all(stage in said for stage in ("documents", "same", "quartics", "steer"))
    assert not (tmp_path / "runs").exists()
