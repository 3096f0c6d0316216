"""Products along depth against exact arithmetic and closed forms; coupling against its definition."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe import geometry, spectra
from probe.errors import InputError
from probe.spectra.products import _triangles, block_coupling, cumulative_product, lyapunov_exponents
from tests.plant.matrices import F64, draw, ginibre, orthogonal


def multiplied(J: Tensor) -> list[Tensor]:
    """C_l = J_l ⋯ J_0, multiplied out."""
    product, found = torch.eye(J.shape[-1], dtype=F64), []
    for step in J:
        product = step @ product
        found.append(product)
    return found


# --- singular values --------------------------------------------------------------------------------------------------


def test_spectra_of_products_with_known_singular_values() -> None:
    d, depth = 5, 4
    frames = [orthogonal(d, seed=layer) for layer in range(depth + 1)]
    steps = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.25], dtype=F64)
    J = torch.stack([after @ torch.diag(steps) @ before.T for before, after in pairwise(frames)])
    found = spectra.cumulative_spectra(J, ranks=(1, 2))
    for layer in range(depth):
        values = steps ** (layer + 1)
        torch.testing.assert_close(found.log_singular_values[layer], values.log(), atol=1e-12, rtol=0)
        torch.testing.assert_close(found.singular_values[layer], values / values[0])
        torch.testing.assert_close(found.effective_rank[layer], spectra.effective_rank(torch.diag(values)))
        torch.testing.assert_close(found.participation_ratio[layer], spectra.participation_ratio(torch.diag(values)))
    torch.testing.assert_close(found.lyapunov_exponents, steps.log().expand(depth, d), atol=1e-12, rtol=0)
    torch.testing.assert_close(lyapunov_exponents(J), found.lyapunov_exponents)
    torch.testing.assert_close(found.overlap, torch.ones(depth - 1, 2, dtype=F64))  # always the first frame


def test_small_singular_values_keep_their_digits() -> None:
    d, depth = 10, 24
    J = ginibre(depth, d)
    with mpmath.workdps(60):
        product = mpmath.eye(d)
        for step in J:
            product = mpmath.matrix(step.tolist()) * product
        exact = torch.tensor([float(mpmath.log(v)) for v in mpmath.svd_r(product, compute_uv=False)], dtype=F64)
    found = spectra.cumulative_spectra(J, ranks=()).log_singular_values[-1]
    kept = exact - exact[0] >= math.log(1e-12)
    assert exact[-1] - exact[0] < math.log(1e-12)  # there is something to leave out
    assert exact[kept][-1] - exact[0] < math.log(1e-7)  # and something small to keep
    torch.testing.assert_close(found[kept], exact[kept], atol=1e-12, rtol=0)
    assert found[~kept].isnan().all()


def test_every_triangle_is_the_product_up_to_a_rotation_and_its_scale() -> None:
    J = ginibre(2, 5, 6)
    steps = list(_triangles(J))
    for layer, (basis, triangle, log_scale) in enumerate(steps):
        expected = torch.stack([multiplied(one)[layer] for one in J])
        torch.testing.assert_close(log_scale.exp()[:, None, None] * (basis @ triangle), expected)
        torch.testing.assert_close(triangle.norm(dim=(-2, -1)), torch.ones(2, dtype=F64))
        torch.testing.assert_close(triangle, triangle.triu())


@pytest.mark.parametrize("factor", [1e100, 1e-100])
def test_nothing_over_or_underflows(factor: float) -> None:
    J = ginibre(6, 4)
    scaled, plain = spectra.cumulative_spectra(factor * J), spectra.cumulative_spectra(J)
    shift = math.log(factor) * torch.arange(1, 7, dtype=F64)[:, None]
    torch.testing.assert_close(scaled.log_singular_values, plain.log_singular_values + shift)
    torch.testing.assert_close(scaled.overlap, plain.overlap)
    products, logs = cumulative_product(factor * J)
    torch.testing.assert_close(products, cumulative_product(J)[0])
    torch.testing.assert_close(logs, cumulative_product(J)[1] + shift[:, 0])


def test_cumulative_products_are_the_products() -> None:
    J = ginibre(2, 4, 5)
    products, logs = cumulative_product(J.float())
    assert products.dtype == F64
    for i in range(2):
        for layer, expected in enumerate(multiplied(J[i].float().double())):
            torch.testing.assert_close(products[i, layer] * logs[i, layer].exp(), expected)
    torch.testing.assert_close(products.norm(dim=(-2, -1)), torch.ones(2, 4, dtype=F64))


def test_batches_are_multiplied_one_by_one() -> None:
    J = ginibre(2, 3, 4, 6)
    found = spectra.cumulative_spectra(J, ranks=(1, 3, 16))
    assert found.ranks == (1, 3)
    assert found.overlap.shape == (2, 3, 3, 2)
    for i in range(2):
        for j in range(3):
            one = spectra.cumulative_spectra(J[i, j], ranks=(1, 3))
            torch.testing.assert_close(found.log_singular_values[i, j], one.log_singular_values)
            torch.testing.assert_close(found.effective_rank[i, j], one.effective_rank)
            torch.testing.assert_close(found.overlap[i, j], one.overlap)


@pytest.mark.parametrize(("factor", "expected"), [(None, (0.50, 0.11, 0.03)), (0.3, (0.86, 0.44, 0.16))])
def test_products_of_random_maps_collapse_by_themselves(factor: float | None, expected: tuple[float, ...]) -> None:
    d = 200
    J = ginibre(32, d) if factor is None else torch.eye(d, dtype=F64) + factor * ginibre(32, d)
    share = spectra.cumulative_spectra(J, ranks=()).participation_ratio[[0, 7, 31]] / d
    torch.testing.assert_close(share, torch.tensor(expected, dtype=F64), atol=0.015, rtol=0.1)


def test_an_empty_product_is_refused() -> None:
    with pytest.raises(InputError, match="at least one Jacobian"):
        spectra.cumulative_spectra(torch.empty(2, 0, 3, 3))


# --- overlap ----------------------------------------------------------------------------------------------------------


def test_overlap_is_that_of_the_right_singular_vectors() -> None:
    J = torch.eye(9, dtype=F64) + 0.7 * ginibre(5, 9)
    found = spectra.cumulative_spectra(J, ranks=(1, 4)).overlap
    for layer, (before, after) in enumerate(pairwise(multiplied(J))):
        for column, k in enumerate((1, 4)):
            bases = [torch.linalg.svd(product).Vh[:k].T for product in (before, after)]
            cosines = torch.deg2rad(geometry.principal_angles(*bases)).cos()
            assert found[layer, column].item() == pytest.approx(cosines.square().mean().item(), abs=1e-9)


def test_overlap_follows_planted_input_directions() -> None:
    e = torch.eye(4, dtype=F64)
    grow = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=F64))
    swap = torch.diag(torch.tensor([1.0, 9.0, 1.0, 1.0], dtype=F64))  # then e₁ has grown by 18, e₀ by 4
    found = spectra.cumulative_spectra(torch.stack([grow, swap, e]), ranks=(1, 2))
    torch.testing.assert_close(found.overlap, torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=F64))


# --- coupling ---------------------------------------------------------------------------------------------------------


def test_layers_with_the_same_singular_vectors_are_perfectly_coupled() -> None:
    U, V = orthogonal(7), orthogonal(7, seed=1)
    values = torch.tensor([[7.0, 5, 4, 3, 2, 1, 0.5], [9.0, 4, 3, 2, 1, 0.5, 0.1]], dtype=F64)
    K = U @ torch.diag_embed(values) @ V.T
    torch.testing.assert_close(block_coupling(K, k=3), torch.zeros(2, 2, dtype=F64), atol=1e-12, rtol=0)


def test_coupling_is_its_definition() -> None:
    K = ginibre(3, 6)
    found = block_coupling(K, k=2)
    for i in range(3):
        for j in range(3):
            left, _, right = torch.linalg.svd(K[j])
            S = torch.diag(torch.linalg.svdvals(K[i])[:2])
            expected = ((left[:, :2].T @ K[i] @ right[:2].T).abs() - S).norm() / S.norm()
            assert found[i, j].item() == pytest.approx(expected.item(), abs=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_coupling_properties(seed: int, scale: float) -> None:
    K = ginibre(2, 3, 6, seed=seed)
    found = block_coupling(K, k=4)
    assert found.shape == (2, 3, 3)
    torch.testing.assert_close(found.diagonal(0, -2, -1), torch.zeros(2, 3, dtype=F64), atol=1e-10, rtol=0)
    torch.testing.assert_close(block_coupling(-scale * K, k=4), found, atol=1e-9, rtol=0)
    U, V = orthogonal(6, seed=seed), orthogonal(6, seed=seed + 1)
    torch.testing.assert_close(block_coupling(U @ K @ V, k=4), found, atol=1e-9, rtol=0)


def test_unrelated_layers_are_uncoupled() -> None:
    found = block_coupling(ginibre(6, 150), k=10)
    off = found[~torch.eye(6, dtype=torch.bool)]
    assert off.min() > 0.8
    assert off.max() < 1.1


@pytest.mark.parametrize("k", [0, 6])
def test_coupling_refuses_more_vectors_than_there_are(k: int) -> None:
    with pytest.raises(InputError, match="1 … d = 5"):
        block_coupling(draw(2, 5, 5), k=k)
