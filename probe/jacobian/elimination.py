"""Derivatives through a graph of small ones, by elimination of the vertices between (Griewank & Reese 1991).

A vertex is a tensor of a run, an edge the derivative of one by another where nothing else lies between. To eliminate a
vertex is to add, for each way through it, the product of its two edges to the edge from end to end. What is left at
last is the derivative of the output by the input. The order decides the cost: that of an MLP is

    W_down (diag(s) W_gate + diag(t) W_up),

one large product, where a backward pass makes three. It is searched for once, by the sizes and forms of the edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

_WRITTEN, _BEAM = 40.0, 8
"""Additions and products of a matrix product that take as long as a number written to memory; orders that are kept in
the search."""

Rows = slice | Tensor


def rows_of(index: Int[Tensor, " some"]) -> Rows:
    """Return indices as a slice, where they follow each other."""
    first, count = int(index[0]), len(index)
    follow = torch.equal(index, torch.arange(first, first + count, device=index.device))
    return slice(first, first + count) if follow else index


@dataclass(frozen=True)
class Dense:
    """A matrix of each position, or one for all (the first axis has one entry then)."""

    values: Float[Tensor, "n out in"]

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of outputs and of inputs."""
        return self.values.shape[1], self.values.shape[2]

    def dense(self, row: int) -> Float[Tensor, "out in"]:
        """Return the matrix of a position."""
        return self.values[row if len(self.values) > 1 else 0]

    def times(self, row: int, right: Float[Tensor, "in c"]) -> Float[Tensor, "out c"]:
        """Multiply by a matrix on the right."""
        return self.dense(row) @ right

    def cost(self, columns: int) -> float:
        """Estimate the cost of `times`."""
        out, entering = self.size
        return columns * out * (2.0 * entering + _WRITTEN)


@dataclass(frozen=True)
class Grouped:
    """A derivative that is zero but within groups, of as many outputs each, which follow each other.

    Attributes:
        values: The derivative by group; zero where a group has fewer inputs than another.
        inputs: The inputs of each group.
        width: Number of all inputs.
    """

    values: Float[Tensor, "n group out in"]
    inputs: Int[Tensor, "group in"]
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of outputs and of inputs."""
        return self.values.shape[1] * self.values.shape[2], self.width

    @cached_property
    def _places(self) -> list[Rows]:
        single = self.values.shape[2] == 1
        return [rows_of(each) for each in self.inputs.T] if single else [rows_of(self.inputs.flatten())]

    def times(self, row: int, right: Float[Tensor, "in c"]) -> Float[Tensor, "out c"]:
        """Multiply by a matrix on the right."""
        values = self.values[row]
        if values.shape[1] > 1:
            taken = right[self._places[0]].reshape(*self.inputs.shape, -1)
            return torch.bmm(values, taken).flatten(0, 1)
        slopes = values[:, 0].T[..., None]
        total = slopes[0] * right[self._places[0]]
        for slope, place in zip(slopes[1:], self._places[1:], strict=True):
            total.addcmul_(slope, right[place])
        return total

    def before(self, row: int, left: Float[Tensor, "c out"]) -> Float[Tensor, "c in"]:
        """Multiply by a matrix on the left."""
        values = self.values[row]
        if values.shape[1:] == (1, 1) and isinstance(place := self._places[0], slice) and self.width == len(values):
            assert place.start == 0
            return left * values.flatten()
        parts = torch.bmm(left.reshape(len(left), *values.shape[:2]).transpose(0, 1), values)  # (group, c, in)
        found = left.new_zeros((len(left), self.width))
        return found.index_add_(1, self.inputs.flatten(), parts.transpose(0, 1).flatten(1))

    def dense(self, row: int) -> Float[Tensor, "out in"]:
        """Return the matrix of a position."""
        return self.before(row, torch.eye(self.size[0], dtype=self.values.dtype, device=self.values.device))

    def cost(self, columns: int) -> float:
        """Estimate the cost of `times`."""
        groups, out, entering = self.values.shape[1:]
        return columns * groups * (_WRITTEN * entering if out == 1 else out * (2.0 * entering + _WRITTEN))


@dataclass(frozen=True)
class Columns:
    """A derivative by some of the inputs."""

    values: Float[Tensor, "n out some"]
    inputs: Int[Tensor, " some"]
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of outputs and of inputs."""
        return self.values.shape[1], self.width

    @cached_property
    def _place(self) -> Rows:
        return rows_of(self.inputs)

    def times(self, row: int, right: Float[Tensor, "in c"]) -> Float[Tensor, "out c"]:
        """Multiply by a matrix on the right."""
        return self.values[row] @ right[self._place]

    def before(self, row: int, left: Float[Tensor, "c out"]) -> Float[Tensor, "c in"]:
        """Multiply by a matrix on the left."""
        return left.new_zeros((len(left), self.width)).index_copy_(1, self.inputs, left @ self.values[row])

    def dense(self, row: int) -> Float[Tensor, "out in"]:
        """Return the matrix of a position."""
        return self.before(row, torch.eye(self.size[0], dtype=self.values.dtype, device=self.values.device))

    def cost(self, columns: int) -> float:
        """Estimate the cost of `times`."""
        _, out, some = self.values.shape
        return columns * out * (2.0 * some + _WRITTEN)


Part = Dense | Grouped | Columns
Ends = tuple[int, int]
Edges = Mapping[Ends, Sequence[Part]]
"""Derivatives of vertices by vertices, each the sum of its parts: by the vertex of the input, then of the output."""


