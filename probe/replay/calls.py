"""The recorded call of a block in a forward pass, and its arguments cut to chosen positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.model import LanguageModel, evaluating, first_tensor

CACHE_ARGUMENTS = ("cache", "past_key_values", "layer_past", "past_key_value", "cache_params")
"""Names of the cache argument in the architectures and versions of transformers."""
BIAS_BY_HEAD = "alibi"
"""Name of an argument that, if it has three axes, holds a row for each window and head (Bloom)."""


@dataclass(frozen=True)
class BlockCall:
    """The keyword arguments of one block in a recorded forward pass, except the hidden states and the cache."""

    hidden_name: str
    cache_name: str | None
    arguments: Mapping[str, Any]

    def run(self, block: nn.Module, hidden: Tensor, cache: Any = None, **changed: Any) -> Tensor:
        """Run a block on the input `hidden`, with the recorded arguments except those in `changed`."""
        arguments = {**self.arguments, **changed, self.hidden_name: hidden}
        if self.cache_name is not None:
            arguments[self.cache_name] = cache
        with evaluating(block):
            return first_tensor(block(**arguments))


@contextmanager
def recorded_calls(model: LanguageModel) -> Iterator[list[BlockCall]]:
    """Record each block's call, in depth order; the hooks are removed afterwards, also after an exception."""
    calls: list[BlockCall] = []

    def remember(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The blocks of a TransformerBridge take *args and pass them on to the block that they wrap.
        bound = inspect.signature(getattr(block, "original_component", block).forward).bind(*args, **kwargs)
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            variadic = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            arguments.update(value if variadic else {name: value})
        hidden_name = next(iter(bound.signature.parameters))
        arguments.pop(hidden_name)
        cache_name = next((name for name in CACHE_ARGUMENTS if name in arguments), None)
        if cache_name is not None:
            arguments.pop(cache_name)
        calls.append(BlockCall(hidden_name, cache_name, arguments))

    handles = [block.register_forward_pre_hook(remember, with_kwargs=True) for block in model.blocks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def cache_argument(module: nn.Module) -> str | None:
    """Find the name of the cache argument of a module's `forward`.

    Args:
        module: A model or a block.

    Returns:
        One of `CACHE_ARGUMENTS`; None if the module takes no cache.
    """
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def accepts_more(block: nn.Module) -> bool:
    """Check that a block takes further keyword arguments, which it passes on to its attention.

    Args:
        block: The block.

    Returns:
        True if its `forward` has `**kwargs`.
    """
    parameters = inspect.signature(block.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def cut_to_positions(
    arguments: Mapping[str, Any], positions: Int[Tensor, "window row"], length: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Cut position embeddings, position ids and mask rows of a recorded call to `positions`."""
    changed: dict[str, Any] = {"attention_mask": _mask_rows(arguments.get("attention_mask"), positions, length, dtype)}
    for name in ("position_ids", "cache_position"):
        value = arguments.get(name)
        if isinstance(value, Tensor):
            changed[name] = value.expand(len(positions), length).gather(1, positions)
    embeddings = arguments.get("position_embeddings")
    if embeddings is not None:
        changed["position_embeddings"] = tuple(
            table
            .expand(len(positions), -1, -1)
            .gather(1, positions[..., None].expand(-1, -1, table.shape[-1]))
            .to(dtype)
            for table in embeddings
        )
    return changed


def _mask_rows(
    mask: Tensor | None, positions: Int[Tensor, "window row"], length: int, dtype: torch.dtype
) -> Float[Tensor, "window 1 row key"]:
    """Additive mask: a row sees the earlier recorded keys that its recorded mask shows, and its own live key."""
    windows, rows = positions.shape
    before = torch.arange(length, device=positions.device) < positions[..., None]  # (window, row, length)
    if mask is not None:
        recorded = mask.expand(windows, mask.shape[1], length, length)[:, 0]
        chosen = recorded.gather(1, positions[..., None].expand(-1, -1, length))
        before &= chosen if chosen.dtype is torch.bool else chosen >= 0
    itself = torch.eye(rows, dtype=torch.bool, device=positions.device).expand(windows, rows, rows)
    seen = torch.cat([before, itself], dim=-1)
    additive = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return additive.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
