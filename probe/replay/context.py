"""The context of chosen positions, recorded once, in which blocks can run again."""

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
    """The recorded context of chosen positions in every block of a model, for a batch of windows.

    Attributes:
        model: The recorded model.
        tokens: The tokens, (window, position).
        positions: The chosen positions, (window, chosen).
        states: For each layer l = 0 … L the stream entering block l, (window, position, d_model); the last is the
            stream that enters the final norm.
        calls: Each block's recorded call.
        past: For each block the recorded keys and values, or the states carried into the chosen positions; None if
            the model offers neither, or its blocks cannot run at single positions, so that whole sequences are run.
        seen: States at the further sites that were asked for, by site, (window, position, d_model).
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
        """Return the stream that enters block `layer` (the final norm for `layer = L`) at the chosen positions."""
        return self.states[layer].gather(1, self.positions[..., None].expand(-1, -1, self.states[layer].shape[-1]))

    def select(self, windows: slice, chosen: slice) -> Context:
        """Select the part of the context of some windows and some of their chosen positions."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device)[windows]
        calls = [replace(call, arguments=self._rows_of(call, rows)) for call in self.calls]
        past: Any = self.past and [part.select(windows, chosen) for part in self.past]
        states = [state[windows] for state in self.states]
        seen = {site: state[windows] for site, state in self.seen.items()}
        return Context(self.model, self.tokens[windows], self.positions[windows, chosen], states, calls, past, seen)

    def replay(
        self, layer: int, states: Float[Tensor, "window alternative chosen d_model"], *, own_value: bool = True
    ) -> Float[Tensor, "window alternative chosen d_model"]:
        """Run block `layer` on `states` at the chosen positions, with everything before them as recorded.

        Args:
            layer: Index of the block.
            states: The stream that enters the block, several alternatives for each chosen position.
            own_value: If False, the attention value of the position itself counts as zero (attention blocks).

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
        # The block overwrites the state that its derivative needs with its next one.
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
        """Run a block as `replay` does: equal in value and derivative, but the derivative's cost does not grow with T.

        Args:
            layer: Index of the block.
            states: The stream that enters the block, in the dtype of `block`.
            block: A working copy of the block, with attention `LINEARISED` (or `DETACHED`) if it has attention.
            primals: A list to which the attention's primal point is appended.

        Returns:
            The stream that leaves the block.

        Raises:
            InputError: If the model's blocks do not run at single positions over a cache, or do not run transformers'
                `AttentionInterface`.
        """
        if self.past is None:
            raise InputError(
                f"a frozen context needs blocks that run at single positions over a cache, and those of "
                f'{self.model.name} do not: use method="jacrev"'
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
                f"linearised attention needs blocks that run transformers' AttentionInterface, and those of "
                f'{self.model.name} do not: use method="jacrev"'
            )
        return after

    def rotation(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines of the rotary embedding at the chosen positions, (W · P, rotated width), or None."""
        changed = self._at_positions(self.calls[layer].arguments, 1, dtype)
        embeddings = changed.get("position_embeddings")
        if embeddings is None:
            return None
        cosines, sines = (table.expand(len(self.tokens), -1, -1).flatten(0, 1) for table in embeddings)
        return cosines, sines

    def alone(self) -> Context:
        """Make a context of the same states, each as a one-token input: W · P windows of one position.

        Its recorded keys and values, convolution and recurrent states are zero, and the keys are masked.

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

    def _at_positions(self, arguments: Mapping[str, Any], alternatives: int, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of a recorded call cut to the chosen positions; they are kept, because blocks share them."""
        key = (id(arguments.get("attention_mask")), id(arguments.get("position_embeddings")), alternatives, dtype)
        if key not in self._cut:
            positions = self.positions[:, None].expand(-1, alternatives, -1).flatten(1)
            self._cut[key] = cut_to_positions(arguments, positions, self.tokens.shape[1], dtype)
        return self._cut[key]

    def _replay_sequences(self, layer: int, states: Tensor) -> Tensor:
        """`replay` for any causal block: each state in a copy of its whole sequence, at T times the cost."""
        windows, alternatives, chosen, width = states.shape
        replayed = torch.empty_like(states)
        for window in range(windows):
            columns = self.positions[window].repeat(alternatives)
            rows = torch.arange(len(columns), device=columns.device)
            sequences = self.states[layer][window].repeat(len(columns), 1, 1)
            sequences[rows, columns] = states[window].reshape(-1, width)
            after = self.block_on_sequences(layer, sequences, torch.full_like(columns, window))
            replayed[window] = after[rows, columns].reshape(alternatives, chosen, width)
        return replayed

    def block_on_sequences(
        self,
        layer: int,
        sequences: Float[Tensor, "row position d_model"],
        windows: Int[Tensor, " row"],
        block: nn.Module | None = None,
    ) -> Float[Tensor, "row position d_model"]:
        """Run block `layer` on whole sequences, with its recorded call in the given windows.

        Args:
            layer: Index of the block.
            sequences: The stream entering it.
            windows: The window that each row comes from.
            block: A working copy to run instead, in the dtype of `sequences`.

        Returns:
            The stream that leaves the block.
        """
        call = self.calls[layer]
        rows = {name: cast(value, sequences.dtype) for name, value in self._rows_of(call, windows).items()}
        return call.run(self.model.blocks[layer] if block is None else block, sequences, None, **rows)

    def _rows_of(self, call: BlockCall, windows: Int[Tensor, " row"]) -> dict[str, Any]:
        """A recorded call's arguments for the given windows; a bias by head is the same in all: none is padded."""
        arguments = {name: self._rows(value, windows) for name, value in call.arguments.items()}
        bias = call.arguments.get(BIAS_BY_HEAD)
        if isinstance(bias, Tensor) and bias.ndim == 3:
            config: Any = self.model.module.config
            arguments[BIAS_BY_HEAD] = bias[: config.num_attention_heads].repeat(len(windows), 1, 1)
        return arguments

    def _rows(self, value: Any, windows: Int[Tensor, " row"]) -> Any:
        """The rows of a recorded argument for the given windows; an argument that all windows share stays as it is."""
        if isinstance(value, tuple):
            return tuple(self._rows(part, windows) for part in value)
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(self.tokens) > 1:
            return value[windows.to(value.device)]
        return value

    def run_on(
        self, layer: int, states: Float[Tensor, "window alternative chosen d_model"]
    ) -> Float[Tensor, "window alternative chosen d_model"]:
        """Run blocks `layer` … L−1 at the chosen positions; returns the stream that enters the final norm."""
        for later in range(layer, self.model.n_layers):
            states = self.replay(later, states)
        return states

    def run_sequence(
        self, layer: int, states: Float[Tensor, "row position d_model"], windows: Int[Tensor, " row"]
    ) -> Float[Tensor, "row position d_model"]:
        """Run blocks `layer` … L−1 on whole sequences, with their recorded calls in the given windows."""
        for later in range(layer, self.model.n_layers):
            states = self.block_on_sequences(later, states, windows)
        return states

    def off_position_write(self, layer: int) -> Float[Tensor, "window chosen d_model"]:
        """Compute the part of a block's mixing write that comes from other positions, at the chosen positions.

        Attention is linear in the values, so this is the write with the position's own value set to zero (an output
        bias, and a norm after attention, stay). For a state-space block it is the write with the carried state minus
        the write with an empty one.

        Args:
            layer: Index of the block.

        Returns:
            The off-position part of the write.

        Raises:
            InputError: If the model's blocks do not run at single positions over a cache.
        """
        if self.past is None:
            raise InputError(
                f"the off-position write needs blocks that run at single positions over a cache, and those of "
                f"{self.model.name} do not: use a Hugging Face model of a tested architecture"
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
    """Record one forward pass, from which `Context.replay` can run any block again at the chosen positions.

    Args:
        model: The model.
        tokens: Windows of tokens of one length, without padding.
        positions: The chosen positions of each window, each in [0, T).
        sites: Further sites to keep.

    Returns:
        The recorded context. Memory: the states of all layers, (L + 1) · W · T · d numbers, and keys and values.
        A state-space model also runs once token by token, to find the states carried into the positions. Blocks of an
        architecture without a row in `probe.model.architectures` are run again once as a test: if their outputs at the
        positions alone differ, the context runs whole sequences, at T times the cost.

    Raises:
        InputError: If a position lies outside its window, the blocks take no cache by a known name, or their recorded
            calls do not reproduce their outputs.
    """
    tokens, positions = tokens.to(model.device), positions.to(model.device)
    if positions.numel() and not (positions.min() >= 0 and positions.max() < tokens.shape[1]):
        raise InputError(
            f"positions must lie in [0, {tokens.shape[1]}), inside the window, got {int(positions.min())} to "
            f"{int(positions.max())}: choose others"
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
            f"{model.name} do not under transformers {transformers.__version__}: install transformers 5.24"
        )
    return at_positions()


def _proven(whole: Context, at_positions: Callable[[], Context]) -> Context:
    """The cheaper of two contexts in which every block, run again, reproduces its output of the forward pass."""
    layers, states = range(whole.model.n_layers), whole.states
    try:
        cut = at_positions()
        # two alternatives of each state
        twice = [cut.state(layer)[:, None].repeat(1, 2, 1, 1) for layer in range(len(states))]
        if all(_same(cut.replay(layer, twice[layer]), twice[layer + 1]) for layer in layers):
            return cut
    except Exception as error:  # noqa: BLE001 - whatever a model's code raises, its blocks cannot run so
        logger.info("the blocks of %s do not run at single positions: %s", whole.model.name, error)
    last = torch.tensor([len(whole.tokens) - 1], device=whole.tokens.device)
    if not all(
        _same(whole.block_on_sequences(layer, states[layer][last], last), states[layer + 1][last]) for layer in layers
    ):
        raise InputError(
            f"a replay needs blocks whose recorded calls reproduce their outputs, and those of {whole.model.name} "
            f"({whole.model.architecture}) do not: use a model of another family"
        )
    return whole


def _same(found: Tensor, expected: Tensor) -> bool:
    """Equality up to the rounding of a block's own arithmetic."""
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
    """Run block `layer` on each state as a one-token input: the tokenwise function that the architecture contains.

    Args:
        model: The model.
        layer: Index of the block.
        states: The stream entering the block.
        attention: If False, attention's write is replaced by zero, so that only the MLP acts (in a parallel block this
            is exactly its MLP term).
        batch: Number of states in one run.

    Returns:
        The stream that leaves the block.

    Raises:
        InputError: If the block has no attention to leave out.
    """
    if not attention and model.recurrent:
        raise InputError(
            f"attention=False needs blocks with attention, and {model.name} is a state-space model: leave it out"
        )
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