@dataclass
class _Edge:
    """An edge while vertices are eliminated: parts that were given, and a matrix that was made."""

    parts: Sequence[Part] = ()
    made: Tensor | None = None

    def whole(self, row: int) -> Tensor | None:
        """Return the edge as a matrix, if it is one already."""
        if not self.parts:
            return self.made
        (part, *others) = self.parts
        return part.dense(row) if isinstance(part, Dense) and not others and self.made is None else None

    def add(self, matrix: Tensor) -> None:
        self.made = matrix if self.made is None else self.made.add_(matrix)

    def add_product(self, left: Tensor, right: Tensor) -> None:
        self.made = left @ right if self.made is None else self.made.addmm_(left, right)

    def summed(self, row: int) -> Tensor:
        """Make the edge a matrix."""
        for part in self.parts:
            self.add(part.dense(row).clone())
        self.parts = ()
        assert self.made is not None
        return self.made


def _multiply(total: _Edge, later: _Edge, earlier: _Edge, row: int) -> None:
    """Add the product of two edges to a third."""
    right, left = earlier.whole(row), later.whole(row)
    if right is None and left is not None:
        for part in earlier.parts:
            if isinstance(part, Dense):
                total.add_product(left, part.dense(row))
            else:
                total.add(part.before(row, left))
        if earlier.made is not None:
            total.add_product(left, earlier.made)
        return
    right = earlier.summed(row) if right is None else right
    for part in later.parts:
        if isinstance(part, Grouped):
            total.add(part.times(row, right))
        elif isinstance(part, Dense):
            total.add_product(part.dense(row), right)
        else:
            total.add(part.times(row, right))
    if later.made is not None:
        total.add_product(later.made, right)


def derivative(edges: Edges, order: Sequence[int], row: int) -> Float[Tensor, "out in"]:
    """Compute the derivative by elimination of all vertices but the first, 0, and the last, −1, for one position.

    Args:
        edges: The edges.
        order: The other vertices, in the order of elimination.
        row: The position.

    Returns:
        The derivative of the last vertex by the first.
    """
    live = {ends: _Edge(parts) for ends, parts in edges.items()}
    for vertex in order:
        entering = {first: live.pop((first, last)) for first, last in list(live) if last == vertex}
        leaving = {last: live.pop((first, last)) for first, last in list(live) if first == vertex}
        for first, earlier in entering.items():
            for last, later in leaving.items():
                _multiply(live.setdefault((first, last), _Edge()), later, earlier, row)
    (edge,) = live.values()
    return edge.summed(row)


@dataclass(frozen=True)
class _Form:
    """Facts on which a product's cost depends: the parts of an edge, its size, and whether a matrix was added to it."""

    parts: Sequence[Part]
    size: tuple[int, int]
    made: bool

    @property
    def whole(self) -> bool:
        return not self.parts or (not self.made and len(self.parts) == 1 and isinstance(self.parts[0], Dense))

    def times(self, columns: int) -> float:
        out, entering = self.size
        own = columns * out * (2.0 * entering + _WRITTEN) if self.made else 0.0
        return own + sum(part.cost(columns) for part in self.parts)


def _product_cost(later: _Form, earlier: _Form) -> float:
    (out, _), (between, entering) = later.size, earlier.size
    if earlier.whole:
        return later.times(entering)
    if not later.whole:
        return _WRITTEN * between * entering + later.times(entering)
    diagonal = all(isinstance(part, Grouped) and part.values.shape[2:] == (1, 1) for part in earlier.parts)
    own = _WRITTEN * out * entering * len(earlier.parts) if diagonal else 2.0 * out * between * entering
    return own + (out * entering * (2.0 * between + _WRITTEN) if earlier.made else 0.0)


def elimination_order(edges: Edges) -> list[int]:
    """Search for a cheap order in which `derivative` eliminates.

    Args:
        edges: The edges; vertex 0 is the input, −1 the output.

    Returns:
        All other vertices.
    """
    forms = {ends: _Form(parts, parts[0].size, made=False) for ends, parts in edges.items()}
    vertices = {vertex for ends in edges for vertex in ends} - {0, -1}
    beam: list[tuple[float, list[int], dict[Ends, _Form]]] = [(0.0, [], forms)]
    for _ in range(len(vertices)):
        found: dict[frozenset[int], tuple[float, list[int], dict[Ends, _Form]]] = {}
        for cost, order, state in beam:
            for vertex in vertices.difference(order):
                more, after = _eliminated(state, vertex)
                key, total = frozenset([*order, vertex]), cost + more
                if key not in found or total < found[key][0]:
                    found[key] = total, [*order, vertex], after
        beam = sorted(found.values(), key=lambda each: each[0])[:_BEAM]
    return beam[0][1]


def _eliminated(state: Mapping[Ends, _Form], vertex: int) -> tuple[float, dict[Ends, _Form]]:
    """The cost of a step, and the edges after it."""
    entering = {first: form for (first, last), form in state.items() if last == vertex}
    leaving = {last: form for (first, last), form in state.items() if first == vertex}
    after, cost = {ends: form for ends, form in state.items() if vertex not in ends}, 0.0
    for first, earlier in entering.items():
        for last, later in leaving.items():
            cost += _product_cost(later, earlier)
            before = after.get((first, last))
            size = later.size[0], earlier.size[1]
            after[first, last] = _Form(() if before is None else before.parts, size, made=True)
    return cost, after
