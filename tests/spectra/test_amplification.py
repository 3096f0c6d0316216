"""Amplification: brute force over unit vectors and over all sets of a size, identities, planted gains."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe.errors import InputError
from probe.spectra import amplification as amp

F64 = torch.float64
quick = settings(max_examples=40)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


LABELS = torch.tensor([0, 1, 1, 0, 2, 0, 1, 0])
NAMES = [field.name for field in fields(amp.Amplification)]


def columns(labels: Tensor, community: int) -> Tensor:
    """The coordinate vectors of a community, as a basis."""
    return torch.eye(len(labels), dtype=F64)[:, labels == community]


# --- one set, one subspace --------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 1000), st.integers(1, 5))
def test_gain_is_what_sampled_unit_vectors_see(seed: int, s: int) -> None:
    A, basis = draw(5, 5, seed=seed), torch.linalg.qr(draw(5, s, seed=seed + 1)).Q
    found = amp.subspace_amplification(A, basis)
    unit = torch.nn.functional.normalize(draw(s, 40_000, seed=seed + 2), dim=0)
    v = basis @ unit
    image = A @ v
    inside = basis @ (basis.mT @ image)
    for name, values in (("gain", image), ("self_gain", inside), ("leak", image - inside)):
        square = values.square().sum(0)
        error = 5 * square.std() / 200 + 1e-12
        assert getattr(found, name).square().item() == pytest.approx(square.mean().item(), abs=error.item()), name
    rate = (v * image).sum(0)
    assert found.divergence.item() == pytest.approx(rate.mean().item(), abs=(5 * rate.std() / 200 + 1e-12).item())
    assert found.numerical_abscissa >= rate.max() - 1e-12
    if s <= 2:
        assert found.numerical_abscissa.item() == pytest.approx(rate.max().item(), abs=0.01)


def test_the_measures_of_a_small_operator() -> None:
    A = torch.tensor([[3.0, 0.0, 1.0], [4.0, -2.0, 0.0], [0.0, 1.0, 5.0]], dtype=F64)
    found = amp.partition_amplification(A, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(found.gain.square(), torch.tensor([(9 + 16 + 4 + 1) / 2, 26.0], dtype=F64))
    torch.testing.assert_close(found.self_gain.square(), torch.tensor([(9 + 16 + 4) / 2, 25.0], dtype=F64))
    torch.testing.assert_close(found.leak.square(), torch.tensor([1 / 2, 1.0], dtype=F64))
    torch.testing.assert_close(found.divergence, torch.tensor([0.5, 5.0], dtype=F64))
    # the symmetric part of [[3, 0], [4, −2]]: ½ ± sqrt(25/4 + 4)
    torch.testing.assert_close(found.numerical_abscissa, torch.tensor([0.5 + 10.25**0.5, 5.0], dtype=F64))


@quick
@given(st.integers(0, 1000))
def test_gain_splits_into_what_stays_and_what_leaves(seed: int) -> None:
    A = draw(3, 8, 8, seed=seed)
    for found in (
        amp.partition_amplification(A, LABELS),
        amp.subspace_amplification(A, draw(8, 3, seed=seed + 1)),
    ):
        torch.testing.assert_close(found.gain.square(), found.self_gain.square() + found.leak.square())


def test_communities_are_subspaces_of_coordinates() -> None:
    A = draw(2, 3, 8, 8)
    sets = amp.partition_amplification(A, LABELS)
    for c in range(3):
        one = amp.subspace_amplification(A, columns(LABELS, c))
        for name in NAMES:
            torch.testing.assert_close(getattr(sets, name)[..., c], getattr(one, name))


def test_a_subspace_is_its_span_not_its_basis() -> None:
    A, basis = draw(8, 8), draw(8, 3, seed=1)
    first, second = (amp.subspace_amplification(A, given) for given in (basis, basis @ draw(3, 3, seed=2)))
    for name in NAMES:
        torch.testing.assert_close(getattr(first, name), getattr(second, name))


def test_turning_operator_and_subspace_together_changes_nothing() -> None:
    A, basis, turn = draw(8, 8), draw(8, 3, seed=1), torch.linalg.qr(draw(8, 8, seed=2)).Q
    first, second = amp.subspace_amplification(A, basis), amp.subspace_amplification(turn @ A @ turn.mT, turn @ basis)
    for name in NAMES:
        torch.testing.assert_close(getattr(first, name), getattr(second, name))


def test_the_identity_keeps_everything_and_a_swap_leaks_everything() -> None:
    kept = amp.partition_amplification(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    assert kept.gain.tolist() == kept.self_gain.tolist() == kept.divergence.tolist() == [1, 1]
    assert kept.leak.tolist() == [0, 0]
    swap = torch.eye(4)[[2, 3, 0, 1]]
    lost = amp.partition_amplification(swap, torch.tensor([0, 0, 1, 1]))
    assert lost.gain.tolist() == lost.leak.tolist() == [1, 1]
    assert lost.self_gain.tolist() == lost.divergence.tolist() == [0, 0]


def test_a_rotation_turns_without_growth() -> None:
    K = draw(6, 6)
    K = K - K.mT
    found = amp.partition_amplification(K, torch.tensor([0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(found.divergence, torch.zeros(2, dtype=F64))
    torch.testing.assert_close(found.numerical_abscissa, torch.zeros(2, dtype=F64), atol=1e-12, rtol=0)
    assert (found.gain > 1).all()


def test_coordinates_of_no_community_are_left_out() -> None:
    A = draw(8, 8)
    some = torch.where(LABELS == 2, -1, LABELS)
    found, whole = amp.partition_amplification(A, some), amp.partition_amplification(A, LABELS)
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(whole, name)[:2])


def test_coordinate_gain_is_the_column_norm_and_single_coordinates() -> None:
    A = draw(4, 8, 8)
    torch.testing.assert_close(amp.coordinate_gain(A), torch.linalg.vector_norm(A, dim=-2))
    torch.testing.assert_close(amp.coordinate_gain(A), amp.partition_amplification(A, torch.arange(8)).gain)
    with pytest.warns(DeprecationWarning, match=r"use probe\.spectra\.amplification\.coordinate_gain"):
        assert amp.unit_gain is amp.coordinate_gain


def test_float32_operators_are_computed_in_float64() -> None:
    A = draw(8, 8).float()
    assert amp.coordinate_gain(A).dtype == F64
    assert amp.subspace_amplification(A, columns(LABELS, 0).float()).gain.dtype == F64


# --- pooled over tokens -----------------------------------------------------------------------------------------------


def test_pooling_is_the_root_mean_square_over_tokens() -> None:
    A = draw(12, 8, 8)
    pooled = amp.PooledOperator().update(A[:5]).update(A[5:].reshape(7, 1, 8, 8))
    assert pooled.count == 12
    found, each = amp.partition_amplification(pooled, LABELS), amp.partition_amplification(A, LABELS)
    for name in ("gain", "self_gain", "leak"):
        torch.testing.assert_close(getattr(found, name), getattr(each, name).square().mean(0).sqrt())
    torch.testing.assert_close(found.divergence, each.divergence.mean(0))
    mean = amp.partition_amplification(A.mean(0), LABELS)
    torch.testing.assert_close(found.numerical_abscissa, mean.numerical_abscissa)
    assert (found.numerical_abscissa <= each.numerical_abscissa.mean(0)).all()
    torch.testing.assert_close(amp.coordinate_gain(pooled), amp.coordinate_gain(A).square().mean(0).sqrt())


def test_an_empty_pool_is_told() -> None:
    with pytest.raises(InputError, match="at least one matrix"):
        amp.coordinate_gain(amp.PooledOperator())


# --- random sets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_moments_are_those_of_all_sets(size: int) -> None:
    A = draw(2, 7, 7)
    moments = amp.random_set_moments(A, size)
    every = []
    for nodes in itertools.combinations(range(7), size):
        labels = torch.full((7,), -1)
        labels[list(nodes)] = 0
        every.append(amp.partition_amplification(A, labels))
    for name, (mean, variance) in moments.items():
        values = torch.stack([getattr(one, name.removesuffix("_squared"))[..., 0] for one in every])
        values = values.square() if name.endswith("_squared") else values
        torch.testing.assert_close(mean, values.mean(0), msg=name)
        torch.testing.assert_close(variance, values.var(0, correction=0), msg=name, atol=1e-12, rtol=1e-9)


def test_moments_of_one_and_two_coordinates() -> None:
    for d in (1, 2, 3):
        A = draw(d, d)
        mean, variance = amp.random_set_moments(A, d)["self_gain_squared"]
        assert mean.item() == pytest.approx(A.square().sum().item() / d)
        assert variance.item() == pytest.approx(0, abs=1e-20)


def test_moments_of_a_large_operator_agree_with_sampled_sets() -> None:
    A = draw(60, 60) + 3 * torch.eye(60, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    sampled = []
    for _ in range(1500):
        labels = torch.full((60,), -1)
        labels[torch.randperm(60, generator=generator)[:12]] = 0
        sampled.append(amp.partition_amplification(A, labels).leak[0].square())
    values = torch.stack(sampled)
    mean, variance = amp.random_set_moments(A, 12)["leak_squared"]
    assert mean.item() == pytest.approx(values.mean().item(), abs=5 * values.std().item() / 1500**0.5)
    assert variance.item() == pytest.approx(values.var().item(), rel=0.2)


def test_moments_of_a_pooled_operator() -> None:
    A = draw(5, 7, 7)
    moments = amp.random_set_moments(amp.PooledOperator().update(A), 3)
    each = amp.random_set_moments(A, 3)
    for name, (mean, _) in moments.items():
        torch.testing.assert_close(mean, each[name][0].mean(0))


def test_planted_gain_stands_out_with_its_sign() -> None:
    d = 60
    labels = torch.arange(d) % 4
    member = labels == 2
    K = 0.1 * draw(d, d)
    K[:, member] *= 3.0  # gain, wherever it goes
    K[torch.arange(d)[labels == 1], torch.arange(d)[labels == 1]] -= 1.0  # suppression
    z = amp.z_scores(K, labels, torch.Generator().manual_seed(0))
    assert z.gain.argmax() == 2
    assert z.gain[2] > 3
    assert z.leak[2] > 3
    assert z.divergence.argmin() == 1
    assert z.divergence[1] < -3
    assert (z.gain[[0, 3]] < 0).all()


def test_z_scores_are_value_less_mean_over_standard_deviation() -> None:
    A = draw(3, 8, 8)
    z = amp.z_scores(A, LABELS, torch.Generator().manual_seed(1), draws=4000)
    found = amp.partition_amplification(A, LABELS)
    for c in range(2):
        size = int((c == LABELS).sum())
        for name, (mean, variance) in amp.random_set_moments(A, size).items():
            short = name.removesuffix("_squared")
            value = getattr(found, short)[..., c]
            value = value.square() if name.endswith("_squared") else value
            torch.testing.assert_close(getattr(z, short)[..., c], (value - mean) / variance.sqrt())
        every = []
        for nodes in itertools.combinations(range(8), size):
            labels = torch.full((8,), -1)
            labels[list(nodes)] = 0
            every.append(amp.partition_amplification(A, labels).numerical_abscissa[..., 0])
        values = torch.stack(every)
        expected = (found.numerical_abscissa[..., c] - values.mean(0)) / values.std(0)
        torch.testing.assert_close(z.numerical_abscissa[..., c], expected, atol=0.15, rtol=0.05)


def test_random_sets_of_noise_have_standard_scores() -> None:
    z = [
        amp.z_scores(draw(40, 40, seed=seed), torch.arange(40) % 5, torch.Generator().manual_seed(seed), draws=2)
        for seed in range(60)
    ]
    for name in ("gain", "self_gain", "leak", "divergence"):
        values = torch.cat([getattr(one, name) for one in z])
        assert values.square().mean().item() == pytest.approx(1, abs=0.3), name


def test_sets_that_are_all_alike_have_no_score() -> None:
    z = amp.z_scores(2 * torch.eye(6), torch.tensor([0, 0, 0, 1, 1, 1]), torch.Generator().manual_seed(0), draws=5)
    assert z.gain.isnan().all()
    assert z.numerical_abscissa.isnan().all()
    turn = torch.linalg.qr(draw(6, 6)).Q  # columns of length 1, but for rounding
    z = amp.z_scores(turn, torch.tensor([0, 0, 0, 1, 1, 1]), torch.Generator().manual_seed(0), draws=5)
    assert z.gain.isnan().all()
    assert not z.self_gain.isnan().any()


def test_random_subspaces_have_the_mean_of_all() -> None:
    A = draw(2, 8, 8)
    found = amp.random_subspaces(A, 3, torch.Generator().manual_seed(0), draws=3000)
    square, rate = found.gain.square(), found.divergence
    expected = A.square().sum((-2, -1)) / 8, A.diagonal(dim1=-2, dim2=-1).mean(-1)
    for values, mean in zip((square, rate), expected, strict=True):
        assert values.shape == (3000, 2)
        assert ((values.mean(0) - mean).abs() < 5 * values.std(0) / 3000**0.5).all()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: amp.partition_amplification(draw(4, 4), torch.tensor([0, 1, 1])), "each of 4"),
        (lambda: amp.partition_amplification(draw(4, 4), torch.tensor([0, 2, 2, 0])), "without gaps"),
        (lambda: amp.partition_amplification(draw(4, 4), torch.tensor([-1, -1, -1, -1])), "without gaps"),
        (lambda: amp.random_set_moments(draw(4, 4), 5), "1 … 4"),
        (lambda: amp.random_set_moments(draw(4, 4), 0), "1 … 4"),
    ],
)
def test_wrong_input_is_told(call: Callable[[], object], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    with pytest.raises(InputError, match=told):
        call()
