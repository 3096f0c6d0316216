"""Measures of logits: how probable a token is, which of two is, how far one distribution is from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.boundary import shown
from probe.errors import InputError
from probe.model import LanguageModel, token_of
from probe.patching.replacing import kl_divergence

EFFECTS = ("kl", "logit_difference", "loss", "rank", "top1")
"""Measures of an output, float32:

- `kl`: KL(p_reference ‖ p) in nats
- `logit_difference`: logit of the first token minus that of the second
- `loss`: −log p of a token, in nats
- `rank`: the number of tokens with a larger logit than a token's; 0 is the most probable
- `top1`: 1 where the most probable token is that of the reference, else 0
"""


def measured(
    measure: str,
    logits: Float[Tensor, "*#batch vocab"],
    *,
    reference: Float[Tensor, "*#batch vocab"] | None = None,
    tokens: Int[Tensor, "*#batch n"] | None = None,
) -> Float[Tensor, "*#batch"]:
    """Compute one of `EFFECTS`.

    Args:
        measure: The name of the measure.
        logits: The logits; leading axes of the others broadcast against theirs.
        reference: The logits to compare with, for `kl` and `top1`.
        tokens: The tokens, for the other measures; negative where there is none, which gives NaN.

    Returns:
        The measure, float32.
    """
    logits = logits.float()
    if measure in ("kl", "top1"):
        assert reference is not None
        if measure == "top1":
            return (logits.argmax(-1) == reference.argmax(-1)).float()
        return kl_divergence(reference.float().log_softmax(-1).expand_as(logits), logits.log_softmax(-1))
    assert tokens is not None
    index = tokens.expand(*logits.shape[:-1], tokens.shape[-1])
    picked = logits.gather(-1, index.clamp_min(0))
    if measure == "logit_difference":
        found = picked[..., 0] - picked[..., 1]
        index = index[..., :2]
    elif measure == "loss":
        found = logits.logsumexp(-1) - picked[..., 0]
        index = index[..., :1]
    else:
        found = (logits > picked[..., :1]).sum(-1).float()
        index = index[..., :1]
    return found.masked_fill((index < 0).any(-1), torch.nan)


def token_ids(model: LanguageModel, tokens: Any, rows: int, *, argument: str = "tokens") -> Int[Tensor, "row n"]:
    """Find the ids of the tokens that a measure compares.

    Args:
        model: The model.
        tokens: Strings that are one token each, or ids: one group for all rows, such as `(" Paris", " Rome")`, or a
            sequence of such groups, one for each row.
        rows: Number of rows.
        argument: Name of the argument, for messages.

    Returns:
        The ids of each row.

    Raises:
        InputError: If a string is not one token, an id is not of the vocabulary, or the groups do not fit the rows.
    """
    given = tokens
    if isinstance(tokens, np.ndarray) or (isinstance(tokens, Tensor) and not tokens.is_meta):
        tokens = tokens.tolist()
    listed: Any = [tokens] if _is_token(tokens) else tokens
    groups: Any = [listed] * rows if isinstance(listed, Sequence) and all(map(_is_token, listed)) else listed
    if not isinstance(groups, Sequence) or not all(
        isinstance(group, Sequence) and all(map(_is_token, group)) for group in groups
    ):
        raise InputError(f"{argument}= must be texts or ids, or groups of them, got {shown(given)}: pass a list")
    ids = [[token_of(model, token, argument=argument) for token in group] for group in groups]
    if len(ids) != rows or not all(ids) or len({len(group) for group in ids}) > 1:
        raise InputError(
            f"{argument}= must be one group of tokens for all prompts or one for each of {rows}, all of one size, got "
            f"{len(ids)} of sizes {', '.join(str(len(group)) for group in ids)} by {shown(given)}: pass a list of pairs"
        )
    return torch.tensor(ids)


def _is_token(value: Any) -> bool:
    return isinstance(value, str | int | np.integer) and not isinstance(value, bool)


def token_texts(model: LanguageModel, ids: Sequence[int] | Int[Tensor, " position"]) -> list[str]:
    """Name tokens by their text; by their id where there is no tokenizer.

    Args:
        model: The model.
        ids: Token ids.

    Returns:
        A text for each.
    """
    listed = [int(token) for token in ids]
    if model.tokenizer is None:
        return [str(token) for token in listed]
    return [str(model.tokenizer.decode([token])) for token in listed]
