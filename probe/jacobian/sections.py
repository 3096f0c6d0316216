"""Jacobians of blocks of any code in a frozen context, composed of small derivatives between their matrices.

A block is run once at the chosen positions, cut behind each linear module, behind what it has of one number a position
(the mean square of a norm), and at its ends. What lies between the cuts, a section, is small and most often acts within
groups: number by number, or head by head. Its derivative takes as many vector-Jacobian products as a group has outputs,
with unit vectors of all groups at once; inputs that several groups share take a product from the other side each.
`probe.jacobian.elimination` composes the sections and the matrices.

No formula of an architecture is needed: which outputs make groups, and of which inputs, is found by running, once for
each kind of block (`probe.jacobian.groups`).

One random product with the composed matrices is compared with one through the block uncut, at each call; where they
differ, and where the code does not run so, the rows are computed one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from probe.jacobian import rows
from probe.jacobian.elimination import Columns, Dense, Edges, Grouped, Part, derivative, elimination_order
from probe.jacobian.groups import PUSHED, Groups, found_groups
from probe.jacobian.parts import PartOfBlock, Run
from probe.jacobian.tape import Cutter, Tape
from probe.model import LanguageModel
from probe.replay import Context

logger = logging.getLogger("probe.jacobian")

LEAST_WIDTH = 128
"""Width of the stream from which on sections save time: below it rows are cheap."""


@dataclass
class Kinds:
    """Findings on the kinds of blocks of a model.

    Attributes:
        groups: By kind, for each section.
        orders: By kind, the order in which vertices are eliminated.
        refused: Kinds that are not composed of sections.
        joined: Paths of linear modules with fewer outputs than the section before them takes products: they belong to
            that section.
    """

    groups: dict[Hashable, list[Groups]] = field(default_factory=dict)
    orders: dict[Hashable, list[int]] = field(default_factory=dict)
    refused: set[Hashable] = field(default_factory=set)
    joined: set[str] = field(default_factory=set)


def kinds_of(model: LanguageModel) -> Kinds:
    """Return what is known of a model's kinds of blocks, which is kept on the model.

    Args:
        model: The model.

    Returns:
        The kinds.
    """
    kept: dict[str, Any] = vars(model)
    kinds: Kinds = kept.setdefault("_sections", Kinds())
    return kinds


def frozen(
    context: Context,
    layer: int,
    part: PartOfBlock,
    runs: Sequence[tuple[nn.Module, Run]],
    dtype: torch.dtype,
    chunk: int,
) -> Float[Tensor, "window chosen d d"]:
    """Compute ∂ part(x)/∂x at the chosen positions, all before them constant.

    By sections where the part is a whole block; else row by row, 2 · d · params FLOPs a position.

    Args:
        context: The recorded context.
        layer: Index of the block.
        part: The block's part, over a working copy.
        runs: That copy and its run at the chosen positions, then those of the copy to cut.
        dtype: The dtype of the arithmetic.
        chunk: Rows at once.

    Returns:
        The matrices.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        point, output = part.run(context.state(layer).to(dtype), runs[0][1])
    composed = None
    if part.name == "block" and part.target is None and point.shape[-1] >= LEAST_WIDTH:
        composed = _of_sections(context, layer, *runs[-1], point, output, chunk)
    return rows.jacobian_of_rows(output, point, chunk) if composed is None else composed


def _of_sections(
    context: Context, layer: int, copy: nn.Module, run: Run, point: Tensor, output: Tensor, chunk: int
) -> Tensor | None:
    """The matrices, or None where the block is not composed of its sections."""
    kinds, kind = kinds_of(context.model), None
    draw = torch.Generator().manual_seed(layer)
    vector = torch.randn(output.shape, dtype=torch.float64, generator=draw).to(output)
    (expected,) = torch.autograd.grad(output, point, vector, retain_graph=True)
    relative, absolute = (1e-4, 1e-6) if torch.finfo(output.dtype).bits == 32 else (1e-6, 1e-7)
    allowed = relative * (expected - vector).norm(dim=-1) + absolute * vector.norm(dim=-1)
    try:
        for learning in (False, True):
            tapes = _taped(context, layer, copy, run, point, learning=learning)
            kind = tuple(map(_kind, tapes))
            if kind in kinds.refused:
                return None
            jacobian = output.new_empty((*point.shape, point.shape[-1]))
            for tape in tapes:
                _fill(jacobian, tape, kinds, chunk)
            found = torch.einsum("wpi,wpij->wpj", vector, jacobian)
            if bool(((found - expected).norm(dim=-1) <= allowed).all()):
                return jacobian
    except Exception as error:  # whether code can be cut shows only when it runs
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        logger.info("block %d of %s is not cut into sections: %s", layer, context.model.name, error)
    else:
        logger.info("block %d of %s is not composed of its sections", layer, context.model.name)
    kinds.refused.add(kind)
    return None


