"""The default model's real weights: they are read rightly, and they speak English."""

from __future__ import annotations

import pytest
import torch

from probe.model import LanguageModel, load_model, sources
from probe.stream import capture, watch


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(sources.DEFAULT_MODEL)


def test_its_weights_are_those_of_the_file(model: LanguageModel) -> None:
    """The hash was taken after every matrix had been compared with gguf's own dequantising of the same file."""
    assert model.weight_hash == "5bf586bf3b11ca984287b9a047ce03dfebcd8b59ac86d8e169bb8440f3a4709d"


def test_it_knows_what_follows(model: LanguageModel) -> None:
    text = "Paris is the capital of France. Berlin is the capital of Germany. Madrid is the capital of"
    tokens = torch.tensor([model.encode(text)])
    assert model.tokenizer.decode(model.forward(tokens)[0, -1].argmax()) == " Spain"
    losses = torch.nn.functional.cross_entropy(model.forward(tokens)[0, :-1], tokens[0, 1:])
    assert losses < 3


def test_its_shape_and_its_stream(model: LanguageModel) -> None:
    assert (model.n_layers, model.d_model, model.n_vocab, model.max_positions) == (30, 576, 49152, 8192)
    assert model.bos_id is None
    assert model.description == "chat-tuned, dequantised from 4 bit"
    tokens = torch.tensor([model.encode("The river rises in the hills and runs to the sea.")])
    plain = model.forward(tokens)
    with watch(model, model.sites) as seen:
        assert torch.equal(model.forward(tokens), plain)
    assert torch.equal(model.unembed(seen["blocks.29.hook_resid_post"]), plain)
    states = capture(model, tokens)
    assert len(states.sites) == 31
    assert all(torch.equal(states[site], seen[site]) for site in states.sites)


def test_digits_are_tokens_of_their_own_and_spaces_before_them_are_joined(model: LanguageModel) -> None:
    """As the tokenizer.json of SmolLM2 splits text: single digits first, then as GPT-2."""
    pieces = model.tokenizer.convert_ids_to_tokens(model.encode("a 123  7"))
    assert pieces == ["a", "Ġ", "1", "2", "3", "ĠĠ", "7"]
