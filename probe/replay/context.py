"""The context of chosen positions, recorded once, in which blocks can run again."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.boundary import at_least, public
from probe.errors import InputError
from probe.model import (
    LanguageModel,
    ending_after,
    entering,
    first_tensor,
    undisturbed,
    with_first_tensor,
)
from probe.replay import carried
from probe.replay.attention import DETACHED, LINEARISED, AttentionPrimal, Recorder, Replayed, around
from probe.replay.calls import BlockCall, recorded_calls
from probe.replay.copies import reading, working_copy
from probe.replay.profile import profile_of
from probe.replay.recorded import Recorded
from probe.stream import watch
from probe.text import Given, Which, as_rows

logger = logging.getLogger("probe.replay")


@dataclass(frozen=True, repr=False)
class Context(Recorded):
    """The recorded context of chosen positions in blocks of a model, for a batch of windows."""

    # Linear in the attention

    def linear(self, layer: int) -> bool:
        """Tell whether block `layer` gives by linearised attention what it gave; it is tried once a model.

        Args:
            layer: Index of the block.

        Returns:
            True if `linearised` runs it.
        """
        found = self.profile.linear
        if layer not in found:
            states = self.state(layer)
            try:
                with torch.no_grad():
                    self.linearised(layer, states, working_copy(self.model.blocks[layer], states.dtype, LINEARISED))
                found[layer] = self._slopes_alike(layer)
            except InputError as error:
                logger.info("%s", error)
                found[layer] = False
        return found[layer]

    def _slopes_alike(self, layer: int) -> bool:
        """Compare the derivative by linearised attention with that of the replay, along one direction."""
        part = self.farthest()
        states = part.state(layer)
        linear, own = (working_copy(self.model.blocks[layer], states.dtype, name) for name in (LINEARISED, None))
        point = states.clone().requires_grad_()
        with torch.enable_grad():
            runs = part.linearised(layer, point, linear), part.replay(layer, point[:, None], own)[:, 0]
        cotangent = torch.linspace(-1, 1, states.shape[-1]).to(states).expand_as(states)
        slopes = [torch.autograd.grad(after, point, cotangent)[0] for after in runs]
        tolerance = max(1e-2, 8 * torch.finfo(states.dtype).eps)
        return bool((slopes[0] - slopes[1]).norm() <= tolerance * slopes[1].norm())

    def linearised(
        self,
        layer: int,
        states: Float[Tensor, "window chosen d_model"],
        block: nn.Module,
        primals: list[AttentionPrimal] | None = None,
    ) -> Float[Tensor, "window chosen d_model"]:
        """Run a block as `replay` does: equal in value and derivative, but the derivative's cost does not grow with T.

        Its value at the recorded states is compared with what the real run gave.

        Args:
            layer: Index of the block.
            states: The stream that enters the block, in the dtype of `block`.
            block: A working copy of the block, with attention `LINEARISED` (or `DETACHED`).
            primals: A list to which the attention's primal point is appended.

        Returns:
            The stream that leaves the block.

        Raises:
            InputError: If the block does not run transformers' `AttentionInterface`, or gives another value by it.
        """
        replayed = Replayed(self._expanded(layer, states.dtype, block))
        after = self._linear(layer, states, block, replayed)
        if primals is not None:
            primals += replayed.primals
        if ("linear", layer) not in self._kept and self.same(states, self.state(layer)):
            if not self.same(after, self.after(layer)):
                raise InputError(
                    f"linearised attention must give what the block gave, and in block {layer} of {self.model.name} it "
                    'gives something else: use method="jacrev"'
                )
            self._kept["linear", layer] = True
        return after

    def _linear(self, layer: int, states: Tensor, block: nn.Module, replayed: Replayed) -> Tensor:
        try:
            cut = self._at_positions(layer, 1, states.dtype, joined=False)
            with around(replayed):
                after = self.calls[layer].run(block, states, None, **cut)
        except InputError:
            raise
        except Exception as error:
            raise self._not_linear(layer) from error
        if len(replayed.primals) != len(replayed.recorded):
            raise self._not_linear(layer)
        return after

    def _not_linear(self, layer: int) -> InputError:
        return InputError(
            f"linearised attention needs blocks that run transformers' AttentionInterface, and block {layer} of "
            f'{self.model.name} does not: use method="jacrev"'
        )

    def _expanded(self, layer: int, dtype: torch.dtype, block: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """The keys and values that the block's attention function is handed at all positions."""
        if self._whole is not None:
            whole, windows, _ = self._whole
            return [(keys[windows], values[windows]) for keys, values in whole._expanded(layer, dtype, block)]
        key = ("expanded", layer, dtype)
        if key not in self._kept:
            recorder = Recorder()
            rows = torch.arange(len(self.tokens), device=self.tokens.device)
            try:
                with torch.no_grad(), around(recorder), recorder.stopping(block):
                    self.block_on_sequences(layer, self.states[layer].to(dtype), rows, block)
            except Exception as error:
                raise self._not_linear(layer) from error
            if not recorder.pairs:
                raise self._not_linear(layer)
            self._kept[key] = recorder.pairs
        pairs: list[tuple[Tensor, Tensor]] = self._kept[key]
        return pairs

    # Through depth

    def run_on(
        self, layer: int, states: Float[Tensor, "window alternative chosen d_model"]
    ) -> Float[Tensor, "window alternative chosen d_model"]:
        """Run blocks `layer` … L−1 at the chosen positions; returns the stream that enters the final norm."""
        last = self.model.n_layers
        if layer < last and not self.profile.chained(self.model, layer, last):
            return self._each_in_its_sequence(self.states[layer], states, lambda *rows: self._through(layer, *rows))
        for later in range(layer, last):
            states = self.replay(later, states)
        return states

    def run_sequence(
        self, layer: int, states: Float[Tensor, "row position d_model"], windows: Int[Tensor, " row"]
    ) -> Float[Tensor, "row position d_model"]:
        """Run blocks `layer` … L−1 on whole sequences, with their recorded calls in the given windows."""
        last = self.model.n_layers
        if layer < last and not self.profile.chained(self.model, layer, last):
            return self._through(layer, states, windows)
        for later in range(layer, last):
            states = self.block_on_sequences(later, states, windows)
        return states

    def run_suffix(
        self,
        layer: int,
        start: int,
        states: Float[Tensor, "row suffix d_model"],
        windows: Int[Tensor, " row"],
    ) -> Float[Tensor, "row suffix d_model"]:
        """Run blocks `layer` … L−1 on positions `start` … T − 1 of changed streams, with what lies before as recorded.

        Args:
            layer: The first block.
            start: The first position, in [0, T).
            states: The streams that enter this block at these positions.
            windows: The window that each row is an alternative of.

        Returns:
            The streams that enter the final norm at these positions.
        """
        last = self.model.n_layers
        if layer < last and not self.profile.chained(self.model, layer, last):
            sequences = torch.cat([self.stream(layer)[windows, :start], states], dim=1)
            return self._through(layer, sequences, windows)[:, start:]
        for later in range(layer, last):
            states = self.replay_suffix(later, start, states, windows)
        return states

    def _through(self, layer: int, sequences: Tensor, windows: Tensor) -> Tensor:
        """The model's own pass with the stream that enters a block replaced: what later blocks read beside it, too."""
        site = f"blocks.{self.model.n_layers - 1}.hook_resid_post"
        block, last = self.model.blocks[layer], self.model.blocks[-1]
        with entering(block, lambda _: sequences), watch(self.model, [site]) as seen, ending_after(last):
            self.model.final_states(self.tokens[windows])
        return seen[site]

    # What comes from elsewhere, and nothing from elsewhere

    @torch.no_grad()
    def off_position_write(self, layer: int) -> Float[Tensor, "window chosen d_model"]:
        """Compute the part of a block's mixing write that comes from other positions, at the chosen positions.

        Attention is linear in the values, so this is the write without the position's own p(t, t) v(t) (an output bias,
        and a norm after attention, stay). For a block that carries a state it is the write with the carried state minus
        the write with an empty one.

        Args:
            layer: Index of the block.

        Returns:
            The off-position part of the write.

        Raises:
            InputError: If the block does not run at single positions, or its values cannot be told from its keys.
        """
        states, block = self.state(layer), self.model.blocks[layer]
        site = next(
            (
                name
                for short in ("hook_attn_out", "hook_mixer_out")
                if (name := f"blocks.{layer}.{short}") in self.model.sites
            ),
            f"blocks.{layer}.hook_attn_out",
        )
        copy = working_copy(block, states.dtype, DETACHED)
        try:
            self.linearised(layer, states, copy)
        except InputError:
            pass
        else:
            replayed = Replayed(self._expanded(layer, states.dtype, copy), only_others=True)
            with reading(self.model.site(site), block, copy) as seen:
                self._linear(layer, states, copy, replayed)
            return seen[-1].reshape(states.shape)
        way = self.way(layer)
        if way == "keys":
            past = self.past_keys(layer, states.dtype, None)
            writes = []
            for without in ("own", "all"):
                with reading(self.model.site(site), block, block) as seen:
                    self._over_keys(layer, states[:, None], None, replace(past, without=without))
                writes.append(seen[-1].reshape(states.shape))
            if past.layers and self.same(writes[1], writes[1][:1, :1].expand_as(states)):  # nothing but a bias is left
                return writes[0]
        elif way in ("carried", "rows"):
            full = carried.walked(self, layer, states.dtype, None)
            empty = [replace(one, cache=self.profile.cache(self.model, layer, len(one.windows))) for one in full]
            if not any(one.keys for one in full):
                written, first = (
                    carried.over_cache(self, layer, states[:, None], None, caches, site, singly=way == "rows")
                    for caches in (full, empty)
                )
                nothing = self.positions[..., None] == 0  # comes from before the first position
                return (written - first)[:, 0].masked_fill(nothing, 0.0)
        raise InputError(
            f"the off-position write needs blocks that run at single positions over keys and values, or over a carried "
            f"state, and block {layer} of {self.model.name} does not: leave its share out"
        )

    @torch.no_grad()
    @undisturbed()
    def alone(self) -> Context:
        """Make a context of the same states, each as a one-token input: W · P windows of one position.

        What a block is given beside its state is that of a real one-token pass in which every block gets its recorded
        state: positions, masks, and what blocks read of the token or of earlier blocks.

        Returns:
            The context; `states` holds the recorded states at the chosen positions.

        Raises:
            InputError: If the one-token call of a block does not give again what the block gave.
        """
        first = torch.zeros_like(self.positions.reshape(-1, 1))
        tokens = self.tokens.gather(1, self.positions).reshape(-1, 1)
        single = _recorded(self.model, tokens, first, list(self.calls))
        for layer in self.calls:
            if layer not in self.profile.alone:
                after = single.block_on_sequences(layer, single.states[layer], torch.arange(len(tokens)))
                single.require_same(layer, after, single.states[layer + 1])
                self.profile.alone.add(layer)
        calls = single.calls
        if any(self.profile.reads(self.model, layer) for layer in self.calls):
            calls = self._calls_alone(tokens)
        states = {layer: self.state(layer).reshape(len(tokens), 1, -1) for layer in self.states}
        return Context(self.model, tokens, first, states, calls, one_token=True)

    def _calls_alone(self, tokens: Tensor) -> dict[int, BlockCall]:
        """The calls of a one-token pass in which each block gets its recorded state."""
        blocks = self.model.blocks[: max(self.calls) + 1]
        sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(len(blocks))]
        with watch(self.model, sites) as seen, ending_after(blocks[-1]):
            self.model.final_states(self.tokens)
        where = self.positions[..., None].expand(-1, -1, self.model.d_model)
        with recorded_calls(self.model, list(self.calls)) as calls, ExitStack() as stack:
            for block, site in zip(blocks, sites, strict=True):
                state = seen[site].gather(1, where).reshape(len(tokens), 1, -1)
                stack.enter_context(entering(block, partial(_instead, state)))
            stack.enter_context(ending_after(blocks[-1]))
            self.model.final_states(tokens)
        return {layer: calls[layer][0] for layer in self.calls}


