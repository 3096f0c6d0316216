"""One position of a block over the block's own cache, as it stood before the position.

The cache is of the kind that the model's own code makes, and the block fills it itself: from its recorded inputs before
the position, at the cost of one run of this block. So every kind of state (of convolutions, state-space models, linear
attention, keys of a local window) comes to the position as it does when text is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.replay import axes as of_axes
from probe.replay.attention import Continued, around
from probe.replay.axes import Axes
from probe.replay.calls import caching, cast
from probe.replay.past import Carried, chosen_by, is_container, rows_of, tensors_in
from probe.stream import watch

if TYPE_CHECKING:
    from probe.replay.recorded import Recorded

STEPS = 8
"""Positions that one at a time take as long as one run over them, roughly; many positions are walked through."""


def stretched(
    context: Recorded,
    layer: int,
    windows: Int[Tensor, " row"],
    first: int,
    last: int,
    held: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Cut the arguments of a recorded call to positions `first` … `last` − 1 of some windows.

    Args:
        context: The recorded context.
        layer: Index of the block.
        windows: The window that each row comes from.
        first: The first position.
        last: One past the last.
        held: Number of earlier keys that the block's cache holds.
        dtype: The dtype of the arithmetic.

    Returns:
        The arguments.
    """

    def cut(tensor: Tensor, axes: Axes) -> Tensor:
        return of_axes.of_stretch(of_axes.of_windows(tensor, axes, windows), axes, first, last, held + last - first)

    arguments: dict[str, Any] = cast(of_axes.changed(context.calls[layer].arguments, context.axes(layer), cut), dtype)
    return arguments


@dataclass(frozen=True)
class _Walk:
    """A block that runs over recorded inputs with a cache of its own."""

    context: Recorded
    layer: int
    dtype: torch.dtype
    block: nn.Module

    def run(self, windows: list[int], first: int, last: int, cache: Any) -> Any:
        """Run over positions `first` … `last` − 1; returns the cache."""
        if first == last:
            return cache
        context, layer = self.context, self.layer
        rows = torch.tensor(windows, device=context.tokens.device)
        whole = windows == list(range(len(context.tokens)))
        held = Carried(first, windows, [], cache).keys
        call = context.calls[layer]
        arguments = caching(stretched(context, layer, rows, first, last, held, self.dtype))
        states = context.states[layer] if whole else context.states[layer][rows]
        output = call.output(self.block, states[:, first:last].to(self.dtype), cache, **arguments)
        return output[1] if is_container(cache) else cache

    def empty(self, rows: int) -> Any:
        """Make an empty cache."""
        return self.context.profile.cache(self.context.model, self.layer, rows)


def before(context: Recorded, layer: int, position: int, dtype: torch.dtype, block: nn.Module | None = None) -> Carried:
    """Find the cache of a block before one position of all windows.

    Args:
        context: The recorded context.
        layer: Index of the block.
        position: The position.
        dtype: The dtype of the arithmetic.
        block: A working copy of the block; None: the block.

    Returns:
        The cache, a row for each window.
    """
    walk = _Walk(context, layer, dtype, context.model.blocks[layer] if block is None else block)
    every = list(range(len(context.tokens)))
    return Carried(position, every, every, walk.run(every, 0, position, walk.empty(len(every))))


def walked(context: Recorded, layer: int, dtype: torch.dtype, block: nn.Module | None) -> list[Carried]:
    """Find the cache of a block before each chosen position.

    Args:
        context: The recorded context.
        layer: Index of the block.
        dtype: The dtype of the arithmetic.
        block: A working copy of the block; None: the block.

    Returns:
        A cache for each position that was chosen in some window.
    """
    walk = _Walk(context, layer, dtype, context.model.blocks[layer] if block is None else block)
    chosen = chosen_by(context.positions)
    runs = sum(position * len(windows) for position, (windows, _) in chosen.items())
    last = max(chosen, default=0)
    if runs <= STEPS * len(context.tokens) * last:
        caches = [walk.run(windows, 0, position, walk.empty(len(windows))) for position, (windows, _) in chosen.items()]
        return [Carried(position, *rows, cache) for (position, rows), cache in zip(chosen.items(), caches, strict=True)]
    every, cache, found = list(range(len(context.tokens))), walk.empty(len(context.tokens)), list[Carried]()
    for position in range(last + 1):
        if position in chosen:
            windows, columns = chosen[position]
            whole = Carried(position, every, every, cache)
            found.append(Carried(position, windows, columns, rows_of([whole], 1, torch.tensor(windows))))
        if position < last:
            cache = walk.run(every, position, position + 1, cache)
    return found


