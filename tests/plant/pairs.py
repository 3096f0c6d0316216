"""Pairs (x, y) for the tests of maps."""

from __future__ import annotations

import torch
from hypothesis import settings
from torch import Tensor

F64 = torch.float64
quick = settings(max_examples=25)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def planted(n: int = 80, d: int = 6, e: int = 4, noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs from a known affine map, and its matrix."""
    matrix = draw(d, e, seed=1)
    x = draw(n, d) * torch.linspace(1, 3, d, dtype=F64) + 5
    return x, x @ matrix + draw(e, seed=2) + noise * draw(n, e, seed=3), matrix


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)
