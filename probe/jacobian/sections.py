"""Jacobians of blocks of any code in a frozen context, composed of small derivatives between their matrices.

A block is run once at the chosen positions, cut behind each linear module, behind what it has of one number a position
(the mean square of a norm), and at its ends. What lies between the cuts, a section, is small and most often acts within
groups: number by number, or head by head. Its derivative takes as many vector-Jacobian products as a group has outputs,
with unit vectors of all groups at once; inputs that several groups share take a product from the other side each.
`probe.jacobian.elimination` composes the sections and the matrices.

No formula of an architecture is needed: which outputs make groups, and of which inputs, is found by running, once for
each kind of block. With the cotangents r, g · r and π(g) · r, where g counts the groups and π permutes them, the
gradients of an input that one group alone reads have the ratios g and π(g).

One random product with the composed matrices is compared with one through the block uncut, at each call; where they
differ, and where the code does not run so, the rows are computed one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from probe.jacobian import rows
from probe.jacobian.elimination import Columns, Dense, Edges, Grouped, Part, derivative, elimination_order
from probe.jacobian.parts import PartOfBlock, Run
from probe.model import LanguageModel, first_tensor
from probe.model.architectures import matrix_of
from probe.replay import Context

logger = logging.getLogger("probe.jacobian")

LEAST_WIDTH = 128
"""Width of the stream from which on sections save time: below it rows are cheap."""
_PUSHED = 3
"""Vector-Jacobian products that take as long as a product from the other side, roughly."""


@dataclass(frozen=True)
class Groups:
    """How the outputs of a section depend on the leaves.

    Attributes:
        size: Outputs of a group.
        owners: For each leaf the group that reads an input; −1: several do; −2: none was seen to.
        products: How many vector-Jacobian products take as long as the derivative.
        tried: The owners by groups of each size that was tried.
    """

    size: int
    owners: tuple[Int[Tensor, " in"], ...]
    products: int
    tried: dict[int, tuple[Int[Tensor, " in"], ...]]


@dataclass
class Kinds:
    """What is known of the kinds of blocks of a model.

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