@public
@torch.no_grad()
def record(
    model: LanguageModel,
    tokens: Given,
    positions: Which,
    *,
    layers: Collection[int] | None = None,
    sites: Sequence[str] = (),
) -> Context:
    """Record one forward pass, from which `Context.replay` can run blocks again at the chosen positions.

    The pass ends behind the last block that is asked for. Pasts are found when a block first runs again: its keys and
    values, or the cache that it carries into each position, from runs of that block on its recorded inputs.

    Args:
        model: The model.
        tokens: Windows or prompts of one length, or what `probe.load_prompts` takes; no padding.
        positions: The chosen positions: (P,) for all windows or (W, P), negative ones counted from the end; "last"; or
            a `probe.Substring`.
        layers: The blocks that will run again; None: all.
        sites: Further sites to keep.

    Returns:
        The recorded context. Memory: the states around the layers asked for, up to (L + 1) · W · T · d numbers.

    Raises:
        InputError: If the windows are not of this model's ids, of several lengths, or begin with padding, a position
            lies outside its window, there is no such layer, or the blocks do not run once each.
    """
    rows = as_rows(model, tokens, argument="tokens")
    groups = rows.groups()
    if len(groups) > 1:
        raise InputError(
            f"a context is recorded of windows of one length, and these have {int(rows.lengths.min())} to "
            f"{int(rows.lengths.max())} tokens: record each length by itself, as groups() of load_prompts gives them"
        )
    return _recorded(model, groups[0][1], rows.positions(positions), layers, sites)


