"""A model's folder is read right by both readers, or refused in a sentence of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from probe import weights
from probe.model import load_model
from probe.model.refusals import refusal
from tests.plant.refusing import refused
from tests.plant.saved import add_code
from tests.plant.tiny import tiny_module, tiny_tokenizer

NAME = "model.layers.1.self_attn.q_proj.weight"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4943162336\n"

READERS: dict[str, Callable[..., Tensor]] = {
    "whole": lambda folder, **options: load_model(folder, **options).projections(1)["q"],
    "one matrix": lambda folder, **options: weights.open_weights(folder, **options).matrix(1, "q"),
}
both_readers = pytest.mark.parametrize("read", READERS.values(), ids=READERS)
Read = Callable[..., Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_module("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that comes with models is copied here."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def own_q() -> Tensor:
    return tiny_module("llama").get_parameter(NAME)


def stored(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return tensors


def store(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def pickle(folder: Path, tensors: object, **options: bool) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", **options)


def configure(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


# What is read right


@both_readers
@pytest.mark.guards(
    "tensors are named as the model names them, or with what compiling or parallel training put before",
    when="a file is read",
    gives="the weights, by both readers",
)
@pytest.mark.parametrize("trunk", ["model.", ""])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_from_inside_a_compiled_or_parallel_model(folder: Path, prefix: str, trunk: str, read: Read) -> None:
    renamed = {name.replace("model.", trunk, 1): value for name, value in stored(folder).items()}
    store(folder, {f"{prefix}{name}": value for name, value in renamed.items()})
    assert torch.equal(read(folder), own_q())


def test_wrapped_names_of_experts(tmp_path: Path) -> None:
    from tests.architectures import zoo

    module = zoo.tiny("mixtral")
    module.save_pretrained(tmp_path)
    expected = weights.weights_of(load_model(module)).matrix(1, "experts.3.down")
    store(tmp_path, {f"module.{name}": value for name, value in stored(tmp_path).items()})
    assert torch.equal(weights.open_weights(tmp_path).matrix(1, "experts.3.down"), expected)
    assert torch.equal(weights.weights_of(load_model(tmp_path)).matrix(1, "experts.3.down"), expected)


@both_readers
@pytest.mark.guards(
    "a folder holds pytorch_model.bin alone, of the old format or the new",
    when="a file is read",
    gives="the weights, tensors alone, by both readers",
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_of_both_formats(folder: Path, zipped: bool, read: Read) -> None:
    pickle(folder, stored(folder), _use_new_zipfile_serialization=zipped)
    assert torch.equal(read(folder), own_q())


@both_readers
def test_half_precision_beside_full(folder: Path, read: Read) -> None:
    store(folder, {name: value.half() if name == NAME else value for name, value in stored(folder).items()})
    assert torch.equal(read(folder), own_q().half().float())


@both_readers
def test_a_whole_file_beside_an_index_is_what_transformers_reads(folder: Path, read: Read) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert torch.equal(read(folder), own_q())


# What is refused


def lack_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lack_a_part(folder: Path) -> None:
    lack_weights(folder)
    tiny_module("llama").save_pretrained(folder, max_shard_size="40KB")
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def list_nothing(folder: Path) -> None:
    lack_weights(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def turn_into_pickle_of_pointer(folder: Path) -> None:
    pickle(folder, {})
    (folder / "pytorch_model.bin").write_text(POINTER)


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "another shape": (
        lambda folder: store(folder, stored(folder) | {NAME: torch.ones(7, 32)}),
        ("the shapes that its config.json states", NAME, "(7, 32) instead of (32, 32)"),
    ),
    "whole numbers": (
        lambda folder: store(folder, stored(folder) | {NAME: torch.ones(32, 32, dtype=torch.int8)}),
        ("floating numbers of 16 bits or more", NAME, "quantised"),
    ),
    "eight bits": (
        lambda folder: store(folder, stored(folder) | {NAME: torch.ones(32, 32).to(torch.float8_e4m3fn)}),
        ("floating numbers of 16 bits or more", NAME, "quantised"),
    ),
    "a pointer for weights": (
        lambda folder: (folder / "model.safetensors").write_text(POINTER),
        ("model.safetensors is a pointer of Git LFS to 4,943,162,336 bytes", "git lfs pull"),
    ),
    "a pointer for pickled weights": (turn_into_pickle_of_pointer, ("pytorch_model.bin is a pointer of Git LFS",)),
    "a pointer for the configuration": (
        lambda folder: (folder / "config.json").write_text(POINTER),
        ("config.json is a pointer of Git LFS",),
    ),
    "objects among tensors": (
        lambda folder: pickle(folder, stored(folder) | {"step": Fraction(1, 2)}),
        ("must hold tensors alone", "pytorch_model.bin", "as safetensors"),
    ),
    "no weights": (lack_weights, ("must hold model.safetensors or pytorch_model.bin", "fetch")),
    "a part missing": (lack_a_part, ("every file of its index", "model-00001-of-", "fetch")),
    "no index": (list_nothing, ("which file holds each tensor", "KeyError", "fetch it again")),
    "half a file": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999]),
        ("model.safetensors is not (", "truncated or corrupt; fetch it again"),
    ),
    "half a configuration": (lambda folder: (folder / "config.json").write_text("{"), ("truncated or corrupt",)),
    "a list for a configuration": (lambda folder: (folder / "config.json").write_text("[]"), ("a JSON object",)),
    "an unknown architecture": (
        lambda folder: configure(folder, model_type="nothing"),
        ("an architecture that transformers", "'nothing'", "upgrade transformers"),
    ),
    "no type": (lambda folder: configure(folder, model_type=["llama"]), ("['llama']",)),
    "two stacks": (lambda folder: configure(folder, model_type="t5"), ("causal language model", "T5")),
    "code of its own": (add_code, ("brings code of its own", "trust_remote_code=True")),
}


@both_readers
@pytest.mark.guards(
    "index, shapes, number formats and parts of a folder are what its configuration says",
    when="a file is read",
    says="the weights of … must have the shapes that its config.json states, and … is … instead of …: fetch",
)
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_its_own_words(
    folder: Path, case: str, read: Read, capfd: pytest.CaptureFixture[str]
) -> None:
    change, words = REFUSED[case]
    change(folder)
    capfd.readouterr()
    message = refused(lambda: read(folder), str(folder), *words)
    assert ("truncated" in message) == (case in {"half a file", "half a configuration", "no index"})
    assert "REPORT" not in capfd.readouterr().err


@pytest.mark.guards(
    "a file is there itself, not a pointer of Git LFS",
    when="a file is read",
    says="a model's files must be there themselves, and … is a pointer of Git LFS…: run git lfs pull",
)
def test_a_pointer_for_the_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)
    refused(lambda: load_model(folder), "tokenizer.json is a pointer of Git LFS")
    assert torch.equal(READERS["one matrix"](folder), own_q())  # which needs none


def test_a_pointer_for_a_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text(POINTER)
    refused(lambda: load_model(tmp_path / "model.gguf"), "model.gguf is a pointer of Git LFS")


@pytest.mark.guards(
    "weights are floating numbers of 16 bits or more",
    when="a file is read",
    says="the weights of … must be floating numbers of 16 bits or more, and … is …: it is quantised",
)
def test_a_module_that_holds_packed_numbers_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of quantisers of transformers that compute with them."""
    from transformers import LlamaForCausalLM

    def packed(*arguments: object, **options: object) -> object:
        module = tiny_module("llama")
        layer = module.get_submodule(NAME.removesuffix(".weight"))
        layer.weight = nn.Parameter(torch.ones(32, 16, dtype=torch.uint8), requires_grad=False)
        return module, {"missing_keys": set(), "mismatched_keys": set(), "unexpected_keys": set()}

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", packed)
    refused(lambda: load_model(folder), NAME, "uint8", "quantised")


