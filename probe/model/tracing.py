"""The record of one short pass: what enters and leaves each module of a model, in the order of the calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from probe.model.hooks import evaluating

TOKENS = 8
"""Length of the pass, in tokens."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module in the pass.

    Attributes:
        module: The module.
        path: Its path.
        entered: Its first tensor, copied; None if it got none.
        left: Its (first) output tensor, copied; None while it runs, or if it gave none.
        start: Rank of the call's beginning among all beginnings and ends.
        end: Rank of its end.
        takes_tokens: Whether the tokens are among its arguments.
        given: Its arguments by index or name: tensors with an entry a position, copied, and what is no tensor.
        gave: Its outputs in their order, likewise; None in the place of all else.
    """

    module: nn.Module
    path: str
    entered: Tensor | None
    start: int
    takes_tokens: bool
    left: Tensor | None = None
    end: int = -1
    given: Mapping[int | str, Any] = field(default_factory=dict)
    gave: Sequence[Tensor | None] = ()


@dataclass(frozen=True, eq=False)
class Trace:
    """The record of one pass.

    Attributes:
        tokens: The tokens, (1, T).
        calls: The calls in the order of their beginnings.
        logits: The module's logits; None if it has no head.
    """

    tokens: Tensor
    calls: Sequence[Call]
    logits: Tensor | None
    by_path: Mapping[str, list[Call]] = field(init=False)

    def __post_init__(self) -> None:
        by_path: dict[str, list[Call]] = {}
        for call in self.calls:
            by_path.setdefault(call.path, []).append(call)
        object.__setattr__(self, "by_path", by_path)


def probe_tokens(n_vocab: int, length: int = TOKENS) -> Tensor:
    """Choose the tokens of a short pass: different ones, spread over the vocabulary, none of its first or last.

    Args:
        n_vocab: Size of the vocabulary.
        length: Number of tokens.

    Returns:
        Int64 (1, length).
    """
    return (torch.arange(length) * 7 + 5).remainder(max(1, n_vocab - 2))[None]


@torch.no_grad()
def traced(module: nn.Module, tokens: Tensor, **kwargs: Any) -> Trace:
    """Run a causal LM once and record the calls of all its modules.

    Args:
        module: The causal LM.
        tokens: Int64 (1, T).
        **kwargs: Further arguments of the pass.

    Returns:
        The record. Memory: inputs and outputs of all modules for T tokens.
    """
    calls: list[Call] = []
    open_calls: dict[str, list[int]] = {}
    clock = iter(range(10**9))

    length = tokens.shape[1]

    def before(part: nn.Module, path: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [*arguments, *named.values()]
        entered = first_floating(given)
        takes_tokens = any(isinstance(value, Tensor) and equal(value, tokens) for value in given)
        open_calls.setdefault(path, []).append(len(calls))
        by_key: dict[int | str, Any] = dict(enumerate(arguments)) | dict(named)
        kept = {
            key: _copied(value)
            for key, value in by_key.items()
            if not isinstance(value, Tensor) or _of_positions(value, length)
        }
        copy = None if entered is None else entered.clone()
        calls.append(Call(part, path, copy, next(clock), takes_tokens, given=kept))

    def after(path: str, output: Any) -> None:
        index = open_calls[path].pop()
        left = first_floating(output.values() if isinstance(output, Mapping) else listed(output))
        copy = None if left is None else left.clone()
        gave = [_copied(value) if _of_positions(value, length) else None for value in listed(output)]
        calls[index] = replace(calls[index], left=copy, end=next(clock), gave=gave)

    with ExitStack() as stack, evaluating(module):
        for path, part in module.named_modules():
            stack.callback(
                part.register_forward_pre_hook(
                    lambda part, arguments, named, path=path: before(part, path, arguments, named), with_kwargs=True
                ).remove
            )
            stack.callback(part.register_forward_hook(lambda _, __, output, path=path: after(path, output)).remove)
        output: Any = module(input_ids=tokens, **({"use_cache": False, "return_dict": True} | kwargs))
    logits = getattr(output, "logits", None)
    return Trace(tokens, tuple(calls), None if logits is None else logits.detach().clone())


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _of_positions(value: Any, length: int) -> bool:
    """Tell whether a value is a tensor (positions, ...) or (1, positions, ...)."""
    return isinstance(value, Tensor) and value.ndim > 1 and length in (len(value), value[:1].flatten(0, 1).shape[0])


def listed(output: Any) -> Sequence[Any]:
    """Return what a module gave as a sequence.

    Args:
        output: A tensor, a tuple or a list.

    Returns:
        The sequence.
    """
    return output if isinstance(output, tuple | list) else [output]


def first_floating(values: Iterable[Any]) -> Tensor | None:
    """Find the first floating tensor among values.

    Args:
        values: Any values.

    Returns:
        The tensor, or None.
    """
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None


def tensor_in(output: Any) -> Tensor:
    """Return the first floating tensor that a module gave.

    Args:
        output: A tensor, a tuple or a list that has one.

    Returns:
        The tensor.
    """
    found = first_floating(listed(output))
    assert found is not None
    return found


def equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal to the bit.

    Args:
        one: A tensor.
        other: Another, perhaps of another shape.

    Returns:
        False also where the shapes differ.
    """
    return one.shape == other.shape and torch.equal(one, other)


def is_coarse(tensor: Tensor) -> bool:
    """Tell whether a tensor has half precision.

    Args:
        tensor: A floating tensor.

    Returns:
        True for 16 bits and fewer.
    """
    return torch.finfo(tensor.dtype).bits < 32


def stated_number(factor: float, numbers: Sequence[float], allowed: float = 1e-5) -> float:
    """Find the stated number, its inverse or its root that a measured factor stands for: the nearest, 1 among them.

    Args:
        factor: The measured factor.
        numbers: Numbers of the configuration and the block.
        allowed: Relative error of the measurement.

    Returns:
        The number; the factor itself if none is near.
    """
    candidates = [1.0]
    for number in numbers:
        root = math.sqrt(abs(number))
        candidates += [number, 1 / number, root, 1 / root]
    nearest = min(candidates, key=lambda candidate: abs(candidate - factor))
    return nearest if abs(nearest - factor) <= allowed * abs(factor) else factor
