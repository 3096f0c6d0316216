"""One map for each token, fitted on its nearest neighbours among the fitted tokens (the bank).

For a query q with neighbours X (k, d), targets Y (k, e), both centred on the neighbours' means x̄, ȳ, all three
kinds start from the k × k Gram matrix ``XXᵀ = U diag(s²) Uᵀ``, never from a d × d matrix; the top-r right singular
vectors of X are ``P = XᵀU / s``. Cost of a query: O(n d) for the search, O(k² (d + k)) for the Gram matrix and its
eigenvectors, O(k r e) for the fit. Queries are processed in blocks within a memory budget. On the CPU each block has
one thread: LAPACK gains little from two threads on so small a matrix, and loses much where cores are shared.

Arithmetic has the states' precision. Squaring X squares its condition: where the smallest of the r eigenvalues falls
below a thousandth of the largest, float32 states are processed in float64. On four blocks of SmolLM2-135M predictions
then agreed with a float64 SVD to 2.4e-4 of their size, at half the time of float64 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.linalg import vector_norm

from probe.boundary import public
from probe.errors import InputError
from probe.geometry import relative_error
from probe.maps.base import Map, Validation, working_dtype

# Least s_r² / s_1² that is processed in float32.
LEAST_CONDITION = 1e-3
# Ridge strengths relative to the mean of the kept eigenvalues; the largest leaves the neighbours' mean.
STRENGTHS = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4)


@public
@dataclass(eq=False)
class LocalMap(Map):
    """A separate map for each query, fitted on its k nearest neighbours (arXiv 2604.02459).

    Kinds, in the notation of the module's docstring:

    - ``"low_rank"``: ridge regression on the neighbours' top-r directions,
      ``T(q) = ȳ + Σ_j ((q − x̄)·P_j) s_j / (s_j² + λ) U_jᵀY`` with ``λ = c · mean s_j²`` over the r directions.
    - ``"diagonal"``: a scale and an offset for each coordinate,
      ``T(q)_j = ȳ_j + (q − x̄)_j (X_jᵀY_j) / (X_jᵀX_j + λ_j)`` with ``λ_j = c · X_jᵀX_j``: ridge in standardised
      coordinates. Needs e = d.
    - ``"orthogonal"``: for y an update, the Procrustes rotation (or reflection) R with a scale a from x to the next
      state x + y inside the top-r subspace, identity on its complement: ``T(q) = h̄ + g + a PRᵀPᵀ(q − x̄) − q``, g
      the part of q − x̄ outside the subspace, h̄ = x̄ + ȳ. Needs e = d.

    c is chosen for each query from `STRENGTHS` by leave-one-out over its own neighbours (for the basis P held fixed,
    exact and without refits). No validation data are needed, and a query's map does not depend on the other queries.

    Args:
        neighbours: Number k of neighbours.
        rank: Number r of directions; at most k − 1 exist, a larger r means all of them. The diagonal kind has none.
        kind: Kind of the map, see above.
        metric: Neighbours by Euclidean distance in coordinates scaled to unit variance over the bank, or in raw
            coordinates, where a few outlier coordinates decide.
        memory_budget: Bytes that working arrays may take, beside the bank and the result.

    Attributes:
        x_: States of the bank, (N, d).
        y_: Their targets, (N, e).
        groups_: Their documents, (N,), or None.
        centre_: Subtracted before distances are computed, (d,).
        scale_: Divided by before distances are computed, (d,).
    """

    neighbours: int = 256
    rank: int = 64
    kind: Literal["low_rank", "diagonal", "orthogonal"] = "low_rank"
    metric: Literal["standardised", "euclidean"] = "standardised"
    memory_budget: int = 2**27
    x_: Tensor = field(init=False, repr=False)
    y_: Tensor = field(init=False, repr=False)
    groups_: Tensor | None = field(init=False, repr=False)
    centre_: Tensor = field(init=False, repr=False)
    scale_: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.neighbours < 2 or self.rank < 1:
            raise InputError(f"a local map needs neighbours ≥ 2 and rank ≥ 1, got {self.neighbours} and {self.rank}")
        if self.kind not in {"low_rank", "diagonal", "orthogonal"}:
            raise InputError(f"kind must be low_rank, diagonal or orthogonal, got {self.kind!r}")
        if self.metric not in {"standardised", "euclidean"}:
            raise InputError(f"metric must be standardised or euclidean, got {self.metric!r}")

    @public
    def sweep(
        self,
        x: Float[Tensor, "query d_in"],
        *,
        groups: Int[Tensor, " query"] | None = None,
        neighbours: Sequence[int] = (32, 64, 128, 256),
        ranks: Sequence[int] = (4, 8, 16, 32, 64),
    ) -> Float[Tensor, "neighbours rank query d_out"]:
        """Predict with every number of neighbours and every rank.

        One search serves all of them, and one factorisation serves all ranks.

        Args:
            x: States, (n, d).
            groups: As for `predict`.
            neighbours: Numbers k of neighbours, in place of the map's own.
            ranks: Ranks r, in place of the map's own.

        Returns:
            Predictions, (len(neighbours), len(ranks), n, e).
        """
        self._check_queries(x, groups)
        return torch.cat(self._blocks(x, groups, neighbours, ranks, lambda rows, block: block), dim=2)

    @public
    def sweep_errors(
        self,
        x: Float[Tensor, "query d_in"],
        y: Float[Tensor, "query d_out"],
        *,
        groups: Int[Tensor, " query"] | None = None,
        neighbours: Sequence[int] = (32, 64, 128, 256),
        ranks: Sequence[int] = (4, 8, 16, 32, 64),
    ) -> Float[Tensor, "neighbours rank query"]:
        """Compute the relative errors ``‖y − ŷ‖ / ‖y‖`` of `sweep`, without holding its predictions.

        For the in-sample curve, where every query is among its own neighbours, pass tokens of the bank without
        groups.

        Args:
            x: States, (n, d).
            y: Their true targets, (n, e).
            groups: As for `predict`.
            neighbours: Numbers k of neighbours.
            ranks: Ranks r.

        Returns:
            Errors, (len(neighbours), len(ranks), n).

        Raises:
            InputError: If `predict` would refuse the queries, or the targets are not as wide as the fitted ones.
        """
        self._check_queries(x, groups)
        self._check_targets(x, y)

        def errors(rows: slice, block: Tensor) -> Tensor:
            return relative_error(y[rows].to(block).expand_as(block), block)

        return torch.cat(self._blocks(x, groups, neighbours, ranks, errors), dim=2)

    def _fit(self, x: Tensor, y: Tensor, groups: Tensor | None, validation: Validation | None) -> None:
        if self.kind != "low_rank" and self.d_in_ != self.d_out_:
            raise InputError(f"a {self.kind} map needs x and y of one width, got {self.d_in_} and {self.d_out_}")
        self.x_, self.y_, self.groups_ = x, y, groups
        spread, centre = torch.std_mean(x.double(), 0, correction=0)
        if self.metric == "euclidean":
            spread = torch.ones_like(spread)
        self.centre_, self.scale_ = centre, torch.where(spread > 0, spread, 1.0)

    def _predict(self, x: Tensor, groups: Tensor | None) -> Tensor:
        return torch.cat(self._blocks(x, groups, (self.neighbours,), (self.rank,), lambda rows, block: block[0, 0]))

    def _blocks(
        self,
        x: Tensor,
        groups: Tensor | None,
        neighbours: Sequence[int],
        ranks: Sequence[int],
        keep: Callable[[slice, Tensor], Tensor],
    ) -> list[Tensor]:
        """Parts that are kept of the predictions (neighbours, rank, query, e) of each block of queries, in order."""
        if not neighbours or not ranks or min(neighbours) < 2 or min(ranks) < 1:
            raise InputError(f"a sweep needs neighbours ≥ 2 and ranks ≥ 1, got {tuple(neighbours)} and {tuple(ranks)}")
        nearest = self._search(x, groups, max(neighbours))

        @torch.no_grad()  # autograd's state is per thread
        def work(rows: slice) -> Tensor:
            index, queries = nearest[rows], x[rows].to(working_dtype(x))
            return keep(rows, torch.stack([self._local(index[:, :k], queries, ranks) for k in neighbours]))

        workers = torch.get_num_threads() if x.device.type == "cpu" else 1
        return in_threads(work, list(self._query_blocks(len(x), max(neighbours), workers)), workers)

    def _local(self, index: Tensor, queries: Tensor, ranks: Sequence[int]) -> Tensor:
        """Predictions of one block from its neighbours' rows in the bank, (rank, query, e)."""
        hood = Neighbourhood(self.x_[index].to(queries), self.y_[index].to(queries), queries)
        if self.kind == "diagonal":
            return hood.diagonal().expand(len(ranks), -1, -1)
        hood.factorise(max(ranks))
        predict = hood.low_rank if self.kind == "low_rank" else hood.orthogonal
        predictions = torch.stack([predict(rank) for rank in ranks])
        ill = hood.ill_conditioned()
        if queries.dtype != torch.float64 and ill.any():
            predictions[:, ill] = self._local(index[ill], queries[ill].double(), ranks).to(predictions)
        return predictions

    def _search(self, x: Tensor, groups: Tensor | None, k: int) -> Tensor:
        """Rows of the bank that are nearest to each query, nearest first, (n, k)."""
        self._check_left(x, groups, k)
        bank = self._coordinates(self.x_.to(working_dtype(x)))
        squares = bank.square().sum(1)
        nearest = torch.empty(len(x), k, dtype=torch.long, device=x.device)
        rows_at_once = max(1, self.memory_budget // (2 * len(bank) * bank.element_size()))
        for start in range(0, len(x), rows_at_once):
            rows = slice(start, start + rows_at_once)
            queries = self._coordinates(x[rows].to(bank))
            distances = torch.addmm(squares, queries, bank.T, alpha=-2)  # less ‖q‖², which orders nothing
            if groups is not None and self.groups_ is not None:
                same_group = torch.eq(groups[rows, None], self.groups_)
                distances.masked_fill_(same_group, float("inf"))
            nearest[rows] = distances.topk(k, largest=False).indices
        return nearest

    def _coordinates(self, x: Tensor) -> Tensor:
        """States in the coordinates that distances are measured in."""
        return (x - self.centre_.to(x)).div_(self.scale_.to(x))

    def _check_left(self, x: Tensor, groups: Tensor | None, k: int) -> None:
        """Make sure that enough neighbours are left outside a query's own group."""
        left = torch.full((len(x),), len(self.x_), device=x.device)
        if groups is not None:
            if self.groups_ is None:
                raise InputError("queries have groups, but the map was fitted without: pass groups= to fit as well")
            names, counts = self.groups_.unique(return_counts=True)
            index = torch.searchsorted(names, groups.contiguous()).clamp(max=len(names) - 1)
            left -= torch.where(names[index] == groups, counts[index], 0)
        if len(left) and int(left.min()) < k:
            raise InputError(
                f"{k} neighbours must exist outside a query's own group, got {int(left.min())}: "
                "fit more tokens or ask for fewer neighbours"
            )

    def _query_blocks(self, queries: int, k: int, workers: int) -> Iterator[slice]:
        """Blocks of queries whose working arrays keep to the budget, all workers together."""
        floats = k * (4 * (self.d_in_ + self.d_out_) + 4 * k)
        size = max(1, self.memory_budget // (8 * floats * workers))
        for start in range(0, max(1, queries), size):
            yield slice(start, start + size)


def in_threads(work: Callable[[slice], Tensor], items: Sequence[slice], workers: int) -> list[Tensor]:
    """Run work on items in threads of one core each; torch's own thread count is 1 meanwhile, and then restored.

    Args:
        work: Function of an item.
        items: The items.
        workers: Number of threads.

    Returns:
        The results in the order of the items.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers)
    try:
        torch.set_num_threads(1 if workers > 1 else before)
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


@public
def instability(
    first: LocalMap,
    second: LocalMap,
    x: Float[Tensor, "query d_in"],
    y: Float[Tensor, "query d_out"],
    *,
    groups: Int[Tensor, " query"] | None = None,
    neighbours: Sequence[int] = (32, 64, 128, 256),
) -> Float[Tensor, "neighbours query"]:
    """Measure the disagreement of two local maps with disjoint banks, ``‖T_A(q) − T_B(q)‖ / ‖y‖``.

    Args:
        first: T_A, fitted on one half of the documents.
        second: T_B, fitted on the other half.
        x: States, (n, d).
        y: Their true targets, (n, e).
        groups: As for `LocalMap.predict`, for both maps.
        neighbours: Numbers k of neighbours to measure with; ranks are the maps' own.

    Returns:
        Values ≥ 0, (len(neighbours), n).

    Raises:
        InputError: If the targets are not those of the queries, or `LocalMap.predict` would refuse the queries.
    """
    one, other = (
        local.sweep(x, groups=groups, neighbours=neighbours, ranks=(local.rank,))[:, 0] for local in (first, second)
    )
    if y.shape != one.shape[1:]:
        raise InputError(f"y must hold the targets of the queries, {tuple(one.shape[1:])}, got {tuple(y.shape)}")
    gap: Tensor = vector_norm(one - other, dim=-1) / vector_norm(y.to(one), dim=-1)
    return gap


class Neighbourhood:
    """A block of queries (b) with their neighbours, centred on the neighbours' means; the module has the formulas.

    Args:
        x: States of the neighbours, (b, k, d).
        y: Their targets, (b, k, e).
        queries: The queries, (b, d).
    """

    def __init__(
        self,
        x: Float[Tensor, "query k d_in"],
        y: Float[Tensor, "query k d_out"],
        queries: Float[Tensor, "query d_in"],
    ) -> None:
        self.queries = queries
        self.mean_x, self.mean_y = x.mean(1), y.mean(1)
        self.x = x - self.mean_x[:, None]
        self.y = y - self.mean_y[:, None]
        self.offset = queries - self.mean_x  # q − x̄

    def factorise(self, rank: int) -> None:
        """Find the top directions of the neighbours by their Gram matrix; directions of rounding noise get s² = 0."""
        k = self.x.shape[1]
        squares, left = torch.linalg.eigh(self.x @ self.x.mT)
        squares, left = squares[:, -rank:].flip(1), left[:, :, -rank:].flip(2)
        eps = k * torch.finfo(squares.dtype).eps
        # Neighbours may coincide (one token's embedding, many times): what is left then is rounding of their mean.
        floor = eps * squares[:, :1] + k * eps**2 * self.mean_x.square().sum(1, keepdim=True)
        self.squares = torch.where(squares > floor, squares, 0.0)  # s², (b, r)
        self.left = torch.where((self.squares > 0)[:, None], left, 0.0)  # U, (b, k, r)
        self.along = self.left.mT @ self.y  # UᵀY, (b, r, e)

    def ill_conditioned(self) -> Tensor:
        """Mark the queries whose smallest direction is too small beside the largest for float32, (b,)."""
        _, k, d = self.x.shape
        last = min(self.squares.shape[1], k - 1, d) - 1  # centring takes one direction away
        return self.squares[:, last] < LEAST_CONDITION * self.squares[:, 0]

    def low_rank(self, rank: int) -> Tensor:
        """Predict by ridge regression on the top directions, (b, e)."""
        squares, left, along = self.squares[:, :rank], self.left[:, :, :rank], self.along[:, :rank]
        kept = squares > 0
        mean_square = squares.sum(1) / kept.sum(1).clamp(min=1)
        candidates = torch.stack([strength * mean_square for strength in STRENGTHS])
        errors = leave_one_out_errors(left, squares, along, self.y, candidates).sum(2)
        penalty = candidates.gather(0, errors.argmin(0, keepdim=True))[0]
        scores = left.mT @ (self.x @ self.offset[:, :, None])  # ((q − x̄)·P_j) s_j
        coefficients = torch.where(kept, scores[:, :, 0] / (squares + penalty[:, None]), 0.0)
        return self.mean_y + (coefficients[:, None] @ along)[:, 0]

    def diagonal(self) -> Tensor:
        """Predict by a scale and an offset for each coordinate, (b, d)."""
        k = self.x.shape[1]
        squares = self.x.square().sum(1)  # (b, d)
        eps = k * torch.finfo(squares.dtype).eps
        varies = squares > k * (eps * self.mean_x).square()
        share = torch.where(varies[:, None], self.x.square() / squares[:, None], 0.0)  # leverage without ridge
        slope = torch.where(varies, (self.x * self.y).sum(1) / squares, 0.0)
        best = torch.full_like(slope[:, 0], float("inf"))
        chosen = torch.zeros_like(best)
        for strength in STRENGTHS:
            shrinkage = 1 / (1 + strength)
            left_out = (self.y - self.x * (slope * shrinkage)[:, None]) / (1 - 1 / k - share * shrinkage)
            error = left_out.square().sum((1, 2))
            chosen = torch.where(error < best, shrinkage, chosen)
            best = torch.minimum(best, error)
        return self.mean_y + self.offset * slope * chosen[:, None]

    def orthogonal(self, rank: int) -> Tensor:
        """Predict by a scaled rotation to x + y in the top directions, identity outside, less the query, (b, d)."""
        squares, left = self.squares[:, :rank], self.left[:, :, :rank]
        scale = torch.where(squares > 0, squares.rsqrt(), 0.0)
        basis = self.x.mT @ left * scale[:, None]  # P, (b, d, r)
        source, target = self.x @ basis, (self.x + self.y) @ basis
        left_turn, stretch, right_turn = torch.linalg.svd(source.mT @ target)
        energy = squares.sum(1)
        factor = torch.where(energy > 0, stretch.sum(1) / energy, 1.0)
        inside = self.offset[:, None] @ basis  # (b, 1, r)
        turned = factor[:, None, None] * inside @ (left_turn @ right_turn)
        next_state = self.mean_x + self.mean_y + self.offset + ((turned - inside) @ basis.mT)[:, 0]
        update: Tensor = next_state - self.queries
        return update


def leave_one_out_errors(
    left: Float[Tensor, "query k r"],
    squares: Float[Tensor, "query r"],
    along: Float[Tensor, "query r d_out"],
    y: Float[Tensor, "query k d_out"],
    penalties: Float[Tensor, "choice query"],
) -> Float[Tensor, "choice query k"]:
    """Compute the squared error at each neighbour when it alone is left out of the ridge fit, the directions kept.

    ``‖y_i − ŷ_i‖² / (1 − h_i)²`` with ``h_i = 1/k + Σ_j U_ij² s_j² / (s_j² + λ)``, exact for an unpenalised mean
    (Allen's PRESS; Hastie, Tibshirani & Friedman, *The Elements of Statistical Learning*, eq. 7.64).
    ``‖y_i − ŷ_i‖²`` is expanded so that a penalty costs O(k r²) and not O(k r e).

    Args:
        left: U, orthonormal columns, each of mean 0 or all 0, (b, k, r).
        squares: s², (b, r).
        along: UᵀY, (b, r, e).
        y: Centred targets Y, (b, k, e).
        penalties: λ, several for each query, (choice, b).

    Returns:
        Squared errors, (choice, b, k).
    """
    k = y.shape[1]
    cross = y @ along.mT  # y_i · (UᵀY)_j
    gram = along @ along.mT
    norms = y.square().sum(2)
    errors = []
    for penalty in penalties:
        total = squares + penalty[:, None]
        shrinkage = torch.where(total > 0, squares / total, 0.0)
        shrunk = left * shrinkage[:, None]
        residual = norms - 2 * (shrunk * cross).sum(2) + (shrunk @ gram * shrunk).sum(2)
        leverage = 1 / k + (shrunk * left).sum(2)
        errors.append(residual.clamp(min=0) / (1 - leverage).square())
    return torch.stack(errors)
