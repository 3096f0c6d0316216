"""Runs side by side, and the joint figure: planted directions that coincide, random ones in the null's band."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from probe import InputError, analyses, geometry
from probe.cli import compare
from probe.runs import create_run
from probe.study import compare as work
from probe.study import joint

WIDTH, LAYERS = 24, 5
PROJECTIONS = ["q", "o"]


def frames(seed: int, k: int = joint.LEADING) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    drawn = [geometry.haar_frame(WIDTH, k, generator, dtype=torch.float64) for _ in range(LAYERS)]
    return torch.stack(drawn).numpy()  # (layer, coordinate, leading)


def planted(reads: np.ndarray, writes: np.ndarray, updates: np.ndarray) -> dict[str, xr.DataArray]:
    """What q reads lies in `reads`, what o writes in `writes`."""
    layers = list(range(LAYERS))
    turned = np.full(joint.LEADING, joint.LEADING**-0.5)
    weights = np.stack([reads @ turned, writes @ turned])
    return {
        "continuity": xr.DataArray(
            weights, {"projection": PROJECTIONS, "block": layers}, ("projection", "block", "coordinate")
        ),
        "dynamics": xr.DataArray(
            np.stack([reads, writes]),
            {"side": ["input", "output"], "layer": layers},
            ("side", "layer", "coordinate", "leading"),
        ),
        "tokenwise": xr.DataArray(updates, {"layer": layers}, ("layer", "coordinate", "leading")),
    }


def test_directions_that_coincide_have_no_angle():
    reads, writes = frames(0), frames(1)
    data = joint.joint(planted(reads, writes, writes))
    np.testing.assert_allclose(data["weights_jacobian"], 0, atol=1e-4)
    np.testing.assert_allclose(data["weights_update"].sel(projection="o"), 0, atol=1e-4)
    np.testing.assert_allclose(data["jacobian_update"].sel(side="output"), 0, atol=1e-4)
    low = float(data["haar_direction"].sel(level="low"))
    assert float(data["weights_update"].sel(projection="q").mean()) > low


def test_orthogonal_directions_have_right_angles():
    both = frames(0, 2 * joint.LEADING)
    data = joint.joint(planted(both[..., : joint.LEADING], both[..., joint.LEADING :], both[..., : joint.LEADING]))
    np.testing.assert_allclose(data["jacobian_update"].sel(side="output"), 90, atol=1e-4)
    np.testing.assert_allclose(data["weights_update"].sel(projection="o"), 90, atol=1e-4)


def test_the_null_is_what_random_directions_give():
    line, plane = joint.random_direction(WIDTH, joint.LEADING), joint.random_subspaces(WIDTH, joint.LEADING)
    drawn = []
    for seed in range(300):
        one, other = torch.from_numpy(frames(2 * seed)), torch.from_numpy(frames(2 * seed + 1))
        single = geometry.principal_angles(one[..., :1], other)[:, 0]
        drawn.append(torch.cat([single[:, None], geometry.principal_angles(one, other)], 1))
    angles = torch.cat(drawn).numpy()
    for place, level in enumerate(joint.LEVELS.values()):
        assert line[place] == pytest.approx(np.quantile(angles[:, 0], level), abs=1.5)
        assert plane[place, 0] == pytest.approx(np.quantile(angles[:, 1], level), abs=1.5)


def test_layers_that_no_two_runs_share_are_refused():
    found = planted(frames(0), frames(1), frames(2))
    found["tokenwise"] = found["tokenwise"].assign_coords(layer=np.arange(LAYERS) + 10)
    with pytest.raises(InputError, match="a layer that all runs looked at"):
        joint.joint(found)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A finished run of each of three analyses, of one model, with planted directions and nothing else."""
    found = planted(frames(0), frames(1), frames(1))
    for name in joint.PARTS:
        monkeypatch.setattr(type(analyses.load(name)), "figures", lambda self, data, config: [])
        write(tmp_path / name, name, found[name])
    return {name: tmp_path / name for name in joint.PARTS}


def write(directory: Path, name: str, directions: xr.DataArray | None, **settings: object) -> None:
    config = analyses.load(name).config(**({"model": "a"} | settings))
    data = xr.Dataset(attrs={"analysis": name, "model": "a <b>", "kind": "transformer"})
    if directions is not None:
        data["directions"] = directions
    with create_run(name, config, {}, out=directory) as run:
        run.write_results(data)
        run.write_claims([])


def test_three_analyses_of_one_model_share_a_figure(runs: dict[str, Path], tmp_path: Path, capsys):
    page = tmp_path / "page.html"
    assert compare.main([*map(str, runs.values()), "--out", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text(encoding="utf-8")
    assert "Do the directions of the analyses coincide?" in text
    assert "a &lt;b&gt;, continuity" in text
    results = [analyses.open_run(run) for run in runs.values()]
    (figure,) = work.joint_figures(dict(zip(runs, results, strict=True)), results)
    assert len(figure.draw().axes) == 3
    assert "continuity, dynamics, tokenwise" in figure.caption


def test_runs_of_two_weights_share_none(runs: dict[str, Path], tmp_path: Path):
    write(tmp_path / "fresh", "dynamics", planted(frames(0), frames(1), frames(2))["dynamics"], random_init=3)
    page = work.compare([runs["continuity"], tmp_path / "fresh"], tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    assert "coincide" not in text
    assert "fresh weights (seed 3), dynamics" in text


def test_settings_that_differ_are_listed(runs: dict[str, Path], tmp_path: Path):
    write(tmp_path / "other", "tokenwise", None, windows=7)
    text = work.compare([runs["tokenwise"], tmp_path / "other"], tmp_path / "page.html").read_text(encoding="utf-8")
    differing = text[text.index("Settings that differ") : text.index('id="runs"')]
    assert "<code>windows</code></th><td>32</td><td>7</td>" in differing
    assert "window_length" not in differing


def test_a_run_without_directions_is_named(runs: dict[str, Path], tmp_path: Path, capsys):
    write(tmp_path / "old", "dynamics", None)
    assert compare.main([str(runs["continuity"]), str(tmp_path / "old"), "--out", str(tmp_path / "page.html")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        f"{tmp_path / 'old'} keeps none: run its analysis again (dynamics, --out {tmp_path / 'old'}, --fresh)" in said
    )


@pytest.mark.parametrize("named", [[], ["a"], ["a", "a"]])
def test_fewer_than_two_runs_are_refused(named: list[str], capsys):
    assert compare.main(named) == 2
    assert capsys.readouterr().err.count("\n") == 1
