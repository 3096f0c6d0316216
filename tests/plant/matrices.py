"""Matrices whose spectra are known, and a measure of how far two spectra are apart."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def ginibre(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian entries of variance 1/d: eigenvalues fill the unit disc."""
    return draw(*shape, shape[-1], seed=seed) / shape[-1] ** 0.5


def orthogonal(d: int, seed: int = 0) -> Tensor:
    basis: Tensor = torch.linalg.qr(draw(d, d, seed=seed)).Q
    return basis


def toeplitz(d: int, diagonals: dict[int, float]) -> Tensor:
    matrix = torch.zeros(d, d, dtype=F64)
    for k, value in diagonals.items():
        matrix.diagonal(k).fill_(value)
    return matrix


def jordan(d: int, value: float) -> Tensor:
    return toeplitz(d, {0: value, 1: 1.0})


def grcar(d: int) -> Tensor:
    return toeplitz(d, {-1: -1.0, 0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0})


def rotation(*angles: float) -> Tensor:
    """Plane rotations by these angles (radians) along the diagonal."""
    blocks = [torch.tensor([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]], dtype=F64) for t in angles]
    return torch.block_diag(*blocks)


def square(d: int) -> st.SearchStrategy[Tensor]:
    """Matrices of many scales, some of low rank, some nearly symmetric."""

    def build(seed: int, scale: float, rank: int, symmetric: float) -> Tensor:
        matrix = draw(d, rank, seed=seed) @ draw(rank, d, seed=seed + 1)
        return scale * (matrix + symmetric * matrix.T)

    return st.builds(build, st.integers(0, 10_000), st.floats(1e-3, 1e3), st.integers(1, d), st.floats(-1, 1))


def spectra_distance(a: Tensor, b: Tensor) -> float:
    """The largest distance between the eigenvalues of one spectrum and their partners in the other."""
    distance = (a[:, None] - b[None, :]).abs().numpy()
    return float(distance[linear_sum_assignment(distance)].max())
