"""What the configuration tells: a causal stream of constant width, or none."""

from __future__ import annotations

from typing import Any

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


def query_heads(config: Any) -> int | None:
    """Return the number of attention heads that a configuration states for all blocks.

    Args:
        config: The Hugging Face configuration.

    Returns:
        The number; None if it states none, or one for each block, which it refuses to give as one number.
    """
    try:
        heads = getattr(config, "num_attention_heads", None)
    except Exception:  # noqa: BLE001 - an exception of the configuration's own
        return None
    return heads if isinstance(heads, int) else None
