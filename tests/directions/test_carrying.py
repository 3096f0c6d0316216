"""Directions through blocks: closed forms on planted Jacobians, and the explicit matrices in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from probe import replay
from probe.directions import Directions, gain_and_turn
from probe.jacobian import JacobianOptions, block_jacobian, cumulative_jacobian, push_forward
from probe.jacobian.pushing import _matrices_are_cheaper
from probe.text import Windows
from tests.jacobian.test_jacobian import LENGTH, double, error, float64_throughout, tokens_of
from tests.jacobian.test_paths import LinearModel
from tests.plant.refusing import refused
from tests.plant.tiny import LAYERS, WIDTH, tiny_model

__all__ = ["float64_throughout"]

F64 = torch.float64


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def planted(*jacobians):
    """A model whose block l has the Jacobian jacobians[l] everywhere."""
    model = LinearModel()
    for block, jacobian in zip(model.blocks, jacobians, strict=False):
        block.own.data = jacobian - torch.eye(5, dtype=F64)
    return model


def turning(factor, degrees):
    """A Jacobian that stretches the first two coordinates by a factor and turns them; the others stay."""
    jacobian, radians = torch.eye(5, dtype=F64), math.radians(degrees)
    cosine, sine = factor * math.cos(radians), factor * math.sin(radians)
    jacobian[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=F64)
    return jacobian


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3", "mamba2"])
def test_pushed_vectors_are_the_matrix_times_the_vectors(architecture, float64_throughout):
    model, tokens, where = double(architecture), tokens_of(), torch.tensor([[4, 10], [0, 7]])
    recorded, vectors = replay.record(model, tokens, where, layers=[2]), drawn(3, 2, 2, WIDTH)
    matrices = block_jacobian(model, tokens, 2, where, dtype=F64, method="jacrev")
    expected = torch.einsum("wpij,nwpj->nwpi", matrices, vectors)
    for by in ("products", "matrices"):
        assert error(push_forward(recorded, 2, vectors, JacobianOptions(dtype=F64), by=by), expected) < 1e-10
        update = push_forward(recorded, 2, vectors, JacobianOptions(dtype=F64, of="update"), by=by)
        assert error(update, expected - vectors) < 1e-10


def test_pieces_and_batches_of_vectors_change_nothing():
    model, vectors = tiny_model("llama"), drawn(5, 2, 3, WIDTH).float()
    recorded = replay.record(model, tokens_of(), torch.tensor([[1, 5, 9]] * 2), layers=[1])
    whole = push_forward(recorded, 1, vectors, by="products")
    for options in (JacobianOptions(memory=1), JacobianOptions(chunk=2)):
        assert error(push_forward(recorded, 1, vectors, options, by="products"), whole) < 1e-5


def test_many_vectors_take_the_matrix():
    recorded = replay.record(tiny_model("llama"), tokens_of(), torch.tensor([[3]] * 2), layers=[1])
    assert not _matrices_are_cheaper(recorded, 1, 1)
    assert _matrices_are_cheaper(recorded, 1, WIDTH - 1)
    other = replay.record(tiny_model("mamba"), tokens_of(), torch.tensor([[3]] * 2), layers=[1])
    assert not _matrices_are_cheaper(other, 1, WIDTH - 1)  # no matrix is composed there: it takes d products
    assert _matrices_are_cheaper(other, 1, WIDTH)


def test_a_planted_rotation_is_found_in_gain_and_turn():
    model, tokens = planted(turning(2, 60), turning(3, 40), turning(0.5, 0)), torch.arange(6).reshape(2, 3)
    inside, outside = [0.0, 7.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.1]
    given = Directions(torch.tensor([inside, outside], dtype=F64), ("inside", "outside"), depth=0)
    found = gain_and_turn(model, tokens, given, None, [0, 2], to_layer=3, dtype=F64)
    assert found["depth"].values.tolist() == [1, 2, 3]
    assert found.sizes["query"] == 4
    for query in range(4):
        seen = found.isel(query=query).sel(direction="inside")
        assert np.allclose(seen["gain"], [2, 6, 3])
        assert np.allclose(seen["turn"], [60, 100, 100])
        # 2 R(60°) − I is √3 times a quarter turn
        assert float(seen["update_gain"][0]) == pytest.approx(math.sqrt(3))
        assert float(seen["update_turn"][0]) == pytest.approx(90)
    kept = found.sel(direction="outside")
    assert np.allclose(kept["gain"], 1)
    assert np.allclose(kept["turn"], 0)
    assert np.allclose(kept["update_gain"], 0)


@pytest.mark.parametrize("architecture", ["gpt2", "mamba2"])
def test_products_to_any_later_layer_are_those_of_explicit_matrices(architecture, float64_throughout):
    model, tokens, vectors = double(architecture), tokens_of(), drawn(3, WIDTH)
    found = gain_and_turn(model, tokens, vectors, 1, [6, -1], to_layer=LAYERS, batch_size=1, dtype=F64)
    for depth in (2, LAYERS):
        product = cumulative_jacobian(model, tokens, 1, depth, [6, -1], dtype=F64)
        image = torch.einsum("wpij,nj->nwpi", product, vectors).flatten(1, 2)
        seen, unit = found.sel(depth=depth), vectors[:, None] / vectors.norm(dim=-1)[:, None, None]
        assert np.allclose(seen["gain"], image.norm(dim=-1) / vectors.norm(dim=-1)[:, None], rtol=1e-9)
        cosines = (image * unit).sum(-1) / image.norm(dim=-1)
        assert np.allclose(np.cos(np.radians(seen["turn"])), cosines, atol=1e-9)
    assert found["window"].values.tolist() == [0, 0, 1, 1]
    assert found["position"].values.tolist() == [6, LENGTH - 1] * 2


def test_arrays_lengths_and_batches_change_nothing():
    model, tokens, vectors = tiny_model("llama"), tokens_of(), drawn(2, WIDTH)
    one = gain_and_turn(model, tokens, vectors, 0, [3], to_layer=2)
    other = gain_and_turn(model, tokens.numpy(), 100 * vectors.numpy(), 0, [3], to_layer=2, batch_size=1)
    for name in one.data_vars:
        assert np.allclose(one[name], other[name], rtol=1e-4)
    alone = gain_and_turn(model, tokens, vectors[1], 0, [3], to_layer=2)
    assert np.allclose(alone["gain"][0], one["gain"][1], rtol=1e-4)


def test_the_detached_context_is_that_of_its_jacobian():
    model, tokens, vector = tiny_model("llama"), tokens_of(), drawn(WIDTH)
    matrix = block_jacobian(model, tokens, 2, [5], context="detached")[:, 0].double()
    found = gain_and_turn(model, tokens, vector, 2, [5], context="detached")["gain"][0, 0]
    assert np.allclose(found, (matrix @ vector).norm(dim=-1) / vector.norm(), rtol=1e-4)


def test_documents_come_from_the_windows():
    model, tokens = tiny_model("llama"), tokens_of()
    windows = Windows(tokens, torch.tensor([4, 9]), ("",) * 10, frozenset(), "some text", "0")
    found = gain_and_turn(model, windows, drawn(WIDTH), 0, [2, 3])
    assert found["document"].values.tolist() == [4, 4, 9, 9]
    assert found.attrs["text"] == "some text"


def test_prompts_may_differ_in_length():
    model, tokens, vector = tiny_model("llama"), tokens_of(), drawn(WIDTH)
    prompts = [tokens[0, :5].tolist(), tokens[1, :8].tolist(), tokens[1, :5].tolist()]
    found = gain_and_turn(model, prompts, vector, 0, "last", to_layer=2)
    assert found["position"].values.tolist() == [4, 7, 4]
    for window, prompt in enumerate(prompts):
        alone = gain_and_turn(model, prompt, vector, 0, [-1], to_layer=2)
        assert np.allclose(found["turn"].sel(query=window), alone["turn"].isel(query=0), rtol=1e-4)


def test_what_does_not_fit_is_refused():
    model, tokens = tiny_model("llama"), tokens_of()
    vector = drawn(WIDTH)

    def call(directions=vector, layer=0, **options):
        return lambda: gain_and_turn(model, tokens, directions, layer, [1], **options)

    refused(call(drawn(WIDTH + 1)), f"d = {WIDTH}")
    refused(call(torch.stack([vector, 0 * vector])), "row 1")
    refused(call(vector * torch.nan), "finite")
    refused(call(torch.complex(vector, vector)), "real")
    refused(call(layer=None), "at which depth")
    refused(call(to_layer=0), "later one")
    refused(call(layer=LAYERS), "later one")
    refused(call(context="alone"), "real context")
    refused(call(batch_size=0), "batch_size=0")
    refused(call(Directions(vector[None], ("a", "b"))), "2 names for 1")
    recorded = replay.record(model, tokens, torch.tensor([[1]] * 2), layers=[0])
    refused(lambda: push_forward(recorded, 0, drawn(1, 2, 2, WIDTH)), "(W, P, d)")
    refused(lambda: push_forward(recorded, 0, drawn(1, 2, 1, WIDTH), JacobianOptions(part="mlp")), "whole block")
