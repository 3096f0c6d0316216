"""Exact replay of a block at chosen positions, with the rest of its context held fixed.

In a causal model a change at position t of block l changes no state at an earlier position. What later blocks read at t
is therefore known beforehand: the keys and values of the positions before t (attention), or the convolution and
recurrent states that they left (state-space). `record` takes them from one forward pass. `Context.replay` then runs a
block on the chosen positions alone, each with its own recorded past and its own live key and value. The result equals a
run of the whole sequence at the cost of the chosen positions: 2 · params FLOPs a position, plus attention over the
recorded past.

The blocks' own code runs, with position embeddings and mask rows of the recorded call cut to the chosen positions. So
sliding windows, grouped queries, norms of queries and keys, sandwich norms and parallel blocks need no special case.
The user's module is not changed: another dtype, or attention that is cheap to differentiate, is set in a `working_copy`
that shares its weights.
"""

from probe.replay.attention import DETACHED, LINEARISED, AttentionPrimal
from probe.replay.calls import BlockCall
from probe.replay.context import Context, alone, record
from probe.replay.copies import working_copy
from probe.replay.past import PastKeys, PastState

__all__ = [
    "DETACHED",
    "LINEARISED",
    "AttentionPrimal",
    "BlockCall",
    "Context",
    "PastKeys",
    "PastState",
    "alone",
    "record",
    "working_copy",
]
