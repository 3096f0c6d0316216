"""Jacobians composed of the sections between a block's matrices, against backward passes and closed forms."""

from __future__ import annotations

import pytest
import torch

from probe import replay
from probe.jacobian import JacobianOptions, block_jacobian, recorded_jacobian, sections
from probe.jacobian.elimination import Columns, Dense, Grouped, derivative, elimination_order
from probe.model import load_model
from tests.architectures import zoo

LENGTH, POSITIONS = 9, torch.tensor([[0, 3, 8], [3, 4, 7]])
CARRYING = {
    "qwen3_next": [0],
    "qwen3_5_text": [0],
    "olmo_hybrid": [0, 1],
    "bamba": [0, 1],
    "falcon_h1": [1],
    "lfm2": [0, 1],
    "mamba": [1],
    "mamba2": [1],
    "rwkv": [1],
}
"""Types, and one block of each kind that they have."""


@pytest.fixture(autouse=True)
def any_width(monkeypatch):
    monkeypatch.setattr(sections, "LEAST_WIDTH", 1)


@pytest.fixture
def float64_throughout(monkeypatch):
    """Models in float64 keep float32 inside norms and scans; here what they call float32 is float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def model_of(name, **changes):
    """A tiny random model whose blocks change the stream by far more than rounding."""
    module = zoo.tiny(name, layers=2, **changes)
    with torch.no_grad():
        for path, parameter in module.named_parameters():
            if parameter.ndim > 1 and not path.endswith("A_log"):
                parameter.mul_(5)
    return load_model(module)


def tokens_of(seed=0):
    return torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(seed))


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


def composed(model):
    kinds = sections.kinds_of(model)
    return bool(kinds.orders) and not kinds.refused


@pytest.mark.parametrize(("name", "layers"), CARRYING.items())
def test_blocks_that_carry_a_state_are_composed(name, layers, float64_throughout):
    changes = {"mlp_only_layers": [0, 1]} if name == "qwen3_next" else {}
    model, tokens = load_model(model_of(name, **changes).module.double()), tokens_of()
    for layer in layers:
        context = replay.record(model, tokens, POSITIONS, layers=[layer])
        options = [JacobianOptions(method=each, dtype=torch.float64, of="update") for each in ("frozen", "jacrev")]
        found, expected = (recorded_jacobian(context, layer, each) for each in options)
        assert float(expected.norm(dim=(-2, -1)).min()) > 1e-2
        assert error(found, expected) < 1e-9
    assert composed(model)


@pytest.mark.parametrize("name", ["olmo_hybrid", "falcon_h1"])
def test_they_are_in_single_precision_too(name):
    model, tokens = model_of(name), tokens_of()
    found, expected = (block_jacobian(model, tokens, 0, POSITIONS, method=each) for each in ("frozen", "jacrev"))
    assert error(found, expected) < 1e-4
    assert composed(model)


def test_a_changed_module_is_no_longer_composed():
    model, tokens = model_of("lfm2"), tokens_of()
    handle = model.blocks[0].feed_forward.w1.register_forward_hook(lambda _, __, output: output.sin())
    found = block_jacobian(model, tokens, 0, POSITIONS, method="frozen")
    expected = block_jacobian(model, tokens, 0, POSITIONS, method="jacrev")
    handle.remove()
    assert error(found, expected) < 1e-5
    assert error(found, block_jacobian(model, tokens, 0, POSITIONS, method="jacrev")) > 1e-3
    assert sections.kinds_of(model).refused


def test_neurons_that_are_silent_in_one_text_act_in_the_next(float64_throughout):
    """With ReLU about half of the slopes are zero where the groups are found."""
    model, found = load_model(model_of("olmo_hybrid", hidden_act="relu").module.double()), []
    for seed in range(2):
        tokens = tokens_of(seed)[:1]
        found.append(block_jacobian(model, tokens, 0, [5], method="frozen", dtype=torch.float64))
        expected = block_jacobian(model, tokens, 0, [5], method="jacrev", dtype=torch.float64)
        assert error(found[-1], expected) < 1e-6
    assert error(*found) > 1e-2
    assert composed(model)


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_elimination_multiplies_what_lies_between():
    """J = D + C (G M₁ D + c r): a diagonal, groups, a matrix of all positions, and one number between."""
    d, n = 6, 2
    every = torch.arange(d)[:, None]
    diagonal, matrix, outer = random(n, d, seed=1), random(8, d, seed=2), random(d, 4, seed=3)
    groups, row, column = random(n, 2, 2, 4, seed=4), random(n, 1, d, seed=5), random(n, 4, 1, seed=6)
    inputs = torch.tensor([[0, 2, 4, 6], [1, 3, 5, 7]])
    slope = Grouped(diagonal[:, :, None, None], every, d)
    edges = {
        (0, 1): [slope],
        (1, 2): [Dense(matrix[None])],
        (2, 3): [Grouped(groups, inputs, 8)],
        (0, 4): [Dense(row)],
        (4, 3): [Columns(column, torch.tensor([0]), 1)],
        (3, 5): [Dense(outer[None])],
        (5, -1): [Grouped(torch.ones(n, d, 1, 1, dtype=torch.float64), every, d)],
        (0, -1): [slope],
    }
    order = elimination_order(edges)
    assert sorted(order) == [1, 2, 3, 4, 5]
    for position in range(n):
        spread = torch.zeros(4, 8, dtype=torch.float64)
        for group in range(2):
            spread[2 * group : 2 * group + 2, inputs[group]] = groups[position, group]
        first = torch.diag(diagonal[position])
        expected = first + outer @ (spread @ matrix @ first + column[position] @ row[position])
        for some in (order, order[::-1], [1, 3, 2, 5, 4]):
            assert torch.allclose(derivative(edges, some, position), expected, atol=1e-12)


def test_the_order_makes_one_large_product_of_an_mlp():
    """W_down (diag(s) W_gate + diag(t) W_up), whose middle is as wide as the MLP."""
    d, inner = 32, 128
    each = Grouped(torch.ones(1, inner, 1, 1), torch.arange(inner)[:, None], inner)
    read, write = [Dense(torch.ones(1, inner, d))], [Dense(torch.ones(1, d, inner))]
    edges = {(0, 1): read, (0, 2): read, (1, 3): [each], (2, 3): [each], (3, -1): write}
    assert elimination_order(edges)[-1] == 3
