"""Lenses in files, to and from TransformerLens and the reference, and published ones by name."""

from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from probe import lens, load_model
from probe.errors import InputError
from probe.lens import JacobianLens
from tests.plant.tiny import tiny_model, tiny_module, tiny_tokens
from tests.stream.test_peers import bridge_of

TOKENS = tiny_tokens()[:, :12]


@pytest.fixture(scope="module")
def fitted() -> JacobianLens:
    return lens.fit(tiny_model("gpt2"), TOKENS, skip_first=3, quiet=True)


def test_safetensors_keep_everything(fitted: JacobianLens, tmp_path: Path) -> None:
    found = JacobianLens.load(fitted.save(tmp_path / "lens.safetensors"))
    assert torch.equal(found.jacobians, fitted.jacobians)
    assert found.spread is not None
    assert fitted.spread is not None
    assert torch.equal(found.spread, fitted.spread)
    assert found.layers == fitted.layers
    assert (found.to_layer, found.n_documents) == (fitted.to_layer, fitted.n_documents)
    assert found.documents["sha256"] == fitted.documents["sha256"]
    assert torch.equal(found.documents["alpha"], fitted.documents["alpha"])
    assert found.provenance == fitted.provenance


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
def test_what_is_fitted_here_reads_the_same_there(architecture: str, tmp_path: Path) -> None:
    """Same layers, same convention (the output of block l), same norm, head and caps."""
    from transformer_lens.tools.analysis import JacobianLens as Theirs

    module = tiny_module(architecture)
    model = load_model(module)
    ours = lens.fit(model, TOKENS, skip_first=3, quiet=True)
    ours.save(tmp_path / "lens.pt", dtype=torch.float32)
    theirs = Theirs.load(str(tmp_path / "lens.pt"))
    assert theirs.source_layers == list(ours.layers)
    assert theirs.n_prompts == len(TOKENS)
    tokens = TOKENS[:1]
    for use in (True, False):
        read = theirs.readout(bridge_of(module), tokens, use_jacobian=use, top_k=4)
        own = lens.readout(model, tokens, {"lens": ours if use else "logit"}, k=4)
        for layer in range(4):
            assert torch.equal(own.top[0, layer], read.lens_topk_indices[layer])


def test_what_is_fitted_there_reads_the_same_here(tmp_path: Path) -> None:
    from transformer_lens.tools.analysis import JacobianLens as Theirs
    from transformer_lens.tools.analysis import jacobian_lens as peer

    module = tiny_module("llama")
    bridge = bridge_of(module)
    bridge.to_tokens = lambda tokens, **_: tokens
    matrices, count = peer._fit_transport_matrices(
        bridge,
        [tokens[None] for tokens in TOKENS],
        source_layers=[0, 1, 2],
        dim_batch=8,
        max_seq_len=128,
        skip_first_positions=3,
        show_progress=False,
        backward_provider=peer._ordinary_vjp,
    )
    metadata = {"model_name": "tiny/LlamaForCausalLM", "target_layer": 3, "estimator": "jacobian_lens"}
    theirs = Theirs(matrices, n_prompts=count, d_model=32, metadata=metadata)
    theirs.save(str(tmp_path / "theirs.pt"), dtype=torch.float32)
    model = load_model(module)
    found = JacobianLens.load(tmp_path / "theirs.pt")
    assert (found.layers, found.to_layer, found.n_documents) == ((0, 1, 2), 3, 3)
    assert found.provenance["targets"] == "later"
    found.require(model)
    read = Theirs(matrices, n_prompts=count, d_model=32).readout(bridge, TOKENS[:1], top_k=3)
    own = found.readout(model, TOKENS[:1], k=3)
    for layer in range(4):
        assert torch.equal(own.top[0, layer], read.lens_topk_indices[layer])
    with pytest.raises(InputError, match="was fitted on tiny/LlamaForCausalLM, not on"):
        found.require(tiny_model("qwen3"))


def test_a_checkpoint_of_sums_goes_both_ways(fitted: JacobianLens, tmp_path: Path) -> None:
    from transformer_lens.tools.analysis import JacobianLens as Theirs

    path = lens.files.write(fitted, tmp_path / "sums.pt", sums=True)
    found, theirs = JacobianLens.load(path), Theirs.load(str(path))
    torch.testing.assert_close(found.jacobians, fitted.jacobians)
    assert (found.to_layer, found.n_documents) == (3, 3)
    torch.testing.assert_close(theirs.jacobians[1], fitted[1])
    assert theirs.n_prompts == 3


def test_entries_beyond_float16_are_written_wider(
    fitted: JacobianLens, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert (
        JacobianLens
        .load(fitted.save(tmp_path / "half.pt"))[0]
        .half()
        .float()
        .equal(JacobianLens.load(tmp_path / "half.pt")[0])
    )
    large = dataclasses.replace(fitted, jacobians=fitted.jacobians * 1e5)
    found = JacobianLens.load(large.save(tmp_path / "large.pt"))
    assert torch.equal(found.jacobians, large.jacobians)
    assert "exceeds float16" in caplog.text
    with pytest.raises(InputError, match="dtype= must hold the largest entry"):
        large.save(tmp_path / "large.pt", dtype=torch.float16)


def _saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.eye(3)}, 'must have matrices under "J"'),
        ([1, 2], "has list"),
        ({"J": {}, "d_model": 3}, "a matrix for each layer"),
        ({"J": {0: torch.eye(3), 1: torch.eye(4)}}, "matrices of one width"),
        ({"J": {0: torch.full((3, 3), torch.inf, dtype=torch.float16)}}, "float16, which ends at 65,504"),
        ({"jacobian_sum": {0: torch.eye(3)}, "n_done": 0}, "at least one document"),
        ({"J": {0: torch.eye(3)}, "metadata": {"processing": {"compatibility_mode": True}}}, "raw weights"),
    ],
)
def test_other_files_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        JacobianLens.load(_saved(content, tmp_path / "lens.pt"))


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    class Stranger:
        def __reduce__(self) -> Any:
            return print, ("run",)

    buffer = io.BytesIO()
    pickle.dump({"J": Stranger()}, buffer, protocol=2)
    (tmp_path / "lens.pt").write_bytes(buffer.getvalue())
    (tmp_path / "lens.safetensors").write_bytes(b"nothing")
    for name in ("lens.pt", "lens.safetensors", "none.pt"):
        with pytest.raises(InputError, match="a lens must be a"):
            JacobianLens.load(tmp_path / name)


def test_a_published_lens_is_found_by_its_models_name(
    fitted: JacobianLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = lens.published()["gpt2-small"]
    folder = tmp_path / f"models--{entry['repo_id'].replace('/', '--')}" / "snapshots" / entry["revision"]
    (folder / entry["filename"]).parent.mkdir(parents=True)
    dataclasses.replace(fitted, provenance={}).save(folder / entry["filename"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = lens.load(entry["aliases"][0])
    assert found.provenance["model"] == entry["aliases"][0]
    assert found.provenance["revision"] == entry["revision"]
    assert torch.equal(found.jacobians, lens.load("gpt2-small").jacobians)
    with pytest.raises(InputError, match="was fitted on"):
        lens.load("gpt2-small", tiny_model("gpt2"))
    with pytest.raises(InputError, match="perhaps gpt2-small"):
        lens.load("gpt2-smal")


def test_a_lens_that_is_not_here_is_not_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="gemma-2-2b"):
        lens.load("gemma-2-2b")
    with pytest.raises(InputError, match="a file that is there, or a model whose lens is published"):
        lens.load("somebody/something")
