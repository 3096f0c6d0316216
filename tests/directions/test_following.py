"""Directions through depth: planted growth beside nulls whose law is known, intervals over documents, the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from probe import geometry, inference, replay
from probe.directions import DirectionPath, path
from probe.directions.following import MEASURES, share_below
from probe.jacobian import cumulative_jacobian
from probe.text import Windows
from tests.directions.test_carrying import F64, drawn, planted, turning
from tests.plant.refusing import refused
from tests.plant.tiny import LAYERS, WIDTH, tiny_model, tiny_tokens

TOKENS = torch.arange(12).reshape(4, 3) % 7
EYE = torch.eye(5, dtype=F64)


def test_every_measure_is_that_of_the_explicit_product():
    model, tokens, vectors = tiny_model("llama"), tiny_tokens(3, 10), drawn(2, WIDTH)
    found = path(model, tokens, vectors, 1, LAYERS, positions=[4, 9], draws=2, batch_size=2, dtype=F64).data
    recorded = replay.record(model, tokens, torch.tensor([[4, 9]] * 3))
    for depth in (2, LAYERS):
        product = cumulative_jacobian(model, tokens, 1, depth, [4, 9], dtype=F64)
        image = torch.einsum("wpij,nj->nwpi", product, vectors).flatten(1, 2)
        state = recorded.state(depth).double().flatten(0, 1).expand_as(image)
        before = recorded.state(depth - 1).double().flatten(0, 1)
        start = vectors[:, None].expand_as(image)
        seen = found.sel(depth=depth)
        assert np.allclose(seen["gain"], image.norm(dim=-1) / start.norm(dim=-1), rtol=1e-5)
        for name, other in (("self", start), ("state", state), ("update", state - before)):
            assert np.allclose(seen[f"cosine_{name}"], geometry.cosine(image, other), atol=1e-5)
    first = found.sel(depth=1)
    assert (first["gain"] == 1).all()
    assert (first["cosine_self"] == 1).all()
    assert first["cosine_update"].isnull().all()
    assert found["cosine_state"].notnull().all()


def test_a_direction_that_grows_stands_out_from_both_nulls():
    grown = torch.diag(torch.tensor([3.0, 1, 1, 1, 1], dtype=F64))
    found = path(planted(grown, grown, EYE), TOKENS, EYE[:2], 0, positions=[1, 2], states=drawn(50, 5), draws=30)
    table = found.table()
    last = table[(table["depth"] == 3) & (table["measure"] == "gain")].set_index(["direction", "null"])
    assert np.allclose(last.loc["0", ["median", "median_low", "median_high"]].astype(float), 9)
    assert np.allclose(last.loc["1", "median"].astype(float), 1)
    assert (last.loc["0", "percentile"] == 1).all()
    assert (last.loc["1", "percentile"] == 0).all()
    # a unit vector x grows to √(1 + 80 x₁²)
    null = found.data["null_gain"].sel(depth=3).isel(query=0)
    cosine = found.data["null_cosine_self"].sel(depth=3).isel(query=0)
    first = (cosine * null - 1) / 8  # x·Cx = 1 + 8 x₁²
    assert np.allclose(null**2, 1 + 80 * first)
    expected = np.exp(np.log(null).mean("draw"))
    assert np.allclose(last.loc["0", "null_median"], expected)
    assert np.allclose(last.loc["0", "contrast"], 9 / expected)


def test_the_second_null_has_the_covariance_of_the_states():
    along = torch.tensor([1.0, 2.0, 0.0, 0.0, -2.0], dtype=F64) / 3
    states = 4 + drawn(40, 1) * along  # a mean of 4 does not count
    found = path(planted(EYE, EYE, EYE), TOKENS, along.numpy(), 1, 2, positions=[2], states=states.numpy())
    stretched = planted(EYE, EYE + 8 * torch.outer(along, along), EYE)
    grown = path(stretched, TOKENS, along, 1, 2, positions=[2], states=states).summary.sel(measure="gain", depth=2)
    assert float(found.summary["null_median"].sel(measure="gain", depth=2, null="covariance")) == pytest.approx(1)
    assert float(grown["null_median"].sel(null="covariance")) == pytest.approx(9)
    assert float(grown["null_median"].sel(null="isotropic")) < 8
    assert float(grown["percentile"].sel(null="isotropic").item()) == 1


def test_by_default_the_states_are_the_counted_ones():
    model, tokens = tiny_model("llama"), tiny_tokens(3, 10)
    windows = Windows(tokens, torch.arange(3), ("",) * 3, frozenset({int(tokens[0, 5])}), "text", "0")
    states = replay.record(model, tokens, [0]).states[2]
    prompts = [tokens[0, :6].tolist(), tokens[1].tolist(), tokens[2, :6].tolist()]
    of_prompts = torch.cat([states[0, 1:6], states[2, 1:6], states[1, 1:]])
    vector, options = drawn(WIDTH), {"positions": [4], "draws": 3}
    for given, counted in (
        (windows, states[windows.counted()]),
        (tokens, states[:, 1:]),
        (prompts, of_prompts),
    ):
        found = path(model, given, vector, 2, **options).data["null_gain"]
        assert np.allclose(found, path(model, given, vector, 2, states=counted, **options).data["null_gain"], rtol=1e-4)
    assert not np.allclose(found, path(model, given, vector, 2, states=states, **options).data["null_gain"], rtol=1e-2)


@pytest.mark.parametrize("null", ["isotropic", "covariance"])
def test_a_direction_of_the_null_has_a_uniform_percentile(null):
    """Of 400 directions, each beside 19 draws of its own, a twentieth gets each rank."""
    many, draws = 400, 19
    states = drawn(60, 5, seed=3) * torch.tensor([5.0, 2.0, 1.0, 1.0, 0.3], dtype=F64)
    normal = drawn(many, 5, seed=8)
    given = normal if null == "isotropic" else normal @ torch.linalg.cholesky(states.mT.cov()).mT
    model = planted(turning(2, 30) @ torch.diag(torch.tensor([1.0, 2, 3, 4, 5], dtype=F64)))
    found = path(model, TOKENS[:2], given, 0, 1, positions=[1], states=states, draws=many * draws)
    for measure in ("gain", "cosine_self"):
        own = found.data[measure].sel(depth=1).isel(query=0).values
        null_draws = found.data[f"null_{measure}"].sel(depth=1, null=null).isel(query=0).values
        share = share_below(own[:, None], null_draws.reshape(many, draws), axis=1)
        counts = np.bincount(np.rint(draws * share).astype(int), minlength=draws + 1)
        assert stats.chisquare(counts).pvalue > 0.01
        other = "covariance" if null == "isotropic" else "isotropic"
        wrong = found.data[f"null_{measure}"].sel(depth=1, null=other).isel(query=0).values
        share = share_below(own[:, None], wrong.reshape(many, draws), axis=1)
        assert stats.chisquare(np.bincount(np.rint(draws * share).astype(int), minlength=draws + 1)).pvalue < 1e-6


def made(gains, null, documents):
    """A path of one direction and one depth, measured otherwise."""
    queries = len(documents)
    data = xr.Dataset(
        coords={
            "direction": ["mine"],
            "depth": [1],
            "null": ["isotropic", "covariance"],
            "document": ("query", np.asarray(documents)),
        },
        attrs={"model": "m", "text": "t"},
    )
    for name in MEASURES:
        data[name] = (("direction", "depth", "query"), np.asarray(gains, dtype=float).reshape(1, 1, queries))
        draws = np.asarray(null, dtype=float).reshape(1, -1, 1, queries).repeat(2, 0)
        data[f"null_{name}"] = (("null", "draw", "depth", "query"), draws)
    return DirectionPath(data)


def test_intervals_resample_documents_together_with_the_null():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(20), 2)
    common = 9 + rng.standard_normal(20).repeat(2)  # a document moves the direction and the null alike
    found = made(common + 0.5, np.stack([common, common + 0.2]), documents).summary.isel(direction=0, depth=0)
    seen = found.sel(measure="cosine_state")
    expected = inference.bootstrap(lambda rows: float(np.median(common[rows] + 0.5)), documents)
    assert float(seen["median"]) == pytest.approx(expected.estimate)
    assert float(seen["median_low"]) == pytest.approx(expected.low)
    assert float(seen["median_high"]) == pytest.approx(expected.high)
    assert np.allclose(seen["contrast"], 0.4)
    assert np.allclose(seen["contrast_high"] - seen["contrast_low"], 0, atol=1e-9)
    assert np.allclose(seen["percentile"], 1)
    assert found.attrs["documents"] == 20


def test_the_draws_and_ties_of_a_summary():
    found = made([2, 2, 2, 2], [[1] * 4, [2] * 4, [4] * 4, [8] * 4], [0, 1, 2, 3]).summary
    gain = found.sel(measure="gain", null="isotropic").squeeze()
    assert float(gain["percentile"]) == pytest.approx((1 + 0.5) / 4)
    assert float(gain["null_median"]) == pytest.approx(64**0.25)
    assert float(gain["contrast"]) == pytest.approx(2 / 64**0.25)
    cosine = found.sel(measure="cosine_self", null="isotropic").squeeze()
    assert float(cosine["null_median"]) == pytest.approx(3.75)
    assert float(cosine["null_low"]) == pytest.approx(np.quantile([1, 2, 4, 8], 0.025))
    assert float(cosine["null_high"]) == pytest.approx(np.quantile([1, 2, 4, 8], 0.975))


def test_the_picture_shows_what_the_summary_says():
    found = path(planted(2 * EYE, EYE, EYE), TOKENS, EYE[:2], 0, positions=[1], states=drawn(9, 5), draws=2)
    figure = found.plot(["1"])
    assert figure.axes[0].get_title(loc="left") == "gain"
    lines = {one.get_label(): one for one in figure.axes[0].lines}
    assert set(lines) == {"random: any direction", "random: direction of the states' covariance", "1"}
    assert np.allclose(lines["1"].get_ydata(), [1, 2, 2, 2])
    assert figure.axes[0].get_yscale() == "log"
    assert figure.legends
    refused(lambda: found.plot(["2"]), "directions=")
    refused(lambda: path(planted(EYE, EYE, EYE), TOKENS, drawn(7, 5), 0, positions=[1]).plot(), "one to 6")


def test_a_path_shows_itself_and_goes_to_a_file(tmp_path):
    found = path(planted(EYE, EYE, EYE), TOKENS, EYE[:2], 0, positions=[1], states=drawn(9, 5), draws=2)
    assert "directions=2, depths 0 to 3, queries=4" in repr(found)
    assert "4 of 4 documents" in found._repr_html_()
    found.data.to_netcdf(tmp_path / "path.nc", engine="h5netcdf")
    again = DirectionPath(xr.load_dataset(tmp_path / "path.nc"))
    xr.testing.assert_allclose(again.summary, found.summary)
    assert list(again.table().columns[:4]) == ["direction", "depth", "measure", "null"]
    assert len(again.table()) == 2 * 4 * 4 * 2
    for name in again.data.data_vars:
        assert again.data[name].attrs["units"] == "1"
        assert again.data[name].attrs["long_name"]


def test_what_does_not_fit_is_refused():
    model = planted(EYE, EYE, EYE)

    def call(**options):
        return lambda: path(model, TOKENS, EYE[0], **{"from_layer": 0, "positions": [1]} | options)

    refused(call(draws=1), "draws=1")
    refused(call(from_layer=None), "at which depth")
    refused(call(states=drawn(1, 5)), "two or more")
    refused(call(states=drawn(9, 4)), "d = 5")
    refused(call(context="alone"), "real context")
