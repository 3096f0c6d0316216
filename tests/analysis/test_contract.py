"""The contract of an analysis: a class becomes a run, a plan, and a run that is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import xarray as xr

import probe
from probe import InputError, analyses
from probe.analysis import (
    Analysis,
    AtLeast,
    Claim,
    Criterion,
    Evidence,
    Schema,
    Sentence,
    Stage,
    Subject,
    Task,
    Variable,
    config,
    control_names,
    decide,
    line,
)
from probe.analysis.contract import configured
from probe.inference import Interval
from probe.runs import Run
from probe.runs.directory import _dumps


@dataclass(frozen=True, kw_only=True)
class Inner:
    bound: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """Squares."""

    numbers: tuple[int, ...] = (1, 2, 3)
    text: Path | None = None
    least: Annotated[int | None, AtLeast(2)] = None
    thresholds: Inner = field(default_factory=Inner)


def square(subject: Subject[Config], task: Task, run: Run) -> dict[str, float]:
    return {"square": task["number"] ** 2.0}


class Squares(Analysis[Config]):
    name = "squares"
    config = Config
    schema = Schema({"square": Variable("number", "1", "the square")})

    def stages(self, subject: Subject[Config]) -> Sequence[Stage]:
        tasks = [Task("squares", {"number": number}) for number in subject.config.numbers]
        return [Stage("squares", square, tasks, "squares"), Stage("nothing", square, [], "nothing")]

    def coordinates(self, subject: Subject[Config]) -> Mapping[str, Any]:
        return {"number": list(subject.config.numbers)}

    def claims(self, data: xr.Dataset, config: Config) -> Sequence[Claim]:
        least = float(data["square"].min())
        interval = Interval(least, least - 0.1, least + 0.1, len(data["square"]), "planted")
        evidence = Evidence([Criterion("least square", interval, config.thresholds.bound)])
        sentence = Sentence("squares.positive", "squares are positive", "ours")
        return [decide(sentence, evidence, statistic="least", unit="numbers", null=line("zero", None))]


class Twice(Squares):
    """With a stage that reads the one before, and one that tells by itself how long a task takes."""

    schema = Schema({**Squares.schema, "double": Variable("number"), "sum": Variable("", kept=False)})

    def stages(self, subject: Subject[Config]) -> Sequence[Stage]:
        numbers = subject.config.numbers
        doubles = [Task("doubles", {"number": number}) for number in numbers]
        return [
            *super().stages(subject),
            Stage("doubles", self.double, doubles, "doubles"),
            Stage("sums", self.never, [Task("sums")] * 4, "sums", seconds=lambda subject, task: 2.5),
        ]

    def double(self, subject: Subject[Config], task: Task, run: Run) -> dict[str, Any]:
        assert run.piece("squares")["square"].shape == (len(subject.config.numbers),)
        return {"double": 2 * run.piece("squares", number=task["number"])["square"]}

    def never(self, subject: Subject[Config], task: Task, run: Run) -> dict[str, Any]:
        raise AssertionError("a plan does no task of a stage that tells its time")


def test_a_class_becomes_a_run_that_can_be_read_back(tmp_path: Path):
    result = Squares().run(Config(numbers=(2, 5)), out=tmp_path / "run", quiet=True)
    assert result.data["square"].values.tolist() == [4, 25]
    assert result.data["square"].attrs == {"units": "1", "long_name": "the square"}
    assert [claim.verdict for claim in result.claims] == ["supported"]
    assert result.title == "Squares"
    assert not result.figures
    assert result.write_report().is_file()

    again = Squares().read(tmp_path / "run")
    assert again.claims == result.claims
    xr.testing.assert_identical(again.data, result.data)
    assert again.directory == tmp_path / "run"


def test_a_plan_does_one_task_of_each_stage_and_multiplies():
    done: list[int] = []

    class Counted(Twice):
        def double(self, subject: Subject[Config], task: Task, run: Run) -> dict[str, Any]:
            done.append(task["number"])
            return super().double(subject, task, run)

    plan = Counted().plan(Config())
    assert [(stage.name, stage.tasks) for stage in plan.stages] == [("squares", 3), ("doubles", 3), ("sums", 4)]
    assert done == [2]
    assert plan.stages[-1].seconds == 10.0
    assert all(np.isfinite(stage.seconds) and stage.bytes > 1e6 for stage in plan.stages)


def test_a_part_that_must_be_there_is_named():
    class Empty(Analysis[Config]):
        name = "empty"

        def coordinates(self, subject: Any) -> Mapping[str, Any]:
            return {}

    with pytest.raises(TypeError, match=r"abstract method.*stages"):
        Empty()  # type: ignore[abstract]


@pytest.mark.parametrize("name", sorted(analyses._ANALYSES))
def test_every_configuration_comes_back_from_its_file(name: str):
    kind = analyses.config_of(name)
    assert kind is analyses.load(name).config
    for made in (kind(), kind(seed=3, **({"text": Path("a.txt")} if hasattr(kind, "text") else {}))):
        assert configured(kind, json.loads(_dumps(made))) == made


@pytest.mark.parametrize("name", sorted(analyses._ANALYSES))
def test_what_pages_compare_is_measured_at_tokens(name: str):
    found = analyses.load(name)
    for variable, labels in found.compared.items():
        assert {"query", *labels} <= set(found.schema[variable].dims)


def test_a_configuration_of_another_version_is_refused():
    fields = json.loads(_dumps(Config()))
    with pytest.raises(InputError, match=r"differ in odd: run it again"):
        configured(Config, {"odd": 1} | {name: value for name, value in fields.items() if name != "seed"})


def test_built_in_analyses_are_found_by_name():
    assert {"tokenwise", "dynamics", "communities", "continuity", "causes", "lens"} <= set(analyses.names())
    assert analyses.load("tokenwise").run == probe.analyses.tokenwise.run
    with pytest.raises(InputError, match="perhaps tokenwise"):
        analyses.load("tokenwize")


def test_a_directory_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="names its analysis"):
        analyses.open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"analysis": "nothing"}')
    with pytest.raises(InputError, match="an analysis must be one of"):
        analyses.open_run(tmp_path)


def test_an_unfinished_run_is_refused(tmp_path: Path):
    Squares().run(Config(), out=tmp_path / "run", quiet=True)
    (tmp_path / "run" / "claims.json").unlink()
    with pytest.raises(InputError, match=r"holds claims\.json"):
        Squares().read(tmp_path / "run")


def test_a_control_is_never_the_model_itself():
    assert control_names("init", 3, None) == ("init-0", "init-1", "init-2")
    assert control_names("init", 3, 1) == ("init-0", "init-2", "init-3")
    assert control_names("shuffled", 0, 0) == ()


def test_an_option_below_its_bound_is_refused_when_it_is_given():
    assert Config(least=2).least == 2
    assert Config().least is None
    with pytest.raises(InputError, match="least= must be at least 2, got 1: give a larger number"):
        Config(least=1)
    with pytest.raises(InputError, match="windows= must be at least 1, got 0"):
        config.TextConfig(windows=0)
