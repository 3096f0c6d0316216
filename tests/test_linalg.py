"""Batched eigen-decomposition: the definition, and the same answer however the batch is split."""

from __future__ import annotations

import pytest
import torch

from probe.linalg import eigh


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_eigenvectors_rebuild_the_matrix(batch):
    factor = torch.randn(batch, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices = factor @ factor.mT
    values, vectors = eigh(matrices)
    assert values.dtype == torch.float64
    assert (values.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(vectors * values[:, None] @ vectors.mT, matrices)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(7, dtype=torch.float64).expand(batch, 7, 7))


def test_planted_eigenvalues_are_found():
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    planted = torch.tensor([-2.0, 0.0, 0.5, 1.0, 3.0, 10.0], dtype=torch.float64)
    values, vectors = eigh((basis * planted @ basis.mT)[None])
    torch.testing.assert_close(values[0], planted)
    torch.testing.assert_close((vectors[0] * basis).sum(0).abs(), torch.ones(6, dtype=torch.float64))


def test_one_matrix_has_the_same_answer_alone_and_in_a_batch():
    factor = torch.randn(9, 20, 20, generator=torch.Generator().manual_seed(2))
    matrices = factor + factor.mT
    whole, alone = eigh(matrices), eigh(matrices[4:5])
    assert torch.equal(whole[0][4:5], alone[0])
    assert torch.equal(whole[1][4:5], alone[1])
