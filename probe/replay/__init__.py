"""A block, exactly, at chosen positions, the rest of its context held fixed.

In a causal model a change at position t of block l leaves every state at earlier positions as it was. What later
blocks read at t is therefore known beforehand: the keys and values of the positions before t (attention), or the
convolution and recurrent state that they left (state-space). `record` takes them from one forward pass; `replay` then
runs a block on the chosen positions alone, each against its own recorded past and its own live key and value. The
result equals a run of the whole sequence, at the cost of the chosen positions: 2 · params FLOPs a position, and
attention over the recorded past.

The blocks' own code runs: position embeddings and mask rows of the recorded call are cut to the chosen positions, so
sliding windows, grouped queries, norms of queries and keys, sandwich norms and parallel blocks need no case of their
own. The user's module is not changed: what has to differ (the arithmetic's dtype, attention that is cheap to
differentiate) differs in a `working_copy` that shares its weights.
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
