"""Exact replay of a block at chosen positions, with the rest of its context held fixed.

In a causal model a change at position t of block l changes no state at an earlier position. What later blocks read at t
is therefore known beforehand: the keys and values of the positions before t (attention), or the states that the block
carried there (convolutions, state-space models, linear attention). `record` keeps the streams and the calls of one
forward pass; the past of a block comes from a run of that block on its recorded inputs, when it first runs again.
`Context.replay` then runs a block on the chosen positions alone, each with its own past and its own live key and value.
The result equals a run of the whole sequence at the cost of the chosen positions: 2 · params FLOPs a position, plus
attention over the recorded past.

The blocks' own code runs, with the arguments of the recorded call cut to the chosen positions; which of their axes
count windows and positions is found by comparing passes. So sliding windows, grouped queries, norms of queries and
keys, latent attention, sandwich norms and parallel blocks need no special case. In each context, the first run of a
block is compared with what the block gave; a block that gives something else runs another way, at worst in copies of
whole sequences, or is refused. The user's module is not changed: another dtype, or attention that is cheap to
differentiate, is set in a `working_copy` that shares its weights.
"""

from probe.replay.attention import DETACHED, LINEARISED, AttentionPrimal
from probe.replay.calls import BlockCall
from probe.replay.context import Context, alone, is_chained, record, require_chain
from probe.replay.copies import working_copy
from probe.replay.past import PastKeys
from probe.replay.profile import tiny_tokens

__all__ = [
    "DETACHED",
    "LINEARISED",
    "AttentionPrimal",
    "BlockCall",
    "Context",
    "PastKeys",
    "alone",
    "is_chained",
    "record",
    "require_chain",
    "tiny_tokens",
    "working_copy",
]


def __dir__() -> list[str]:
    return __all__
