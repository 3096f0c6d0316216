"""Known vectors, oracles and properties of every measure in `probe.geometry`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from probe import geometry
from probe.errors import InputError

F64 = torch.float64
quick = settings(max_examples=60)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def orthonormal(d: int, k: int, seed: int = 0) -> Tensor:
    basis: Tensor = torch.linalg.qr(draw(d, k, seed=seed)).Q
    return basis


def vectors(n: int, d: int) -> st.SearchStrategy[Tensor]:
    """Matrices without a zero row and without numbers whose squares underflow."""
    numbers = st.floats(-1e3, 1e3).filter(lambda v: v == 0 or abs(v) > 1e-3)
    rows = arrays(np.float64, (n, d), elements=numbers).filter(lambda a: bool((np.abs(a).max(1) > 0).all()))
    return rows.map(torch.from_numpy)


# --- cosine, angle, error ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degrees", "size"), [(0, 1.0), (30, 2.0), (60, 0.5), (90, 3.0), (135, 1.0), (180, 7.0)])
def test_cosine_and_angle_of_known_vectors(degrees: float, size: float) -> None:
    turn = math.radians(degrees)
    a = torch.tensor([[2.0, 0.0, 0.0]], dtype=F64)
    b = size * torch.tensor([[math.cos(turn), math.sin(turn), 0.0]], dtype=F64)
    assert geometry.cosine(a, b).item() == pytest.approx(math.cos(turn), abs=1e-15)
    assert geometry.angle(a, b).item() == pytest.approx(degrees, abs=1e-13)


def test_a_small_angle_keeps_its_digits() -> None:
    a = torch.tensor([1.0, 0.0], dtype=F64)
    b = torch.tensor([1.0, 1e-10], dtype=F64)
    assert geometry.angle(a, b).item() == pytest.approx(math.degrees(1e-10), rel=1e-12)  # its cosine rounds to 1


@quick
@given(vectors(2, 5), st.floats(0.01, 100), st.floats(-100, -0.01))
def test_cosine_is_bounded_and_blind_to_scale(pair: Tensor, up: float, flip: float) -> None:
    a, b = pair
    value = geometry.cosine(a, b)
    assert -1 <= value.item() <= 1
    torch.testing.assert_close(geometry.cosine(up * a, b), value, atol=1e-12, rtol=0)
    torch.testing.assert_close(geometry.cosine(a, flip * b), -value, atol=1e-12, rtol=0)
    torch.testing.assert_close(geometry.cosine(flip * a, b).abs(), value.abs(), atol=1e-12, rtol=0)
    torch.testing.assert_close(geometry.cosine(a, b), geometry.cosine(b, a))
    torch.testing.assert_close(torch.cos(torch.deg2rad(geometry.angle(a, b))), value, atol=1e-12, rtol=0)


def test_measures_of_a_zero_vector_are_not_numbers() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert geometry.cosine(zero, one).isnan()
    assert geometry.angle(one, zero).isnan()
    assert geometry.subspace_share(zero, torch.eye(3)[:, :1]).isnan()
    assert geometry.relative_error(zero, one).isinf()


def test_batches_are_measured_vector_by_vector() -> None:
    a, b = draw(2, 3, 5), draw(2, 3, 5, seed=1)
    basis = orthonormal(5, 2)
    for i in range(2):
        for j in range(3):
            one, two = a[i, j], b[i, j]
            assert geometry.cosine(a, b)[i, j].item() == pytest.approx(
                (one @ two / one.norm() / two.norm()).item(), abs=1e-14
            )
            assert geometry.relative_error(a, b)[i, j].item() == pytest.approx(((one - two).norm() / one.norm()).item())
            assert geometry.subspace_share(a, basis)[i, j].item() == pytest.approx(
                ((basis.T @ one).norm() ** 2 / one.norm() ** 2).item()
            )


def test_relative_error_of_known_vectors() -> None:
    y, y_hat = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[3.0, 3.0], [0.0, 0.0]])
    torch.testing.assert_close(geometry.relative_error(y, y_hat), torch.tensor([0.2, 1.0]))


def test_explained_variance_of_known_predictions() -> None:
    y = torch.tensor([[1.0, 10.0], [3.0, 10.0]], dtype=F64)  # Σ‖y − ȳ‖² = 2
    half = torch.tensor([[1.0, 10.0], [3.0, 11.0]], dtype=F64)  # Σ‖r‖² = 1
    assert geometry.explained_variance(y, half).item() == 0.5
    assert geometry.explained_variance(y, y).item() == 1.0
    assert geometry.explained_variance(y, y.mean(0).expand_as(y)).item() == 0.0
    assert geometry.explained_variance(y, torch.zeros_like(y)).item() == 1 - 210 / 2
    torch.testing.assert_close(
        geometry.explained_variance(torch.stack([y, y]), torch.stack([half, y])), torch.tensor([0.5, 1.0], dtype=F64)
    )


# --- geometry that the error fixes ------------------------------------------------------------------------------------


def test_bound_from_the_error_of_known_values() -> None:
    errors = torch.tensor([0.0, 0.6, 0.8, 1.0, 1.5], dtype=F64)
    expected = torch.tensor([1.0, 0.8, 0.6, 0.0, 0.0], dtype=F64)
    torch.testing.assert_close(geometry.aligned_cosine_from_error(errors), expected)


@quick
@given(vectors(2, 4))
def test_no_residual_goes_below_the_bound(pair: Tensor) -> None:
    y, y_hat = pair
    bound = geometry.aligned_cosine_from_error(geometry.relative_error(y, y_hat))
    assert geometry.relative_error(y, y_hat).item() >= 1 or geometry.cosine(y, y_hat).item() >= bound.item() - 1e-7


@quick
@given(st.integers(0, 10_000))
def test_in_sample_least_squares_meets_the_bound(seed: int) -> None:
    x, y = draw(40, 3, seed=seed), draw(40, 5, seed=seed + 1)
    y_hat = x @ torch.linalg.lstsq(x, y).solution
    y, y_hat = y.flatten(), y_hat.flatten()  # pooled over tokens
    error = geometry.relative_error(y, y_hat)
    torch.testing.assert_close(geometry.cosine(y, y_hat), geometry.aligned_cosine_from_error(error))


# --- subspaces --------------------------------------------------------------------------------------------------------


@quick
@given(vectors(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_shares_obey_pythagoras(row: Tensor, k: int, seed: int) -> None:
    whole = orthonormal(6, 6, seed=seed)
    inside = geometry.subspace_share(row, whole[:, :k])
    outside = geometry.subspace_share(row, whole[:, k:])
    assert 0 <= inside.item() <= 1
    torch.testing.assert_close(inside + outside, torch.ones_like(inside), atol=1e-12, rtol=0)
    torch.testing.assert_close(geometry.subspace_share(-7 * row, whole[:, :k]), inside, atol=1e-12, rtol=0)


def test_share_of_a_random_subspace_is_k_over_d() -> None:
    x = draw(20_000, 12)
    share = geometry.subspace_share(x, orthonormal(12, 3, seed=1))
    assert share.mean().item() == pytest.approx(3 / 12, abs=0.005)


def test_dominant_subspace_finds_planted_directions() -> None:
    planted = orthonormal(8, 3, seed=2)
    rows = draw(200, 3) * torch.tensor([9.0, 5.0, 2.0], dtype=F64)
    rows = rows - rows.mean(0)
    left, _, _ = torch.linalg.svd(rows, full_matrices=False)
    x = (left * torch.tensor([9.0, 5.0, 2.0], dtype=F64)) @ planted.T + 100.0  # an offset that centring takes away
    found = geometry.dominant_subspace(x, 3)
    torch.testing.assert_close((found * planted).sum(0).abs(), torch.ones(3, dtype=F64))
    torch.testing.assert_close(found.T @ found, torch.eye(3, dtype=F64))
    offset = geometry.dominant_subspace(x, 1, centred=False)
    assert (offset[:, 0].sum().abs() / 8**0.5).item() == pytest.approx(1, abs=1e-3)


def test_dominant_subspace_is_the_svd_in_batches() -> None:
    x = draw(2, 30, 7)
    found = geometry.dominant_subspace(x, 2, centred=False)
    for one, basis in zip(x, found, strict=True):
        expected = torch.linalg.svd(one).Vh[:2].T
        torch.testing.assert_close((basis * expected).sum(0).abs(), torch.ones(2, dtype=F64))


@pytest.mark.parametrize("rank", [0, 4])
def test_dominant_subspace_refuses_a_rank_it_cannot_have(rank: int) -> None:
    with pytest.raises(InputError, match="min\\(n, d\\) = 3"):
        geometry.dominant_subspace(draw(3, 7), rank)


def test_principal_angles_of_known_planes() -> None:
    tilt = math.radians(25)
    a = torch.eye(4, dtype=F64)[:, :2]
    b = torch.stack([a[:, 0], math.cos(tilt) * a[:, 1] + math.sin(tilt) * torch.eye(4, dtype=F64)[:, 2]], dim=1)
    expected = torch.tensor([0.0, 25.0], dtype=F64)
    torch.testing.assert_close(geometry.principal_angles(a, b), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(geometry.principal_angles(3 * b, a), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_principal_angles_of_columns_that_are_not_finite_are_nan(value: float) -> None:
    a = torch.eye(4, dtype=F64)[:, :2].expand(3, 4, 2).clone()
    a[1, 0, 1] = value
    b = torch.eye(4, dtype=F64)[:, 1:].expand(3, 4, 3)
    for found in (geometry.principal_angles(a, b), geometry.principal_angles(b, a)):
        torch.testing.assert_close(found[[0, 2]], torch.tensor([[0.0, 90.0]] * 2, dtype=F64))
        assert found[1].isnan().all()


@pytest.mark.parametrize("tilt", [1e-9, 1e-3, 0.7, 1.5])
def test_principal_angles_keep_their_digits(tilt: float) -> None:
    a = torch.tensor([[1.0], [0.0]], dtype=F64)
    b = torch.tensor([[math.cos(tilt)], [math.sin(tilt)]], dtype=F64)
    assert geometry.principal_angles(a, b).item() == pytest.approx(math.degrees(tilt), rel=1e-9)


@quick
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_principal_angles_are_scipys(k: int, m: int, seed: int) -> None:
    a, b = draw(7, k, seed=seed), draw(7, m, seed=seed + 1)
    expected = np.degrees(np.sort(scipy.linalg.subspace_angles(a.numpy(), b.numpy())))
    # SciPy's smallest angles carry the rounding of a square root.
    np.testing.assert_allclose(geometry.principal_angles(a, b).numpy(), expected, atol=1e-5)


def test_outlier_coordinates_by_spread_or_by_offset() -> None:
    x = draw(500, 10)
    x[:, 3] *= 25  # spread
    x[:, 7] += 25  # offset
    x[:, 5] *= 15
    assert geometry.outlier_coordinates(x).nonzero().flatten().tolist() == [3, 7]
    assert geometry.outlier_coordinates(x, factor=10.0).nonzero().flatten().tolist() == [3, 5, 7]


def test_procrustes_linearity_of_known_maps() -> None:
    x = draw(60, 5)
    assert geometry.procrustes_linearity(x, x @ draw(5, 3, seed=1) + 4) == pytest.approx(1, abs=1e-12)
    y = draw(60, 4, seed=2)
    centred = x - x.mean(0), y - y.mean(0)
    unexplained = (centred[0] @ torch.linalg.lstsq(*centred).solution - centred[1]).norm() / centred[1].norm()
    assert geometry.procrustes_linearity(x, y) == pytest.approx(1 - unexplained.item() ** 2, abs=1e-12)
    doubled = torch.cat([x, x[:, :1]], dim=1)  # rank deficient: nothing new to explain with
    assert geometry.procrustes_linearity(doubled, y) == pytest.approx(1 - unexplained.item() ** 2, abs=1e-9)


# --- controls ---------------------------------------------------------------------------------------------------------


def test_random_directions_have_the_norms_and_no_preference() -> None:
    norms = torch.tensor([0.5, 2.0, 0.0], dtype=F64)
    drawn = geometry.random_directions(norms, 4, torch.Generator().manual_seed(0), draws=4000)
    assert drawn.shape == (4000, 3, 4)
    torch.testing.assert_close(drawn.norm(dim=-1), norms.expand(4000, 3))
    covariance = drawn[:, 1].T @ drawn[:, 1] / 4000
    torch.testing.assert_close(covariance, torch.eye(4, dtype=F64), atol=0.1, rtol=0)  # ‖r‖²/d = 1


def test_a_haar_frame_is_orthonormal_and_has_no_favourite_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.stack([geometry.haar_frame(4, 2, generator, dtype=F64) for _ in range(4000)])
    torch.testing.assert_close(frames.mT @ frames, torch.eye(2, dtype=F64).expand(4000, 2, 2))
    # ±4 standard errors: entries have variance 1/4, so a QR whose R may have any sign would show in the mean
    assert frames.mean(0).abs().max() < 4 * 0.5 / 4000**0.5
    projectors = (frames @ frames.mT).mean(0)
    torch.testing.assert_close(projectors, 0.5 * torch.eye(4, dtype=F64), atol=0.02, rtol=0)
    signs = torch.linalg.det(torch.stack([geometry.haar_frame(3, 3, generator, dtype=F64) for _ in range(1000)]))
    assert abs(signs.mean()) < 4 / 1000**0.5
    assert geometry.haar_frame(3, 2, generator).dtype == torch.float32
    with pytest.raises(InputError, match="got k = 4"):
        geometry.haar_frame(3, 4, generator)


def test_covariance_matched_draws_follow_the_covariance() -> None:
    turn = orthonormal(3, 3, seed=3)
    values = torch.tensor([16.0, 1.0, 0.0], dtype=F64)
    covariance = turn @ torch.diag(values) @ turn.T
    norms = torch.tensor([3.0, 1.0], dtype=F64)
    drawn = geometry.covariance_matched(covariance, norms, torch.Generator().manual_seed(0), draws=20_000)
    torch.testing.assert_close(drawn.norm(dim=-1), norms.expand(20_000, 2))
    share = (drawn[:, 1] @ turn).square().mean(0)
    # For g in the plane, E[σ₁g₁² / (σ₁g₁² + σ₂g₂²)] = √σ₁ / (√σ₁ + √σ₂) = 4/5.
    torch.testing.assert_close(share, torch.tensor([0.8, 0.2, 0.0], dtype=F64), atol=0.01, rtol=0)


def test_draws_follow_their_generator_and_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    norms = torch.ones(3)
    for control in (
        lambda g: geometry.random_directions(norms, 5, g, draws=2),
        lambda g: geometry.covariance_matched(torch.eye(5), norms, g, draws=2),
    ):
        one, again, other = (control(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        torch.testing.assert_close(one, again, rtol=0, atol=0)
        assert not torch.allclose(one, other)
        assert not torch.allclose(one[0], one[1])
    assert torch.equal(before, torch.get_rng_state())
