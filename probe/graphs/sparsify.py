"""The edges to keep of a dense symmetric matrix, from its rows, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.errors import InputError
from probe.graphs.graph import n_pairs

# first row -> rows of the matrix from there on, (rows, n); the result may be overwritten
Rows: TypeAlias = Callable[[int], Float[Tensor, "rows n"]]
Edges: TypeAlias = tuple[Int[np.ndarray, "edge 2"], Float[np.ndarray, " edge"]]


def sparsify(rows: Rows, n: int, top_k: int | None, density: float | None) -> Edges:
    """Choose edges of a symmetric matrix: by the strongest neighbours of each node, by the strongest pairs, or all.

    Args:
        rows: Function of a first row that returns a block of rows from there on.
        n: Its size.
        top_k: Keep the k pairs of largest ``|w|`` of each node; an edge stays if either end keeps it (OR).
        density: Keep this share of all pairs instead, the ones of largest ``|w|``.

    Returns:
        Edges i < j in lexicographic order, (edge, 2), and their signed weights, never zero, (edge,).

    Raises:
        InputError: If both rules are given, or one is out of range.
    """
    if top_k is not None and density is not None:
        raise InputError(f"top_k and density exclude each other, got {top_k} and {density}: set one of them to None")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}: pass more neighbours, or None to keep all")
    if density is not None and not 0 < density <= 1:
        raise InputError(f"density must lie in (0, 1], got {density}: it is the share of pairs to keep")
    if top_k is not None and top_k < n - 1:
        pair, weight = _strongest_neighbours(rows, n, top_k)
    else:
        pair, weight = _strongest_pairs(rows, n, round((1.0 if density is None else density) * n_pairs(n)))
    code, first = np.unique(pair, return_index=True)
    kept = weight[first] != 0
    edges = np.stack(np.divmod(code[kept], n), axis=1)
    return edges, weight[first][kept]


def _strongest_neighbours(rows: Rows, n: int, k: int) -> tuple[Int[np.ndarray, " found"], Float[np.ndarray, " found"]]:
    """Code ``i n + j`` (i < j) and weight of the k strongest pairs of each node; a pair that both keep comes twice."""
    codes, weights = [], []
    for start, block in _blocks(rows, n):
        row = torch.arange(start, start + len(block), device=block.device)[:, None]
        block.scatter_(1, row, 0)
        near = block.abs().topk(k, dim=1).indices
        codes.append((torch.minimum(row, near) * n + torch.maximum(row, near)).ravel().cpu())
        weights.append(block.gather(1, near).ravel().double().cpu())
    return torch.cat(codes).numpy(), torch.cat(weights).numpy()


def _strongest_pairs(rows: Rows, n: int, count: int) -> tuple[Int[np.ndarray, " found"], Float[np.ndarray, " found"]]:
    """Code ``i n + j`` and weight of the strongest pairs i < j: no more than these and one block are held at a time."""
    codes, weights = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    for start, block in _blocks(rows, n):
        row = torch.arange(start, start + len(block), device=block.device)[:, None]
        later = torch.arange(n, device=block.device) > row
        codes = torch.cat([codes, (row * n + torch.arange(n, device=block.device))[later].cpu()])
        weights = torch.cat([weights, block[later].double().cpu()])
        if len(weights) > count:
            kept = weights.abs().topk(count).indices
            codes, weights = codes[kept], weights[kept]
    return codes.numpy(), weights.numpy()


def _blocks(rows: Rows, n: int) -> Iterator[tuple[int, Float[Tensor, "rows n"]]]:
    start = 0
    while start < n:
        block = rows(start)
        yield start, block
        start += len(block)
