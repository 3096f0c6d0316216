"""Directions of means and of the head: what is folded in gives the logits again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe.directions import Directions, difference_of_means, unembedding_rows
from probe.directions.vectors import directions_of
from probe.model import load_model
from tests.directions.test_carrying import F64, drawn
from tests.jacobian.test_paths import LinearModel
from tests.plant.refusing import refused
from tests.plant.tiny import LAYERS, WIDTH, tiny_model, tiny_module


def test_the_difference_of_means_ignores_how_states_are_laid_out():
    one, other = drawn(3, 4, 5), drawn(6, 5, seed=2) + 3
    expected = one.mean((0, 1)) - other.mean(0)
    assert torch.allclose(difference_of_means(one, other), expected)
    assert torch.allclose(difference_of_means(one.numpy(), other.float()), expected, atol=1e-6)
    shift = torch.arange(5, dtype=F64)
    assert torch.allclose(difference_of_means(other + shift, other), shift)
    refused(lambda: difference_of_means(one, drawn(6, 4)), "of one width")
    refused(lambda: difference_of_means(one[:0], other), "none empty")
    refused(lambda: difference_of_means(one * torch.inf, other), "finite")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "opt"])
def test_folded_rows_are_the_slopes_of_the_logits_at_a_fixed_scale(architecture):
    overrides = {"final_logit_softcapping": None} if architecture == "gemma3" else {}
    model = load_model(tiny_module(architecture, **overrides).double())
    found = unembedding_rows(model, [3, 17, 200])
    assert found.depth == LAYERS
    assert found.names == ("3", "17", "200")
    states = drawn(6, WIDTH)
    with torch.no_grad():
        odd = (model.unembed(states) - model.unembed(-states))[:, [3, 17, 200]] / 2  # biases are even
        normed = (model.found.tail.normed(model.module, states) - model.found.tail.normed(model.module, -states)) / 2
    centred = states - states.mean(-1, keepdim=True) if architecture in ("gpt2", "opt") else states
    scale = centred.square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(states @ found.vectors.mT / scale, odd, rtol=1e-4, atol=1e-5)
    plain = unembedding_rows(model, torch.tensor([3, 17, 200]), folded=False)
    assert torch.allclose(normed @ plain.vectors.mT, odd, rtol=1e-6)


def test_tokens_may_be_texts():
    model = tiny_model("llama", with_tokenizer=True)
    ids = [*model.encode("a"), *model.encode("b")]
    by_text, by_id = unembedding_rows(model, ["a", "b"]), unembedding_rows(model, np.array(ids))
    assert by_text.names == by_id.names == ("a", "b")
    assert torch.equal(by_text.vectors, by_id.vectors)
    refused(lambda: unembedding_rows(model, ["ab"]), "one token", "'ab' is 2")
    refused(lambda: unembedding_rows(model, [10**6]), "an id in 0")
    refused(lambda: unembedding_rows(model, []), "at least one")
    refused(lambda: unembedding_rows(LinearModel(), [0]), "matrix times a normed stream")


def test_directions_keep_names_and_place():
    given = directions_of(Directions(drawn(2, 5), ("a", "b"), 3, "blocks.3.hook_resid_pre"), 5)
    assert (given.names, given.depth, given.site, len(given)) == (("a", "b"), 3, "blocks.3.hook_resid_pre", 2)
    plain = directions_of(torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16)), 5)
    assert plain.vectors.dtype is F64
    assert not plain.vectors.requires_grad
    assert plain.names == ("0",)