# Code and packages


@both_readers
@pytest.mark.guards(
    "a model brings code of its own",
    when="a model is loaded",
    says="a model must run on the code of transformers unless you say otherwise, and … brings code of its own",
)
def test_code_that_comes_with_a_model_runs_on_request(folder: Path, modules: None, read: Read) -> None:
    add_code(folder)
    assert torch.equal(read(folder, trust_remote_code=True), own_q())


@both_readers
def test_a_package_that_the_code_needs_is_named(folder: Path, modules: None, read: Read) -> None:
    add_code(folder, needs="no_such_package")
    message = refused(lambda: read(folder, trust_remote_code=True), "run pip install no_such_package")
    assert "truncated" not in message


@pytest.mark.guards(
    "the packages that a model needs are installed",
    when="a model is loaded",
    says="the packages that … needs must be installed, and one is not",
)
@pytest.mark.parametrize(
    ("error", "command"),
    [
        (ModuleNotFoundError("No module named 'some.part'", name="some.part"), "run pip install some"),
        (ImportError("It needs more (`pip install more`)"), "run pip install more"),
        (ImportError("Install it with `pip install -U more>=0.46.1`."), "run pip install -U more>=0.46.1"),
        (ImportError("cannot import name 'gone' from 'transformers'"), "install the versions that its page names"),
    ],
)
def test_what_to_install_is_said(error: Exception, command: str) -> None:
    assert str(refusal("some/model", "folder", error)).endswith(command)
    wrapping = OSError("it failed")
    wrapping.__cause__ = error
    assert str(refusal("some/model", "folder", wrapping)) == str(refusal("some/model", "folder", error))


def test_a_quantised_model_names_the_package_that_it_needs(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(lambda: load_model(folder), "packages", "run pip install -U bitsandbytes")
