"""A block, exactly, at chosen positions, the rest of its context held fixed.

In a causal model a change at position t of block l leaves every state at earlier positions as it was. What later
blocks read at t is therefore known beforehand: the keys and values of the positions before t (attention), or the
convolution and recurrent state that they left (state-space). `record` takes them from one forward pass; `replay` then
runs a block on the chosen positions alone, each against its own recorded past and its own live key and value. The
result equals a run of the whole sequence, at the cost of the chosen positions: 2 · params FLOPs a position, and
attention over the recorded past.

The blocks' own code runs: position embeddings and mask rows of the recorded call are cut to the chosen positions, so
sliding windows, grouped queries, norms of queries and keys, sandwich norms and parallel blocks need no case of their
own. The user's module is not changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from probe.errors import InputError
from probe.model import LanguageModel, evaluating, first_tensor
from probe.stream import watch

CACHE_ARGUMENTS = ("past_key_values", "layer_past", "past_key_value", "cache_params")


@dataclass(frozen=True)
class BlockCall:
    """The keyword arguments of one block in a recorded forward pass, all but the hidden states and the cache."""

    hidden_name: str
    cache_name: str | None
    arguments: Mapping[str, Any]

    def run(self, block: nn.Module, hidden: Tensor, cache: Any = None, **changed: Any) -> Tensor:
        """The block's hidden state for the input `hidden`, other arguments as recorded except those in `changed`."""
        arguments = {**self.arguments, **changed, self.hidden_name: hidden}
        if self.cache_name is not None:
            arguments[self.cache_name] = cache
        with evaluating(block):
            return first_tensor(block(**arguments))


