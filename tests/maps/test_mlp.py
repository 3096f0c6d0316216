"""The MLP against its formula, planted curves and its schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from probe import maps
from probe.errors import InputError
from probe.maps import mlp as mlp_module
from tests.plant.pairs import draw


def curved(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = draw(n, 4, seed=seed, dtype=torch.float32) * torch.tensor([1.0, 10.0, 0.1, 1.0]) + 3
    z = (x - 3) / torch.tensor([1.0, 10.0, 0.1, 1.0])
    return x, torch.stack([z[:, 0].abs(), z[:, 1] * z[:, 2], z[:, 3]], dim=1) * 20 - 7


def test_mlp_learns_what_no_line_can() -> None:
    x, y = curved(800, 0)
    validation, held = curved(200, 1), curved(200, 2)
    linear = maps.LinearMap().fit(x, y).score(*held)
    for init in ("ridge", "random"):
        fit = maps.MLPMap(64, 600, init=init, learning_rate=1e-2).fit(x, y, validation=validation)
        assert fit.score(*held) > linear + 0.4
        assert fit.curve_.min().item() == pytest.approx(1 - fit.score(*validation), abs=1e-6)  # the best is restored
        assert fit.curve_[-1] < 0.5 * fit.curve_[0]
        assert fit.predict(held[0]).dtype == torch.float32


def test_mlp_starts_at_the_ridge_optimum() -> None:
    x, y = curved(300, 0)
    validation = curved(100, 1)
    still = maps.MLPMap(8, 1, learning_rate=0.0).fit(x, y, validation=validation)
    linear = maps.LinearMap().fit(x, y, validation=validation)
    torch.testing.assert_close(still.predict(x), linear.predict(x), rtol=1e-4, atol=1e-4)
    random = maps.MLPMap(8, 1, init="random", learning_rate=0.0).fit(x, y, validation=validation)
    assert random.curve_[0] > 1.5 * still.curve_[0]


def test_a_random_start_knows_nothing_of_the_line() -> None:
    x, y = curved(300, 0)
    validation = curved(100, 1)
    random = maps.MLPMap(8, 1, init="random", learning_rate=0.0).fit(x, y, validation=validation)
    assert random.skip_.abs().max() == 0
    for weight, inputs in ((random.weight_in_, 4), (random.weight_out_, 8)):
        assert 0.5 < weight.abs().max() * inputs**0.5 <= 1


def test_mlp_is_its_formula() -> None:
    x, y = curved(100, 0)
    fit = maps.MLPMap(5, 20, init="random").fit(x, y, validation=curved(50, 1))
    z = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    hidden = torch.nn.functional.gelu(z @ fit.weight_in_.double() + fit.bias_in_.double())
    scale = (y.double() - y.double().mean(0)).square().mean().sqrt()
    inner = z @ fit.skip_.double() + hidden @ fit.weight_out_.double() + fit.bias_out_.double()
    expected = (y.double().mean(0) + scale * inner).float()
    torch.testing.assert_close(fit.predict(x), expected, rtol=1e-4, atol=1e-4)


def test_mlp_follows_its_seed_and_no_other() -> None:
    x, y = curved(200, 0)
    before = torch.get_rng_state()
    one, again, other = (
        maps.MLPMap(8, 30, init="random", seed=seed).fit(x, y, groups=torch.arange(200) // 10) for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.predict(x), again.predict(x))
    assert not torch.allclose(one.predict(x), other.predict(x))
    assert all(not getattr(one, name).requires_grad for name in mlp_module.PARAMETERS)


def test_mlp_trains_under_no_grad_and_on_inference_tensors() -> None:
    with torch.inference_mode():
        x, y = curved(100, 0)
    with torch.no_grad():
        fit = maps.MLPMap(8, 40, learning_rate=1e-2).fit(x, y, validation=curved(50, 1))
    assert fit.curve_.min() < fit.curve_[0]


def test_the_rate_rises_then_falls_as_the_square_of_a_cosine() -> None:
    rates = [mlp_module.rate_factor(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10:] == pytest.approx([((1 + np.cos(np.pi * step / 90)) / 2) ** 2 for step in range(91)])
    assert mlp_module.rate_factor(0, 1) == 1  # one step is one step


@pytest.mark.parametrize(
    ("curve", "flat"),
    [
        ([1.0] + [0.5] * 9, True),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], False),
        ([1.0] * 7 + [0.5, 0.4975, 0.4955], True),  # 0.9 % of the best before the last fifth
        ([1.0] * 7 + [0.5, 0.496, 0.494], False),  # 1.2 %
        ([1.0, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1], True),  # overfitting: the best is long past
    ],
)
def test_flat_curves(curve: list[float], flat: bool) -> None:
    assert mlp_module.is_flat(torch.tensor(curve)) is flat


def test_whole_documents_are_held_out() -> None:
    groups = torch.tensor([4] * 10 + [9] * 10 + [2] * 10)
    held = mlp_module.held_out(30, groups, torch.Generator().manual_seed(0))
    assert held.sum() == 10
    assert len(groups[held].unique()) == 1
    assert mlp_module.held_out(40, None, torch.Generator().manual_seed(0)).sum() == 4
    with pytest.raises(InputError, match="second document"):
        mlp_module.held_out(30, torch.zeros(30, dtype=torch.long), torch.Generator())


def test_mlp_stops_early_when_validation_has_nothing_to_gain() -> None:
    x, y = draw(60, 5, dtype=torch.float32), draw(60, 5, seed=1, dtype=torch.float32)
    held = draw(60, 5, seed=2, dtype=torch.float32), draw(60, 5, seed=3, dtype=torch.float32)
    fit = maps.MLPMap(64, 500, learning_rate=1e-2).fit(x, y, validation=held)
    assert len(fit.curve_) < 1 + mlp_module.READINGS
    assert len(fit.curve_) == 1 + int(fit.curve_.argmin()) + mlp_module.PATIENCE
    assert fit.flat_