class _Tape(TorchFunctionMode):
    """One run of a block, cut.

    Attributes:
        count: Number of positions N; 0 before the block runs.
        where: The place of each chosen position among the N, counted from 1; 0: it is not among them.
        leaves: What begins a section: first the stream that enters.
        ends: What ends one, last the stream that leaves.
        between: For each leaf but the first the end that it is made of, and by which matrix.
        names: For each leaf but the first the module.
    """

    def __init__(self, hidden: Tensor, states: Tensor) -> None:
        super().__init__()
        self.count = hidden.numel() // hidden.shape[-1]
        numbers = torch.arange(1.0, self.count + 1).to(hidden).reshape(*hidden.shape[:-1], 1)
        (found,) = torch.autograd.grad((hidden * numbers).sum(), states, retain_graph=True)
        self.where = found[..., 0].long()
        self.leaves, self.ends = [hidden.detach().requires_grad_()], list[Tensor]()
        self.between = list[tuple[int, Tensor | None]]()
        self.names = list[str]()

    def end(self, tensor: Tensor) -> int:
        """Return the number of an end."""
        for number, known in enumerate(self.ends):
            if known is tensor:
                return number
        self.ends.append(tensor)
        return len(self.ends) - 1

    def cut(self, end: Tensor, matrix: Tensor | None, output: Tensor, name: str) -> Tensor:
        """Begin a section with an output."""
        self.between.append((self.end(end), matrix))
        self.names.append(name)
        self.leaves.append(output.detach().requires_grad_())
        return self.leaves[-1].clone()  # code may write in place, which a leaf does not allow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Cut behind what has one number a position."""
        if func in (nn.functional.layer_norm, nn.functional.rms_norm):
            return self._normed(func, *args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if not (isinstance(output, Tensor) and output.requires_grad and output.numel() == self.count):
            return output
        if output._is_view() or all(output.numel() >= part.numel() for part in args if isinstance(part, Tensor)):
            return output
        return self.cut(output, None, output, getattr(func, "__name__", ""))

    def _normed(
        self,
        func: Any,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        """Norms of torch, step by step."""
        axes = tuple(range(-len(normalized_shape), 0))
        eps = (1e-5 if func is nn.functional.layer_norm else torch.finfo(input.dtype).eps) if eps is None else eps
        with self:
            centred = input - input.mean(axes, keepdim=True) if func is nn.functional.layer_norm else input
            normed = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
        normed = normed if weight is None else normed * weight
        return normed if bias is None else normed + bias


@dataclass
class _Cutter:
    """Hooks on a working copy that cut its runs.

    Attributes:
        block: The working copy.
        hidden_name: Name of the argument that is the stream.
        states: What the run begins with.
        joined: Paths of linear modules that belong to the section before them.
        tapes: The runs.
    """

    block: nn.Module
    hidden_name: str
    states: Tensor
    joined: set[str]
    tapes: list[_Tape] = field(default_factory=list)
    _open: bool = False

    def install(self, stack: ExitStack) -> None:
        """Put the hooks on; the stack takes them off again."""
        stack.callback(self.close)
        stack.callback(self.block.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        stack.callback(self.block.register_forward_hook(self._leave).remove)
        for path, module in self.block.named_modules():
            if type(module).__name__ in ("Linear", "Conv1D"):
                stack.callback(module.register_forward_hook(self._behind(path, module)).remove)

    def close(self) -> None:
        """End the run, also one that was broken off."""
        if self._open:
            self._open = False
            self.tapes[-1].__exit__(None, None, None)

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        tape = _Tape(args[0] if args else kwargs[self.hidden_name], self.states)
        self.tapes.append(tape)
        tape.__enter__()
        self._open = True
        leaf = tape.leaves[0].clone()
        return ((leaf, *args[1:]), kwargs) if args else (args, {**kwargs, self.hidden_name: leaf})

    def _leave(self, _: nn.Module, __: Any, output: Any) -> None:
        self.close()
        self.tapes[-1].ends.append(first_tensor(output))

    def _behind(self, path: str, module: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None]:
        matrix = matrix_of(module).detach()

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
            given, tape = args[0] if args else None, self.tapes[-1]
            if not (isinstance(given, Tensor) and isinstance(output, Tensor) and given.requires_grad):
                return None
            if (output.numel(), given.numel()) != (tape.count * matrix.shape[0], tape.count * matrix.shape[1]):
                return None
            return (
                tape.cut(output, None, output, path) if path in self.joined else tape.cut(given, matrix, output, path)
            )

        return hook


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


def _kind(tape: _Tape) -> Hashable:
    """What runs of the same code on other states have in common."""
    widths = (tensor.numel() // tape.count for tensor in chain(tape.leaves, tape.ends))
    return tuple(tape.names), tuple(end for end, _ in tape.between), tuple(widths)


def _taped(context: Context, layer: int, copy: nn.Module, run: Run, point: Tensor, *, learning: bool) -> list[_Tape]:
    """Run a block cut; what is not known of its kind, or is to be learned anew, is found."""
    kinds, new = kinds_of(context.model), set[Hashable]()
    while True:
        cutter = _Cutter(copy, context.calls[layer].hidden_name, point, set(kinds.joined))
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
                    _groups(tape, end, None if known is None else known[number], 1e-8 if learning else 2e-5)
                    for number, end in enumerate(tape.ends)
                ]
            kinds.joined |= {
                name
                for name, (end, matrix) in zip(tape.names, tape.between, strict=True)
                if matrix is not None and known[end].products > len(matrix)
            }
        if kinds.joined == cutter.joined:
            return cutter.tapes


def _fill(jacobian: Tensor, tape: _Tape, kinds: Kinds, chunk: int) -> None:
    """Compose the matrices of the positions of one run."""
    kind = _kind(tape)
    edges = _edges(tape, kinds.groups[kind], chunk * tape.where.numel() // tape.count)
    if kind not in kinds.orders:
        kinds.orders[kind] = elimination_order(edges)
    for window, column in tape.where.nonzero().tolist():
        row = int(tape.where[window, column]) - 1
        jacobian[window, column] = derivative(edges, kinds.orders[kind], row)


def _groups(tape: _Tape, end: Tensor, known: Groups | None, tolerance: float) -> Groups:
    """Find the groups of a section that take the fewest products; ratios hold up to a relative tolerance."""
    tolerance = max(tolerance, 64 * torch.finfo(end.dtype).eps)
    width = end.numel() // tape.count
    draw = torch.Generator().manual_seed(0)
    vector = torch.randn((tape.count, width), dtype=torch.float64, generator=draw).to(end)

    def gradients(factors: Tensor) -> tuple[Tensor | None, ...]:
        cotangent = (vector * factors.to(end)).reshape(end.shape)
        pulled = torch.autograd.grad(end, tape.leaves, cotangent, retain_graph=True, allow_unused=True)
        return tuple(None if each is None else each.reshape(tape.count, -1) for each in pulled)

    plain = gradients(torch.ones(width))
    best, least, tried = 0, float("inf"), {} if known is None else dict(known.tried)
    for size in (size for size in range(1, width + 1) if width % size == 0):
        if size >= least:
            break
        count = width // size
        turned = torch.randperm(count, generator=draw)
        codes = [gradients((each + 1.0).repeat_interleave(size)) for each in (torch.arange(count), turned)]
        owners = tuple(
            _owners(tape.leaves[number].numel() // tape.count, turned, tolerance, *pulled)
            for number, pulled in enumerate(zip(plain, *codes, strict=True))
        )
        if size in tried:
            owners = tuple(map(_agreed, owners, tried[size]))
        tried[size] = owners
        products = size + _PUSHED * sum(int((owner == -1).sum()) for owner in owners)
        if products < least:
            best, least = size, products
    return Groups(best, tried[best], int(least), tried)


def _agreed(one: Tensor, other: Tensor) -> Tensor:
    """What was seen of the owners at two points."""
    both = torch.where(one == other, one, -1)
    return torch.where(one == -2, other, torch.where(other == -2, one, both))


def _owners(
    width: int, turned: Tensor, tolerance: float, plain: Tensor | None, first: Tensor | None, second: Tensor | None
) -> Tensor:
    """The group that alone reads each input of a leaf, at all positions."""
    if plain is None or first is None or second is None:
        return torch.full((width,), -2)
    count = len(turned)
    if count == 1:
        return torch.zeros(width, dtype=torch.int64)
    one, two = ((each / plain - 1).cpu() for each in (first, second))  # (n, in)
    owner = one.nan_to_num(-1, -1, -1).round().clamp(-1, count).long()
    expected = turned[owner.clamp(0, count - 1)]
    near = ((one - owner).abs() < tolerance * (1 + owner)) & ((two - expected).abs() < tolerance * (1 + expected))
    owner = torch.where((owner >= 0) & (owner < count) & near, owner, -1)
    owner = torch.where((plain == 0).cpu(), -2, owner)
    found = owner[0]
    for each in owner[1:]:
        found = _agreed(found, each)
    places = torch.arange(width) % count
    if width % count == 0 and bool(((found == places) | (found == -2)).all()):
        return places  # number by number; of some the slope happened to be zero
    return found


def _edges(tape: _Tape, known: Sequence[Groups], chunk: int) -> Edges:
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


def _section(tape: _Tape, end: Tensor, groups: Groups, chunk: int) -> dict[int, list[Part]]:
    """The derivative of an end by the leaves that it depends on."""
    width, size = end.numel() // tape.count, groups.size
    found: dict[int, list[Part]] = {}
    pulled = dict[int, _Inputs]()
    for number, owner in enumerate(groups.owners):
        leaf = tape.leaves[number]
        inputs = _Inputs.of(owner.to(end.device), width // size)
        if inputs is not None and 2 * _PUSHED * inputs.places.shape[1] > size:
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
    tape: _Tape, end: Tensor, leaf: Tensor, units: Float[Tensor, "many in"], chunk: int
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
        """The derivative by these inputs."""
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
