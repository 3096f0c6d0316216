"""Whole runs of the layer-update analysis on tiny models: known answers, resume, bad input."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import xarray as xr

from probe import InputError, capture, geometry, load_model, open_run
from probe.analyses import tokenwise
from probe.analyses.tokenwise.subject import UpdateSubject
from tests.plant.saved import saved, write_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenwise")


@pytest.fixture(scope="module")
def text(folder):
    return write_text(folder / "text.txt")


def _config(model, text, **changes):
    small = {"windows": 12, "window_length": 32, "fit_windows": 40, "positions_per_window": 4, "layers": "1,2"}
    small |= {"neighbours": 24, "rank": 8, "mlp_width": 16, "mlp_steps": 30, "draws": 2, "all_windows": 2}
    small |= {"sweep_neighbours": (12, 24), "sweep_ranks": (2, 8), "bank_tokens": 300}
    return tokenwise.Config(model=str(model), text=text, **(small | changes))


@pytest.fixture(scope="module")
def result(folder, text):
    return tokenwise.run(_config(saved(folder, "llama"), text), out=folder / "run", quiet=True)


def test_every_variable_is_there_and_finite(result):
    data = result.data
    layers, queries = data.sizes["layer"], data.sizes["query"]
    assert (layers, data.sizes["map"], data.sizes["draw"]) == (2, len(tokenwise.FITS), 2)
    assert queries % 4 == 0
    whole = ["relative_error", "share_of_update", "error_independent", "kl_control", "entropy", "sweep_error_in_sample"]
    for name in whole:
        assert np.isfinite(data[name]).all(), name
    for name in ("kl", "loss_change", "logit_distance", "logit_cosine", "top1", "kl_all"):
        values = data[name].sel(map=["mean", "linear", "local", "mlp"])
        assert np.isfinite(values).any(), name
    assert np.isfinite(data["kl_later"].sel(map="local")).sum() == layers * 2  # one query of each of two windows
    assert np.isfinite(data["sweep_error"]).sum() == 2 * 2 * layers * queries / 2  # two of four queries a window
    assert np.isfinite(data["instability"]).sum() == 2 * layers * queries / 2
    assert set(data["regime"].values.ravel()) <= {0, 1, 2}
    assert all("units" in data[name].attrs or name.startswith(("regime", "frequency")) for name in data.data_vars)


def test_identities_between_variables(result):
    data = result.data
    update = data.sel(target="update").drop_sel(map="zero")  # a fit of nothing has no direction
    # u = û + r, so that cos(u, û)‖û‖ + cos(u, r)‖r‖ = ‖u‖; with e = ‖r‖/‖u‖:  ‖û‖²/‖u‖² = 1 + e² − 2 e cos(u, r)
    e, cos_r = update["relative_error"], update["cos_update_residual"]
    fit_over_update = np.sqrt(1 + e**2 - 2 * e * cos_r)
    np.testing.assert_allclose(update["cos_update_fit"] * fit_over_update + e * cos_r, np.ones(e.shape), atol=2e-4)
    fixed_by_error = np.sqrt(np.clip(1 - e**2, 0, 1))
    assert ((update["cos_update_fit"] >= fixed_by_error - 1e-4) | (e > 1)).all()
    state = data["relative_error"].sel(target="state")
    next_norm = e * data["update_norm"] / state.drop_sel(map="zero")
    assert (next_norm <= data["state_norm"] + data["update_norm"] + 1e-2).all()
    assert data["relative_error"].sel(map="zero", target="update").values == pytest.approx(1, abs=1e-6)
    share = data["share"].sel(map=["mean", "linear", "low_rank", "local", "mlp", "mlp_random"])
    assert ((share >= 0) & (share <= 1 + 1e-5)).all()
    assert (share.diff("k") >= -1e-5).all()
    assert (data["kl"] >= 0).where(data["kl"].notnull(), True).all()


def test_the_directions_kept_are_those_of_the_shares(result, folder, text):
    subject = UpdateSubject(_config(saved(folder, "llama"), text))
    model, windows, positions = load_model(subject.config.model), subject.scored, subject.positions
    stream = capture(model, windows)
    rows = torch.arange(len(positions))[:, None]
    for layer, site in zip((1, 2), ("blocks.2.hook_resid_pre", "blocks.3.hook_resid_pre"), strict=True):
        update = (stream[site] - stream[f"blocks.{layer}.hook_resid_pre"])[rows, positions].flatten(0, 1)
        basis = torch.from_numpy(result.data["directions"].sel(layer=layer).values)
        kept = result.data["share"].sel(map="local", centring="centred", vector="update", layer=layer)
        for k in (1, 4, 8):
            expected = geometry.subspace_share(update, basis[:, :k])
            np.testing.assert_allclose(kept.sel(k=k), expected, atol=1e-4)


def test_fitting_and_scored_documents_never_meet(result, folder, text):
    subject = UpdateSubject(_config(saved(folder, "llama"), text))
    parts = [set(subject.part(part).document.tolist()) for part in ("fit", "validation", "scored")]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert set(result.data["document"].values.tolist()) == parts[2]


def test_without_attention_the_block_itself_is_the_map(folder, text):
    """A block whose attention writes nothing is a function of the token alone: residual and KL vanish."""
    config = _config(
        saved(folder, "llama", silent=("self_attn.o_proj",)),
        text,
        classes=("mean", "linear", "alone", "mlp_alone"),
        replaced=("alone", "mean"),
        sweep=False,
    )
    data = tokenwise.run(config, out=folder / "silent", quiet=True).data
    for fit in ("alone", "mlp_alone"):
        assert data["relative_error"].sel(map=fit, target="update").max() < 1e-4
    assert data["kl"].sel(map="alone").max() < 1e-5
    assert data["kl_all"].sel(map="alone").max(skipna=True) < 1e-5
    assert data["relative_error"].sel(map="mean", target="update").median() > 0.05
    assert data["kl"].sel(map="mean").median() > 1e-4
    # the block on the token alone is the block: nothing is left for context to explain
    floor, error = data["floor"].sel(map="mean"), data["relative_error"].sel(map="mean", target="update")
    measured = np.isfinite(floor)
    assert measured.sum() == floor.size / 2
    np.testing.assert_allclose(floor.values[measured], error.values[measured], rtol=0.2, atol=0.05)


def test_state_space_models_run_unchanged(folder, text):
    config = _config(
        saved(folder, "mamba"),
        text,
        classes=("mean", "linear", "local", "alone", "mlp_alone"),
        replaced=("linear", "local"),
    )
    result = tokenwise.run(config, out=folder / "mamba-run", quiet=True)
    assert "mlp_alone" not in result.data["map"].values
    assert np.isfinite(result.data["kl"].sel(map="local")).all()
    assert np.isfinite(result.data["residual_offposition_cosine"].sel(map="local")).all()


def test_the_run_directory_keeps_the_contract(result):
    directory = result.directory
    report = result.write_report()
    assert report == directory / "report.html"
    opened = xr.open_dataset(directory / "results.nc", engine="h5netcdf")
    assert json.loads(opened.attrs["provenance"])["config"]["windows"] == 12
    config = json.loads((directory / "config.json").read_text())
    assert {"weights", "text", "attention"} <= set(config["fingerprint"])
    claims = json.loads((directory / "claims.json").read_text())
    wanted = {"id", "statement", "source", "statistic", "estimate", "ci_low", "ci_high", "threshold", "direction"}
    wanted |= {"unit", "n_units", "null", "controls", "verdict", "reason"}
    assert all(set(claim) == wanted for claim in claims)
    ids = {claim["id"] for claim in claims}
    rows = (
        "alignment",
        "residual_distinct",
        "error_predicts_output",
        "residual_matters",
        "mlp_helps",
        "low_dimensional",
    )
    assert {f"updates.{row}" for row in rows} <= ids
    for figure in (directory / "figures").glob("*.png"):
        assert figure.with_suffix(".svg").exists()
    assert any((directory / "figures").iterdir())


def test_a_finished_run_is_opened_and_compared_with_itself(result):
    again = open_run(str(result.directory))
    assert [claim.to_dict() for claim in again.claims] == [claim.to_dict() for claim in result.claims]
    np.testing.assert_array_equal(again.table("entropy")["entropy"], result.data["entropy"])
    assert len(again.table("kl")) == int(result.data["kl"].notnull().sum())
    for name, labels in again.compared.items():
        assert (again.paired(result, name, resamples=2, **labels)["difference"] == 0).all()


def test_the_same_seed_gives_the_same_result(result, folder, text):
    again = tokenwise.run(_config(saved(folder, "llama"), text), out=folder / "again", quiet=True)
    xr.testing.assert_equal(again.data, result.data)


COMMAND = [sys.executable, "-m", "probe.analyses.tokenwise"]
TIME_LIMIT = 900  # seconds of a process, for a machine that does other things as well


def _options(config, out):
    changed = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default and field.name not in ("dataset", "thresholds")
    }
    words = [f"--out={out}", "--quiet"]
    for name, value in changed.items():
        words.append(f"--{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    return words


def test_a_killed_run_goes_on_and_ends_the_same(result, folder, text):
    """kill -9 once some tasks are done, then the same command: the result of an uninterrupted run."""
    config, out = _config(saved(folder, "llama"), text), folder / "killed"
    with subprocess.Popen([*COMMAND, *_options(config, out)]) as first:
        deadline = time.monotonic() + TIME_LIMIT
        while not list(out.glob("units/fit/*.safetensors")) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("units/*/*.safetensors")}  # none half written
    assert finished
    assert not (out / "results.nc").exists()
    second = subprocess.run(
        [*COMMAND, *_options(config, out)], capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip().endswith("report.html")
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    resumed = xr.open_dataset(out / "results.nc", engine="h5netcdf")
    for name in result.data.data_vars:
        np.testing.assert_allclose(resumed[name].values, result.data[name].values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("linear", "quadratic")}, "quadratic"),
        ({"classes": ("linear",), "replaced": ("local",)}, "replaced="),
        ({"positions_per_window": 0}, "positions_per_window= must be at least 1, got 0"),
        ({"layers": "1,9"}, "9"),
        ({"window_length": 4000}, "4000"),
    ],
)
def test_wrong_options_are_refused_before_any_work(folder, text, changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tokenwise.run(_config(saved(folder, "llama"), text, **changes), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_plan_times_a_task_of_every_stage(folder, text):
    """Of three batches; only the first holds the windows that are replaced at every position."""
    plan = tokenwise.plan(_config(saved(folder, "llama"), text, windows=20))
    assert [(stage.name, stage.tasks) for stage in plan.stages] == [
        ("states", 6),
        ("queries", 3),
        ("fit", 2),
        ("replace", 3),
    ]
    assert all(stage.seconds > 0 and stage.bytes > 2**27 for stage in plan.stages)
    bare = tokenwise.plan(_config(saved(folder, "llama"), text, replacement="none"))
    assert [stage.name for stage in bare.stages] == ["states", "queries", "fit"]


def test_the_model_is_loaded_once(folder, text, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "probe.model.load_model", lambda *given, **named: loaded.append(named) or load_model(*given, **named)
    )
    config = _config(saved(folder, "llama"), text, classes=("mean", "alone"), replaced=("mean",), sweep=False)
    tokenwise.run(config, out=folder / "loads", quiet=True)
    assert len(loaded) == 1


@pytest.mark.parametrize("seed", range(3))
def test_permuting_within_windows_keeps_each_window_together(seed):
    from probe.analyses.tokenwise import fits

    window = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    update = torch.arange(9.0)[:, None]
    tokens = fits.Tokens(update.clone(), update, window, window)
    permuted = fits._permute_within_windows(tokens, seed)
    assert torch.equal(permuted.state, tokens.state)
    for one in range(3):
        assert set(permuted.update[window == one].flatten().tolist()) == set(update[window == one].flatten().tolist())


def test_a_derangement_moves_everything():
    from probe.analyses.tokenwise import fits

    for seed in range(5):
        order = fits._derangement(7, seed)
        assert sorted(order.tolist()) == list(range(7))
        assert (order != torch.arange(7)).all()
