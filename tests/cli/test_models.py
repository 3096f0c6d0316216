from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from probe.cli import models as catalogue
from probe.cli.check import checked
from probe.model import sources
from probe.model.architectures import ARCHITECTURES, Form
from tests.plant.hub_cache import add_model
from tests.plant.saved import add_code
from tests.plant.tiny import tiny_model, tiny_module

MAIN, STEP = "f" * 40, "5" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def entry(name: str, *, every: bool = False) -> catalogue.Entry:
    (found,) = [entry for entry in catalogue.entries(every=every) if entry.name == name]
    return found


def test_our_names_are_all_there_the_default_first() -> None:
    names = [entry.name for entry in catalogue.entries()]
    assert names[0] == sources.DEFAULT_MODEL
    assert set(sources.ALIASES) < set(names)
    assert "pythia-1b" not in names
    every = [entry.name for entry in catalogue.entries(every=True)]
    assert len(set(every)) == len(every)
    assert set(names) | set(sources.hub_aliases()) == set(every)


def test_a_package_is_here_if_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = sources.Package("some_weights", "w.gguf", "0", "pip install some-weights", "of some kind")
    monkeypatch.setitem(sources.PACKAGES, "some", package)
    found = entry("some")
    assert (found.state, found.bytes, found.install) == ("not here", None, "pip install some-weights")
    (tmp_path / "some_weights").mkdir()
    (tmp_path / "some_weights" / "__init__.py").touch()
    (tmp_path / "some_weights" / "w.gguf").write_bytes(b"GGUF" + bytes(96))
    monkeypatch.syspath_prepend(tmp_path)
    found = entry("some")
    assert (found.state, found.bytes, found.install, found.weights) == ("here", 100, None, "of some kind")


def test_what_ships_is_here() -> None:
    found = entry("bundled/transformer")
    assert (found.kind, found.state, found.weights) == (
        "shipped",
        "here",
        "small, trained by probe on bytes of WikiText",
    )
    assert found.bytes == sum(path.stat().st_size for path in Path(found.means).iterdir())


def test_an_alias_is_here_once_all_that_loading_needs_is_cached(cache: Path) -> None:
    assert entry("pythia-1b", every=True).state == "not here"
    module = tiny_module("gpt_neox")
    add_model(cache, "EleutherAI/pythia-1b", {"main": (MAIN, module)})
    found = entry("pythia-1b", every=True)
    assert (found.kind, found.means, found.state) == ("hub", "EleutherAI/pythia-1b", "here")
    snapshot = cache / "models--EleutherAI--pythia-1b" / "snapshots" / MAIN
    assert found.bytes == sum(path.stat().st_size for path in snapshot.iterdir()) + len(MAIN)
    (snapshot / "model.safetensors").unlink()
    assert entry("pythia-1b", every=True).state == "in part"


def test_a_damaged_index_is_no_reason_to_list_nothing(cache: Path) -> None:
    add_model(cache, "some/model", {"main": (MAIN, tiny_module("gpt_neox"))})
    snapshot = cache / "models--some--model" / "snapshots" / MAIN
    (snapshot / "model.safetensors").rename(snapshot / "model.safetensors.index.json")
    assert entry("some/model").state == "in part"


def test_the_code_of_a_checked_model_runs_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_module("llama").save_pretrained(tmp_path)
    add_code(tmp_path)
    assert catalogue.main(["--check", str(tmp_path)]) == 2
    assert "if you trust it pass --trust-remote-code" in capsys.readouterr().err
    asked: dict[str, bool] = {}
    monkeypatch.setattr("probe.cli.check.load_model", lambda _, **options: asked.update(options) or tiny_model("llama"))
    assert catalogue.main(["--check", str(tmp_path), "--trust-remote-code"]) == 0
    assert asked == {"trust_remote_code": True}


def test_a_file_that_two_revisions_share_is_counted_once(cache: Path) -> None:
    add_model(cache, "some/model", {"main": (MAIN, tiny_module("gpt_neox"))})
    before = entry("some/model").bytes
    folder = cache / "models--some--model" / "snapshots"
    (folder / STEP).mkdir()
    (folder / STEP / "model.safetensors").symlink_to(folder / MAIN / "model.safetensors")
    assert entry("some/model").bytes == before


def test_a_cached_model_without_an_alias_is_named_by_its_hub_id(cache: Path) -> None:
    add_model(cache, "some-one/a-model", {"main": (MAIN, tiny_module("gpt_neox"))})
    add_model(cache, "HuggingFaceTB/SmolLM2-135M", {"main": (MAIN, tiny_module("gpt_neox"))})
    names = [entry.name for entry in catalogue.entries() if entry.state == "here"]
    assert names[-2:] == ["smollm2-135m", "some-one/a-model"]


def test_a_folder_of_the_same_name_is_not_taken_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hub").mkdir()
    Path("hub/models--gpt2").mkdir()
    Path("gpt2").mkdir()
    assert entry("gpt2").state == "not here"


def test_the_command_shows_a_table_or_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_model(cache, "some-one/a-model", {"main": (MAIN, tiny_module("gpt_neox"))})
    (cache / "models--[red]").mkdir()
    assert catalogue.main([]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert cells[0][0] == f"{sources.DEFAULT_MODEL} (default)"
    assert cells[-1][:4] == ["some-one/a-model", "some-one/a-model", "published weights", "here"]
    assert cells[-1][4].endswith("kB")
    assert ["mamba-130m", "state-spaces/mamba-130m-hf", "published weights", "not here", ""] in cells
    assert catalogue.main(["--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in listed] == [entry.name for entry in catalogue.entries()]
    assert set(listed[-1]) == {"name", "kind", "means", "weights", "state", "bytes", "install"}
    assert catalogue.main(["--jsn"]) == 2
    assert "perhaps --json" in capsys.readouterr().err


def test_it_imports_no_torch_and_asks_no_network() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from probe.cli import models\n"
        "status = models.main(['--all'])\n"
        "sys.exit(status + 10 * bool({'torch', 'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_check_says_why_a_jacobian_is_not_analytic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_module("gpt2").save_pretrained(tmp_path)
    assert "not analytic" not in (right := str(checked(str(tmp_path))))
    assert "does not hold" not in right
    row = ARCHITECTURES["gpt2"]
    kind = row.kinds[0]

    def told(**changes: object) -> str:
        rows = {"gpt2": replace(row, kinds=(replace(kind, **changes),))}  # type: ignore[arg-type]
        for module in ("adapters", "support"):
            monkeypatch.setattr(f"probe.model.{module}.ARCHITECTURES", rows)
        return str(checked(str(tmp_path)))

    assert "not analytic: the row of gpt2 states no form" in told(form=None)
    assert "the row of gpt2 does not hold: these blocks have no norm" in told(form=Form("ln_1", mlp_norm="norm"))
    assert "not analytic: a composed Jacobian must be the derivative" in told(form=Form("ln_2", mlp_norm="ln_1"))
    without = {name: matrix for name, matrix in kind.projections.items() if name != "up"}
    assert "does not (it has no matrix up)" in told(projections=without)
