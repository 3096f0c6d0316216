"""Working copies of blocks: the user's weights, with another dtype, attention code and mode, and separate hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def working_copy(
    block: nn.Module, dtype: torch.dtype, attention: str | None = None, *, without: nn.Module | None = None
) -> nn.Module:
    """Copy a block, so that the copy can be changed while the user's block stays as it is.

    Weights that already have the dtype are shared, so that the copy costs no memory; the others are cast. They need no
    gradient, and dropout is off. The user's hooks act on the copy too; hooks added to the copy do not act on the
    original.

    Args:
        block: A block, or any module.
        dtype: Floating dtype of the copy's weights.
        attention: Name of the attention function to run, as registered with transformers' `AttentionInterface`; the
            block's own by default.
        without: A sub-module to leave out.

    Returns:
        The copy, in evaluation mode.
    """
    memo: dict[int, Any] = {} if without is None else {id(without): nn.Module()}
    left_out = set() if without is None else {id(tensor) for tensor in without.parameters()}
    for tensor in chain(block.parameters(), block.buffers()):
        if id(tensor) in left_out:
            continue
        cast = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        memo[id(tensor)] = nn.Parameter(cast, requires_grad=False) if isinstance(tensor, nn.Parameter) else cast
    for hooks in _hooks(block):
        memo[id(hooks)] = copy.copy(hooks)
    twin = copy.deepcopy(block, memo).eval()
    if attention is not None:
        for part in twin.modules():
            config: Any = getattr(part, "config", None)
            if hasattr(config, "_attn_implementation"):
                config._attn_implementation = attention
    return twin


def _hooks(block: nn.Module) -> Iterator[Any]:
    for module in block.modules():
        yield from (value for name, value in vars(module).items() if "_hooks" in name and isinstance(value, dict))


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Convert the floating tensors of a recorded argument to another dtype.

    Args:
        value: Tensor, tuple of values, or anything else.
        dtype: The floating dtype.

    Returns:
        The value; everything else in it is unchanged.
    """
    if isinstance(value, tuple):
        return tuple(cast(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