@undisturbed()
@torch.no_grad()
def _recorded(
    model: LanguageModel,
    tokens: Tensor,
    positions: Tensor,
    layers: Collection[int] | None = None,
    sites: Sequence[str] = (),
) -> Context:
    """As `record`; tokens that stand for one position may be any."""
    tokens, positions = tokens.to(model.device), positions.to(model.device)
    wanted = sorted(set(range(model.n_layers) if layers is None else layers))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < model.n_layers:
        raise InputError(
            f"layers must lie in 0 … {model.n_layers - 1} for {model.name}, got {wanted[0]} to {wanted[-1]}: choose "
            "blocks of the model"
        )
    profile_of(model).learn(model)
    stream = {layer: f"blocks.{layer}.hook_resid_pre" for layer in wanted}
    stream |= {layer + 1: f"blocks.{layer}.hook_resid_post" for layer in wanted if layer + 1 not in wanted}
    if not profile_of(model).joined:
        sites = [*sites, *(f"blocks.{layer}.hook_resid_post" for layer in wanted)]
    inside = [model.site(site).layer for site in sites]
    last = None if None in inside else max([*wanted, *(layer for layer in inside if layer is not None)], default=0)
    with watch(model, [*stream.values(), *sites]) as seen, recorded_calls(model, wanted) as calls:
        if last is None:
            model.final_states(tokens)
        else:
            with ending_after(model.blocks[last]):
                model.final_states(tokens)
    states = {depth: seen[site] for depth, site in sorted(stream.items())}
    kept = {site: seen[site] for site in sites}
    return Context(model, tokens, positions, states, {layer: calls[layer][0] for layer in wanted}, kept)


