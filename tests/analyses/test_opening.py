"""Runs opened by their paths: one, many, filtered, and those that cannot be opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import probe
from probe import InputError, analyses
from probe.runs import Run
from tests.plant.runs import Planted, finished


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three finished runs of two models, and one that is not finished, beside a file of another program."""
    for name, model in (("a", "pythia-70m"), ("b/deep", "pythia-160m"), ("c", "gpt2-small")):
        finished(tmp_path / name, model=model)
    (finished(tmp_path / "half") / "claims.json").unlink()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def test_a_run_is_opened_by_path_or_text(runs: Path):
    for path in (runs / "a", str(runs / "a")):
        result = probe.open_run(path)
        assert result.config.model == "pythia-70m"
        assert result.directory == runs / "a"
        assert [claim.id for claim in result.claims] == ["planted.small"]
        assert len(result.table("entropy")) == 24


@pytest.mark.guards(
    "that a run is finished",
    when="a finished run is opened",
    says="a finished run holds …, but … does not: run it to its end",
)
@pytest.mark.guards(
    "that its results can be read",
    when="a finished run is opened",
    says="results must be whole, but … cannot be read (…)",
)
@pytest.mark.guards(
    "that its claims have the fields of this version",
    when="a finished run is opened",
    says="claims must be whole and of this version, but … is not (…)",
)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda runs: runs / "nowhere", "nowhere does not exist: name another"),
        (lambda runs: runs / "model", "model does not: name another"),
        (lambda runs: runs / "a" / "results.nc", "got the file .*results.nc: open .*a$"),
        (lambda runs: runs, "is a folder of 4: name one of them .* or open all with open_runs"),
        (lambda runs: runs / "half", r"holds claims\.json, but .*half does not: run it to its end"),
        (lambda runs: changed(runs / "a", format=1), "has format 1 and this version reads 2"),
        (lambda runs: changed(runs / "a", analysis="no-such"), "got 'no-such': install its package, or import"),
        (lambda runs: changed(runs / "a", config={"odd": 1}), "differ in .*odd"),
        (lambda runs: cut(runs / "a", "results.nc"), "results must be whole"),
        (lambda runs: cut(runs / "a", "claims.json"), "claims must be whole"),
        (lambda runs: cut(runs / "a", "config.json"), "names its analysis"),
        (lambda runs: without_direction(runs / "a"), "unknown: direction: .* repeat the command of the run"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_one_line(runs: Path, spoil: Callable[[Path], Path], message: str):
    with pytest.raises(InputError, match=message) as refused:
        probe.open_run(spoil(runs))
    assert "\n" not in str(refused.value)


def changed(run: Path, **entries: object) -> Path:
    (run / "config.json").write_text(json.dumps(Run(run).record | entries))
    return run


def cut(run: Path, name: str) -> Path:
    (run / name).write_bytes((run / name).read_bytes()[:20])
    return run


def without_direction(run: Path) -> Path:
    old = [
        {key: value for key, value in claim.to_dict().items() if key != "direction"} for claim in Run(run).read_claims()
    ]
    (run / "claims.json").write_text(json.dumps(old))
    return run


def test_a_folder_a_pattern_or_a_list_gives_all(runs: Path):
    with pytest.warns(UserWarning, match=r"1 runs cannot be opened and are left out: .*half does not"):
        found = probe.open_runs(runs)
    assert [result.directory for result in found] == [runs / "a", runs / "b/deep", runs / "c"]
    assert [one.directory for one in probe.open_runs(f"{runs}/[ac]")] == [runs / "a", runs / "c"]
    assert [one.directory for one in probe.open_runs([runs / "c", runs / "a"])] == [runs / "c", runs / "a"]


def test_filters_read_the_options_alone(runs: Path):
    (runs / "half" / "results.nc").unlink()
    names = [one.config.model for one in probe.open_runs(runs, model="pythia-*")]
    assert names == ["pythia-70m", "pythia-160m"]
    assert [one.config.model for one in probe.open_runs(runs, model="gpt2-small", analysis="planted")] == ["gpt2-small"]


def test_nothing_found_is_refused(runs: Path):
    with pytest.raises(InputError, match="model='gpt-j' must match a run, got planted of gpt2-small; planted of "):
        probe.open_runs(runs, model="gpt-j")
    with pytest.raises(InputError, match="model does not: name another"):
        probe.open_runs(runs / "model")
    with pytest.raises(InputError, match="leads to no run"):
        probe.open_runs(runs / "b" / "nowhere")
    with pytest.raises(InputError, match="leads to no run"):
        probe.open_runs(f"{runs}/z*")
    with pytest.raises(InputError, match=r"holds claims\.json"):
        probe.open_runs([runs / "a", runs / "half"])


@pytest.mark.guards(
    "that it is of this analysis",
    when="a finished run is opened",
    says="an analysis reads its own runs, but … is one of …",
)
def test_an_analysis_reads_no_run_of_another(runs: Path):
    class Other(Planted):
        name = "other"

    with pytest.raises(InputError, match=r"is one of planted and this is other: open it with probe\.open_run"):
        Other().read(runs / "a")


def test_the_old_name_still_opens(runs: Path):
    with pytest.warns(DeprecationWarning, match=r"use probe\.analyses\.open_run"):
        assert analyses.read(runs / "a").directory == runs / "a"
