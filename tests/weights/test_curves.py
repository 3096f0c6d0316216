"""Continuity, lag curves and their nulls, on bases whose answer was planted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe import InputError, load_model, weights
from probe.geometry import haar_frame
from probe.weights.bases import Bases
from tests.plant.tiny import LAYERS, WIDTH, tiny_model, tiny_module

DEPTH = 12


def rotating(angle: float, n: int = 20, depth: int = DEPTH, seed: int = 0) -> Tensor:
    """Unit vectors that turn by an angle a block in a plane of n dimensions: |cos| at lag m is |cos(m · angle)|."""
    plane = haar_frame(n, 2, torch.Generator().manual_seed(seed), dtype=torch.float64)
    turned = angle * torch.arange(depth, dtype=torch.float64)
    return torch.stack([turned.cos(), turned.sin()], 1) @ plane.mT


def signs(depth: int = DEPTH, seed: int = 0) -> Tensor:
    return torch.randint(0, 2, (depth, 1), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


@pytest.mark.parametrize("angle", [0.05, 0.3, 1.2])
def test_a_rotating_direction_has_the_planted_curves(angle: float) -> None:
    vectors = rotating(angle) * signs()
    lags = np.abs(np.cos(angle * np.arange(1, DEPTH)))
    np.testing.assert_allclose(weights.adjacent_cosines(vectors), np.full(DEPTH - 1, math.cos(angle)), atol=1e-12)
    cosines = weights.cosine_matrix(vectors)
    np.testing.assert_allclose(weights.lag_curve(cosines), lags, atol=1e-12)
    np.testing.assert_allclose(cosines.diagonal(), 1, atol=1e-12)
    np.testing.assert_allclose(cosines.diagonal(3), lags[2], atol=1e-12)


def test_subspaces_that_share_some_directions() -> None:
    """Two of three directions stay and one turns by θ: mean squared cosine (2 + cos² θ) / 3; in any basis of it."""
    frame = haar_frame(15, 4, torch.Generator().manual_seed(3), dtype=torch.float64)
    angle = 0.7
    last = [math.cos(a) * frame[:, 2] + math.sin(a) * frame[:, 3] for a in (0.0, angle)]
    bases = torch.stack([torch.stack([frame[:, 0], frame[:, 1], one], 1) for one in last])
    mixed = bases @ haar_frame(3, 3, torch.Generator().manual_seed(1), dtype=torch.float64)
    for one in (bases, mixed):
        found = float(weights.curves.adjacent_overlaps(one, 3))
        assert found == pytest.approx((2 + math.cos(angle) ** 2) / 3)
    assert float(weights.curves.adjacent_overlaps(bases, 1)) == pytest.approx(1)
    with pytest.raises(InputError, match="k must lie in 1 … 3"):
        weights.curves.adjacent_overlaps(bases, 4)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_signs_and_a_rotation_of_the_space_change_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(DEPTH, 9, generator=generator, dtype=torch.float64), dim=1)
    turned = vectors * signs(seed=seed) @ haar_frame(9, 9, generator, dtype=torch.float64)
    for measure in (weights.cosine_matrix, weights.adjacent_cosines):
        torch.testing.assert_close(measure(turned), measure(vectors))
    backwards = weights.adjacent_cosines(vectors.flip(0)).flip(0)
    torch.testing.assert_close(backwards, weights.adjacent_cosines(vectors))
    for one, other in zip(weights.curves.trajectory(vectors), weights.curves.trajectory(turned), strict=True):
        torch.testing.assert_close(one.abs(), other.abs())


def test_a_trajectory_on_a_circle_stays_on_it() -> None:
    vectors = rotating(2 * math.pi / DEPTH) * signs(seed=5)
    aligned = weights.curves.aligned(vectors)
    assert ((aligned[:-1] * aligned[1:]).sum(1) >= 0).all()
    coordinates, share = weights.curves.trajectory(vectors)
    torch.testing.assert_close(coordinates[:, :2].norm(dim=1), torch.ones(DEPTH).double())
    torch.testing.assert_close(share, torch.tensor([0.5, 0.5, 0.0]).double())
    steps = (coordinates[1:] - coordinates[:-1]).norm(dim=1)
    torch.testing.assert_close(steps, torch.full((DEPTH - 1,), 2 * math.sin(math.pi / DEPTH)).double())


def test_a_trajectory_is_around_its_mean() -> None:
    """On a cone: what all blocks share is no axis of the path."""
    frame = haar_frame(20, 3, torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = 2 * math.pi / DEPTH * torch.arange(DEPTH, dtype=torch.float64)
    circle = torch.stack([turned.cos(), turned.sin()], 1) @ frame[:, :2].mT
    coordinates, share = weights.curves.trajectory(math.cos(0.5) * frame[:, 2] + math.sin(0.5) * circle)
    torch.testing.assert_close(share, torch.tensor([0.5, 0.5, 0.0]).double())
    torch.testing.assert_close(coordinates[:, :2].norm(dim=1), torch.full((DEPTH,), math.sin(0.5)).double())


def test_participation_counts_coordinates() -> None:
    even = torch.full((10,), 10**-0.5)
    assert float(weights.curves.vector_participation(even)) == pytest.approx(10)
    assert float(weights.curves.vector_participation(torch.eye(10)[0])) == pytest.approx(1)
    random = haar_frame(3000, 1, torch.Generator().manual_seed(0), dtype=torch.float64)[:, 0]
    assert float(weights.curves.vector_participation(random)) == pytest.approx(1000, rel=0.1)


def test_the_best_match_finds_an_exchange_of_ranks() -> None:
    frame = haar_frame(12, 3, torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(weights.best_cosines(frame, -frame[:, [2, 0, 1]]), torch.ones(3).double())
    assert float(weights.adjacent_cosines(torch.stack([frame[:, 0], frame[:, 2]]))) < 1e-12


def test_the_coordinates_that_are_left_out_hold_most_energy() -> None:
    vectors = torch.full((4, 400), 0.01)
    vectors[:, 7] = 0.9
    vectors[1, 300] = 0.8  # of one block alone
    vectors[:, 20] = 0.5
    assert set(range(400)) - set(weights.curves.kept_coordinates(vectors, 0.005).tolist()) == {7, 20}
    assert len(weights.curves.kept_coordinates(vectors, 0.0)) == 400
    assert len(weights.curves.kept_coordinates(vectors, 0.0051)) == 397  # rounded up


# Nulls


@pytest.mark.parametrize("n", [2, 3, 64, 576])
def test_the_mean_cosine_of_random_directions(n: int) -> None:
    drawn = weights.nulls.simulated_cosines(n, 4000, torch.Generator().manual_seed(n))
    spread = float(drawn.std()) / 4000**0.5
    assert weights.haar_cosine(n) == pytest.approx(float(drawn.mean()), abs=4 * spread)
    exact = {2: 2 / math.pi, 3: 0.5}  # an angle; Archimedes: uniform on [0, 1]
    assert weights.haar_cosine(n) == pytest.approx(exact.get(n, math.sqrt(2 / (math.pi * n))), rel=0.5 / n + 1e-9)
    for level in (0.5, 0.99):
        share = float((drawn < weights.haar_quantile(n, level)).double().mean())
        assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 4000))


def test_the_published_levels_of_the_null() -> None:
    for n, mean, high in ((64, 0.100, 0.306), (256, 0.050, 0.158), (1024, 0.025, 0.082)):
        assert weights.haar_cosine(n) == pytest.approx(mean, abs=6e-4)
        assert weights.haar_quantile(n, 0.99) == pytest.approx(high, rel=0.04)
    assert weights.haar_quantile(4096, 0.99) == pytest.approx(2.576 / 64, rel=2e-3)


def test_the_band_of_a_mean_is_narrower_and_around_its_mean() -> None:
    low, middle, high = weights.nulls.haar_mean_quantiles({64: 40, 256: 10}, np.array([0.005, 0.5, 0.995]))
    expected = (40 * weights.haar_cosine(64) + 10 * weights.haar_cosine(256)) / 50
    assert middle == pytest.approx(expected, rel=0.02)
    variance = (40 * (1 / 64 - weights.haar_cosine(64) ** 2) + 10 * (1 / 256 - weights.haar_cosine(256) ** 2)) / 50**2
    assert high - low == pytest.approx(2 * 2.576 * math.sqrt(variance), rel=0.06)
    one = weights.nulls.haar_mean_quantiles({64: 1}, np.array([0.99]))
    assert float(one[0]) == pytest.approx(weights.haar_quantile(64, 0.99), rel=0.02)


def test_the_best_of_several_random_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    best = [weights.nulls.simulated_cosines(32, 9, generator).max() for _ in range(1500)]
    assert weights.nulls.haar_best_match(32, 9) == pytest.approx(float(torch.stack(best).mean()), rel=0.02)
    assert weights.nulls.haar_best_match(32, 1) == pytest.approx(weights.haar_cosine(32), rel=1e-4)


def adjacent_mean(cosines: np.ndarray) -> float:
    return float(np.diagonal(cosines, 1, -2, -1).mean())


def test_permuted_orders_tell_a_path_from_one_shared_direction() -> None:
    path = weights.cosine_matrix(rotating(0.25, depth=10))[None].numpy()
    null = weights.nulls.permuted_order(path, adjacent_mean, permutations=199)
    assert null.p_value == 1 / 200
    assert null.observed == pytest.approx(math.cos(0.25))
    shared = torch.nn.functional.normalize(
        torch.ones(10, 30, dtype=torch.float64)
        + 0.4 * torch.randn(10, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
        dim=1,
    )
    null = weights.nulls.permuted_order(weights.cosine_matrix(shared)[None].numpy(), adjacent_mean, permutations=199)
    assert null.observed > 0.8
    assert null.p_value > 0.05


def test_one_order_for_all_projections() -> None:
    same = weights.cosine_matrix(rotating(0.25, depth=8)).numpy()
    both = weights.nulls.permuted_order(
        np.stack([same, same]), lambda c: float(c[0, 0, 1] - c[1, 0, 1]), permutations=50
    )
    assert (both.values == 0).all()


# DOCS


def test_docs_of_a_matrix_with_itself_of_others_and_of_permuted_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 64, 40, generator=generator)
    assert weights.docs_similarity(x, x) == pytest.approx(1)
    order = torch.randperm(40, generator=generator)
    assert weights.docs_similarity(x, -2 * x[:, order]) == pytest.approx(1, abs=1e-6)
    assert weights.docs_similarity(x, y) == pytest.approx(weights.docs_similarity(y, x))
    # the largest of 40 |cosines| of random directions
    assert weights.docs_similarity(x, y) == pytest.approx(weights.nulls.haar_best_match(64, 40), abs=0.04)


def test_docs_tells_orthogonal_matrices_apart() -> None:
    frames = [haar_frame(48, 48, torch.Generator().manual_seed(seed)) for seed in range(2)]
    assert weights.docs_similarity(frames[0], frames[0]) == pytest.approx(1, abs=1e-5)
    assert weights.docs_similarity(*frames) < 0.5


def test_docs_fits_the_location_of_a_gumbel() -> None:
    """Planted maxima: X orthonormal, each column of Y has its largest |cosine| where and as large as it was put."""
    maxima = 0.5 + 0.05 * torch.from_numpy(np.random.default_rng(0).gumbel(size=200)).clamp(-3, 7)
    y = torch.zeros(400, 200, dtype=torch.float64)
    y[torch.arange(200), torch.arange(200)] = maxima
    y[torch.arange(200) + 200, torch.arange(200)] = (1 - maxima.square()).sqrt()
    x = torch.eye(400, 200, dtype=torch.float64)
    assert weights.docs_similarity(x, y) == pytest.approx(0.5, abs=0.012)


# The public function


def rotating_weights(angle: float, architecture: str = "llama") -> torch.nn.Module:
    """A tiny model whose readers' v₁ and writers' u₁ turn in a plane of the stream; all else is random."""
    module = tiny_module(architecture, scale=1.0)
    stream = rotating(angle, WIDTH, LAYERS)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for layer, block in enumerate(module.model.layers):
            for name, parameter in block.named_parameters():
                if parameter.ndim != 2:
                    continue
                writer = "o_proj" in name or "down_proj" in name
                inner = torch.randn(parameter.shape[1 if writer else 0], generator=generator)
                inner = inner / inner.norm()
                direction = stream[layer].float() * (-1) ** layer
                outer = torch.outer(direction, inner) if writer else torch.outer(inner, direction)
                parameter.copy_(20 * outer + 0.001 * torch.randn(parameter.shape, generator=generator))
    return module


def test_planted_continuity_comes_out_by_projection_and_space() -> None:
    angle = 0.4
    data = weights.continuity(load_model(rotating_weights(angle)))
    assert data["input_continuity"].dims == ("projection", "layer")
    assert data["projection"].values.tolist() == ["q", "k", "v", "o", "gate", "up", "down", "ov", "qk"]
    assert data["layer"].values.tolist() == [0, 1, 2]
    for name in ("q", "k", "v", "gate", "up", "ov", "qk"):
        np.testing.assert_allclose(data["input_continuity"].sel(projection=name), math.cos(angle), atol=8e-3)
        np.testing.assert_allclose(data["input_lag"].sel(projection=name, lag=3), abs(math.cos(3 * angle)), atol=8e-3)
    for name in ("o", "down", "ov", "qk"):
        np.testing.assert_allclose(data["output_continuity"].sel(projection=name), math.cos(angle), atol=8e-3)
    assert float(data["output_continuity"].sel(projection="gate").mean()) < 0.6
    assert (data["gap"] > 100).all()
    assert (data["svd_error"] < 1e-6).all()
    overlap = data["input_subspace"].sel(projection="q", k=1)
    np.testing.assert_allclose(overlap, data["input_continuity"].sel(projection="q") ** 2, rtol=1e-5)
    assert data["input_width"].sel(projection="down") == 48
    assert float(data["input_haar"].sel(projection="q")) == pytest.approx(weights.haar_cosine(WIDTH))


def test_a_random_model_is_at_the_null(tmp_path: Path) -> None:
    model = weights.weights_of(tiny_model("gpt2"))
    found = [weights.continuity(weights.fresh_twin(model, seed), composites=False) for seed in range(4)]
    for side in ("input", "output"):
        values = np.stack([data[f"{side}_continuity"].values for data in found])
        null = found[0][f"{side}_haar"].values.mean()
        assert values.mean() == pytest.approx(null, abs=4 * null * 0.75 / values.size**0.5)


@pytest.mark.guards("a file has the continuity of the loaded model", when="weights are compared", gives="equal")
def test_a_file_gives_the_continuity_of_the_loaded_model(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    model.module.save_pretrained(tmp_path)
    lazy, loaded = weights.continuity(str(tmp_path)), weights.continuity(model)
    assert lazy["projection"].values.tolist() == ["in", "x", "dt", "out"]
    for name in lazy.data_vars:
        np.testing.assert_array_equal(lazy[name], loaded[name], err_msg=str(name))


def test_folding_a_gain_of_one_coordinate_makes_every_reader_continuous() -> None:
    """What the repeat without outlier coordinates is for: γ with one huge entry turns every v₁ to that axis."""
    module = tiny_module("llama", scale=1.0)
    with torch.no_grad():
        for block in module.model.layers:
            block.input_layernorm.weight[5] = 1e4
            block.post_attention_layernorm.weight[5] = 1e4
    model = load_model(module)
    folded, plain = weights.continuity(model, folded=True), weights.continuity(model)
    assert folded["projection"].values.tolist() == ["q", "k", "v", "gate", "up", "ov", "qk"]
    assert (folded["input_continuity"] > 0.999).all()
    assert float(folded["input_participation"].max()) == pytest.approx(1, abs=1e-3)
    assert float(plain["input_continuity"].sel(projection="q").mean()) < 0.6


def test_subspaces_and_methods_can_be_chosen() -> None:
    model = tiny_model("llama")
    data = weights.continuity(model, projections=["q", "down"], subspaces=(1, 3), composites=False)
    assert data["k"].values.tolist() == [1, 3]
    assert data["projection"].values.tolist() == ["q", "down"]
    q = [weights.leading_triplets(model.projections(layer)["q"], 3).right for layer in range(LAYERS)]
    overlap = [float((q[layer].mT @ q[layer + 1]).square().sum()) / 3 for layer in range(LAYERS - 1)]
    np.testing.assert_allclose(data["input_subspace"].sel(projection="q", k=3), overlap, atol=1e-6)
    with pytest.raises(InputError, match="got 'x'"):
        weights.continuity(model, projections=["x"])
    with pytest.raises(InputError, match="needs known norms"):
        weights.continuity(model, projections=["o"], folded=True)


def test_described_needs_no_gap_where_there_is_one_triplet() -> None:
    vectors = rotating(0.3, 6, 5).float()[..., None]
    ones = torch.ones(5, dtype=torch.float64)
    data = weights.bases.described({"q": Bases(vectors, ones[:, None], vectors, ones, ones)}, (1, 2), first=3)
    assert data["gap"].isnull().all()
    assert data["layer"].values.tolist() == [3, 4, 5, 6]
    assert data["input_subspace"].sel(k=2).isnull().all()
