"""What a block's attention function is handed, and its pattern, read or replaced in a pass of the module's own code.

Modules of transformers look their attention function up by a name in their configuration. While a module is watched it
has a copy of the configuration with the name of the function here, which calls the module's own with the same
arguments: the pass is equal to the bit. Masks are made above the modules, by the configuration as it was.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from probe.errors import InputError

WATCHED = "probe-watched"
"""The name under which the function is registered with transformers."""

What = Literal["query", "key", "pattern"]


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function.

    Attributes:
        query: Queries, behind norms and rotation.
        key: Keys, behind norms and rotation, by key head.
        value: Values.
        mask: Additive or boolean mask, or None.
        options: All other arguments.
        replaced: A pattern that a watcher has put in place of the call's own.
        computed: The pattern, once it has been asked for.
    """

    query: Float[Tensor, "window head position d_head"]
    key: Float[Tensor, "window g key d_head"]
    value: Float[Tensor, "window g key d_value"]
    mask: Tensor | None
    options: dict[str, Any]
    replaced: Tensor | None = None
    computed: dict[str, Tensor] = field(default_factory=dict)

    def read(self, what: What) -> Tensor:
        """Return queries, keys or the pattern, with heads behind positions."""
        found = self.pattern() if what == "pattern" else getattr(self, what)
        return found.transpose(1, 2)

    def pattern(self) -> Float[Tensor, "window head position key"]:
        """Compute the probabilities of the keys.

        Returns:
            softmax(s q·k + mask), with soft cap and sinks where the call has them; what a sink takes is missing.

        Raises:
            InputError: If the call has a position bias, which no pass here shows.
        """
        if self.replaced is not None:
            return self.replaced
        if self.options.get("position_bias") is not None:
            raise InputError("patterns of attention with a position bias are not known: read hook_z instead")
        scaling, cap = self.options.get("scaling"), self.options.get("softcap")
        key = self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], 1)
        scores = self.query @ key.mT * (self.query.shape[-1] ** -0.5 if scaling is None else scaling)
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        scores = scores.float() + self._mask(scores)
        sinks = self.options.get("s_aux")
        if sinks is not None:
            column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, column], -1)
        found: Tensor = scores.softmax(-1)[..., : key.shape[2]].to(self.query.dtype)
        self.computed["pattern"] = found
        return found

    def _mask(self, scores: Tensor) -> Tensor:
        if self.mask is not None and self.mask.dtype is not torch.bool:
            return self.mask[..., : scores.shape[-1]].float()
        queries, keys = scores.shape[-2:]
        shown = self.mask
        if shown is None:
            causal = self.options.get("is_causal")
            shown = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
            shown = shown.tril(keys - queries) if causal is not False else shown
        return torch.zeros(shown.shape, device=scores.device).masked_fill(~shown, torch.finfo(torch.float32).min)

    def output(self, pattern: Tensor) -> Float[Tensor, "window position head d_value"]:
        """Sum the values, weighted by a pattern."""
        value = self.value.repeat_interleave(pattern.shape[1] // self.value.shape[1], 1)
        return (pattern.to(value.dtype) @ value).transpose(1, 2).contiguous()


Watcher = Callable[[AttentionCall], AttentionCall | Tensor | None]
"""It sees a call, and returns None, another call in its place, or another pattern, (windows, heads, T, keys)."""


def can_be_watched(module: nn.Module) -> bool:
    """Tell whether a module looks its attention function up where another can be put.

    Args:
        module: An attention module.

    Returns:
        True for modules of transformers that run its `AttentionInterface`, with attention "eager" or "sdpa".
    """
    forward: Any = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    config: Any = getattr(module, "config", None)
    name = getattr(config, "_attn_implementation", None)
    known = name == "sdpa" or (name == "eager" and "eager_attention_forward" in getattr(forward, "__globals__", {}))
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names and known


@contextmanager
def attending(module: nn.Module, watcher: Watcher) -> Iterator[None]:
    """Show every call of a module's attention function to a watcher.

    Args:
        module: A module that `can_be_watched`.
        watcher: What sees the calls.

    Yields:
        None: The watcher is in place.
    """
    own: Any = module.config
    if not hasattr(own, "_probe_watchers"):
        twin = copy.copy(own)
        twin._probe_function = own._attn_implementation
        twin._probe_watchers = []
        twin._attn_implementation = WATCHED
        module.config = twin
    config: Any = module.config
    config._probe_watchers.append(watcher)
    try:
        yield
    finally:
        config._probe_watchers.remove(watcher)
        if not config._probe_watchers:
            module.config = own


def _watched(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Any]:
    config: Any = module.config
    call = AttentionCall(query, key, value, attention_mask, options)
    pattern = None
    for watcher in list(config._probe_watchers):
        found = watcher(call if pattern is None else replace(call, replaced=pattern))
        if isinstance(found, AttentionCall):
            call = found
        elif found is not None:
            pattern = found
    if pattern is not None:
        return call.output(pattern), None
    name = config._probe_function
    plain: Any = inspect.unwrap(type(module).forward)
    own = plain.__globals__["eager_attention_forward"] if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    output: tuple[Tensor, Any] = own(module, call.query, call.key, call.value, call.mask, **call.options)
    if "pattern" in call.computed:
        _require_same(module, call.output(call.computed["pattern"]), output[0])
    return output


def _require_same(module: nn.Module, by_pattern: Tensor, output: Tensor) -> None:
    """Refuse a pattern that does not weight the values to what the attention function gives."""
    tolerance = max(1e-3, 8 * torch.finfo(output.dtype).eps)
    if not (by_pattern - output.reshape(by_pattern.shape)).norm() <= tolerance * output.norm() + 1e-30:
        raise InputError(
            f"a pattern must weight the values to the attention's output, and in {type(module).__name__} it does not: "
            "read attn.hook_z instead"
        )


AttentionInterface.register(WATCHED, _watched)