@contextmanager
def _recorded_calls(model: LanguageModel) -> Iterator[list[BlockCall]]:
    """Collects each block's call, in depth order; the hooks are gone afterwards, also after an exception."""
    calls: list[BlockCall] = []

    def remember(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(block.forward).bind(*args, **kwargs)
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


@dataclass(frozen=True)
class PastKeys:
    """A read-only prefix cache for one block: recorded keys and values before, live ones after.

    `update` has the name and the place that transformers' attention modules call; nothing is ever written.
    """

    keys: Float[Tensor, "window head position d_head"]
    values: Float[Tensor, "window head position d_head"]
    own_value: bool = True

    def select(self, windows: slice, _chosen: slice) -> PastKeys:
        """The part that belongs to some of the windows."""
        return PastKeys(self.keys[windows], self.values[windows], self.own_value)

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Recorded and live keys and values, joined; with `own_value=False` the live values count as zero."""
        live = value if self.own_value else torch.zeros_like(value)
        return torch.cat([self.keys, key], dim=2), torch.cat([self.values, live], dim=2)


@dataclass(frozen=True)
class PastState:
    """What a state-space block carried into each chosen position: convolution and recurrent states.

    Attributes:
        convolution: (window, position, ...) the last inputs of the causal convolution.
        recurrent: (window, position, ...) the state-space model's state.
    """

    convolution: Tensor
    recurrent: Tensor

    def select(self, windows: slice, chosen: slice) -> PastState:
        """The part that belongs to some of the windows and some of their chosen positions."""
        return PastState(self.convolution[windows, chosen], self.recurrent[windows, chosen])

    def cache(self, model: LanguageModel, layer: int, variants: int, *, empty: bool = False) -> DynamicCache:
        """A one-token cache for block `layer`, a row for each (window, variant, position); blocks write to copies."""

        def rows(state: Tensor) -> Tensor:
            copies = state[:, None].repeat(1, variants, *(1,) * (state.ndim - 1)).flatten(0, 2)
            return torch.zeros_like(copies) if empty else copies

        cache = DynamicCache(config=model.module.config)
        cache.update_conv_state(rows(self.convolution), layer, conv_kernel_size=self.convolution.shape[-1])
        cache.update_recurrent_state(rows(self.recurrent), layer)
        return cache


@dataclass(frozen=True)
class Context:
    """What chosen positions of a batch of windows meet in every block of a model.

    Attributes:
        model: the recorded model.
        tokens: (window, position) the tokens.
        positions: (window, chosen) the chosen positions.
        states: for each layer l = 0 … L the stream entering block l, (window, position, d_model); the last is the
            stream that enters the final norm.
        calls: each block's recorded call.
        past: for each block the recorded keys and values, or the states carried into the chosen positions; None where
            the model offers neither, so that whole sequences are run.
        seen: what else was asked for, by site, (window, position, d_model).
    """

    model: LanguageModel
    tokens: Int[Tensor, "window position"]
    positions: Int[Tensor, "window chosen"]
    states: list[Float[Tensor, "window position d_model"]]
    calls: list[BlockCall]
    past: list[PastKeys] | list[PastState] | None
    seen: Mapping[str, Float[Tensor, "window position d_model"]] = field(default_factory=dict)
    _cut: dict[Any, dict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def state(self, layer: int) -> Float[Tensor, "window chosen d_model"]:
        """The stream that enters block `layer` (the final norm for `layer = L`) at the chosen positions."""
        return self.states[layer].gather(1, self.positions[..., None].expand(-1, -1, self.states[layer].shape[-1]))

    def select(self, windows: slice, chosen: slice) -> Context:
        """The part of the context that belongs to some of the windows and some of their chosen positions."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device)[windows]
        calls = [
            replace(call, arguments={name: self._rows(value, rows) for name, value in call.arguments.items()})
            for call in self.calls
        ]
        past: Any = self.past and [part.select(windows, chosen) for part in self.past]
        states = [state[windows] for state in self.states]
        seen = {site: state[windows] for site, state in self.seen.items()}
        return Context(self.model, self.tokens[windows], self.positions[windows, chosen], states, calls, past, seen)

    def replay(
        self, layer: int, states: Float[Tensor, "window variant chosen d_model"], *, own_value: bool = True
    ) -> Float[Tensor, "window variant chosen d_model"]:
        """Block `layer` on `states` at the chosen positions, everything before them as recorded.

        Args:
            layer: which block.
            states: the stream to feed in; `variant` counts alternatives that share positions.
            own_value: with False the attention value of the position itself counts as zero (attention blocks).

        Returns:
            The stream that leaves the block, of the same shape.
        """
        if self.past is None:
            return self._replay_sequences(layer, states)
        call, past, block = self.calls[layer], self.past[layer], self.model.blocks[layer]
        variants = states.shape[1]
        if isinstance(past, PastState):
            cache = past.cache(self.model, layer, variants)
            return call.run(block, states.reshape(-1, 1, states.shape[-1]), cache).reshape(states.shape)
        cache = PastKeys(past.keys, past.values, own_value)
        changed = self._at_positions(call.arguments, variants, states.dtype)
        return call.run(block, states.flatten(1, 2), cache, **changed).reshape(states.shape)

    def _at_positions(self, arguments: Mapping[str, Any], variants: int, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of a recorded call cut to the chosen positions; blocks share them, so they are kept."""
        key = (id(arguments.get("attention_mask")), id(arguments.get("position_embeddings")), variants, dtype)
        if key not in self._cut:
            positions = self.positions[:, None].expand(-1, variants, -1).flatten(1)
            self._cut[key] = _cut_to_positions(arguments, positions, self.tokens.shape[1], dtype)
        return self._cut[key]

    def _replay_sequences(self, layer: int, states: Tensor) -> Tensor:
        """`replay` for any causal block: each state in a copy of its whole sequence, T times the cost."""
        windows, variants, chosen, width = states.shape
        replayed = torch.empty_like(states)
        for window in range(windows):
            columns = self.positions[window].repeat(variants)
            rows = torch.arange(len(columns), device=columns.device)
            sequences = self.states[layer][window].repeat(len(columns), 1, 1)
            sequences[rows, columns] = states[window].reshape(-1, width)
            after = self._block_on_sequences(layer, sequences, torch.full_like(columns, window))
            replayed[window] = after[rows, columns].reshape(variants, chosen, width)
        return replayed

    def _block_on_sequences(self, layer: int, sequences: Tensor, windows: Tensor) -> Tensor:
        call = self.calls[layer]
        rows = {name: self._rows(value, windows) for name, value in call.arguments.items()}
        return call.run(self.model.blocks[layer], sequences, None, **rows)

    def _rows(self, value: Any, windows: Int[Tensor, " row"]) -> Any:
        """The rows of a recorded argument that belong to the given windows; what all windows share stays as it is."""
        if isinstance(value, tuple):
            return tuple(self._rows(part, windows) for part in value)
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(self.tokens) > 1:
            return value[windows.to(value.device)]
        return value

    def run_on(
        self, layer: int, states: Float[Tensor, "window variant chosen d_model"]
    ) -> Float[Tensor, "window variant chosen d_model"]:
        """From the stream entering block `layer` to the stream entering the final norm, at the chosen positions."""
        for later in range(layer, self.model.n_layers):
            states = self.replay(later, states)
        return states

    def run_sequence(
        self, layer: int, states: Float[Tensor, "row position d_model"], windows: Int[Tensor, " row"]
    ) -> Float[Tensor, "row position d_model"]:
        """The plain way, on whole sequences: blocks `layer` … L−1 with the recorded calls of the given windows."""
        for later in range(layer, self.model.n_layers):
            states = self._block_on_sequences(later, states, windows)
        return states

    def off_position_write(self, layer: int) -> Float[Tensor, "window chosen d_model"]:
        """The part of the block's mixing write that comes from other positions, at the chosen positions.

        Attention is linear in the values, so it is the write with the position's own value set to zero (an output
        bias, and a norm after attention, stay). For a state-space block: the write with the carried state, minus the
        write with an empty one.

        Args:
            layer: which block.

        Returns:
            The off-position part of the write.

        Raises:
            InputError: if the model's blocks take no cache, so that the two parts cannot be told apart.
        """
        if self.past is None:
            raise InputError(
                f"the off-position write needs blocks that take a cache: {self.model.name} has none; "
                "load the Hugging Face model itself"
            )
        block, call, past, states = self.model.blocks[layer], self.calls[layer], self.past[layer], self.state(layer)
        if isinstance(past, PastState):
            writes = []
            for empty in (False, True):
                cache = past.cache(self.model, layer, 1, empty=empty)
                with watch(self.model, [site := f"blocks.{layer}.hook_mixer_out"]) as seen:
                    call.run(block, states.reshape(-1, 1, states.shape[-1]), cache)
                writes.append(seen[site].reshape(states.shape))
            return writes[0] - writes[1]
        with watch(self.model, [site := f"blocks.{layer}.hook_attn_out"]) as seen:
            self.replay(layer, states[:, None], own_value=False)
        return seen[site].reshape(states.shape)


@torch.no_grad()
def record(
    model: LanguageModel,
    tokens: Int[Tensor, "window position"],
    positions: Int[Tensor, "window chosen"],
    *,
    sites: Sequence[str] = (),
) -> Context:
    """One forward pass, from which `Context.replay` can run any block again at the chosen positions.

    Args:
        model: the model.
        tokens: windows of tokens, all of one length and without padding.
        positions: the chosen positions of each window, each in [0, T).
        sites: sites to keep besides the stream.

    Returns:
        The recorded context. Memory: the states of all layers, (L + 1) · W · T · d numbers, and keys and values.
        State-space models are stepped through token by token once, to find the states carried into the positions.

    Raises:
        InputError: if a position lies outside its window.
    """
    tokens, positions = tokens.to(model.device), positions.to(model.device)
    if positions.numel() and not (positions.min() >= 0 and positions.max() < tokens.shape[1]):
        raise InputError(
            f"positions must lie in [0, {tokens.shape[1]}), the window's tokens: got {int(positions.min())} to "
            f"{int(positions.max())}; choose positions inside the window"
        )
    stream = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    stream.append(f"blocks.{model.n_layers - 1}.hook_resid_post")
    caching = isinstance(model.module, PreTrainedModel)
    cache = DynamicCache() if caching and not model.recurrent else None
    keep = {} if cache is None else {"past_key_values": cache, "use_cache": True}
    with watch(model, [*stream, *sites]) as seen, _recorded_calls(model) as calls:
        model.final_states(tokens, **keep)
    past: list[PastKeys] | list[PastState] | None = None
    if cache is not None:
        past = [PastKeys(layer.keys, layer.values) for layer in cache.layers]
    elif caching:
        past = _carried_states(model, tokens, positions)
    states, kept = [seen[site] for site in stream], {site: seen[site] for site in sites}
    return Context(model, tokens, positions, states, calls, past, kept)


@torch.no_grad()
def alone(
    model: LanguageModel,
    layer: int,
    states: Float[Tensor, "token d_model"],
    *,
    attention: bool = True,
    batch: int = 4096,
) -> Float[Tensor, "token d_model"]:
    """Block `layer` on each state as a one-token input: a tokenwise function that the architecture itself holds.

    Args:
        model: the model.
        layer: which block.
        states: the stream entering the block.
        attention: with False what attention writes is replaced by zero, so that only the MLP acts (in a parallel
            block this is exactly its MLP term).
        batch: states run at once.

    Returns:
        The stream that leaves the block.

    Raises:
        InputError: if the block has no attention to leave out.
    """
    if not attention and model.recurrent:
        raise InputError(f"leaving out attention needs attention blocks: {model.name} is a state-space model")
    with _recorded_calls(model) as calls:
        model.final_states(torch.zeros((1, 1), dtype=torch.int64, device=model.device))
    handles = []
    if not attention:
        site = model.site(f"blocks.{layer}.hook_attn_out")
        handles.append(site.module.register_forward_hook(_write_nothing))
    try:
        parts = [calls[layer].run(model.blocks[layer], part[:, None])[:, 0] for part in states.split(batch)]
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(parts)


def _write_nothing(_module: nn.Module, _args: Any, output: Any) -> Any:
    zero = torch.zeros_like(first_tensor(output))
    return (zero, *output[1:]) if isinstance(output, tuple) else zero


def _cut_to_positions(
    arguments: Mapping[str, Any], positions: Int[Tensor, "window row"], length: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The arguments of a recorded call cut to `positions`: position embeddings, position ids and mask rows."""
    changed: dict[str, Any] = {"attention_mask": _mask_rows(arguments.get("attention_mask"), positions, length, dtype)}
    for name in ("position_ids", "cache_position"):
        value = arguments.get(name)
        if isinstance(value, Tensor):
            changed[name] = value.expand(len(positions), length).gather(1, positions)
    embeddings = arguments.get("position_embeddings")
    if embeddings is not None:
        changed["position_embeddings"] = tuple(
            table.expand(len(positions), -1, -1).gather(1, positions[..., None].expand(-1, -1, table.shape[-1]))
            for table in embeddings
        )
    return changed


def _mask_rows(
    mask: Tensor | None, positions: Int[Tensor, "window row"], length: int, dtype: torch.dtype
) -> Float[Tensor, "window 1 row key"]:
    """Additive: open are the earlier recorded keys that a row's recorded mask lets through, and its own live key."""
    windows, rows = positions.shape
    before = torch.arange(length, device=positions.device) < positions[..., None]  # (window, row, length)
    if mask is not None:
        recorded = mask.expand(windows, mask.shape[1], length, length)[:, 0]
        chosen = recorded.gather(1, positions[..., None].expand(-1, -1, length))
        before &= chosen if chosen.dtype is torch.bool else chosen >= 0
    own = torch.eye(rows, dtype=torch.bool, device=positions.device).expand(windows, rows, rows)
    allowed = torch.cat([before, own], dim=-1)
    additive = torch.zeros(allowed.shape, dtype=dtype, device=positions.device)
    return additive.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def _carried_states(model: LanguageModel, tokens: Tensor, positions: Tensor) -> list[PastState]:
    """Steps a state-space model through the windows and copies each block's state before the chosen positions."""
    cache = DynamicCache(config=model.module.config)
    chosen = {position: (positions == position).nonzero(as_tuple=True) for position in positions.unique().tolist()}
    kept: list[PastState] = []
    for position in range(max(chosen, default=0) + 1):
        before = [(layer.conv_states[0], layer.recurrent_states[0]) for layer in cache.layers]
        if position in chosen and position > 0:
            _keep(kept, chosen[position], before)
        model.final_states(tokens[:, position : position + 1], cache_params=cache, use_cache=True)
        if position == 0:  # shapes are known only now, and nothing was carried into the first position: zeros
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
