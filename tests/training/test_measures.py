"""Continuity, coherence and rotation of planted matrices, against closed forms and dense references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from probe.geometry import haar_frame
from probe.training.data import generator
from probe.training.measures import (
    batched_triplets,
    best_squared_cosines,
    coherence,
    continuity,
    haar_matches,
    rotation,
    subspace_continuity,
)

N, LAYERS = 24, 5


def frame(n: int = N, k: int | None = None, seed: int = 0) -> Tensor:
    return haar_frame(n, n if k is None else k, generator(seed), dtype=torch.float64)


def turning(angle: float) -> Tensor:
    """Matrices (layer, n, n) whose every singular plane turns by `angle` from layer to layer."""
    block = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    one_turn = torch.block_diag(*[block] * (N // 2))
    U, V = frame(seed=1), frame(seed=2)
    # v_i and v_{i + n/2} share a plane: the leading one meets no other leading direction
    order = torch.cat([torch.arange(0, N, 2), torch.arange(1, N, 2)])
    sigma = torch.diag(torch.linspace(3, 1, N, dtype=torch.float64))
    layers = [torch.linalg.matrix_power(one_turn, layer)[:, order] for layer in range(LAYERS)]
    return torch.stack([U @ layer @ sigma @ (V @ layer).mT for layer in layers])


class TestTriplets:
    @pytest.mark.parametrize("shape", [(2, 3, 10, 6), (2, 3, 6, 10), (7, 7)])
    def test_against_a_dense_svd(self, shape: tuple[int, ...]):
        W = torch.randn(shape, generator=generator(0), dtype=torch.float64)
        found = batched_triplets(W, 4)
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        torch.testing.assert_close(found.values, S[..., :4])
        torch.testing.assert_close((found.left * U[..., :4]).sum(-2).abs(), torch.ones_like(found.values))
        torch.testing.assert_close((found.right * Vh[..., :4, :].mT).sum(-2).abs(), torch.ones_like(found.values))
        torch.testing.assert_close(found.gap, S[..., 0] / S[..., 1])
        torch.testing.assert_close(W @ found.right, found.left * found.values[..., None, :])

    def test_a_zero_matrix_has_no_direction(self):
        found = batched_triplets(torch.zeros(2, 6, 6), 2)
        assert continuity(found.right).isnan().all()
        assert continuity(found.left).isnan().all()
        assert subspace_continuity(found.right).isnan().all()
        assert rotation(found.right, found.right).isnan().all()

    @pytest.mark.parametrize("shape", [(8, 8), (8, 12), (12, 8)])
    def test_a_matrix_has_as_many_directions_as_its_rank(self, shape: tuple[int, int]):
        out, width = shape
        U, V = frame(out, 3, seed=1), frame(width, 3, seed=2)
        W = U @ torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)) @ V.mT
        found = batched_triplets(torch.stack([W, W]), 8)
        for vectors, planted in ((found.left, U), (found.right, V)):
            torch.testing.assert_close((vectors[0, :, :3].mT @ planted).abs(), torch.eye(3, dtype=torch.float64))
            assert vectors[..., 3:].isnan().all()
            torch.testing.assert_close(continuity(vectors), torch.ones(1, dtype=torch.float64))
            torch.testing.assert_close(subspace_continuity(vectors)[0, :3], torch.ones(3, dtype=torch.float64))
            assert subspace_continuity(vectors)[0, 3:].isnan().all()
            assert rotation(vectors[0], vectors[1]).isnan()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_matrix_that_is_not_finite_leaves_the_others_alone(self, value: float):
        W = torch.randn(3, 6, 5, generator=generator(0), dtype=torch.float64)
        spoilt = W.clone()
        spoilt[1, 2, 3] = value
        whole, found = batched_triplets(W, 2), batched_triplets(spoilt, 2)
        for name in ("left", "values", "right", "gap"):
            torch.testing.assert_close(getattr(found, name)[[0, 2]], getattr(whole, name)[[0, 2]])
            assert getattr(found, name)[1].isnan().all()
        assert continuity(found.right).isnan().all()
        assert rotation(found.right[:-1], found.right[1:]).isnan().all()


class TestContinuity:
    @pytest.mark.parametrize("angle", [0.0, 0.3, 1.2])
    def test_planted_rotation(self, angle: float):
        found = batched_triplets(turning(angle))
        for vectors in (found.right, found.left):
            torch.testing.assert_close(
                continuity(vectors), torch.full((LAYERS - 1,), math.cos(angle), dtype=torch.float64)
            )
            expected = torch.full((LAYERS - 1, 8), math.cos(angle) ** 2, dtype=torch.float64)
            torch.testing.assert_close(subspace_continuity(vectors), expected)
            torch.testing.assert_close(best_squared_cosines(vectors), expected)
            turned = rotation(vectors[:-1], vectors[1:])
            torch.testing.assert_close(turned, torch.full_like(turned, math.degrees(angle)), atol=1e-6, rtol=1e-6)

    def test_swapped_ranks_are_found_by_the_best_match_and_by_subspaces(self):
        vectors = torch.stack([frame()[:, :4], frame()[:, [1, 0, 2, 3]]])
        assert continuity(vectors).item() == pytest.approx(0.0, abs=1e-12)
        torch.testing.assert_close(
            subspace_continuity(vectors)[0], torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
        )
        torch.testing.assert_close(best_squared_cosines(vectors)[0], torch.ones(4, dtype=torch.float64))

    def test_only_one_direction_carries_on(self):
        q = frame()
        vectors = torch.stack([q[:, :4], q[:, [0, 5, 6, 7]]])
        torch.testing.assert_close(subspace_continuity(vectors)[0], 1 / torch.arange(1, 5, dtype=torch.float64))
        torch.testing.assert_close(best_squared_cosines(vectors)[0], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))

    def test_signs_do_not_matter(self):
        W = torch.randn(LAYERS, N, N, generator=generator(3), dtype=torch.float64)
        vectors = batched_triplets(W).right
        flipped = vectors * torch.where(torch.rand(LAYERS, 1, 8, generator=generator(4)) < 0.5, -1.0, 1.0)
        for measure in (continuity, subspace_continuity, best_squared_cosines):
            torch.testing.assert_close(measure(flipped), measure(vectors))

    def test_a_best_match_is_of_the_direction_before(self):
        e = torch.eye(3, dtype=torch.float64)
        frames = torch.stack([e[:, :2], torch.stack([e[1], (e[0] + e[2]) * 0.5**0.5], dim=1)])
        torch.testing.assert_close(best_squared_cosines(frames), torch.tensor([[0.5, 1.0]], dtype=torch.float64))

    def test_batches_are_single_stacks(self):
        W = torch.randn(3, LAYERS, N, N, generator=generator(5), dtype=torch.float64)
        vectors = batched_triplets(W).right
        for measure in (continuity, subspace_continuity, best_squared_cosines):
            torch.testing.assert_close(measure(vectors)[1], measure(batched_triplets(W[1]).right))


class TestNulls:
    def test_random_frames(self):
        null = haar_matches(N, 4)
        frames = torch.stack([torch.stack([frame(k=4, seed=2 * i), frame(k=4, seed=2 * i + 1)]) for i in range(400)])
        np.testing.assert_allclose(null, best_squared_cosines(frames).mean((0, 1, 2)).item(), rtol=0.1)
        assert haar_matches(N, 1)[0] == pytest.approx(1 / N, rel=0.05)


class TestCoherence:
    def test_planted(self):
        base, other = (torch.randn(4, 4, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
        other = other - (base * other).sum() / base.square().sum() * base
        other = other / other.norm() * base.norm()
        gradients = torch.stack([base, 5 * base, base + other, -base])
        half = math.sqrt(0.5)
        torch.testing.assert_close(coherence(gradients), torch.tensor([1.0, half, -half], dtype=torch.float64))

    def test_a_zero_gradient_has_none(self):
        assert coherence(torch.zeros(2, 3, 3)).isnan().all()

    def test_rotation_between_known_frames(self):
        eye = torch.eye(6, dtype=torch.float64)
        assert rotation(eye[:, :2], eye[:, :2]).item() == pytest.approx(0.0, abs=1e-6)
        assert rotation(eye[:, :2], eye[:, 2:4]).item() == pytest.approx(90.0)
        assert rotation(eye[:, :2], eye[:, [0, 3]]).item() == pytest.approx(45.0)
