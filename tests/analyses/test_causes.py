"""Whole runs of the analysis of causes on tiny toys: variables, resume, the command line, bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from probe import InputError, training, weights
from probe.analyses import causes
from probe.analyses.causes import cells, config, stages, work
from probe.analyses.causes.cells import Cell, plain
from probe.analyses.causes.schema import SCHEMA
from probe.analyses.causes.work import Trainings
from probe.report import Result
from probe.runs import Run
from probe.text import load_windows
from probe.training.transformer import PROJECTIONS

SMALL = {"seeds": 2, "steps": 20, "batch": 8, "width": 10, "blocks": 3, "snapshots": 2, "arm_steps": 20}
SMALL |= {"arm_batch": 2, "arm_width": 16, "arm_blocks": 2, "arm_heads": 2, "window_length": 16}
FEW = "stream-gelu,plain-gelu,block2-tanh,stream-identity-norm=layer"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("causes") / "text.txt"
    articles = [f" = Article {n} = \n\n" + f"number {n} and {n * n} of them. " * 30 + "\n\n" for n in range(12)]
    path.write_text("".join(articles), encoding="utf-8")
    return path


def small(**changes: object) -> causes.Config:
    return causes.Config(**(SMALL | {"cells": FEW, "full": True, "arms": ("full",)} | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def parts_read() -> list[str]:
    """The parts of the text that the whole run reads, as it reads them."""
    return []


@pytest.fixture(scope="module")
def result(text: Path, tmp_path_factory: pytest.TempPathFactory, parts_read: list[str]) -> Result:
    def counted(*model: Any, part: str, **options: Any) -> Any:
        parts_read.append(part)
        return load_windows(*model, part=part, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "ARMS", ("full", "v_nonlinearity"))
        patch.setattr(work, "load_windows", counted)
        return causes.run(small(text=text), out=tmp_path_factory.mktemp("run") / "run", quiet=True)


class TestCells:
    def test_the_named_cells_are_those_of_the_methods(self):
        named = cells.named()
        assert len({cell.name for cell in named}) == len(named) == 93
        assert sum(not cell.residual for cell in named) == 7  # stream and branch are one without a residual
        assert sum(cell.teacher == "linear" for cell in named) == 6
        assert {cell.optimiser for cell in named} == {"adamw"}
        grid = {(cell.decay, cell.scale) for cell in named if cell.activation == "radial_gate" and cell.residual}
        assert grid == {(decay, scale) for decay in (0, 0.01, 0.1, 1.0) for scale in (0.05, 0.2, 0.5, 1.0)}
        assert {cell.name for cell in named} <= {cell.name for cell in cells.full()}

    def test_names_say_what_differs_from_the_core(self):
        assert Cell().name == "stream-gelu"
        assert plain(Cell("relu", "branch")).name == "plain-relu"
        assert plain(Cell("relu", "block2", scale=0.2)).name == "plain2-relu-init=0.2"
        cell = Cell("tanh", norm="rms", decay=0.01, scale=1.0, teacher="linear", optimiser="muon")
        assert cell.name == "stream-tanh-norm=rms-decay=0.01-init=1-teacher=linear-optimiser=muon"
        by_name: dict[str, Cell] = {}
        for cell in cells.full():
            assert by_name.setdefault(cell.name, cell) == cell

    def test_patterns_choose(self):
        assert [cell.name for cell in cells.chosen("plain-*elu, stream-tanh", False)] == [
            "stream-tanh",
            "plain-relu",
            "plain-gelu",
        ]


class TestVariables:
    def test_dimensions(self, result: Result):
        data = result.data
        assert data["cell"].values.tolist() == [
            "stream-gelu",
            "plain-gelu",
            "stream-identity-norm=layer",
            "block2-tanh",
        ]
        assert data["step"].values.tolist() == [0, 1, 2, 5, 10, 20]
        assert data["cosine"].dims == ("cell", "step", "seed", "weights", "space", "pair")
        assert data["arm_cosine"].dims == ("arm", "arm_step", "seed", "projection", "weights", "space", "arm_pair")
        assert (data.sizes["seed"], data.sizes["k"], data.sizes["projection"]) == (2, 8, 7)
        assert data["arm"].values.tolist() == ["full", "v_nonlinearity"]
        assert set(data.data_vars) == set(SCHEMA)
        assert all("units" in data[name].attrs for name in data.data_vars)
        assert data["norm"].values.tolist() == ["none", "none", "layer", "none"]

    def test_only_what_training_has_added_is_missing_at_step_0(self, result: Result):
        data = result.data
        for name in ("cosine", "overlap", "match", "layer_angle"):
            values = data[name].transpose("step", "weights", ...).values
            assert np.isnan(values[0, 1]).all(), name
            assert np.isfinite(values[1:]).all(), name
            assert np.isfinite(values[0, 0]).all(), name
        assert np.isfinite(data["gradient_coherence"]).all()
        assert np.isfinite(data["held_out_loss"]).all()
        assert np.isnan(data["train_loss"].isel(step=0)).all()
        assert np.isfinite(data["arm_cosine"].isel(arm_step=-1)).all()

    def test_the_first_overlap_is_the_squared_cosine(self, result: Result):
        mean = (result.data["cosine"] ** 2).mean("pair")
        np.testing.assert_allclose(result.data["overlap"].sel(k=1), mean, rtol=1e-4, atol=1e-6)

    def test_a_byte_is_first_guessed_at_random(self, result: Result):
        start = result.data["arm_held_out_loss"].isel(arm_step=0)
        np.testing.assert_allclose(start, np.log(256), rtol=0.02)
        assert result.data.attrs["arm_guess"] < 3.5

    def test_each_part_of_the_text_is_read_once(self, result: Result, parts_read: list[str]):
        assert parts_read == ["fit", "scored"]

    def test_claims_and_report(self, result: Result):
        assert [claim.id for claim in result.claims] == [
            "causes.residual_coherence", "causes.symmetry_breaking", "causes.concentration", "causes.v_nonlinearity",
        ]  # fmt: skip
        assert {claim.verdict for claim in result.claims} == {"inconclusive"}  # two seeds, few cells
        page = result.write_report().read_text(encoding="utf-8")
        assert "2 seeds decide nothing" in page
        assert (result.directory / "figures" / "continuity.png").is_file()


@pytest.fixture(scope="module")
def trained() -> tuple[training.ToyMLP, training.ToyMLP, training.Regression]:
    shape = training.Shape(10, 3)
    start, module = (
        training.ToyMLP(form="block2", residual=True, activation="tanh", scale=0.5, seed=1, shape=shape)
        for _ in range(2)
    )
    data = training.Regression((1,), "nonlinear", batch=8)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(20):
        x, y = (part[0] for part in data.batch(step))
        optimiser.zero_grad()
        functional.mse_loss(module(x), y).backward()
        optimiser.step()
    return start, module, data


class TestAgainstTheDefinition:
    """Every variable of one cell, from modules that are trained by torch alone."""

    @pytest.mark.parametrize(("space", "name"), [("input", "reader"), ("output", "writer")])
    def test_continuity_of_the_matrix_that_touches_the_stream(self, result: Result, trained, space: str, name: str):
        start, module, _ = trained
        found = result.data["cosine"].sel(cell="block2-tanh", space=space, seed=1, step=20)
        for kind, matrices in (("W", getattr(module, name)), ("ΔW", getattr(module, name) - getattr(start, name))):
            U, _, Vh = torch.linalg.svd(matrices.detach().double())
            vectors = Vh[:, 0] if space == "input" else U[:, :, 0]
            expected = (vectors[:-1] * vectors[1:]).sum(-1).abs()
            np.testing.assert_allclose(found.sel(weights=kind), expected, atol=2e-3)

    def test_working_time_counts_the_tasks_and_not_their_checkpoints_beside(self, result: Result, text: Path):
        run = Run(result.directory)
        assert run.load_checkpoint(Trainings(small(text=text)).arms[0]) is not None
        assert len(run.files()) == 4 + 2
        assert run.seconds is not None
        assert run.seconds > 0

    def test_coherence_of_gradients(self, result: Result, trained):
        _, module, data = trained
        each = []
        for x, y in data.probes(work.PROBES):
            module.zero_grad()
            functional.mse_loss(module(x[0]), y[0]).backward()
            flat = functional.normalize(module.writer.grad.flatten(1), dim=1)
            each.append((flat[:-1] * flat[1:]).sum(-1).mean())
        found = result.data["gradient_coherence"].sel(cell="block2-tanh", space="output", seed=1, step=20)
        assert float(found) == pytest.approx(float(torch.stack(each).mean()), abs=1e-3)

    def test_held_out_loss(self, result: Result, trained):
        _, module, data = trained
        x, y = (part[0] for part in data.held_out(work.HELD_OUT))
        found = result.data["held_out_loss"].sel(cell="block2-tanh", seed=1, step=20)
        assert float(found) == pytest.approx(functional.mse_loss(module(x), y).item(), rel=1e-4)

    def test_a_seeds_numbers_do_not_depend_on_how_many_there_are(self, result: Result, tmp_path: Path):
        one = Trainings(small(seeds=1, seed=1))
        alone = work.train_toy(one, one.toys[0], Run(tmp_path))
        both = result.data["cosine"].sel(cell="stream-gelu", seed=1).values
        np.testing.assert_allclose(alone["cosine"][:, 0], both, atol=2e-3)


def test_a_toy_is_trained_on_one_thread_and_threads_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, seen = torch.get_num_threads(), []

    def interrupted(*_: object) -> None:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "train", interrupted)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            work.train_toy(Trainings(small()), Trainings(small()).toys[0], Run(tmp_path))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


class TestResume:
    def test_an_arm_goes_on_from_its_checkpoint(self, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        subject = Trainings(small(text=text))
        task = subject.arms[0]
        whole = work.train_arm(subject, task, Run(tmp_path / "whole"))
        save, saved = work.TaskCheckpoint.save, []

        def interrupted(self: work.TaskCheckpoint, state: object) -> None:
            save(self, state)  # type: ignore[arg-type]
            saved.append(1)
            if len(saved) == 3:
                raise KeyboardInterrupt

        cut = Run(tmp_path / "cut")
        monkeypatch.setattr(work.TaskCheckpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            work.train_arm(subject, task, cut)
        assert cut.load_checkpoint(task) is not None
        found = work.train_arm(subject, task, cut)
        assert len(saved) == len(subject.arm_schedule.snapshots)  # none is trained twice
        for name, values in whole.items():
            torch.testing.assert_close(found[name], values, rtol=0, atol=0, equal_nan=True)

    def test_a_run_cut_off_between_cells(self, result: Result, text: Path, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(config, "ARMS", ("full", "v_nonlinearity"))
        shutil.copytree(result.directory, tmp_path / "run")
        units = tmp_path / "run" / "units"
        (units / "toys" / "plain-gelu.safetensors").unlink()
        stamps = {path: path.stat().st_mtime_ns for path in units.rglob("*.safetensors")}
        again = causes.run(small(text=text), out=tmp_path / "run", quiet=True)
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
        assert again.data.drop_attrs().equals(result.data.drop_attrs())


class TestCommand:
    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "probe.analyses.causes", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_the_command_line_does_the_same(self, tmp_path: Path):
        options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
        done = self.run(*options, "--cells", "stream-gelu", "--out", str(tmp_path / "run"), "--quiet")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == str(tmp_path / "run" / "report.html")
        written = json.loads((tmp_path / "run" / "claims.json").read_text())
        assert len(written) == 4
        assert written[0]["reason"].startswith("this run holds no gradient_coherence (cell stream-identity")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"cells": "stream-swish"}, "cells= must match some cell, got 'stream-swish'"),
            ({"dtype": "bfloat16"}, "dtype= must be float32 or float64"),
            ({"arms": ("full", "mute")}, "arms= must be among full.*got 'mute'"),
            ({"steps": 3}, "steps= must be at least 20, got 3"),
            ({"arm_heads": 3}, "arm_width= must be a multiple of twice arm_heads="),
            ({"seeds": 0}, "seeds= must be at least 1"),
            ({"seed": -1}, "seed= must be at least 0"),
        ],
    )
    def test_bad_options(self, changes: dict[str, object], message: str):
        with pytest.raises(InputError, match=message):
            small(**changes)

    def test_bad_options_are_refused_as_they_are_typed_before_torch_is_imported(self):
        code = (
            "import sys\n"
            "from probe.analyses import causes\n"
            "from probe.analysis import command\n"
            "status = command.main('causes', causes.Config, lambda: causes.analysis, sys.argv[1:])\n"
            "sys.exit(status + 10 * ('torch' in sys.modules))"
        )
        command = [sys.executable, "-c", code, "--cells", "stream-swish"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        said = "error: --cells must match some cell, got 'stream-swish': names look like stream-identity; --full adds"
        assert done.stderr.startswith(said)

    def test_two_texts(self, text: Path):
        with pytest.raises(InputError, match="only one text can be read"):
            small(text=text, dataset="sample")

    def test_bad_input_ends_with_status_2_and_one_line(self, tmp_path: Path):
        done = self.run("--text", str(tmp_path / "none.txt"), "--cells", "stream-gelu", "--out", str(tmp_path / "run"))
        assert done.returncode == 2
        assert done.stderr.startswith("error: the text file must be readable")
        assert done.stderr.count("\n") == 1

    def test_the_plan_counts_tasks(self, text: Path):
        plan = causes.plan(small(text=text, full=False, cells="stream-*"))
        assert [(stage.name, stage.tasks) for stage in plan.stages] == [
            ("toys", len(cells.chosen("stream-*", False))),
            ("transformers", 1),
        ]
        assert all(stage.seconds > 0 and stage.bytes > 2**27 for stage in plan.stages)

    def test_the_plan_times_steps_and_looks(self, monkeypatch: pytest.MonkeyPatch):
        clock = [0.0]

        def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
            def slow(*arguments: Any) -> Any:
                clock[0] += seconds
                return function(*arguments)

            return slow

        monkeypatch.setattr(work.time, "perf_counter", lambda: clock[0])
        monkeypatch.setattr(training.Regression, "batch", taking(2.0, training.Regression.batch))
        monkeypatch.setattr(training.Watch, "__call__", taking(5.0, training.Watch.__call__))
        subject = Trainings(small())
        steps, snapshots = subject.schedule.steps, len(subject.schedule.snapshots)
        assert work.toy_seconds(subject, subject.toys[0]) == pytest.approx(2.0 * steps + 5.0 * snapshots)

    def test_windows_come_from_different_documents(self, text: Path):
        learned, held_out = (Trainings(small(text=text)).windows(part) for part in ("fit", "scored"))
        assert not set(learned.document.tolist()) & set(held_out.document.tolist())
        assert learned.window_length == SMALL["window_length"] + 1

    def test_nulls_of_the_transformers_have_the_width_of_their_space(self):
        null = stages.arm_nulls(small())
        inner = weights.haar_cosine(training.Size(16, 2, 2).hidden)
        assert null[PROJECTIONS.index("down")].tolist() == pytest.approx([inner, weights.haar_cosine(16)])
        assert null[PROJECTIONS.index("q")].tolist() == pytest.approx([weights.haar_cosine(16)] * 2)
