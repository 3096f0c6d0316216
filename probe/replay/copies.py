"""Working copies of blocks: the user's weights, with another dtype, attention code and mode, and separate hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from probe.boundary import public
from probe.model import Site, first_tensor


@public
def working_copy(
    block: nn.Module, dtype: torch.dtype, attention: str | None = None, *, without: nn.Module | None = None
) -> nn.Module:
    """Copy a block, so that the copy can be changed while the user's block stays as it is.

    Weights that already have the dtype are shared, so that the copy costs no memory; the others, and those of a model
    made in inference_mode, are copied. They need no gradient, and dropout is off. The user's hooks act on the copy too;
    hooks added to the copy do not act on the original.

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
        if cast.is_inference():  # of a model made in inference_mode, of which autograd keeps nothing
            cast = cast.clone()
        memo[id(tensor)] = nn.Parameter(cast, requires_grad=False) if isinstance(tensor, nn.Parameter) else cast
    for hooks in _hooks(block):
        memo[id(hooks)] = copy.copy(hooks)
    twin = copy.deepcopy(block, memo).eval()
    for part in twin.modules():
        config: Any = getattr(part, "config", None)
        if attention is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = attention
        if dtype is torch.float64 and hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"  # grouped products have no float64
    return twin


def _hooks(block: nn.Module) -> Iterator[Any]:
    for module in block.modules():
        yield from (value for name, value in vars(module).items() if "_hooks" in name and isinstance(value, dict))


@contextmanager
def reading(site: Site, block: nn.Module, copy: nn.Module) -> Iterator[list[Tensor]]:
    """Collect a site's tensor, times its factor, whenever a working copy runs, with its graph.

    Args:
        site: A site inside the block.
        block: The block.
        copy: Its working copy, or the block itself.

    Yields:
        The tensors of all runs.
    """
    path = next(path for path, module in block.named_modules() if module is site.module)
    module, seen = copy.get_submodule(path), list[Tensor]()

    def keep(tensor: Tensor) -> None:
        seen.append(tensor if site.factor == 1 else tensor * site.factor)

    if site.side == "input":
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(lambda _, __, output: keep(first_tensor(output)))
    try:
        yield seen
    finally:
        handle.remove()