@public(batch=at_least(1))
@undisturbed()
@torch.no_grad()
def alone(
    model: LanguageModel,
    layer: int,
    states: Float[Tensor, "token d_model"],
    *,
    tokens: Int[Tensor, " token"] | None = None,
    attention: bool = True,
    batch: int = 4096,
) -> Float[Tensor, "token d_model"]:
    """Run block `layer` on each state as a one-token input: the tokenwise function that the architecture contains.

    Args:
        model: The model.
        layer: Index of the block.
        states: The stream entering the block.
        tokens: The token of each state; needed only by blocks that read more of the token than their stream, such as
            per-layer inputs or the embedding.
        attention: If False, attention's write is replaced by zero, so that only the MLP acts (in a parallel block this
            is exactly its MLP term).
        batch: Number of states in one run.

    Returns:
        The stream that leaves the block.

    Raises:
        InputError: If the block has no attention to leave out, or reads what neither the state nor the token tells.
    """
    if not attention and model.recurrent:
        raise InputError(
            f"attention=False needs blocks with attention, and {model.name} is a state-space model: leave it out"
        )
    profile = profile_of(model)
    profile.learn(model)
    if profile.reads(model, layer):
        if any(layer in profile.reading(model, earlier) for earlier in range(layer)):
            raise InputError(
                f"a one-token input must tell all that the block reads, and block {layer} of {model.name} reads keys "
                "or states of earlier blocks too: use `Context.alone` of a recorded context"
            )
        if tokens is None:
            raise InputError(
                f"a one-token input must tell all that the block reads, and block {layer} of {model.name} reads its "
                "token beside the stream: pass tokens=, or use `Context.alone` of a recorded context"
            )
    ids = torch.zeros(len(states), dtype=torch.int64) if tokens is None else tokens
    handles = []
    if not attention:
        written = [f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mixer_out"]
        sites = [model.site(name) for name in written if name in model.sites] or [model.site(written[0])]
        handles += [site.module.register_forward_hook(_write_nothing) for site in sites]
    parts = []
    try:
        for part, those in zip(states.split(batch), ids.to(model.device).split(batch), strict=True):
            zero = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
            # without a token of its own, every state has the call of one
            rows, windows = (those[:, None], range(len(part))) if tokens is not None else (zero, [0] * len(part))
            single = _recorded(model, rows, torch.zeros_like(rows), [layer])
            index = torch.tensor(list(windows), device=model.device)
            parts.append(single.block_on_sequences(layer, part[:, None], index)[:, 0])
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(parts)


def _instead(state: Tensor, _: Tensor) -> Tensor:
    return state


def _write_nothing(_module: nn.Module, _args: Any, output: Any) -> Any:
    return with_first_tensor(output, torch.zeros_like(first_tensor(output)))


@public
def is_chained(model: LanguageModel) -> bool:
    """Tell whether each block of a model is given the stream that the one before it left, and nothing else of it.

    Args:
        model: The model.

    Returns:
        True if a change of a stream reaches later blocks by the stream alone.
    """
    return profile_of(model).chained(model, 0, model.n_layers)


@public
def require_chain(model: LanguageModel, first: int, last: int) -> None:
    """Refuse to multiply Jacobians of blocks of which one is given more than the stream.

    Args:
        model: The model.
        first: Index of the first block.
        last: One past the index of the last.

    Raises:
        InputError: If a later block is given something else that the stream entering the first one decides.
    """
    if not profile_of(model).chained(model, first, last):
        raise InputError(
            f"Jacobians multiply through depth where blocks are given the stream alone, and blocks {first} to "
            f"{last - 1} of {model.name} ({model.architecture}) are given more of what enters block {first}: take the "
            "blocks one by one"
        )
