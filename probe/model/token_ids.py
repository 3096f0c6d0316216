"""Token ids where they enter: windows of equal length, of ids that the model has an embedding for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from probe.boundary import public, shown
from probe.errors import InputError
from probe.model.protocol import LanguageModel


@public
def require_tokens(model: LanguageModel, tokens: Any) -> Int64[Tensor, "window position"]:
    """Refuse what is not windows of this model's token ids.

    Args:
        model: The model.
        tokens: What came as tokens, a tensor or an array.

    Returns:
        The tokens, as int64.

    Raises:
        InputError: If it holds no integers, not (windows, positions), empty, or has an id outside the
            vocabulary.
    """
    if isinstance(tokens, np.ndarray) and tokens.dtype.kind in "biufc":
        tokens = torch.from_numpy(tokens)
    if not isinstance(tokens, Tensor):
        raise InputError(
            f"tokens must be a tensor of integers, (windows, positions), got {shown(tokens)}: pass "
            "torch.as_tensor(tokens)"
        )
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype is torch.bool:
        raise InputError(
            f"tokens must be integers, got {shown(tokens)}: pass the ids that model.encode or load_windows gives"
        )
    if tokens.ndim != 2:
        repair = "pass tokens[None] for one window" if tokens.ndim == 1 else "give them two axes"
        raise InputError(f"tokens must be (windows, positions), got shape {tuple(tokens.shape)}: {repair}")
    if tokens.is_meta:
        raise InputError(
            f"tokens must hold numbers, got a tensor of shape {tuple(tokens.shape)} on meta, where there are none: "
            "pass one on the CPU"
        )
    if not tokens.numel():
        raise InputError(
            "tokens must hold at least one window of at least one position, got tokens of shape "
            f"{tuple(tokens.shape)}: pass some"
        )
    known = _vocabulary(model)
    smallest, largest = (int(end) for end in tokens.aminmax())
    if not 0 <= smallest <= largest < known:
        raise InputError(
            f"token ids must lie in 0 … {known - 1} for {model.name}, got {smallest if smallest < 0 else largest}: "
            "encode the text with this model's own tokenizer"
        )
    ids: Tensor = tokens.to(torch.int64)
    return ids


@public
def require_windows(model: LanguageModel, tokens: Any) -> Int64[Tensor, "window position"]:
    """Refuse what is not windows of this model's token ids without padding in front.

    Windows are of one length, so that they need no padding. A pass has no mask for it: padding in front would move
    the positions and be attended to. It is told by the tokenizer's pad token, by the configuration's where there is
    no tokenizer, and only where that is no ordinary token and not what begins or ends a text.

    Args:
        model: The model.
        tokens: What came as tokens.

    Returns:
        The tokens, as int64.

    Raises:
        InputError: If `require_tokens` would raise it, or a window begins with padding.
    """
    windows = require_tokens(model, tokens)
    pad = _pad(model)
    if pad is not None and (padded := windows[:, 0] == pad).any():
        window = int(padded.nonzero()[0])
        length = int((windows[window] == pad).long().cumprod(0).sum())
        raise InputError(
            f"a window must not begin with padding, and window {window} begins with {length} of the pad token {pad}: "
            "pass windows of one length without padding, or each text by itself"
        )
    return windows


@public
def token_of(model: LanguageModel, token: str | int, *, argument: str = "token") -> int:
    """Find the id of one token.

    Args:
        model: The model.
        token: Its text, blanks included, or its id.
        argument: Name of the argument that holds it, for messages.

    Returns:
        The id.

    Raises:
        InputError: If the text is not one token, or the id is none of the vocabulary.
    """
    named = "a token" if argument == "token" else f"a token of {argument}="
    if isinstance(token, str):
        ids = model.encode(token)
        if len(ids) != 1:
            parts = ", ".join(repr(model.tokenizer.decode([one])) for one in ids)
            raise InputError(
                f"{named} must be one token of {model.name}, and {token!r} is {len(ids)} ({parts}): write it as it "
                "stands in the text, often with a blank in front, or pass its id"
            )
        return ids[0]
    if isinstance(token, bool) or not isinstance(token, int | np.integer):
        raise InputError(f"{named} must be a text or an id, got {type(token).__name__}: pass one of them")
    if not 0 <= token < model.n_vocab:
        raise InputError(
            f"{named} must have an id in 0 … {model.n_vocab - 1} for {model.name}, got {token}: choose another"
        )
    return int(token)


def _vocabulary(model: LanguageModel) -> int:
    """Number of ids that have an embedding; a head may have fewer rows or more."""
    inputs = getattr(model.module, "get_input_embeddings", None)
    try:
        weight = getattr(inputs(), "weight", None) if inputs is not None else None
    except (AttributeError, NotImplementedError):
        weight = None
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else model.n_vocab


def _pad(model: LanguageModel) -> int | None:
    """The pad token, where it is padding and nothing else."""
    tokenizer = model.tokenizer
    config: Any = getattr(model.module, "config", None)
    stated = [part for part in (tokenizer, config) if part is not None]
    pad = next((getattr(part, "pad_token_id", None) for part in stated), None)
    if not isinstance(pad, int) or (tokenizer is not None and pad not in model.special_ids):
        return None
    roles = ("bos", "eos", "unk", "cls", "sep", "mask", "decoder_start")
    others = [getattr(part, f"{role}_token_id", None) for part in stated for role in roles]
    named = {one for other in others for one in (other if isinstance(other, list | tuple) else [other])}
    return None if pad in named or pad == model.bos_id else pad