def _kind(tape: Tape) -> Hashable:
    """A key that runs of the same code on other states have in common."""
    widths = (tensor.numel() // tape.count for tensor in chain(tape.leaves, tape.ends))
    return tuple(tape.names), tuple(end for end, _ in tape.between), tuple(widths)


def _taped(context: Context, layer: int, copy: nn.Module, run: Run, point: Tensor, *, learning: bool) -> list[Tape]:
    """Run a block cut; what is not known of its kind, or is to be learned anew, is found."""
    kinds, new = kinds_of(context.model), set[Hashable]()
    while True:
        cutter = Cutter(copy, context.calls[layer].hidden_name, point, set(kinds.joined))
        with ExitStack() as stack, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            cutter.install(stack)
            run(point)
        for tape in cutter.tapes:
            kind = _kind(tape)
            known = kinds.groups.get(kind)
            if known is None:
                new.add(kind)
            if known is None or learning or kind in new:
                kinds.orders.pop(kind, None)
                kinds.groups[kind] = known = [
                    found_groups(tape, end, None if known is None else known[number], 1e-8 if learning else 2e-5)
                    for number, end in enumerate(tape.ends)
                ]
            kinds.joined |= {
                name
                for name, (end, matrix) in zip(tape.names, tape.between, strict=True)
                if matrix is not None and known[end].products > len(matrix)
            }
        if kinds.joined == cutter.joined:
            return cutter.tapes


def _fill(jacobian: Tensor, tape: Tape, kinds: Kinds, chunk: int) -> None:
    """Compose the matrices of the positions of one run."""
    kind = _kind(tape)
    edges = _edges(tape, kinds.groups[kind], chunk * tape.where.numel() // tape.count)
    if kind not in kinds.orders:
        kinds.orders[kind] = elimination_order(edges)
    for window, column in tape.where.nonzero().tolist():
        row = int(tape.where[window, column]) - 1
        jacobian[window, column] = derivative(edges, kinds.orders[kind], row)


def _edges(tape: Tape, known: Sequence[Groups], chunk: int) -> Edges:
    """The graph: its vertices are ends, then what matrices made of them; 0 is what enters, −1 what leaves."""
    last = len(tape.ends) - 1
    ends = [*range(1, last + 1), -1]
    leaves, edges = [0], dict[tuple[int, int], list[Part]]()
    for number, (end, matrix) in enumerate(tape.between, 1):
        leaves.append(ends[end] if matrix is None else last + number)
        if matrix is not None:
            edges[ends[end], leaves[-1]] = [Dense(matrix[None])]
    for number, groups in enumerate(known):
        for leaf, parts in _section(tape, tape.ends[number], groups, chunk).items():
            edges[leaves[leaf], ends[number]] = parts
    for end, leaf in [ends for ends in edges if ends[1] > last]:
        readers = [ends for ends in edges if ends[0] == leaf]
        if len(readers) == 1:
            edges[end, leaf], edges[readers[0]] = _in_order(edges[end, leaf], edges[readers[0]])
    return edges


def _section(tape: Tape, end: Tensor, groups: Groups, chunk: int) -> dict[int, list[Part]]:
    """The derivative of an end by the leaves that it depends on."""
    width, size = end.numel() // tape.count, groups.size
    found: dict[int, list[Part]] = {}
    pulled = dict[int, _Inputs]()
    for number, owner in enumerate(groups.owners):
        leaf = tape.leaves[number]
        inputs = _Inputs.of(owner.to(end.device), width // size)
        if inputs is not None and 2 * PUSHED * inputs.places.shape[1] > size:
            pulled[number] = inputs
        elif inputs is not None:  # far fewer inputs than outputs: from the other side
            units = leaf.new_zeros((inputs.places.shape[1], len(owner)))
            units.scatter_(1, inputs.places.T, inputs.filled.T.to(leaf.dtype))
            products = _pushed(tape, end, leaf, units, chunk)  # (in, n, out)
            by_group = products.unflatten(-1, (-1, size)).permute(1, 2, 3, 0)
            found[number] = [inputs.part(by_group)]
        if bool((owner == -1).any()):
            shared = (owner == -1).nonzero()[:, 0].to(end.device)
            units = torch.eye(len(owner), dtype=leaf.dtype, device=leaf.device)[shared]
            products = _pushed(tape, end, leaf, units, chunk)
            found.setdefault(number, []).append(Columns(products.permute(1, 2, 0).contiguous(), shared, len(owner)))
    if pulled:
        units = torch.eye(size, dtype=end.dtype, device=end.device).repeat(1, width // size)
        cotangents = units[:, None].expand(-1, tape.count, -1).reshape(size, *end.shape)
        leaves = [tape.leaves[number] for number in pulled]
        chunks = [rows.pulled_by_each(end, leaves, part) for part in cotangents.split(chunk)]
        for (number, inputs), parts in zip(pulled.items(), zip(*chunks, strict=True), strict=True):
            gradients = torch.cat(parts).reshape(size, tape.count, -1)
            by_group = gradients[:, :, inputs.places].permute(1, 2, 0, 3)
            found[number] = [inputs.part(by_group), *found.get(number, ())]
    return found


def _pushed(
    tape: Tape, end: Tensor, leaf: Tensor, units: Float[Tensor, "many in"], chunk: int
) -> Float[Tensor, "many n out"]:
    """Multiply the derivative of an end by a leaf by vectors, the same at each position."""
    tangents = units[:, None].expand(-1, tape.count, -1).reshape(-1, *leaf.shape)
    multiply = rows.ForwardProducts(end, leaf)
    products = torch.cat([multiply(part).detach() for part in tangents.split(chunk)])
    return products.reshape(len(units), tape.count, -1)


@dataclass(frozen=True)
class _Inputs:
    """The inputs of each group, as many as the largest has; `filled` says which there are."""

    places: Int[Tensor, "group in"]
    filled: Bool[Tensor, "group in"]
    width: int

    @classmethod
    def of(cls, owner: Int[Tensor, " in"], groups: int) -> _Inputs | None:
        owned = owner >= 0
        if not bool(owned.any()):
            return None
        sizes = torch.bincount(owner[owned], minlength=groups)
        count = torch.arange(int(sizes.max()), device=owner.device)
        order = owner.argsort(stable=True)[int((~owned).sum()) :]
        places = (count + (sizes.cumsum(0) - sizes)[:, None]).clamp(max=len(order) - 1)
        return cls(order[places], count < sizes[:, None], len(owner))

    def part(self, values: Float[Tensor, "n group out in"]) -> Part:
        """Make the derivative by these inputs."""
        if len(self.places) == 1:
            return Dense(values[:, 0])
        return Grouped((values * self.filled[:, None]).contiguous(), self.places, self.width)


def _in_order(made: list[Part], read: list[Part]) -> tuple[list[Part], list[Part]]:
    """Put the rows of a matrix into the order in which groups read them, so that each group's follow each other."""
    inputs = [part.inputs.flatten() for part in read if not isinstance(part, Dense)]
    order = torch.cat(inputs) if inputs else torch.empty(0)
    by_head = any(isinstance(part, Grouped) and part.values.shape[2] > 1 for part in read)
    if not by_head or len(inputs) < len(read) or len(order.unique()) < len(order):
        return made, read
    (matrix,) = made
    assert isinstance(matrix, Dense)
    places = torch.arange(len(order), device=order.device).split([len(each) for each in inputs])
    parts = [
        replace(part, inputs=place.reshape(part.inputs.shape), width=len(order))
        for part, place in zip(read, places, strict=True)
        if not isinstance(part, Dense)
    ]
    return [Dense(matrix.values[:, order])], list(parts)
