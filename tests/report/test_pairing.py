"""Two runs token by token: planted differences come back, in any order of tokens, and runs that do not fit are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from probe import InputError
from probe.inference import bootstrap
from probe.report import Result, write_comparison
from tests.plant.runs import Planted, dataset, finished

EFFECT = np.array([0.1, 0.2, 0.4])[:, None]  # by layer


def shifted(data: xr.Dataset) -> xr.Dataset:
    """The Dataset after tuning: KL higher by the layer's effect, and by a thousandth of the document's number."""
    kl = data["kl"] + EFFECT + data["document"] / 1000
    return data.assign(kl=kl.transpose(*data["kl"].dims).assign_attrs(data["kl"].attrs))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return Planted().read(finished(tmp_path_factory.mktemp("runs") / "base"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Result]:
    def written(data: xr.Dataset, name: str = "tuned", **options: Any) -> Result:
        return Planted().read(finished(tmp_path / name, data, **options))

    return written


@pytest.fixture
def tuned(write: Callable[..., Result]) -> Result:
    return write(shifted(dataset()))


def test_planted_differences_come_back(base: Result, tuned: Result):
    found = tuned.paired(base, "kl", resamples=200).set_index(["map", "layer"])
    documents = dataset()["document"].values
    for (fit, layer), row in found.iterrows():
        difference = (tuned.data["kl"] - base.data["kl"]).sel(map=fit, layer=layer).values
        held = np.isfinite(difference)
        assert row["difference"] == pytest.approx(np.median(difference[held]))
        assert row["this"] == pytest.approx(np.median(tuned.data["kl"].sel(map=fit, layer=layer).values[held]))
        assert row["other"] == pytest.approx(np.median(base.data["kl"].sel(map=fit, layer=layer).values[held]))
        values, of = difference[held], documents[held]
        again = bootstrap(lambda rows, values=values: float(np.median(values[rows])), of, resamples=200)
        assert (row["ci_low"], row["ci_high"]) == (pytest.approx(again.low), pytest.approx(again.high))
        assert (row["n_documents"], row["n_tokens"]) == (len(set(of)), held.sum())
    assert found.loc[("local", 2), ["n_documents", "n_tokens"]].tolist() == [2, 8]


def test_the_mean_and_axes_that_are_averaged(base: Result, tuned: Result):
    found = tuned.paired(base, "kl", centre="mean", over=["layer"], map="linear", resamples=50)
    difference = (tuned.data["kl"] - base.data["kl"]).sel(map="linear")
    assert found["difference"].tolist() == [pytest.approx(float(difference.mean()))]
    of = bootstrap(lambda rows: float(difference.values[:, rows].mean()), dataset()["document"].values, resamples=50)
    assert (found["ci_low"][0], found["ci_high"][0]) == (pytest.approx(of.low), pytest.approx(of.high))
    assert tuned.paired(base, "kl", over=["map", "layer"], resamples=2).shape[0] == 1
    rows = tuned.paired(base, "kl", centre="mean", map="local", resamples=2)["difference"]
    np.testing.assert_allclose(rows, (tuned.data["kl"] - base.data["kl"]).sel(map="local").mean("query"))


def test_a_run_less_itself_is_nothing_and_turned_round_changes_sign(base: Result, tuned: Result):
    assert (base.paired(base, "kl", resamples=2)[["difference", "ci_low", "ci_high"]] == 0).all(axis=None)
    there, back = (one.paired(two, "kl", map="linear", resamples=50) for one, two in ((tuned, base), (base, tuned)))
    np.testing.assert_allclose(there["difference"], -back["difference"])
    np.testing.assert_allclose(there["ci_low"], -back["ci_high"])


def test_tokens_are_matched_by_their_labels(base: Result, tuned: Result, write: Callable[..., Result]):
    order = np.random.default_rng(1).permutation(24)
    other = write(shifted(dataset()).isel(query=order), "turned")
    columns = ["difference", "this", "other"]
    np.testing.assert_allclose(
        other.paired(base, "kl", resamples=2)[columns], tuned.paired(base, "kl", resamples=2)[columns]
    )


def test_what_only_one_run_measured_is_left_out(base: Result, write: Callable[..., Result]):
    fewer = write(shifted(dataset()).isel(query=slice(0, 8)), "fewer", windows=2, layers="0,2").paired(
        base, "kl", resamples=2
    )
    assert fewer["n_tokens"].tolist() == [8] * 6
    gaps = shifted(dataset())
    gaps["kl"][:, :, :5] = np.nan
    row = write(gaps, "gaps").paired(base, "kl", map="linear", layer=0, resamples=2).iloc[0]
    assert row["n_tokens"] == 19
    assert row["other"] == pytest.approx(float(base.data["kl"].sel(map="linear", layer=0)[5:].median()))
    part = write(shifted(dataset()).sel(layer=[0, 2]), "part", layers="0,2")
    assert sorted(set(part.paired(base, "kl", resamples=2)["layer"])) == [0, 2]


class TestRefused:
    @pytest.mark.guards(
        "that they read one text, by its hash",
        when="two runs are compared",
        says="runs are paired on one text, but by their hashes … read two",
    )
    @pytest.mark.guards(
        "that their models read the same tokens",
        when="two runs are compared",
        says="runs are paired where their models read the same tokens, but … reads …",
    )
    @pytest.mark.guards(
        "that they measured tokens in common",
        when="two runs are compared",
        says="runs are paired on the tokens that both measured, but … and … drew theirs differently: …; run both",
    )
    @pytest.mark.guards(
        "that they looked at the same layers",
        when="two runs are compared",
        says="runs are … … where both have the same labels, but these have … and …",
    )
    @pytest.mark.parametrize(
        ("change", "options", "message"),
        [
            (lambda data: data, {"text": "1" * 8}, r"read two: run both with the same text= or dataset= and split="),
            (
                lambda data: data.assign_coords(token=("query", [f"{one}s" for one in data["token"].values])),
                {},
                "reads ' word0.1s' where .* reads ' word0.1': choose models with one tokenizer",
            ),
            (
                lambda data: data.assign_coords(context=data["context"] + "!"),
                {"windows": 8, "seed": 3},
                "windows is 8 and 6, seed is 3 and 0; run both with the same windows and seed",
            ),
            (
                lambda data: data.assign_coords(position=data["position"] + 1),
                {"positions_per_window": 2},
                "positions_per_window is 2 and 4",
            ),
            (lambda data: data.assign_coords(position=data["position"] + 1), {}, "run both with the same options"),
            (
                lambda data: data.assign_coords(layer=[7, 8, 9]),
                {"layers": "7,8,9"},
                "paired along layer where both have the same labels, but these have 7, 8, 9 and 0, 1, 2",
            ),
            (lambda data: data.assign_coords(position=0 * data["position"]), {}, "in .* several have the same"),
            (lambda data: data.drop_vars("document"), {}, "has none"),
        ],
    )
    def test_runs_that_do_not_fit_are_told_why(
        self, base: Result, write: Callable[..., Result], change: Any, options: dict[str, Any], message: str
    ):
        bare = write(dataset(), **options)
        other = Result(change(bare.data), [], bare.directory, "t")
        with pytest.raises(InputError, match=message):
            other.paired(base, "kl", resamples=2)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("kll", {}, "perhaps kl"),
            ("flat", {}, "flat has the axes map, layer: subtract the runs' tables"),
            ("kl", {"map": "mlp"}, "map= must be one of linear, local, got 'mlp'"),
            ("kl", {"rank": 3}, "got rank=3: leave it out"),
            ("kl", {"centre": "mode"}, "median or mean, got 'mode'"),
            ("kl", {"over": ["rank"]}, r"axes that kl has here \(map, layer\), got 'rank'"),
        ],
    )
    def test_what_cannot_be_asked(self, base: Result, name: str, options: dict[str, Any], message: str):
        with pytest.raises(InputError, match=message):
            base.paired(base, name, **options)

    def test_a_mean_over_layers_needs_the_same_layers(self, base: Result, write: Callable[..., Result]):
        part = write(dataset().sel(layer=[0, 2]), "part", layers="0,2")
        with pytest.raises(InputError, match="averaged over layer where both have the same labels"):
            part.paired(base, "kl", over=["layer"])

    def test_another_analysis(self, base: Result):
        other = Result(base.data.assign_attrs(analysis="dynamics"), [], base.directory, "t")
        with pytest.raises(InputError, match="got dynamics and planted"):
            other.paired(base, "kl")


class TestPage:
    def test_the_page_shows_the_differences(self, base: Result, tuned: Result, tmp_path: Path):
        text = write_comparison([base, tuned], tmp_path / "page.html").read_text(encoding="utf-8")
        shown = text[text.index('id="paired"') : text.index('id="runs"')]
        row = tuned.paired(base, "kl", over=["layer"], map="local").iloc[0]
        assert "KL of the replaced output" in shown
        assert "map local" in shown
        assert f"{row['difference']:.2f}" in shown
        assert "4, 24" in shown

    def test_it_says_why_there_are_none(self, base: Result, write: Callable[..., Result], tmp_path: Path):
        other = write(dataset(), "other", text="1" * 8)
        text = write_comparison([base, other], tmp_path / "page.html").read_text(encoding="utf-8")
        assert "Not paired: runs are paired on one text" in text
