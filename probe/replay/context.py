"""The context of chosen positions, recorded once, and blocks run again in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from probe.errors import InputError
from probe.model import LanguageModel, first_tensor
from probe.model.architectures import ARCHITECTURES
from probe.replay.attention import AttentionPrimal
from probe.replay.calls import (
    BIAS_BY_HEAD,
    CACHE_ARGUMENTS,
    BlockCall,
    accepts_more,
    cache_argument,
    cut_to_positions,
    recorded_calls,
)
from probe.replay.copies import cast
from probe.replay.past import PastKeys, PastState, carried_states
from probe.stream import watch

logger = logging.getLogger("probe.replay")


@dataclass(frozen=True)
class Context:
    """What chosen positions of a batch of windows meet in every block of a model.

    Attributes:
        model: The recorded model.
        tokens: (window, position) the tokens.
        positions: (window, chosen) the chosen positions.
        states: For each layer l = 0 … L the stream entering block l, (window, position, d_model); the last is the
            stream that enters the final norm.
        calls: Each block's recorded call.
        past: For each block the recorded keys and values, or the states carried into the chosen positions; None where
            the model offers neither, or its blocks do not run so, and whole sequences are run instead.
        seen: What else was asked for, by site, (window, position, d_model).
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
        calls = [replace(call, arguments=self._rows_of(call, rows)) for call in self.calls]
        past: Any = self.past and [part.select(windows, chosen) for part in self.past]
        states = [state[windows] for state in self.states]
        seen = {site: state[windows] for site, state in self.seen.items()}
        return Context(self.model, self.tokens[windows], self.positions[windows, chosen], states, calls, past, seen)

    def replay(
        self, layer: int, states: Float[Tensor, "window variant chosen d_model"], *, own_value: bool = True
    ) -> Float[Tensor, "window variant chosen d_model"]:
        """Block `layer` on `states` at the chosen positions, everything before them as recorded.

        Args:
            layer: Which block.
            states: The stream to feed in; `variant` counts alternatives that share positions.
            own_value: With False the attention value of the position itself counts as zero (attention blocks).

        Returns:
            The stream that leaves the block, of the same shape.
        """
        if self.past is None:
            return self._replay_sequences(layer, states)
        past, block = self.past[layer], self.model.blocks[layer]
        if isinstance(past, PastState):
            return self._replay_carried(layer, states, block)
        call, cache = self.calls[layer], PastKeys(past.keys, past.values, own_value)
        changed = self._at_positions(call.arguments, states.shape[1], states.dtype)
        return call.run(block, states.flatten(1, 2), cache, **changed).reshape(states.shape)

    def _replay_carried(self, layer: int, states: Tensor, block: nn.Module) -> Tensor:
        assert self.past is not None
        past = self.past[layer]
        assert isinstance(past, PastState)
        cache = past.cache(self.model, layer, states.shape[1])
        # The block writes its next state over the one that its derivative needs.
        overwritten = cache.layers[layer].recurrent_states[0].untyped_storage().data_ptr()

        def keep(saved: Tensor) -> Tensor:
            return saved.clone() if saved.untyped_storage().data_ptr() == overwritten else saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            return self.calls[layer].run(block, states.reshape(-1, 1, states.shape[-1]), cache).reshape(states.shape)

    def linearised(
        self,
        layer: int,
        states: Float[Tensor, "window chosen d_model"],
        block: nn.Module,
        primals: list[AttentionPrimal] | None = None,
    ) -> Float[Tensor, "window chosen d_model"]:
        """`replay` with the same value and the same derivative in `states`, the latter at a cost that is flat in T.

        Args:
            layer: Which block.
            states: The stream to feed in, in the dtype of `block`.
            block: A working copy of the block, with attention `LINEARISED` (or `DETACHED`) if it has attention.
            primals: Gets the attention's primal point.

        Returns:
            The stream that leaves the block.

        Raises:
            InputError: If the model's blocks do not run at single positions over a cache, or if their attention is not
                transformers' exchangeable one.
        """
        if self.past is None:
            raise InputError(
                f"a frozen context needs blocks that run at single positions over a cache: those of {self.model.name} "
                'do not; use method="jacrev"'
            )
        past, call = self.past[layer], self.calls[layer]
        if isinstance(past, PastState):
            return self._replay_carried(layer, states[:, None], block)[:, 0]
        primals = [] if primals is None else primals
        changed = self._at_positions(call.arguments, 1, states.dtype)
        if accepts_more(block) and getattr(self.model.module, "_supports_attention_backend", False):
            after = call.run(block, states, None, **changed, recorded=past, primals=primals)
        if not primals:
            raise InputError(
                f"linearised attention needs blocks that run transformers' AttentionInterface: those of "
                f'{self.model.name} do not; use method="jacrev"'
            )
        return after

    def rotation(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the rotary embedding at the chosen positions, (W · P, rotated width); None without."""
        changed = self._at_positions(self.calls[layer].arguments, 1, dtype)
        embeddings = changed.get("position_embeddings")
        if embeddings is None:
            return None
        cosines, sines = (table.expand(len(self.tokens), -1, -1).flatten(0, 1) for table in embeddings)
        return cosines, sines

    def alone(self) -> Context:
        """The same states, each as a one-token input of its own: a context of W · P windows of one position.

        Its keys and values, convolution and recurrent states are zero, and masked where they are keys.

        Returns:
            The context; `states` holds the recorded states of all layers at the chosen positions.
        """
        device, count = self.tokens.device, self.positions.numel()
        with recorded_calls(self.model) as calls, torch.no_grad():
            self.model.final_states(torch.zeros((1, 1), dtype=torch.int64, device=device))
        past: Any = self.past and [part.empty(count) for part in self.past]
        states = [self.state(layer).reshape(count, 1, -1) for layer in range(len(self.states))]
        positions = torch.zeros((count, 1), dtype=torch.int64, device=device)
        return Context(
            self.model, self.tokens.gather(1, self.positions).reshape(count, 1), positions, states, calls, past
        )

    def _at_positions(self, arguments: Mapping[str, Any], variants: int, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of a recorded call cut to the chosen positions; blocks share them, so they are kept."""
        key = (id(arguments.get("attention_mask")), id(arguments.get("position_embeddings")), variants, dtype)
        if key not in self._cut:
            positions = self.positions[:, None].expand(-1, variants, -1).flatten(1)
            self._cut[key] = cut_to_positions(arguments, positions, self.tokens.shape[1], dtype)
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
            after = self.block_on_sequences(layer, sequences, torch.full_like(columns, window))
            replayed[window] = after[rows, columns].reshape(variants, chosen, width)
        return replayed

    def block_on_sequences(
        self,
        layer: int,
        sequences: Float[Tensor, "row position d_model"],
        windows: Int[Tensor, " row"],
        block: nn.Module | None = None,
    ) -> Float[Tensor, "row position d_model"]:
        """The plain way, on whole sequences: block `layer` with the recorded calls of the given windows.

        Args:
            layer: Which block.
            sequences: The stream entering it.
            windows: The window that each row comes from.
            block: A working copy to run instead, whose dtype is that of `sequences`.

        Returns:
            The stream that leaves the block.
        """
        call = self.calls[layer]
        rows = {name: cast(value, sequences.dtype) for name, value in self._rows_of(call, windows).items()}
        return call.run(self.model.blocks[layer] if block is None else block, sequences, None, **rows)

    def _rows_of(self, call: BlockCall, windows: Int[Tensor, " row"]) -> dict[str, Any]:
        """A recorded call's arguments for the given windows; a bias by head is the same in all, as none is padded."""
        arguments = {name: self._rows(value, windows) for name, value in call.arguments.items()}
        bias = call.arguments.get(BIAS_BY_HEAD)
        if isinstance(bias, Tensor) and bias.ndim == 3:
            config: Any = self.model.module.config
            arguments[BIAS_BY_HEAD] = bias[: config.num_attention_heads].repeat(len(windows), 1, 1)
        return arguments

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
            states = self.block_on_sequences(later, states, windows)
        return states

    def off_position_write(self, layer: int) -> Float[Tensor, "window chosen d_model"]:
        """The part of the block's mixing write that comes from other positions, at the chosen positions.

        Attention is linear in the values, so it is the write with the position's own value set to zero (an output
        bias, and a norm after attention, stay). For a state-space block: the write with the carried state, minus the
        write with an empty one.

        Args:
            layer: Which block.

        Returns:
            The off-position part of the write.

        Raises:
            InputError: If the model's blocks do not run at single positions over a cache, so that the two parts cannot
                be told apart.
        """
        if self.past is None:
            raise InputError(
                f"the off-position write needs blocks that run at single positions over a cache: those of "
                f"{self.model.name} do not; use a Hugging Face model of a tested architecture"
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
        model: The model.
        tokens: Windows of tokens, all of one length and without padding.
        positions: The chosen positions of each window, each in [0, T).
        sites: Sites to keep besides the stream.

    Returns:
        The recorded context. Memory: the states of all layers, (L + 1) · W · T · d numbers, and keys and values.
        State-space models are stepped through token by token once, to find the states carried into the positions.
        Blocks of an architecture without a row in `probe.model.architectures` are run again once: where they do not
        give at the positions alone what they gave, the context runs whole sequences, T times the cost.

    Raises:
        InputError: If a position lies outside its window, or the blocks cannot be run again by their recorded calls.
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
    # A stateful model (state-space, hybrid) carries more than keys and values.
    stateful = model.recurrent or getattr(model.module, "_is_stateful", False)
    argument = cache_argument(model.module)
    cache = DynamicCache() if argument and caching and not stateful else None
    keep = {} if argument is None or cache is None else {argument: cache, "use_cache": True}
    with watch(model, [*stream, *sites]) as seen, recorded_calls(model) as calls:
        model.final_states(tokens, **keep)
    states, kept = [seen[site] for site in stream], {site: seen[site] for site in sites}
    whole = Context(model, tokens, positions, states, calls, None, kept)
    if not caching:
        return whole

    def at_positions() -> Context:
        if cache is None:
            return replace(whole, past=carried_states(model, tokens, positions))
        return replace(whole, past=[PastKeys(layer.keys, layer.values) for layer in cache.layers])

    if model.architecture not in ARCHITECTURES:
        return _proven(whole, at_positions)
    if any(call.cache_name is None for call in calls):
        raise InputError(
            f"a replay needs blocks that take a cache by a known name ({', '.join(CACHE_ARGUMENTS)}), and those of "
            f"{model.name} do not under transformers {transformers.__version__}: install transformers 5.23"
        )
    return at_positions()


def _proven(whole: Context, at_positions: Callable[[], Context]) -> Context:
    """The cheaper of two contexts in which every block, run again, gives what it gave in the forward pass."""
    layers, states = range(whole.model.n_layers), whole.states
    try:
        cut = at_positions()
        twice = [cut.state(layer)[:, None].repeat(1, 2, 1, 1) for layer in range(len(states))]  # two variants of each
        if all(_same(cut.replay(layer, twice[layer]), twice[layer + 1]) for layer in layers):
            return cut
    except Exception as error:  # noqa: BLE001 - whatever a model's own code raises, it cannot be run so
        logger.info("the blocks of %s do not run at single positions: %s", whole.model.name, error)
    last = torch.tensor([len(whole.tokens) - 1], device=whole.tokens.device)
    if not all(
        _same(whole.block_on_sequences(layer, states[layer][last], last), states[layer + 1][last]) for layer in layers
    ):
        raise InputError(
            f"a replay needs blocks that give again what they gave, and those of {whole.model.name} "
            f"({whole.model.architecture}) do not by their recorded calls: use a model of another family"
        )
    return whole


def _same(found: Tensor, expected: Tensor) -> bool:
    """Equal but for the rounding of a block's own arithmetic."""
    tolerance = max(1e-4, 2 * torch.finfo(expected.dtype).eps)
    return bool((found - expected).norm() <= tolerance * expected.norm())


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
        model: The model.
        layer: Which block.
        states: The stream entering the block.
        attention: With False what attention writes is replaced by zero, so that only the MLP acts (in a parallel
            block this is exactly its MLP term).
        batch: States run at once.

    Returns:
        The stream that leaves the block.

    Raises:
        InputError: If the block has no attention to leave out.
    """
    if not attention and model.recurrent:
        raise InputError(f"leaving out attention needs attention blocks: {model.name} is a state-space model")
    with recorded_calls(model) as calls:
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
