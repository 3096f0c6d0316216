"""The streams behind all patches of one pair of prompts, with work shared between them.

The patches at position t climb the blocks together: a run of block l on positions t … T − 1 serves all that entered at
or before it, and with each block another one joins. For L layers and T positions that is L² T² / 4 runs of a block at a
position, in batches of up to L rows, where L · T passes take L² T².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import replay
from probe.model import LanguageModel, changed, ending_after
from probe.stream import watch

_BESIDE = ("attn.hook_k", "attn.hook_v", "attn.hook_rot_k")
"""Sites whose tensor at one position acts on others in the same block."""
_HEADED = ("attn.hook_z", "attn.hook_q", "attn.hook_rot_q", "attn.hook_pattern", *_BESIDE)


@dataclass(frozen=True)
class Crossing:
    """All patches of one pair of prompts.

    Attributes:
        model: The model.
        tokens: The clean prompt and the corrupted one, up to the position that is read.
        site: Name of the site inside a block.
        layers: The layers to patch.
        positions: The positions to patch; those behind the end change nothing.
        denoising: Whether clean states are put into the corrupted run, or the other way round.
        rows_at_once: Positions that pass through a block at a time.
    """

    model: LanguageModel
    tokens: Int[Tensor, "side position"]
    site: str
    layers: list[int]
    positions: Int[Tensor, " chosen"]
    denoising: bool
    rows_at_once: int

    @property
    def source(self) -> int:
        """The row of `tokens` whose states are put into the other's run."""
        return 0 if self.denoising else 1

    @property
    def base(self) -> int:
        """The row of `tokens` whose run is changed."""
        return 1 - self.source


@dataclass(frozen=True)
class Crossed:
    """Streams that enter the final norm at the position read.

    Attributes:
        sides: Of the clean run and of the corrupted one.
        patched: Of each patched run.
    """

    sides: Float[Tensor, "2 d_model"]
    patched: Float[Tensor, "layer chosen *head d_model"]


def crossed(crossing: Crossing, done: Callable[[int], object] = lambda _: None) -> Crossed:
    """Run all patches of a pair.

    Args:
        crossing: The patches.
        done: Called with the number of positions that are finished, as they are.

    Returns:
        The streams at the last position.
    """
    model, names = crossing.model, [f"blocks.{layer}.{crossing.site}" for layer in crossing.layers]
    length = crossing.tokens.shape[1]
    read = torch.full((2, 1), length - 1)
    of_stream = crossing.site in ("hook_resid_pre", "hook_resid_post")
    context = replay.record(model, crossing.tokens, read, sites=() if of_stream else names)
    final = context.states[model.n_layers][:, -1]
    heads = 0
    if crossing.site in _HEADED:
        heads = context.seen[names[0]].shape[2]
    patched = final[crossing.base].repeat(len(crossing.layers), len(crossing.positions), max(heads, 1), 1)
    chained = replay.is_chained(model)
    ladder = _Ladder(crossing, context, max(heads, 1), bool(heads), chained)
    for column, position in enumerate(crossing.positions.tolist()):
        if position < length:
            ladder.climb(position, patched[:, column])
        done(1)
    return Crossed(final, patched if heads else patched[:, :, 0])


