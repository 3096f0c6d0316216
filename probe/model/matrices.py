"""The matrices of a block, found by running it: which linear modules read the stream, which write to it, and what for.

A linear module reads the stream if its input has the stream's width, and writes to it if its output has. What a reader
of attention is for shows when its output is moved at the first position alone. A first position attends to itself with
weight 1, whatever the scores: so the values move what enters `o` there and later, the keys only later, the queries
neither. In an MLP the gate is what enters the activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from probe.model.architectures import Cut, Matrix, Projection, matrix_of
from probe.model.hooks import evaluating, undisturbed
from probe.model.sums import Sums
from probe.model.tracing import Call


@dataclass(frozen=True, eq=False)
class _Linear:
    path: str
    module: nn.Module
    entered: Tensor
    left: Tensor


@undisturbed()
@torch.no_grad()
def matrices_in(module: nn.Module, blocks: str, sums: Sequence[Sums], tokens: Tensor) -> list[dict[str, Matrix]]:
    """Find the matrices of every block.

    Args:
        module: The causal LM.
        blocks: Path of the list of blocks.
        sums: What each block adds.
        tokens: Int64 (1, T), a short text.

    Returns:
        For each block the matrices whose use was seen, by name; none where nothing was.
    """
    parts = list(cast("nn.ModuleList", module.get_submodule(blocks)))
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as stack, evaluating(module):
        for index, block in enumerate(parts):

            def remember(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], index: int = index) -> None:
                calls[index] = given, named

            stack.callback(block.register_forward_pre_hook(remember, with_kwargs=True).remove)
        module(input_ids=tokens, use_cache=False, return_dict=True)
    found = []
    for index, block in enumerate(parts):
        given, named = calls[index]

        def run(block: nn.Module = block, given: tuple[Any, ...] = given, named: dict[str, Any] = named) -> None:
            with evaluating(block):
                block(*given, **named)

        try:
            found.append(_of_block(block, sums[index], run))
        except Exception:  # noqa: BLE001 - a block that does not run again by itself shows nothing
            found.append({})
    return found


def _of_block(block: nn.Module, sums: Sums, run: Callable[[], None]) -> dict[str, Matrix]:
    attention, mlp = sums.sites.get("hook_attn_out"), sums.sites.get("hook_mlp_out")
    if attention is None:
        return {}
    linears = _linears(block, run)
    if sums.parallel:
        assert mlp is not None
        first = [one for one in linears if one.path.startswith(f"{attention.module}.")]
        second = [one for one in linears if one.path.startswith(f"{mlp.module}.")]
    else:
        reader = block.get_submodule(sums.sites["hook_resid_mid"].module)
        border = next(
            (index for index, one in enumerate(linears) if one.module is reader or _inside(block, reader, one)),
            _border(block, reader, linears, run),
        )
        first, second = linears[:border], linears[border:]
    matrices = {**_of_attention(first, run), **_of_mlp(block, second, run)}
    order = ("q", "k", "v", "o", "gate", "up", "down")
    return {name: matrices[name] for name in order if name in matrices}


def _inside(block: nn.Module, reader: nn.Module, one: _Linear) -> bool:
    path = next((name for name, part in block.named_modules() if part is reader), "")
    return one.path.startswith(f"{path}.")


def _border(block: nn.Module, reader: nn.Module, linears: Sequence[_Linear], run: Callable[[], None]) -> int:
    """Count the linear modules that run before the module that reads the middle."""
    count, before = 0, 0

    def one_more(*_: Any) -> None:
        nonlocal count
        count += 1

    def reached(*_: Any) -> None:
        nonlocal before
        before = count

    with ExitStack() as stack:
        for one in linears:
            stack.callback(one.module.register_forward_hook(one_more).remove)
        stack.callback(reader.register_forward_pre_hook(reached).remove)
        run()
    return before


def _linears(block: nn.Module, run: Callable[[], None]) -> list[_Linear]:
    """The linear modules of a block that ran once, in their order: their output is their matrix times their input."""
    seen: dict[str, list[_Linear]] = {}
    with ExitStack() as stack:
        for path, part in block.named_modules():
            weight = getattr(part, "weight", None)
            if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(part, nn.Embedding):
                continue

            def after(module: nn.Module, given: tuple[Any, ...], output: Any, path: str = path) -> None:
                if given and isinstance(given[0], Tensor) and isinstance(output, Tensor):
                    seen.setdefault(path, []).append(_Linear(path, module, given[0].clone(), output.clone()))

            stack.callback(part.register_forward_hook(after).remove)
        run()
    once = [calls[0] for calls in seen.values() if len(calls) == 1]
    return [one for one in once if _is_linear(one)]


def _is_linear(one: _Linear) -> bool:
    matrix, bias = matrix_of(one.module), getattr(one.module, "bias", None)
    if one.entered.shape[-1] != matrix.shape[1] or one.left.shape[-1] != matrix.shape[0]:
        return False
    if matrix.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        return False
    product = nn.functional.linear(one.entered.to(matrix.dtype), matrix, bias).float()
    rounding = 0.05 if one.left.dtype.itemsize < 4 else 1e-4
    return bool((product - one.left.float()).norm() <= rounding * one.left.float().norm())


@torch.no_grad()
def doing_more(calls: Iterable[Call]) -> Iterator[nn.Module]:
    """Find modules that hold a matrix and do more than multiply by it, or whose matrix is no floating one.

    Args:
        calls: Calls of a pass.

    Yields:
        The modules.
    """
    for call in calls:
        weight = getattr(call.module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(call.module, nn.Embedding):
            continue
        if call.entered is None or call.left is None:
            continue
        if not _is_linear(_Linear(call.path, call.module, call.entered, call.left)):
            yield call.module


def put_aside(blocks: nn.Module) -> Iterator[nn.Module]:
    """Find joint matrices in whose place others run.

    A TransformerBridge keeps the joint matrix of queries, keys and values beside the three that it runs; its
    compatibility mode folds norms into these three alone.

    Args:
        blocks: The blocks.

    Yields:
        The modules.
    """
    for part in blocks.modules():
        joint, *apart = (getattr(part, name, None) for name in ("qkv", "q", "k", "v"))
        given = [getattr(one, "weight", None) for one in (joint, *apart)]
        if "qkv" in dict(part.named_children()) and all(isinstance(weight, Tensor) for weight in given):
            whole, *three = (cast("Tensor", weight).flatten() for weight in given)
            if not torch.equal(whole.sort().values, torch.cat(three).sort().values):
                yield from cast("nn.Module", joint).modules()


def _of_attention(linears: Sequence[_Linear], run: Callable[[], None]) -> dict[str, Matrix]:
    if not linears:
        return {}
    output = linears[-1]
    width = output.left.shape[-1]
    matrices: dict[str, Matrix] = {"o": Projection(output.path)}
    roles: dict[str, list[_Linear]] = {"q": [], "k": [], "v": []}
    for one in linears[:-1]:
        if one.entered.shape[-1] == width:
            role = _role(one, output, run)
            if role is not None:
                roles[role].append(one)
    sizes = {role: [one.left.shape[-1] for one in found] for role, found in roles.items()}
    alike = all(len(found) == 1 for found in roles.values()) and sizes["q"][0] == output.entered.shape[-1]
    if alike and not output.entered.shape[-1] % sizes["v"][0]:
        matrices |= {role: Projection(found[0].path) for role, found in roles.items()}
    return matrices


def _role(one: _Linear, output: _Linear, run: Callable[[], None]) -> str | None:
    """Tell what a reader is for; None for a gate, or what moves nothing."""
    plain = output.entered
    with _moved(one.module, 0), _entering(output.module) as first:
        run()
    with _moved(one.module, -1), _entering(output.module) as last:
        run()
    by_first = (first[-1] - plain).reshape(plain.shape).abs()
    by_last = (last[-1] - plain).reshape(plain.shape).abs()
    floor = 1e-3 * float(plain.abs().mean())
    here, later = bool(by_first[:, :1].amax() > floor), bool(by_first[:, 1:].amax() > floor)
    if here and later:
        return "v"
    if later:
        return "k"
    return "q" if not here and bool(by_last[:, -1].amax() > floor) else None


@contextmanager
def _moved(module: nn.Module, position: int) -> Iterator[None]:
    def move(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        noise = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(0)).to(output)
        changed[:, position] += noise * output.abs().mean()
        return changed

    handle = module.register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _entering(module: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    try:
        yield seen
    finally:
        handle.remove()


_GATINGS: Sequence[Callable[[Tensor], Tensor]] = (
    nn.functional.silu,
    nn.functional.gelu,
    lambda x: nn.functional.gelu(x, approximate="tanh"),
    nn.functional.relu,
    lambda x: nn.functional.relu(x).square(),
    torch.sigmoid,
)


def _of_mlp(block: nn.Module, linears: Sequence[_Linear], run: Callable[[], None]) -> dict[str, Matrix]:
    if len(linears) < 2:
        return {}
    *readers, output = linears
    inner = output.entered.shape[-1]
    readers = [one for one in readers if one.entered.shape[-1] == output.left.shape[-1]]
    down: Mapping[str, Matrix] = {"down": Projection(output.path)}
    if len(readers) == 1 and readers[0].left.shape[-1] == inner:
        return {"up": Projection(readers[0].path), **down}
    mid = output.entered
    if len(readers) == 1 and readers[0].left.shape[-1] == 2 * inner:
        halves = readers[0].left.chunk(2, -1)
        for order in (("gate", "up"), ("up", "gate")):
            gate, up = (halves[order.index(name)] for name in ("gate", "up"))
            if _gates(gate, up, mid):
                cut = Cut(order)
                parts: dict[str, Matrix] = {name: Projection(readers[0].path, name, cut) for name in order}
                return parts | dict(down)
        return {}
    if len(readers) != 2 or any(one.left.shape[-1] != inner for one in readers):
        return {}
    for first, second in (readers, readers[::-1]):
        if _gates(first.left, second.left, mid) or _is_activated(block, first, run):
            return {"gate": Projection(first.path), "up": Projection(second.path), **down}
    return {}


def _gates(gate: Tensor, up: Tensor, mid: Tensor) -> bool:
    rounding = 0.05 if mid.dtype.itemsize < 4 else 1e-4
    mid = mid.double()
    return any(bool((gating(gate.double()) * up.double() - mid).norm() <= rounding * mid.norm()) for gating in _GATINGS)


def _is_activated(block: nn.Module, one: _Linear, run: Callable[[], None]) -> bool:
    """Tell whether the very output of a linear module enters a module without a matrix."""
    hits: list[bool] = []

    def before(_: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            hits.append(given[0].shape == one.left.shape and torch.equal(given[0], one.left))

    with ExitStack() as stack:
        for part in block.modules():
            if not any(True for _ in part.children()) and getattr(part, "weight", None) is None:
                stack.callback(part.register_forward_pre_hook(before).remove)
        run()
    return any(hits)
