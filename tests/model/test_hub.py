"""What is fetched from the hub, and what is said when the hub or the disk gives nothing."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file

from probe import weights
from probe.model import hub, load_model
from probe.model.refusals import refusal
from probe.text import load_windows
from tests.plant.hub_cache import FakeHub
from tests.plant.refusing import refused
from tests.plant.saved import add_code
from tests.plant.tiny import tiny_module, tiny_tokenizer

TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]
CONFIGURATION = ["config.json", "generation_config.json"]
TOKEN = "hf_0123456789abcdef"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The files of a repository."""
    tiny_module("llama").save_pretrained(tmp_path / "files")
    tiny_tokenizer().save_pretrained(tmp_path / "files")
    (tmp_path / "files" / "README.md").write_text("A model.")
    (tmp_path / "files" / "original").mkdir()
    (tmp_path / "files" / "original" / "params.json").write_text("{}")
    (tmp_path / "files" / "consolidated.safetensors").write_bytes(b"")
    return tmp_path / "files"


@pytest.fixture
def fake(tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    return FakeHub(monkeypatch, tmp_path / "hub", published)


def q(model: Any) -> torch.Tensor:
    matrix: torch.Tensor = weights.weights_of(model).matrix(1, "q")
    return matrix


# What is fetched


def whole(files: Path) -> list[str]:
    shutil.copy(files / "model.safetensors", files / "pytorch_model.bin")  # which is left where it is
    return ["model.safetensors"]


def pickled(files: Path) -> list[str]:
    torch.save(load_file(files / "model.safetensors"), files / "pytorch_model.bin")
    (files / "model.safetensors").unlink()
    return ["pytorch_model.bin"]


def in_parts(files: Path) -> list[str]:
    (files / "model.safetensors").unlink()
    tiny_module("llama").save_pretrained(files, max_shard_size="40KB")
    return ["model.safetensors.index.json", *(file.name for file in files.glob("model-*.safetensors"))]


@pytest.mark.guards(
    "a repository holds its weights in one format or in several",
    when="a name is looked up",
    gives="one is fetched, safetensors if there is a choice",
)
@pytest.mark.parametrize("publish", [whole, pickled, in_parts])
def test_one_format_of_the_weights_is_fetched_and_read(
    fake: FakeHub, published: Path, publish: Callable[[Path], list[str]]
) -> None:
    expected = q(load_model(tiny_module("llama")))
    stored = publish(published)
    assert torch.equal(q("some-one/model"), expected)
    assert set(fake.fetched) == {*CONFIGURATION, *TOKENIZER, *stored}
    fake.error = AssertionError("asked again")
    assert torch.equal(q(load_model("some-one/model")), expected)


def test_a_control_fetches_no_weights(fake: FakeHub) -> None:
    load_model("some-one/model", random_init=0)
    assert set(fake.fetched) == {*CONFIGURATION, *TOKENIZER}


def test_code_is_fetched_on_request_alone(
    fake: FakeHub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    add_code(published)
    refused(lambda: load_model("some-one/model"), "trust_remote_code=True")
    assert "own.py" not in fake.fetched
    assert load_model("some-one/model", trust_remote_code=True).architecture == "own"
    assert "own.py" in fake.fetched


def test_a_repository_of_other_formats_says_what_it_holds(fake: FakeHub, published: Path) -> None:
    (published / "model.safetensors").unlink()
    refused(lambda: load_model("some-one/model"), "some-one/model", "model.safetensors or pytorch_model.bin")
    (published / "config.json").unlink()
    (published / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    refused(lambda: load_model("some-one/model"), "config.json", "fetch model-Q4_K_M.gguf and pass its path")
    assert not fake.fetched


# A cache without a tokenizer


@pytest.mark.guards(
    "a cached model has its tokenizer",
    when="a name is looked up",
    gives="the model, on token ids alone, and a line",
)
def test_a_cached_model_without_a_tokenizer_reads_tokens(
    fake: FakeHub, published: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for file in TOKENIZER:
        (published / file).rename(published.parent / file)
    load_model("some-one/model")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    caplog.clear()
    model = load_model("some-one/model")
    assert "some-one/model has no tokenizer" in caplog.text
    assert model.forward(torch.zeros((1, 4), dtype=torch.int64)).shape == (1, 4, 264)
    assert torch.equal(q("some-one/model"), q(model))
    refused(lambda: load_windows(model, dataset="sample"), "the model's tokenizer", "it has none")
    monkeypatch.setattr(hub, "reachable", lambda: True)
    fake.error = errors.HfHubHTTPError("503", response=answer(503))
    assert load_model("some-one/model").tokenizer is None
    fake.error = None
    for file in TOKENIZER:
        (published.parent / file).rename(published / file)
    assert load_model("some-one/model").encode("ab") == tiny_tokenizer().encode("ab")


# The disk


@pytest.mark.guards(
    "the disk has room for what is to be fetched",
    when="a name is looked up",
    says="the disk of the hub cache must have room for …, and … are to be fetched where … has …: make room",
)
def test_the_disk_is_looked_at_before_anything_is_fetched(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.sizes = {"model.safetensors": 30 * 10**9, "consolidated.safetensors": 10**15}
    free = {"free": 12 * 10**9}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(**free))
    words = ("30 GB", "12 GB", constants.HF_HUB_CACHE, "HF_HOME")
    refused(lambda: load_model("some-one/model"), "some-one/model", *words)
    refused(lambda: weights.open_weights("some-one/model"), "some-one/model", *words)
    assert not fake.fetched
    free["free"] = 31 * 10**9
    assert load_model("some-one/model").n_layers == 4
    (weights_here,) = Path(constants.HF_HUB_CACHE).rglob("config.json")
    weights_here.unlink()
    free["free"] = 10**6  # the weights are here
    assert load_model("some-one/model").n_layers == 4


# What the hub refuses


def answer(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None)


ANSWERS: dict[str, tuple[Exception, tuple[str, ...], tuple[str, ...]]] = {
    "gated": (
        errors.GatedRepoError("403 Client Error.", response=answer(403)),
        ("ask for access at https://huggingface.co/meta-llama/Llama-3.2-1B", "hf auth login", "HF_TOKEN"),
        ("for the account of the given token", "ask for access at"),
    ),
    "private": (
        errors.RepositoryNotFoundError("401 Client Error.", response=answer(401)),
        ("without a token there is no meta-llama/Llama-3.2-1B", "check the name", "HF_TOKEN"),
        ("with the given token there is no",),
    ),
    "no such revision": (
        errors.RevisionNotFoundError("404 Client Error.", response=answer(404)),
        ("the revision", "https://huggingface.co/meta-llama/Llama-3.2-1B/tree/main"),
        (),
    ),
    "wrong token": (
        errors.HfHubHTTPError("Invalid credentials in Authorization header", response=answer(401)),
        ("must take the given token", "Invalid credentials", "HF_TOKEN"),
        (),
    ),
    "busy": (errors.HfHubHTTPError("503 Server Error", response=answer(503)), ("503 Server Error", "later"), ()),
    "offline": (errors.OfflineModeIsEnabled("offline"), ("hub does not answer", "network"), ()),
    "full": (OSError(errno.ENOSPC, "No space left on device"), ("full", "make room", "HF_HOME"), ()),
    "forbidden": (PermissionError(errno.EACCES, "Permission denied", "/x/refs"), ("/x/refs", "permissions"), ()),
}


@pytest.mark.guards(
    "the hub gives the model: it is there, open to you, of this revision",
    when="a name is looked up",
    says="the model … must be open to you, and the hub gates it…: ask for access at …, then give a token",
)
@pytest.mark.parametrize("case", ANSWERS)
def test_what_the_hub_refuses_is_said_with_the_way_out(
    case: str, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    fake.error, words, with_token = ANSWERS[case]
    refused(lambda: load_model("meta-llama/Llama-3.2-1B"), "meta-llama/Llama-3.2-1B", *words)
    refused(lambda: weights.open_weights("meta-llama/Llama-3.2-1B"), "meta-llama/Llama-3.2-1B", *words)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    message = refused(lambda: load_model("meta-llama/Llama-3.2-1B"), *with_token)
    assert TOKEN not in message
    wrapping = OSError("You are trying to access a repo.\nMake sure to have access to it")  # as transformers does
    wrapping.__cause__ = fake.error
    assert str(refusal("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", wrapping)) == message


def test_a_name_that_is_nearly_an_alias_is_suggested(fake: FakeHub) -> None:
    fake.error = errors.RepositoryNotFoundError("404", response=answer(404))
    refused(lambda: load_model("pythai-1b"), "(perhaps pythia-1b")