class _Ladder:
    """The patches of one pair, position by position."""

    def __init__(self, crossing: Crossing, context: replay.Context, heads: int, headed: bool, chained: bool) -> None:
        self.crossing, self.context, self.heads, self.headed, self.chained = crossing, context, heads, headed, chained
        self.entries = {layer: self._left(layer) for layer in crossing.layers} if chained else {}

    def climb(self, position: int, found: Float[Tensor, "layer head d_model"]) -> None:
        """Run the patches at one position; `found` gets the streams at the end, where they change."""
        crossing = self.crossing
        if not self.chained:
            for row, layer in enumerate(crossing.layers):
                found[row] = self._whole_passes(layer, position)
            return
        rows = {layer: row for row, layer in enumerate(crossing.layers)}
        below = crossing.site == "hook_resid_pre"
        live: list[Tensor] = []
        entered: list[int] = []
        for depth in range(crossing.model.n_layers + 1):
            layer = depth if below else depth - 1
            if layer in rows and (states := self._entering(layer, depth, position)) is not None:
                live.append(states)
                entered.append(rows[layer])
            if depth < crossing.model.n_layers and live:
                live = [self._through(depth, position, torch.cat(live))]
        if live:
            found[entered] = torch.cat(live)[:, -1].unflatten(0, (-1, self.heads))

    def _through(self, depth: int, position: int, states: Tensor) -> Tensor:
        windows = torch.full((len(states),), self.crossing.base, device=states.device)
        rows = max(1, self.crossing.rows_at_once // states.shape[1])
        return torch.cat([
            self.context.replay_suffix(depth, position, part, windows[: len(part)]) for part in states.split(rows)
        ])

    def _entering(self, layer: int, depth: int, position: int) -> Float[Tensor, "head suffix d_model"] | None:
        """The streams from the position on that enter block `depth`, patched at `layer`; None if nothing changes."""
        base = self.context.states[depth][self.crossing.base, position:]
        entry = self.entries[layer]
        if entry is None:
            left = self._alone(layer, position)
            return None if torch.equal(left, base.expand_as(left)) else left
        if torch.equal(entry[:, position], base[:1].expand(self.heads, -1)):
            return None
        states = base.repeat(self.heads, 1, 1)
        states[:, 0] = entry[:, position]
        return states

    def _left(self, layer: int) -> Float[Tensor, "head position d_model"] | None:
        """The stream at the depth that the site leads to, with each position patched by itself."""
        crossing, context = self.crossing, self.context
        if crossing.site == "hook_resid_pre":
            return context.states[layer][crossing.source][None]
        if crossing.site == "hook_resid_post":
            return context.states[layer + 1][crossing.source][None]
        if crossing.site in _BESIDE:
            return None
        name = f"blocks.{layer}.{crossing.site}"
        source, base = (context.seen[name][side] for side in (crossing.source, crossing.base))
        differing = (source != base).flatten(1).any(1).nonzero()[:, 0]
        before = context.left(layer)[crossing.base]
        if not len(differing):
            return before.expand(self.heads, -1, -1)
        # Behind the mixing of positions, a patch at one position moves the block's output there alone: one run with all
        # positions patched gives each of them, and a row with one of them patched shows that it is so.
        tried = int(differing[0])

        def change(tensor: Tensor) -> Tensor:
            for head in range(self.heads):
                part = (slice(None), head) if self.headed else slice(None)
                tensor[head][part] = source[part]
            tensor[self.heads, tried] = source[tried]
            if self.headed:
                tensor[self.heads + 1] = source
            return tensor

        count = self.heads + 1 + self.headed
        after = self._block(layer, count, {name: change})
        others = torch.arange(len(before), device=before.device) != tried
        whole = after[self.heads + 1] if self.headed else after[0]
        alike = _same(after[self.heads, others], before[others]) and _same(after[self.heads, tried], whole[tried])
        return after[: self.heads] if alike else None

    def _alone(self, layer: int, position: int) -> Float[Tensor, "head suffix d_model"]:
        """The streams that leave a block with the site patched at one position, from there on."""
        return self._block(layer, self.heads, self._patch(layer, position))[:, position:]

    def _patch(self, layer: int, position: int) -> dict[str, Callable[[Tensor], Tensor]]:
        name = f"blocks.{layer}.{self.crossing.site}"
        source = self._source(layer, name)[position]

        def change(tensor: Tensor) -> Tensor:
            if not self.headed:
                tensor[:, position] = source
            for head in range(self.heads if self.headed else 0):
                tensor[head, position, head] = source[head]
            return tensor

        return {name: change}

    def _source(self, layer: int, name: str) -> Tensor:
        context, crossing = self.context, self.crossing
        if crossing.site == "hook_resid_pre":
            return context.states[layer][crossing.source]
        if crossing.site == "hook_resid_post":
            return context.left(layer)[crossing.source]
        return context.seen[name][crossing.source]

    def _block(self, layer: int, rows: int, changes: dict[str, Callable[[Tensor], Tensor]]) -> Tensor:
        windows = torch.full((rows,), self.crossing.base, device=self.context.tokens.device)
        with changed(self.crossing.model, changes):
            return self.context.block_on_sequences(layer, self.context.states[layer][windows], windows)

    def _whole_passes(self, layer: int, position: int) -> Float[Tensor, "head d_model"]:
        """Streams at the end by passes of the whole model, where its blocks do not make a chain."""
        model = self.crossing.model
        site = f"blocks.{model.n_layers - 1}.hook_resid_post"
        with changed(model, self._patch(layer, position)), watch(model, [site]) as seen, ending_after(model.blocks[-1]):
            model.final_states(self.crossing.tokens[self.crossing.base].expand(self.heads, -1))
        return seen[site][:, -1]


def _same(found: Tensor, expected: Tensor) -> bool:
    return bool(((found - expected).norm(dim=-1) <= 1e-5 * expected.norm(dim=-1)).all())
