"""The contract of an analysis: parts by name, defaults for what is left out, runs that are read back."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

import probe
from probe import InputError, analyses
from probe.analysis import command, config
from probe.analysis.contract import Analysis, Stage, configured, control_names, require_at_least
from probe.claims import Criterion, Evidence, Sentence, decide, line
from probe.inference import Interval
from probe.runs.directory import _dumps
from probe.runs.engine import Unit


@dataclass(frozen=True, kw_only=True)
class Inner:
    bound: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """Squares."""

    numbers: tuple[int, ...] = (1, 2, 3)
    text: Path | None = None
    thresholds: Inner = field(default_factory=Inner)


def square(config: Config, unit: Unit, run: Any) -> dict[str, torch.Tensor]:
    return {"square": torch.tensor([unit.arguments["number"] ** 2])}


def stages(config: Config) -> list[Stage]:
    units = [Unit("squares", f"n-{number}", {"number": number}) for number in config.numbers]
    return [Stage("squares", square, units, "squares"), Stage("nothing", square, [], "nothing")]


def assemble(config: Config, run: Any) -> xr.Dataset:
    parts = [run.load("squares", f"n-{number}")["square"].item() for number in config.numbers]
    return xr.Dataset({"square": ("number", parts)}, {"number": list(config.numbers)})


def claims(data: xr.Dataset, config: Config) -> list[Any]:
    least = float(data["square"].min())
    interval = Interval(least, least - 0.1, least + 0.1, len(data["square"]), "planted")
    evidence = Evidence([Criterion("least square", interval, config.thresholds.bound)])
    sentence = Sentence("squares.positive", "squares are positive", "ours")
    return [decide(sentence, evidence, statistic="least", unit="numbers", null=line("zero", None))]


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> Analysis[Config]:
    module = types.ModuleType("squares_of_a_test")
    for part in (stages, assemble, claims):
        setattr(module, part.__name__, part)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Analysis("squares", Config, module.__name__)


def test_parts_become_a_run_that_can_be_read_back(squares: Analysis[Config], tmp_path: Path):
    result = squares.run(Config(numbers=(2, 5)), out=tmp_path / "run", quiet=True)
    assert result.data["square"].values.tolist() == [4, 25]
    assert [claim.verdict for claim in result.claims] == ["supported"]
    assert result.title == "Squares"
    assert result.figures == ()
    assert result.write_report().is_file()

    again = squares.read(tmp_path / "run")
    assert again.claims == result.claims
    xr.testing.assert_identical(again.data, result.data)
    assert again.directory == tmp_path / "run"


def test_a_plan_that_is_left_out_counts_the_units(squares: Analysis[Config], capsys: pytest.CaptureFixture[str]):
    plan = squares.plan(Config())
    assert [(stage.name, stage.units) for stage in plan.stages] == [("squares", 3), ("nothing", 0)]
    command.print_plan(plan, "squares")
    assert "unknown" in capsys.readouterr().out


def test_a_part_that_must_be_there_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "empty_of_a_test", types.ModuleType("empty_of_a_test"))
    with pytest.raises(TypeError, match="has a function stages, but empty_of_a_test has none"):
        Analysis("empty", Config, "empty_of_a_test").plan(Config())


@pytest.mark.parametrize("name", sorted(analyses._ANALYSES))
def test_every_configuration_comes_back_from_its_file(name: str):

    kind = analyses.load(name).config
    for config in (kind(), kind(seed=3, **({"text": Path("a.txt")} if hasattr(kind, "text") else {}))):
        assert configured(kind, json.loads(_dumps(config))) == config


def test_a_configuration_of_another_version_is_refused():
    with pytest.raises(InputError, match=r"differ in odd, seed: run it again"):
        configured(
            Config, {"odd": 1, "device": "cpu", "dtype": "float32", "numbers": [], "text": None, "thresholds": {}}
        )


def test_built_in_analyses_are_found_by_name():
    assert {"tokenwise", "dynamics", "communities", "continuity", "causes"} <= set(analyses.names())
    assert analyses.load("tokenwise").run == probe.analyses.tokenwise.run
    with pytest.raises(InputError, match="perhaps tokenwise"):
        analyses.load("tokenwize")


def test_a_directory_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="names its analysis"):
        analyses.read(tmp_path)
    (tmp_path / "config.json").write_text('{"analysis": "nothing"}')
    with pytest.raises(InputError, match="an analysis must be one of"):
        analyses.read(tmp_path)


def test_an_unfinished_run_is_refused(squares: Analysis[Config], tmp_path: Path):
    squares.run(Config(), out=tmp_path / "run", quiet=True)
    (tmp_path / "run" / "claims.json").unlink()
    with pytest.raises(InputError, match=r"holds claims\.json"):
        squares.read(tmp_path / "run")


def test_a_control_is_never_the_model_itself():
    assert control_names("init", 3, None) == ("init-0", "init-1", "init-2")
    assert control_names("init", 3, 1) == ("init-0", "init-2", "init-3")
    assert control_names("shuffled", 0, 0) == ()


def test_an_option_that_is_too_small_is_named_as_it_is_typed():
    config = TextConfig(window_length=16)
    require_at_least(config, {"windows": 1, "window_length": 16})
    with pytest.raises(InputError, match="--window-length must be at least 17: got 16; give a larger number"):
        require_at_least(config, {"windows": 1, "window_length": 17})
