"""Whole runs of the continuity analysis on tiny models: known answers, resume, the command line, figures, bad input."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from probe import InputError, load_model, plots, weights
from probe.analyses.continuity import Config, figures
from probe.analyses.continuity import panels as continuity_panels
from probe.analyses.continuity.interactive import trajectories
from probe.analyses.continuity.stages import Continuity
from probe.analyses.continuity.work import Matrices
from probe.analysis import Claim, Figure, command
from probe.report import Result
from probe.runs import Run
from tests.architectures import zoo
from tests.plant.continuity import dataset
from tests.plant.gguf_file import write_gguf
from tests.plant.saved import add_code
from tests.plant.tiny import LAYERS, WIDTH, tiny_module
from tests.weights.test_curves import rotating_weights

SMALL = {"init_seeds": 2, "permutations": 20}
ANGLE = 0.4


class Quick(Continuity):
    """Intervals are tested where they are made; here they would take most of the time."""

    def claims(self, data: xr.Dataset, config: Config, *, resamples: int = 20) -> list[Claim]:
        return super().claims(data, config, resamples=resamples)


class Bare(Quick):
    """Without figures, which take the rest of it."""

    def figures(self, data: xr.Dataset, config: Config) -> list[Figure]:
        return []


ANALYSIS = Quick()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("continuity")


@pytest.fixture(scope="module")
def saved(folder: Path) -> Path:
    """A Llama whose readers' v₁ and writers' u₁ turn by 0.4 a block."""
    rotating_weights(ANGLE).save_pretrained(folder / "rotating")
    return folder / "rotating"


def config_of(model: Path, **changes: object) -> Config:
    return Config(model=str(model), **(SMALL | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(folder: Path, saved: Path) -> Result:
    return ANALYSIS.run(config_of(saved, docs=True), out=folder / "run", quiet=True)


class TestVariables:
    def test_the_model_is_as_the_public_function_finds_it(self, result: Result, saved: Path) -> None:
        own = weights.continuity(load_model(saved))
        data = result.data
        for name in own.data_vars:
            found = data[name].sel(variant="model") if "variant" in data[name].dims else data[name]
            np.testing.assert_allclose(found.transpose(*own[name].dims), own[name], atol=1e-6, err_msg=str(name))
            assert found.attrs == own[name].attrs
        assert all(data[name].attrs["long_name"] for name in data.data_vars)
        assert data["variant"].values.tolist() == ["model", "folded", "trimmed", "init-0", "init-1", "shuffled-0"]
        assert (data.attrs["architecture"], data.attrs["kind"], data.attrs["d_model"]) == (
            "llama",
            "transformer",
            WIDTH,
        )

    def test_planted_rotations_come_out_in_every_variant_that_keeps_them(self, result: Result) -> None:
        values = result.data["input_continuity"].sel(projection=["q", "k", "v", "gate", "up"])
        np.testing.assert_allclose(values.sel(variant="model"), math.cos(ANGLE), atol=8e-3)
        for control in ("init-0", "init-1", "shuffled-0"):
            assert float(values.sel(variant=control).mean()) < 0.35
        assert not np.allclose(values.sel(variant="init-0"), values.sel(variant="init-1"))

    def test_the_directions_kept_are_the_leading_ones_in_the_stream(self, result: Result) -> None:
        kept = result.data["directions"]
        assert kept.sel(projection=["ov", "qk"]).isnull().all()
        block = load_model(rotating_weights(ANGLE)).module.model.layers[2]
        q, down = (torch.linalg.svd(p.weight.detach()) for p in (block.self_attn.q_proj, block.mlp.down_proj))
        for name, expected in (("q", q.Vh[0]), ("down", down.U[:, 0])):
            cosine = kept.sel(projection=name, block=2).values @ expected.numpy()
            assert abs(float(cosine)) == pytest.approx(1, abs=1e-5)

    def test_what_lacks_a_norm_is_not_folded(self, result: Result) -> None:
        folded = result.data["input_continuity"].sel(variant="folded")
        assert folded.sel(projection=["o", "down"]).isnull().all()
        module = load_model(rotating_weights(ANGLE)).module
        q = [b.self_attn.q_proj.weight.detach() * b.input_layernorm.weight.detach() for b in module.model.layers]
        v = [torch.linalg.svd(one).Vh[0] for one in q]
        expected = [float((v[place] @ v[place + 1]).abs()) for place in range(LAYERS - 1)]
        np.testing.assert_allclose(folded.sel(projection="q"), expected, atol=1e-5)

    def test_trimmed_is_without_the_coordinates_of_most_energy(self, result: Result) -> None:
        module = load_model(rotating_weights(ANGLE)).module
        down = [block.mlp.down_proj.weight.detach() for block in module.model.layers]
        leading = torch.stack([torch.linalg.svd(one).U[:, 0] for one in down])
        dropped = int(leading.square().mean(0).argmax())  # 0.5 % of 32, rounded up
        kept = [place for place in range(WIDTH) if place != dropped]
        u = [torch.linalg.svd(one[kept]).U[:, 0] for one in down]
        expected = [float((u[place] @ u[place + 1]).abs()) for place in range(LAYERS - 1)]
        found = result.data["output_continuity"].sel(variant="trimmed", projection="down")
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_heads_and_docs(self, result: Result) -> None:
        model = weights.weights_of(load_model(rotating_weights(ANGLE)))
        vectors = []
        for layer in (1, 2):
            left, right = weights.heads.head_factors(model, layer, "ov")
            vectors.append(torch.stack([torch.linalg.svd(one).Vh[0] for one in left @ right], 1))
        best = (vectors[0].mT @ vectors[1]).abs().amax(1).mean()
        assert float(result.data["input_heads"].sel(composite="ov", layer=1)) == pytest.approx(float(best), abs=1e-4)
        docs = result.data["docs"]
        assert docs.sel(projection=["ov", "qk"]).isnull().all()
        expected = weights.docs_similarity(model.matrix(2, "up"), model.matrix(3, "up"))
        assert float(docs.sel(projection="up", layer=2)) == pytest.approx(expected)

    def test_a_run_opens_each_variant_once_and_loads_no_model(
        self, folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import transformers

        def refuse(*args: object, **kwargs: object) -> None:
            raise AssertionError("the model was loaded")

        opened: Counter[tuple[object, ...]] = Counter()

        def counted(name: str, original: Callable[..., object]) -> Callable[..., object]:
            def call(source: object, *seed: int, **options: object) -> object:
                opened[name, *seed] += 1
                return original(source, *seed, **options)

            return call

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
        for name in ("open_weights", "fresh_twin", "shuffled_twin"):
            monkeypatch.setattr(weights, name, counted(name, getattr(weights, name)))
        ANALYSIS.run(config_of(saved, layers="0,1"), out=folder / "lazy", quiet=True)
        assert opened == {("open_weights",): 1, ("fresh_twin", 0): 1, ("fresh_twin", 1): 1, ("shuffled_twin", 0): 1}

    def test_every_task_can_be_done_elsewhere(self, saved: Path, result: Result) -> None:
        subject, run = Matrices(config_of(saved, docs=True)), Run(result.directory)
        for stage in ANALYSIS.stages(subject):
            measure, other, task, there = pickle.loads(pickle.dumps((stage.measure, subject, stage.tasks[-1], run)))
            found, kept = measure(other, task, there), run.piece(stage.name, **task.labels)
            assert set(found) == set(kept)
            for name, values in found.items():
                np.testing.assert_array_equal(torch.as_tensor(values), kept[name], err_msg=f"{stage.name}, {name}")


class TestRuns:
    def test_the_directory_holds_everything(self, result: Result) -> None:
        page = result.write_report()
        held = {path.name for path in result.directory.iterdir()}
        assert {"config.json", "units", "results.nc", "claims.json", "figures", "report.html"} <= held
        drawn = {path.stem for path in (result.directory / "figures").glob("*.png")}
        names = {"summary", "depth", "lags", "maps", "trajectories", "controls", "subspaces", "gaps", "participation"}
        assert drawn == names | {"heads", "docs"}
        text = page.read_text(encoding="utf-8")
        assert all(f"continuity.{name}" in text for name in ("trained", "projections", "adjacency"))
        stored = json.loads((result.directory / "claims.json").read_text())
        assert [claim["unit"] for claim in stored] == ["blocks"] * 3
        reopened = xr.open_dataset(result.directory / "results.nc", engine="h5netcdf")
        xr.testing.assert_equal(reopened.load(), result.data)

    def test_four_blocks_are_too_few_for_a_verdict(self, result: Result) -> None:
        assert {claim.verdict for claim in result.claims} == {"inconclusive"}

    def test_a_run_that_lost_tasks_goes_on_and_ends_the_same(self, folder: Path, saved: Path, result: Result) -> None:
        shutil.copytree(result.directory, folder / "again")
        for lost in ("vectors/model-block-00001", "controls/init-1-block-00002", "compared/init-1"):
            (folder / "again" / "units" / f"{lost}.safetensors").unlink()
        again = ANALYSIS.run(config_of(saved, docs=True), out=folder / "again", quiet=True)
        xr.testing.assert_equal(again.data.drop_attrs(), result.data.drop_attrs())

    def test_a_gguf_file_and_some_blocks_of_it(self, folder: Path) -> None:
        write_gguf(folder / "tiny.gguf")
        changes = {"layers": "1,2,3", "composites": False, "folded": False, "outlier_share": 0.0, "shuffled_seeds": 0}
        result = ANALYSIS.run(config_of(folder / "tiny.gguf", **changes), out=folder / "gguf", quiet=True)
        assert result.data["layer"].values.tolist() == [1, 2]
        assert result.data["variant"].values.tolist() == ["model", "init-0", "init-1"]
        own = weights.continuity(folder / "tiny.gguf", composites=False)
        np.testing.assert_allclose(
            result.data["output_continuity"].sel(variant="model"), own["output_continuity"].sel(layer=[1, 2]), atol=1e-6
        )
        assert "lags" not in {figure.name for figure in result.figures}  # three blocks have two lags

    @pytest.mark.parametrize("architecture", ["mamba", "gpt_neox"])
    def test_other_architectures(self, folder: Path, architecture: str) -> None:
        tiny_module(architecture).save_pretrained(folder / architecture)
        result = ANALYSIS.run(config_of(folder / architecture), out=folder / f"{architecture}-run", quiet=True)
        stream = {"in": "input", "out": "output"} if architecture == "mamba" else {"q": "input", "down": "output"}
        for name, side in stream.items():
            assert result.data[f"{side}_continuity"].sel(projection=name, variant="trimmed").notnull().all()
        if architecture == "mamba":
            assert result.data["input_continuity"].sel(projection="x", variant="trimmed").isnull().all()
            reasons = {claim.id: claim.reason for claim in result.claims}
            assert "no separate projections" in reasons["continuity.projections"]
            result.write_report()

    def test_a_random_twin_can_be_the_model(self, folder: Path, saved: Path) -> None:
        config = config_of(saved, random_init=0, composites=False)
        assert config.controls == ("init-1", "init-2", "shuffled-0")
        result = ANALYSIS.run(config, out=folder / "random", quiet=True)
        assert result.data.attrs["kind"] == "control"
        assert "random weights (seed 0)" in result.data.attrs["description"]
        twin = weights.fresh_twin(weights.open_weights(saved), 0)
        own = weights.continuity(twin, composites=False)["input_continuity"]
        np.testing.assert_allclose(result.data["input_continuity"].sel(variant="model"), own, atol=1e-6)

    def test_hashes_tell_weights_and_controls_apart(self, saved: Path) -> None:
        opened = [weights.open_weights(saved, **options) for options in ({}, {"random_init": 0}, {"random_init": 1})]
        opened.append(weights.open_weights(saved, shuffled_weights=0))
        assert len({weights.checkpoint.weight_hash(one) for one in opened}) == 4
        with pytest.raises(InputError, match="give one of them"):
            weights.open_weights(saved, random_init=0, shuffled_weights=0)


class TestCommand:
    def test_several_models_are_compared_on_a_page(
        self, folder: Path, saved: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = folder / "gpt2"
        tiny_module("gpt2").save_pretrained(other)
        argv = ["--model", f"{saved},{other}", "--out", str(folder / "two"), "--quiet"]
        argv += ["--init-seeds", "1", "--permutations", "20", "--layers", "0,1,2", "--no-composites"]
        argv += ["--shuffled-seeds", "0"]
        assert command.main("continuity", Config, Quick, argv) == 0
        first, second, page = capsys.readouterr().out.split()
        assert Path(first) != Path(second)
        text = Path(page).read_text(encoding="utf-8")
        assert all(name in text for name in ("rotating", "gpt2", "continuity.adjacency"))

    def test_code_runs_on_request_and_is_recorded_and_no_token_is(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
        monkeypatch.setattr(sys, "path", list(sys.path))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.setenv(name, "hf_0123456789abcdef")
        model, out = folder / "own", folder / "trusted"
        tiny_module("llama").save_pretrained(model)
        add_code(model)
        argv = ["--model", str(model), "--out", str(out), "--quiet", "--layers", "0,1", "--permutations", "1"]
        argv += ["--init-seeds", "0", "--shuffled-seeds", "0", "--no-composites", "--no-folded", "--outlier-share", "0"]
        assert command.main("continuity", Config, Bare, argv) == 2
        assert "if you trust it pass --trust-remote-code" in capsys.readouterr().err
        assert not out.exists()
        assert command.main("continuity", Config, Bare, [*argv, "--trust-remote-code"]) == 0
        assert json.loads((out / "config.json").read_text())["config"]["trust_remote_code"] is True
        files = [file for file in out.rglob("*") if file.is_file()]
        assert {"config.json", "results.nc", "claims.json", "report.html"} <= {file.name for file in files}
        assert not [file for file in files if b"hf_0123456789abcdef" in file.read_bytes()]

    def test_a_model_of_which_no_projection_is_known_is_refused(self, folder: Path) -> None:
        zoo.tiny("doge").save_pretrained(folder / "doge")
        with pytest.raises(InputError, match=r"a projection that every block has, .* has none: .*; name another model"):
            ANALYSIS.run(config_of(folder / "doge"), out=folder / "none", quiet=True)
        with pytest.raises(InputError, match="a projection that every block has"):
            weights.continuity(folder / "doge")

    def test_a_plan_says_what_would_be_done(self, saved: Path) -> None:
        plan = ANALYSIS.plan(config_of(saved, docs=True))
        assert {stage.name: stage.tasks for stage in plan.stages} == {
            "vectors": LAYERS,
            "folded": LAYERS,
            "coordinates": 1,
            "trimmed": LAYERS,
            "controls": 3 * LAYERS,
            "docs": LAYERS - 1,
            "compared": 6,
        }
        assert all(stage.seconds > 0 and stage.bytes > 0 for stage in plan.stages)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"layers": "0,2"}, "two or more in a row"),
            ({"layers": "1"}, "two or more in a row"),
            ({"layers": "7"}, "must lie between 0 and 3"),
            ({"outlier_share": 1.0}, "outlier_share="),
            ({"subspaces": (0, 2)}, "subspaces="),
            ({"permutations": 0}, "permutations= must be at least 1"),
            ({"init_seeds": -1}, "init_seeds= must be at least 0"),
            ({"model": "no/such/model"}, "there is no model"),
            ({"device": "abacus"}, "device= must be cpu"),
        ],
    )
    def test_wrong_input_is_refused_before_any_work(
        self, folder: Path, saved: Path, changes: dict[str, object], message: str
    ) -> None:
        out = folder / "refused"
        with pytest.raises(InputError, match=message):
            ANALYSIS.run(replace(config_of(saved), **changes), out=out, quiet=True)  # type: ignore[arg-type]
        assert not out.exists()


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return dataset()


class TestFigures:
    def test_every_figure_names_its_null(self, data: xr.Dataset) -> None:
        made = figures.figures(data, Config())
        assert [figure.name for figure in made][:3] == ["summary", "depth", "lags"]
        for figure in made:
            assert "null" in figure.caption, figure.name
            with plots.page_style():
                figure.draw().draw_without_rendering()

    def test_hollow_markers_where_there_is_no_gap(self, data: xr.Dataset) -> None:
        data = data.copy(deep=True)
        data["gap"].loc[{"variant": "model", "projection": "q", "layer": [2, 5]}] = 1.01
        ax = continuity_panels.continuity_by_depth(data, "q")
        hollow = [one for one in ax.get_lines() if one.get_markerfacecolor() == "white"]
        assert [one.get_xdata().tolist() for one in hollow] == [[2, 5], [2, 5]]
        solid = next(one for one in ax.get_lines() if one.get_label() == "v₁, input space")
        assert len(solid.get_xdata()) == data.sizes["layer"] - 2

    def test_bars_are_means_with_intervals(self, data: xr.Dataset) -> None:
        ax = continuity_panels.continuity_summary(data, "output")
        heights = [patch.get_height() for patch in ax.patches]
        means = data["output_continuity"].sel(variant="model").mean("layer").values
        np.testing.assert_allclose(heights, means)
        assert [label.get_text().split("\n")[0] for label in ax.get_xticklabels()] == list(data["projection"].values)

    def test_lag_curves_are_of_the_streams_side(self, data: xr.Dataset) -> None:
        drawn = {
            str(one.get_label()): one.get_ydata() for one in continuity_panels.lag_curves(data, "output").get_lines()
        }
        assert {"o", "down"} <= set(drawn)
        assert "q" not in drawn
        np.testing.assert_allclose(drawn["o"], data["output_lag"].sel(projection="o"))

    def test_the_summary_counts_pairs_above_random(self, data: xr.Dataset) -> None:
        table = figures._summary_table(data).set_index(["projection", "space"])
        counts = table.iloc[:, -1]
        assert counts["q", "input"] == data.sizes["layer"]
        assert counts["v", "output"] <= 2
        assert float(table.loc[("down", "output"), "mean |cos|"]) == pytest.approx(math.cos(0.08), abs=1e-3)

    def test_the_interactive_chart_shows_one_path_at_a_time(self, data: xr.Dataset) -> None:
        figure = trajectories(data)
        buttons = figure.layout.updatemenus[0].buttons
        assert len(figure.data) == 2 * len(buttons)
        assert [trace.visible for trace in figure.data][:4] == [True, True, False, False]
        for number, button in enumerate(buttons):
            shown = np.flatnonzero(button.args[0]["visible"])
            assert shown.tolist() == [2 * number, 2 * number + 1]
        chosen = [button.label for button in buttons]
        assert chosen.index("down, u₁, output space") == 6
        path = figure.data[12]
        expected = data["output_trajectory"].sel(projection="down", axis=1).values
        np.testing.assert_allclose(path.x, expected, rtol=1e-3, atol=1e-6)
        assert path.customdata[0][0] == "0"


def test_tasks_are_those_of_the_variants(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(saved, outlier_share=0.0, shuffled_seeds=0, init_seeds=0)
    stages = {stage.name: stage.tasks for stage in ANALYSIS.stages(Matrices(replace(config, folded=False)))}
    assert [task.labels for task in stages["vectors"]] == [{"variant": "model", "block": i} for i in range(LAYERS)]
    assert [task.labels for task in stages["compared"]] == [{"variant": "model"}]
    assert sum(map(len, stages.values())) == LAYERS + 1
    assert Matrices(config).variants == ["model", "folded"]
    monkeypatch.setattr("probe.weights.reading.ModuleWeights.gain", lambda self, layer, name: None)
    assert Matrices(config).variants == ["model"], "no gain is known"
