"""Graphs from states and from matrices, and the Haar-random basis as the null of the former.

A correlation graph of residual coordinates depends on the basis in which the states are written. The null that
decides is therefore the same standardised states in a Haar-random basis: the covariance has the same spectrum, and only
the coordinates lose their meaning. Permuting each column over the tokens or rewiring the edges destroys the spectrum as
well, so that any low-rank structure passes such nulls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from probe.boundary import finite, public
from probe.errors import InputError
from probe.geometry import haar_frame
from probe.graphs.graph import Graph
from probe.graphs.sparsify import sparsify

States: TypeAlias = Float[Tensor, "token node"] | Float[np.ndarray, "token node"]
Matrix: TypeAlias = Float[Tensor, "node other"] | Float[np.ndarray, "node other"]
Kind: TypeAlias = Literal["signed", "absolute", "partial"]

TOP_K = 30
# Rows of the correlation matrix held at a time.
BLOCK = 512


@public
def correlation_graph(
    states: States, *, kind: Kind = "signed", top_k: int | None = None, density: float | None = None
) -> Graph:
    """Build the graph of strong correlations over the tokens: each column of the states is a node.

    A weight is ``r_ij`` of the standardised columns. For ``kind="partial"`` it is the correlation given all other
    columns, ``r_ij = −P_ij / sqrt(P_ii P_jj)`` with the precision ``P = ((1 − s) C + s I)⁻¹`` of the correlation
    matrix, shrunk by Ledoit and Wolf's s. Each node keeps its k strongest pairs by ``|r|``, symmetrised by OR; or the
    strongest pairs are kept up to a given density. A column without spread is an isolated node.

    A correlation of N tokens has noise of ``1/√N``: with fewer than about 2d tokens the strongest links are noise (at
    N = 1,000 and d = 4,096 the top 30 are). Take more tokens, or the shrunk partial correlation.

    Args:
        states: N states in rows, any float dtype, (N, d).
        kind: ``"signed"`` keeps the sign of r, ``"absolute"`` takes ``|r|``, ``"partial"`` the signed partial
            correlation.
        top_k: Neighbours that a node keeps; 30 if neither rule is given.
        density: Share of all pairs to keep instead.

    Returns:
        The graph; its `null` draws graphs of the same states in a Haar-random basis and holds a reference to them.

    Raises:
        InputError: If there are fewer than three tokens or two columns, or a value is not finite.

    Cost: N d² multiplications in blocks of 512 rows, one standardised copy of the states; partial correlation takes the
    d × d matrix in float64 and d³. At d = 4,096 and N = 8,192 a few seconds.
    """
    found = torch.as_tensor(states)
    if len(found) < 3 or found.shape[1] < 2:
        raise InputError(
            f"a correlation needs 3 tokens and 2 columns, got states of shape {tuple(found.shape)}: pass (N, d)"
        )
    if not bool(found.isfinite().all()):
        raise InputError("states must be finite, got NaN or infinity: leave such tokens or columns out")
    source = _Source(found, kind, TOP_K if top_k is None and density is None else top_k, density)
    if kind == "partial":
        return source.graph(source.matrix)
    standard = _standardised(found)
    edges, weights = sparsify(
        lambda start: source.weight(standard[:, start : start + BLOCK].mT @ standard),
        standard.shape[1],
        source.top_k,
        source.density,
    )
    return Graph(standard.shape[1], edges, weights, f"{kind} correlation", source.null)


@public(A=finite)
def from_matrix(A: Matrix, *, magnitude: bool = False, top_k: int | None = None, density: float | None = None) -> Graph:
    """Build the graph of a matrix of couplings, such as weights or a Jacobian, made symmetric.

    ``(A + Aᵀ)/2``, or ``(|A| + |A|ᵀ)/2`` if only the size of a coupling counts; the diagonal is left out.

    Args:
        A: Coupling of each pair of nodes, (d, d); a symmetric matrix is taken as it is.
        magnitude: Take absolute values first: opposite couplings of a pair then add up instead of cancelling.
        top_k: Neighbours that a node keeps; all pairs that are not zero if neither rule is given.
        density: Share of all pairs to keep instead.

    Returns:
        The graph; its null is degree-preserving rewiring.

    Raises:
        InputError: If A is not square or not finite.
    """
    coupling = torch.as_tensor(A)
    if coupling.shape[0] != coupling.shape[1]:
        raise InputError(f"A must be square, got {tuple(coupling.shape)}: pass a coupling for each pair of nodes")
    coupling = coupling.abs() if magnitude else coupling
    edges, weights = sparsify(
        lambda start: (coupling[start : start + BLOCK] + coupling[:, start : start + BLOCK].mT).double() / 2,
        len(coupling),
        top_k,
        density,
    )
    return Graph(len(coupling), edges, weights, "coupling")


@public
def permuted_columns(
    states: States, seed: int, *, kind: Kind = "signed", top_k: int | None = None, density: float | None = None
) -> Graph:
    """Draw the null graph of states whose columns are permuted over the tokens, each separately.

    Any correlation that is left is chance. Far too weak to decide anything about a real model, whose states have a
    steep spectrum; shown beside the Haar basis.

    Args:
        states: N states in rows, (N, d).
        seed: Seed of the permutations.
        kind: As in `correlation_graph`.
        top_k: As in `correlation_graph`.
        density: As in `correlation_graph`.

    Returns:
        The null graph.
    """
    found = torch.as_tensor(states)
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(len(found), generator=generator) for _ in range(found.shape[1])], dim=1)
    return correlation_graph(found.gather(0, order.to(found.device)), kind=kind, top_k=top_k, density=density)


@dataclass(frozen=True, eq=False)
class _Source:
    """The states and options of a correlation graph, from which its null graphs are drawn."""

    states: Float[Tensor, "token node"]
    kind: Kind
    top_k: int | None
    density: float | None

    def null(self, seed: int) -> Graph:
        """Draw the graph of the same standardised states in a Haar-random basis Q: from ``Qᵀ M Q``."""
        generator = torch.Generator(self.matrix.device).manual_seed(seed)
        basis = haar_frame(len(self.matrix), len(self.matrix), generator, dtype=self.matrix.dtype)
        return self.graph(basis.mT @ self.matrix @ basis)

    @cached_property
    def matrix(self) -> Float[Tensor, "node node"]:
        """The correlation matrix C, or the precision of the shrunk one, which turns with the basis the same way."""
        standard = _standardised(self.states)
        if self.kind != "partial":
            return standard.mT @ standard
        from sklearn.covariance import ledoit_wolf_shrinkage

        rows = standard.double() * len(standard) ** 0.5
        shrinkage = ledoit_wolf_shrinkage(rows.cpu().numpy(), assume_centered=True)
        shrunk = (1 - shrinkage) * (rows.mT @ rows) / len(rows)
        shrunk.diagonal().add_(shrinkage)
        # A column without spread has no variance and, without shrinkage, no inverse.
        shrunk.diagonal()[(rows == 0).all(0)] = 1.0
        precision: Tensor = torch.linalg.inv(shrunk)
        return precision

    def graph(self, matrix: Float[Tensor, "node node"]) -> Graph:
        """Build the sparse graph of a covariance or precision matrix, scaled to unit diagonal."""
        scale = matrix.diagonal().clamp(min=torch.finfo(matrix.dtype).tiny).rsqrt()
        sign = -1.0 if self.kind == "partial" else 1.0
        edges, weights = sparsify(
            lambda start: self.weight(
                sign * matrix[start : start + BLOCK] * scale[start : start + BLOCK, None] * scale
            ),
            len(matrix),
            self.top_k,
            self.density,
        )
        return Graph(len(matrix), edges, weights, f"{self.kind} correlation", self.null)

    def weight(self, r: Float[Tensor, "rows node"]) -> Float[Tensor, "rows node"]:
        """Turn correlations into weights of edges, in place."""
        return r.abs_().clamp_(max=1) if self.kind == "absolute" else r.clamp_(-1, 1)


def _standardised(states: Float[Tensor, "token node"]) -> Float[Tensor, "token node"]:
    """Columns of mean 0 and length 1, so that ``ZᵀZ`` is the correlation; a column without spread is zero."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    mean: Float64[Tensor, " node"] = states.mean(0, dtype=torch.float64)
    centred = states.to(dtype, copy=True).sub_(mean.to(dtype))
    length: Tensor = torch.linalg.vector_norm(centred, dim=0)
    # The rounding of a constant column is not spread.
    rounding = 4 * torch.finfo(dtype).eps * mean.abs().to(dtype) * len(states) ** 0.5
    return centred.mul_(torch.where(length > rounding, 1 / length, 0.0))
