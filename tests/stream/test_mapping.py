"""A captured stream as a mapping, through depth, at positions, and of prompts of several lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from probe.stream import ResidualStream, capture
from probe.text import Substring
from tests.plant.refusing import refused
from tests.plant.tiny import LAYERS, WIDTH, tiny_model, tiny_tokens


def test_a_stream_is_a_mapping_in_the_order_of_the_pass() -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    stream = capture(model, tokens, sites=["mlp_out", "resid_pre"], layers=[2, 0])
    names = [f"blocks.{layer}.hook_{short}" for layer in (0, 2) for short in ("resid_pre", "mlp_out")]
    assert list(stream) == list(stream.keys()) == stream._ipython_key_completions_() == names
    assert len(stream) == 4
    assert all(torch.equal(states, stream[name]) for name, states in stream.items())
    assert "blocks.0.hook_mlp_out" in stream
    assert ("mlp_out", 2) in stream
    assert "blocks.1.hook_mlp_out" not in stream
    assert ("mlp_out", 1) not in stream
    assert 3 not in stream
    assert stream.get("blocks.1.hook_mlp_out") is None
    assert torch.equal(stream["mlp_out", 2], stream["blocks.2.hook_mlp_out"])
    assert stream.layers("resid_pre") == [0, 2]
    assert torch.equal(stream.site("resid_pre"), torch.stack([stream[names[0]], stream[names[2]]]))
    refused(lambda: stream.site("resid_mid"), "'resid_mid'", "hook_resid_pre, hook_mlp_out")


def test_states_and_updates_come_in_pairs() -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    stream = capture(model, tokens)
    for layer in range(LAYERS):
        states, updates = stream.updates(layer)
        block = capture(model, tokens, sites=["attn_out", "mlp_out"], layers=layer)
        torch.testing.assert_close(updates, block["attn_out", layer] + block["mlp_out", layer], rtol=1e-4, atol=1e-5)
        rows, added = stream.updates(layer, [-1, 3])
        assert torch.equal(rows, states[:, [15, 3]].reshape(-1, WIDTH))
        assert torch.equal(added, updates[:, [15, 3]].reshape(-1, WIDTH))
    refused(lambda: capture(model, tokens, layers=1).updates(0), "blocks.1.hook_resid_pre")


@pytest.mark.guards(
    "prompts of unequal lengths are not padded",
    when="a pass runs",
    gives="each length is a batch; what lies behind a prompt's end is NaN",
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mamba"])
def test_prompts_of_any_length_are_as_if_alone(architecture: str) -> None:
    model = tiny_model(architecture, with_tokenizer=True)
    texts = ["One of them", "is longer than the other", "same length"]
    stream = capture(model, texts, batch_size=2)
    assert stream.lengths.tolist() == [len(text) for text in texts]
    for index, text in enumerate(texts):
        alone = capture(model, text)
        for name, states in alone.items():
            torch.testing.assert_close(stream[name][index, : len(text)], states[0], rtol=1e-4, atol=1e-5)
            assert stream[name][index, len(text) :].isnan().all()
    last = stream.at(("resid_post", LAYERS - 1), "last")
    assert torch.equal(last, torch.stack([stream["resid_post", 3][i, len(text) - 1] for i, text in enumerate(texts)]))
    name = "blocks.1.hook_resid_pre"
    assert torch.equal(
        stream.at(name, Substring("e", occurrence=0)), stream[name][[0, 1, 2], [text.index("e") for text in texts]]
    )
    assert len(stream.at(name)) == sum(len(text) - 1 for text in texts)
    if model.recurrent:
        return
    pattern = capture(model, texts, sites="pattern", layers=1)["pattern", 1]
    assert not pattern[0, : len(texts[0]), :, : len(texts[0])].isnan().any()
    assert pattern[0, :, :, len(texts[0]) :].isnan().all()


def test_a_pass_ends_behind_the_deepest_block() -> None:
    model, ran = tiny_model("llama"), list[int]()
    for layer, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
    capture(model, tiny_tokens(), sites=["z"], layers=1)
    assert ran == [0, 1]


def test_a_stream_is_a_dataset_and_arrays() -> None:
    model = tiny_model("llama", with_tokenizer=True)
    stream = capture(model, ["ab", "abcd"], sites=["resid_pre", "z", "ln_final.hook_out"], layers=[1, 3])
    data = stream.to_xarray()
    assert data["resid_pre"].dims == ("layer", "window", "position", "d_model")
    assert data["attn_z"].dims[:3] == ("layer", "window", "position")
    assert data["layer"].values.tolist() == [1, 3]
    assert data["token"].values.tolist() == [[*model.encode("ab"), -1, -1], model.encode("abcd")]
    np.testing.assert_array_equal(data["resid_pre"].sel(layer=3, window=1).values, stream["resid_pre", 3][1].numpy())
    arrays = stream.to_numpy()
    assert list(arrays) == list(stream)
    assert np.shares_memory(arrays["blocks.1.attn.hook_z"], stream["z", 1].numpy())


def test_a_stream_on_disk_needs_one_length_and_indices(tmp_path: Path) -> None:
    model = tiny_model("llama", with_tokenizer=True)
    refused(lambda: capture(model, ["a", "bc"], out=tmp_path / "stream"), "one length", "1 to 2")
    capture(model, ["ab", "bc"], out=tmp_path / "stream")
    stream = ResidualStream.open(tmp_path / "stream")
    assert torch.equal(stream.at(("resid_pre", 1), [-1]), stream["resid_pre", 1][:, 1])
    refused(lambda: stream.at(("resid_pre", 1)), "on disk", "indices")
