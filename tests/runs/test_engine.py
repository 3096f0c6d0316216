from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from probe.runs.engine import Unit, work
from probe.errors import InputError
from probe.runs import Run, open_run
from tests.plant import toy

CONFIG = toy.Config(dataset="sample")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with open_run("toy", CONFIG, {}, out=tmp_path / "run") as opened:
        yield opened


def units(n: int) -> list[Unit]:
    return [Unit("square", str(index), {"index": index}) for index in range(n)]


def square(config: toy.Config, unit: Unit, run: Run) -> Mapping[str, Tensor]:
    with (run.directory / "worked").open("a") as file:
        file.write(unit.key)
    return {"square": torch.tensor(unit.arguments["index"] ** 2)}


def square_until_two(config: toy.Config, unit: Unit, run: Run) -> Mapping[str, Tensor]:
    if unit.arguments["index"] == 2:
        raise KeyboardInterrupt
    return square(config, unit, run)


def fail_at_two(config: toy.Config, unit: Unit, run: Run) -> Mapping[str, Tensor]:
    if unit.arguments["index"] == 2:
        raise InputError("layer 2, window 7: the state is not finite")
    return square(config, unit, run)


def test_every_unit_is_worked_off_and_saved(run: Run) -> None:
    work(square, units(5), CONFIG, run, description="squares", quiet=True)
    assert [run.load("square", str(i))["square"].item() for i in range(5)] == [0, 1, 4, 9, 16]


def test_the_time_of_each_unit_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr("probe.runs.engine.time.perf_counter", lambda: next(ticks))
    work(square, units(2), CONFIG, run, description="squares", quiet=True)
    assert run.seconds == 2.75


@pytest.mark.parametrize(
    ("function", "error"),
    [(square_until_two, KeyboardInterrupt), (fail_at_two, InputError)],
    ids=["interrupted", "wrong"],
)
def test_finished_units_are_kept_and_not_done_again(run: Run, function: object, error: type[BaseException]) -> None:
    with pytest.raises(error):
        work(function, units(5), CONFIG, run, description="squares", quiet=True)  # type: ignore[arg-type]
    assert [run.has("square", str(i)) for i in range(5)] == [True, True, False, False, False]
    work(square, units(5), CONFIG, run, description="squares", quiet=True)
    assert (run.directory / "worked").read_text() == "01234"


def test_progress_goes_to_standard_error_and_begins_at_what_is_finished(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    work(square, units(3), CONFIG, run, description="squares")
    work(square, units(4), CONFIG, run, description="more squares")
    said = capsys.readouterr()
    assert not said.out
    assert "squares: 100%" in said.err
    assert "more squares:  75%" in said.err
    assert "4/4" in said.err
    work(square, units(5), CONFIG, run, description="squares", quiet=True)
    assert not capsys.readouterr().err


def test_two_units_of_one_name_are_a_defect(run: Run) -> None:
    with pytest.raises(ValueError, match=r"\('square', '1'\) comes more than once"):
        work(square, [*units(3), units(2)[1]], CONFIG, run, description="squares", quiet=True)
    assert not run.has("square", "0"), "nothing is done before it is noticed"


def test_a_function_that_another_process_could_not_find_is_refused(run: Run) -> None:
    def local(config: toy.Config, unit: Unit, run: Run) -> Mapping[str, Tensor]:
        return {}

    for function in (local, lambda config, unit, run: {}):
        with pytest.raises(ValueError, match="must be defined in a module"):
            work(function, units(1), CONFIG, run, description="squares", quiet=True)


def test_arguments_must_be_serialisable() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        Unit("s", "k", {"states": torch.zeros(2)})
    assert json.dumps(dict(Unit("s", "k", {"layers": [0, 1], "kind": None}).arguments))
