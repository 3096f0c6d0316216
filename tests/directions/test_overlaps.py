"""Shares in leading subspaces: planted bases, complex pairs, and the exact law of a random direction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from probe import geometry, spectra
from probe.directions import overlap
from tests.plant.refusing import refused

D = 12
F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


def frame(seed):
    return geometry.haar_frame(D, D, generator(seed), dtype=F64)


def test_planted_singular_vectors_are_found_on_their_sides():
    left, right = frame(1), frame(2)
    matrix = left @ torch.diag(torch.arange(D, 0, -1, dtype=F64)) @ right.mT
    found = overlap(matrix, torch.stack([right[:, 0], left[:, 1], right[:, 4] + right[:, 0]]), ranks=[1, 2, 6])
    shares = found["share"]
    assert np.allclose(shares.sel(subspace="right", direction="0"), 1)
    assert np.allclose(shares.sel(subspace="left", direction="1"), [0, 1, 1])
    assert np.allclose(shares.sel(subspace="right", direction="2"), [0.5, 0.5, 1])
    assert np.allclose(found["gap"].sel(subspace="right"), [12 / 11, 11 / 10, 7 / 6])
    assert found["dimension"].sel(subspace="left").values.tolist() == [1, 2, 6]
    expected = geometry.principal_angles(torch.stack([right[:, 0], left[:, 1], right[:, 4]], 1), right[:, :6])
    assert np.allclose(found["principal_angle"].sel(subspace="right", rank=6), expected, atol=1e-6)
    assert np.isnan(found["principal_angle"].sel(subspace="right", rank=1)).values.tolist() == [False, True, True]


def test_complex_pairs_span_a_plane_and_are_never_cut():
    """A non-normal matrix with eigenvalues −5, 3 e^{±iπ/3}, 2, and small ones, in a skewed basis."""
    core = torch.diag(torch.tensor([-5.0, 0, 0, 2, *torch.linspace(0.1, 0.8, D - 4)], dtype=F64))
    core[1:3, 1:3] = 3 * torch.tensor([[0.5, -math.sqrt(0.75)], [math.sqrt(0.75), 0.5]], dtype=F64)
    basis = torch.eye(D, dtype=F64) + 0.4 * drawn(D, D) / math.sqrt(D)
    matrix = basis @ core @ torch.linalg.inv(basis)
    inside = torch.stack([basis[:, 0], 2 * basis[:, 1] - basis[:, 2], basis[:, 3]])
    found = overlap(matrix, inside, ranks=[1, 2, 3, 4]).sel(subspace="eigen")
    assert found["dimension"].values.tolist() == [1, 3, 3, 4]
    assert np.allclose(found["share"].sel(direction="0"), 1)
    assert np.allclose(found["share"].sel(direction="1")[1:], 1)
    assert np.allclose(found["share"].sel(direction="2", rank=4), 1)
    assert float(found["share"].sel(direction="1", rank=1)) < 0.9
    assert np.allclose(found["gap"], [5 / 3, 3 / 2, 3 / 2, 2 / 0.8])
    planted = torch.linalg.qr(basis[:, :3]).Q
    vector = drawn(D, seed=5)
    share = overlap(matrix, vector, ranks=[3])["share"].sel(subspace="eigen").item()
    assert share == pytest.approx(float(geometry.subspace_share(vector, planted)))


def test_j_and_k_have_the_same_eigenvectors_in_another_order():
    basis = frame(3)
    values = torch.cat([torch.tensor([1.5, 0.0]), torch.linspace(0.9, 1.1, D - 2)]).double()
    state = spectra.decompose(basis @ torch.diag(values) @ basis.mT)
    for found, first in ((state, 0), (state.update, 1)):  # λ(J) = 1.5 leads in J, λ(K) = −1 in K
        shares = overlap(found, basis[:, :2].mT, ranks=[1])["share"].sel(subspace="eigen", rank=1)
        assert np.allclose(shares, [first == 0, first == 1], atol=1e-9)
    both = overlap(state.update, basis[:, :2].mT, ranks=[1])
    plain = overlap(state.matrices - torch.eye(D, dtype=F64), basis[:, :2].mT, ranks=[1])
    assert np.allclose(both["share"], plain["share"], atol=1e-9)


def test_a_random_direction_s_percentile_is_uniform():
    found = overlap(drawn(D, D), drawn(2000, D, seed=7), ranks=[1, 3])
    for where in found["percentile"].stack(case=["subspace", "rank"]).transpose("case", "direction").values:
        assert stats.kstest(where, "uniform").pvalue > 0.01


def test_batches_keep_their_axes():
    matrices, vector = drawn(2, 3, D, D), drawn(D)
    found = overlap(matrices.float().numpy(), vector.numpy(), ranks=[2])
    assert found["share"].dims == ("subspace", "rank", "window", "position", "direction")
    one = overlap(matrices[1, 2].float(), vector, ranks=[2])
    assert np.allclose(found["share"].sel(window=1, position=2), one["share"])
    assert overlap(matrices[0], vector, ranks=[2])["gap"].dims == ("subspace", "rank", "matrix")
    named = overlap(matrices[None], vector, ranks=[2], dims=["layer", "window", "position"])
    assert named.sizes["layer"] == 1


def test_an_orthogonal_projection_has_an_endless_gap():
    matrix = torch.zeros(D, D, dtype=F64)
    matrix[0, 1] = 2.0
    found = overlap(matrix, torch.eye(D)[:2], ranks=[1]).squeeze("rank")
    assert np.isinf(found["gap"].sel(subspace="right"))
    assert found["share"].sel(subspace="right").values.tolist() == [0, 1]
    assert found["share"].sel(subspace="left").values.tolist() == [1, 0]


def test_what_does_not_fit_is_refused():
    matrix, vector = drawn(D, D), drawn(D)
    refused(lambda: overlap(matrix, drawn(D - 1)), "as wide as matrices")
    refused(lambda: overlap(matrix, vector, ranks=[D]), f"1 … {D - 1}")
    refused(lambda: overlap(matrix, vector, ranks=[]), "at least one")
    refused(lambda: overlap(matrix.expand(2, 2, 2, D, D), vector, ranks=[1]), "dims=")
