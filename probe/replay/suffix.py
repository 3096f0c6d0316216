"""The last positions of windows again, in a block that is given everything before them as it was recorded.

A change at position t of block l reaches no state of a block before l and none of a position before t. So blocks l …
L − 1 run on positions t … T − 1 of changed streams, over the keys and values of the positions before t, or over what
the block carried up to t: a cached continuation, by the block's own code.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.replay import carried
from probe.replay.axes import causal_stretch
from probe.replay.calls import accepts, caching
from probe.replay.past import rows_of

if TYPE_CHECKING:
    from probe.replay.recorded import Recorded

logger = logging.getLogger("probe.replay")

SUFFIX_WAYS = ("keys", "carried", "sequences")
"""Ways of running a block on the last positions of windows, the cheapest first: over recorded keys, over the block's
own cache as it stood before them, and on whole sequences."""

Rows = Float[Tensor, "row position d_model"]


def run(
    context: Recorded,
    way: str,
    layer: int,
    start: int,
    states: Rows,
    windows: Int[Tensor, " row"],
    block: nn.Module | None = None,
) -> Rows:
    """Run a block on the positions from `start` on in one of `SUFFIX_WAYS`.

    Args:
        context: The recorded context.
        way: The way.
        layer: Index of the block.
        start: The first position.
        states: The streams that enter the block at these positions.
        windows: The window that each row comes from.
        block: A working copy to run instead, in the dtype of `states`.

    Returns:
        The streams that leave it.
    """
    if way == "sequences":
        before = context.stream(layer)[windows, :start].to(states.dtype)
        return context.block_on_sequences(layer, torch.cat([before, states], dim=1), windows, block)[:, start:]
    if way == "keys":
        past = context.past_keys(layer, states.dtype, block).before(start, windows)
        return _continued(context, layer, start, states, windows, past, start, block)
    held = context.cache_before(layer, start, states.dtype, block)
    return _continued(context, layer, start, states, windows, rows_of([held], 1, windows), held.keys, block)


def _continued(
    context: Recorded,
    layer: int,
    start: int,
    states: Rows,
    windows: Int[Tensor, " row"],
    cache: Any,
    held: int,
    block: nn.Module | None,
) -> Rows:
    length, block = context.tokens.shape[1], context.model.blocks[layer] if block is None else block
    arguments = carried.stretched(context, layer, windows, start, length, held, states.dtype)
    name = "attention_mask"
    if held and arguments.get(name) is None and accepts(block, name):
        arguments[name] = causal_stretch(start, length, held + length - start, states)
    return context.calls[layer].run(block, states, cache, **caching(arguments))


def found(context: Recorded, layer: int, start: int) -> str:
    """Find the cheapest way in which a block gives, from `start` on, what it gave; it is proved here.

    Args:
        context: The recorded context.
        layer: Index of the block.
        start: The first position.

    Returns:
        The way.
    """
    profile, length = context.profile, context.tokens.shape[1]
    kind = (layer, length - start == 1)  # one position runs as text is generated, several may not
    windows = torch.arange(len(context.tokens), device=context.tokens.device)
    states, expected = context.stream(layer), context.left(layer)
    ways = SUFFIX_WAYS[SUFFIX_WAYS.index(profile.suffixes.get(kind, SUFFIX_WAYS[0])) : -1] if start else ()
    for way in ways:
        try:
            after = run(context, way, layer, start, states[:, start:], windows)
            proved = context.same(after, expected[:, start:])
            if proved and profile.suffixes.get(kind) != way:  # once a model: at the recorded states all keys are alike
                pushed, first = states[:1, start:] + 0.5 * states[:1, start:].flip(-1), windows[:1]
                others = (run(context, other, layer, start, pushed, first) for other in (way, "sequences"))
                proved = context.same(*others)
        except Exception as error:  # noqa: BLE001 - whatever a model's code raises, its blocks cannot run so
            logger.info("block %d of %s does not go on by %s: %s", layer, context.model.name, way, error)
            continue
        if proved:
            profile.suffixes[kind] = way
            return way
        logger.info("block %d of %s gives something else by %s", layer, context.model.name, way)
    context.require_same(layer, context.block_on_sequences(layer, states, windows), expected)
    if start:
        profile.suffixes[kind] = SUFFIX_WAYS[-1]
    return SUFFIX_WAYS[-1]