def over_cache(
    context: Recorded,
    layer: int,
    states: Float[Tensor, "window alternative chosen d_model"],
    block: nn.Module | None,
    carried: Sequence[Carried],
    site: str | None = None,
    *,
    singly: bool = False,
) -> Float[Tensor, "window alternative chosen d_model"]:
    """Run a block at the chosen positions over what was carried into them.

    Args:
        context: The recorded context.
        layer: Index of the block.
        states: The stream that enters the block.
        block: A working copy of it; None: the block.
        carried: The caches.
        site: A site of the block whose tensor is returned instead.
        singly: Run each row by itself, for code that takes one row with a cache.

    Returns:
        The stream that leaves the block.
    """
    if singly:
        one_by_one = [part for one in carried for part in one.rows()]
        alternatives = [
            _grouped(context, layer, states[:, index : index + 1], block, one_by_one, site, singly=True)
            for index in range(states.shape[1])
        ]
        return torch.cat(alternatives, dim=1)
    return _grouped(context, layer, states, block, carried, site, singly=False)


def _grouped(
    context: Recorded,
    layer: int,
    states: Float[Tensor, "window alternative chosen d_model"],
    block: nn.Module | None,
    carried: Sequence[Carried],
    site: str | None,
    *,
    singly: bool,
) -> Float[Tensor, "window alternative chosen d_model"]:
    """Caches that may be joined run together."""
    known = context.axes(layer)
    apart = any(axes is None or axes.of_keys or len(axes.positions) > 1 for axes in known.values())
    groups: dict[Any, list[Carried]] = {}
    for index, one in enumerate(carried):
        group = index if singly else (one.position if apart or one.keys else None, one.signature)
        groups.setdefault(group, []).append(one)
    parts, order = [], torch.empty(context.positions.shape, dtype=torch.int64)
    row = 0
    for joined in groups.values():
        windows = torch.tensor([window for one in joined for window in one.windows])
        columns = torch.tensor([column for one in joined for column in one.columns])
        order[windows, columns] = torch.arange(row, row := row + len(windows))
        chosen = states[windows.to(states.device), :, columns.to(states.device)]  # (row, alternative, d)
        parts.append(_step(context, layer, chosen, windows, joined, block, site))
    after = torch.cat(parts).index_select(0, order.flatten().to(states.device))  # (W · chosen, alternative, d)
    parted: Tensor = after.unflatten(0, context.positions.shape)
    return parted.transpose(1, 2)


def _step(
    context: Recorded,
    layer: int,
    states: Float[Tensor, "row alternative d_model"],
    windows: Int[Tensor, " row"],
    carried: Sequence[Carried],
    block: nn.Module | None,
    site: str | None,
) -> Float[Tensor, "row alternative d_model"]:
    """One position of each row, over copies of the cache that was carried into it."""
    alternatives, call = states.shape[1], context.calls[layer]
    positions = [one.position for one in carried for _ in one.windows]
    rows = windows.repeat_interleave(alternatives)
    where = torch.tensor(positions, device=states.device).repeat_interleave(alternatives)[:, None]

    def cut(tensor: Tensor, axes: Axes) -> Tensor:
        tensor = of_axes.of_windows(tensor, axes, rows)
        if len(carried) == 1:
            return of_axes.of_stretch(tensor, axes, positions[0], positions[0] + 1, carried[0].keys + 1)
        return of_axes.of_positions(tensor, axes, where, joined=False, dtype=states.dtype)

    arguments = cast(caching(of_axes.changed(call.arguments, context.axes(layer), cut)), states.dtype)
    cache = rows_of(carried, alternatives)
    # The block overwrites the state that its derivative needs with its next one.
    overwritten = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(cache)}

    def keep(saved: Tensor) -> Tensor:
        return saved.clone() if saved.untyped_storage().data_ptr() in overwritten else saved

    block = context.model.blocks[layer] if block is None else block
    entering = states.flatten(0, 1)[:, None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved), around(Continued()):
        if site is None:
            return call.run(block, entering, cache, **arguments).reshape(states.shape)
        with watch(context.model, [site]) as seen:
            call.run(block, entering, cache, **arguments)
        return seen[site].reshape(states.shape)
