"""Windows of several lengths, one length at a time."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Int64, Shaped
from torch import Tensor

from probe.model import LanguageModel
from probe.text import Given, Which, as_rows


def by_length(
    model: LanguageModel,
    tokens: Given,
    positions: Which,
    compute: Callable[[Int64[Tensor, "part position"], Int64[Tensor, "part chosen"]], Tensor],
) -> Shaped[Tensor, "window ..."]:
    """Compute something of windows whose lengths may differ.

    Args:
        model: The model.
        tokens: As `probe.block_jacobian` takes them.
        positions: As `probe.block_jacobian` takes them.
        compute: From windows of one length and their positions, counted from the start, to a row for each window.

    Returns:
        The rows, in the order of the windows.
    """
    rows = as_rows(model, tokens, argument="tokens")
    where = rows.positions(positions)
    parts = [(indices, compute(group, where[indices])) for indices, group in rows.groups()]
    if len(parts) == 1:
        return parts[0][1]
    first = parts[0][1]
    found = first.new_empty((len(where), *first.shape[1:]))
    for indices, part in parts:
        found[indices.to(part.device)] = part
    return found
