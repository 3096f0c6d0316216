"""Facts that the configuration tells: a causal stream of constant width or none, and the scaling of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.errors import InputError


def require_causal_stream(config: Any) -> None:
    """Refuse a model that looks ahead, or whose blocks do not add to one stream of constant width.

    Args:
        config: The Hugging Face configuration.

    Raises:
        InputError: If positions attend to later ones, the embedding has another width than the blocks, or the stream is
            normed after each addition.
    """
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        raise InputError(
            f"a model must be causal, so that no state depends on a later token, but this {config.model_type} attends "
            "to both sides (is_causal, use_bidirectional_attention); use a causal language model"
        )
    width = getattr(config, "hidden_size", None)
    embedded = getattr(config, "word_embed_proj_dim", width)
    if embedded != width:
        raise InputError(
            f"a model needs a residual stream of constant width, but this {config.model_type} embeds in {embedded} and "
            f"computes in {width} dimensions; use another size of the family"
        )
    if not getattr(config, "do_layer_norm_before", True):
        raise InputError(
            f"a model needs a residual stream of constant width that blocks add to, but this {config.model_type} norms "
            "the sum after every addition (do_layer_norm_before=False); use another size of the family"
        )


def logits_from_head(logits: Tensor, config: Any) -> Tensor:
    """Apply a model's factor, divisor and soft cap (cap · tanh(logits / cap)) to the head's output.

    Args:
        logits: The head's output.
        config: The Hugging Face configuration; its fields `logit_scale` (Cohere), `logits_scaling` (Granite) and
            `final_logit_softcapping` (Gemma) hold those that apply.

    Returns:
        The logits that the module itself returns.
    """
    factor = getattr(config, "logit_scale", None)
    if factor is not None:
        logits = logits * factor
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
