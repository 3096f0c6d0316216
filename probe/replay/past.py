"""The past of a block: keys and values of earlier positions, or the state that a state-space block carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache

from probe.model import LanguageModel
from probe.replay.calls import cache_argument


@dataclass(frozen=True)
class PastKeys:
    """A read-only prefix cache for one block: recorded keys and values, followed by live ones.

    Transformers' attention modules call `update`, as they would a cache's; nothing is ever written.
    """

    keys: Float[Tensor, "window head position d_head"]
    values: Float[Tensor, "window head position d_head"]
    own_value: bool = True

    def select(self, windows: slice, _chosen: slice) -> PastKeys:
        """Select the part of some windows."""
        return PastKeys(self.keys[windows], self.values[windows], self.own_value)

    def empty(self, windows: int) -> PastKeys:
        """Make the past of windows that begin with their chosen position: one key of zeros, which no query may see."""
        keys, values = (part.new_zeros((windows, part.shape[1], 1, part.shape[3])) for part in (self.keys, self.values))
        return PastKeys(keys, values, self.own_value)

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Join recorded and live keys and values; with `own_value=False` the live values count as zero."""
        live = value if self.own_value else torch.zeros_like(value)
        return torch.cat([self.keys, key], dim=2), torch.cat([self.values, live], dim=2)


@dataclass(frozen=True)
class PastState:
    """Convolution and recurrent states that a state-space block carried into each chosen position.

    Attributes:
        convolution: The last inputs of the causal convolution, (window, position, ...).
        recurrent: The state of the state-space model, (window, position, ...).
    """

    convolution: Tensor
    recurrent: Tensor

    def select(self, windows: slice, chosen: slice) -> PastState:
        """Select the part of some windows and some of their chosen positions."""
        return PastState(self.convolution[windows, chosen], self.recurrent[windows, chosen])

    def empty(self, windows: int) -> PastState:
        """Make the past of windows that begin with their one chosen position: zeros."""
        return PastState(
            self.convolution.new_zeros((windows, 1, *self.convolution.shape[2:])),
            self.recurrent.new_zeros((windows, 1, *self.recurrent.shape[2:])),
        )

    def cache(self, model: LanguageModel, layer: int, alternatives: int, *, empty: bool = False) -> DynamicCache:
        """Make a one-token cache of copies for block `layer`, a row for each (window, alternative, position)."""

        def rows(state: Tensor) -> Tensor:
            copies = state[:, None].repeat(1, alternatives, *(1,) * (state.ndim - 1)).flatten(0, 2)
            return torch.zeros_like(copies) if empty else copies

        cache = DynamicCache(config=model.module.config)
        cache.update_conv_state(rows(self.convolution), layer, conv_kernel_size=self.convolution.shape[-1])
        cache.update_recurrent_state(rows(self.recurrent), layer)
        return cache


def carried_states(model: LanguageModel, tokens: Tensor, positions: Tensor) -> list[PastState]:
    """Step a state-space model through the windows and copy each block's state before the chosen positions."""
    cache, argument = DynamicCache(config=model.module.config), cache_argument(model.module)
    assert argument is not None
    chosen = {position: (positions == position).nonzero(as_tuple=True) for position in positions.unique().tolist()}
    kept: list[PastState] = []
    for position in range(max(chosen, default=0) + 1):
        before = [(layer.conv_states[0], layer.recurrent_states[0]) for layer in cache.layers]
        if position in chosen and position > 0:
            _keep(kept, chosen[position], before)
        model.final_states(tokens[:, position : position + 1], **{argument: cache}, use_cache=True)
        if position == 0:  # shapes are known only now; nothing was carried into the first position, so zeros
            kept = [
                PastState(*(state.new_zeros(positions.shape + state.shape[1:]) for state in states))
                for states in ((layer.conv_states[0], layer.recurrent_states[0]) for layer in cache.layers)
            ]
    return kept


def _keep(kept: list[PastState], chosen: tuple[Tensor, Tensor], before: list[tuple[Tensor, Tensor]]) -> None:
    windows, columns = chosen
    for past, (convolution, recurrent) in zip(kept, before, strict=True):
        past.convolution[windows, columns] = convolution[windows]
        past.recurrent[windows, columns] = recurrent[windows]
