"""An analysis in a package of its own, outside the repository: installed, found, run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

import probe
from tests.plant.tiny import tiny_module, tiny_tokenizer

PACKAGE = Path(__file__).resolve().parents[2] / "docs" / "extending"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the installer leaves it: the module, and metadata that name its entry point."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(folder), str(PACKAGE)], check=True)
    return folder


def call(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(installed), str(Path(probe.__file__).parent.parent)])
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "probe", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_found_and_has_a_help_of_its_own(installed: Path, tmp_path: Path) -> None:
    listed = call(installed, tmp_path, "--help").stdout
    assert "  norms        Do the states of the residual stream grow through depth?\n" in listed
    shown = call(installed, tmp_path, "norms", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "-m probe norms [-h] [OPTIONS]" in shown.stdout
    assert "--layers all|INT,INT" in shown.stdout
    assert "--window-length" in shown.stdout


def test_it_runs_and_leaves_all_files_of_a_run(installed: Path, tmp_path: Path) -> None:
    tiny_module("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    text = ["--dataset", "sample", "--windows", "6", "--window-length", "16"]
    options = ["--model", "model", *text, "--layers", "0,2", "--quiet"]
    done = call(installed, tmp_path, "norms", *options, "--out", "run")
    assert (done.returncode, done.stdout) == (0, "run/report.html\n"), done.stderr
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} >= {
        "config.json",
        "results.nc",
        "claims.json",
        "figures",
        "report.html",
        "units",
    }
    assert sorted(path.name for path in (run / "figures").iterdir()) == ["norms.png", "norms.svg"]
    (claim,) = json.loads((run / "claims.json").read_text())
    with xr.open_dataset(run / "results.nc", engine="h5netcdf") as data:
        assert data["log_norm"].shape == (2, 3, 6)
        assert data["depth"].values.tolist() == [0, 2, 3]  # before the chosen blocks, and after the last
        ends = data["log_norm"].isel(depth=[0, -1]).mean("window").values
    own, fresh = (ends[:, 1] - ends[:, 0]) / 3
    assert claim["estimate"] == pytest.approx(own, rel=1e-4)
    assert claim["null"]["estimate"] == pytest.approx(fresh, rel=1e-4)
    assert claim["controls"][0]["estimate"] == pytest.approx(own - fresh, rel=1e-4)
    assert (claim["unit"], claim["n_units"]) == ("documents", 6)
    assert call(installed, tmp_path, "norms", *options, "--random-init", "1", "--out", "fresh").returncode == 0
    compared = call(installed, tmp_path, "compare", "run", "fresh", "--out", "both.html")
    assert (compared.returncode, compared.stdout) == (0, "both.html\n"), compared.stderr
    tiny_module("llama", seed=1).save_pretrained(tmp_path / "model")
    refused = call(installed, tmp_path, "norms", *options, "--out", "run")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "a run directory belongs to one configuration, but in run fingerprint.weights was " in refused.stderr
