"""The rotation of queries and keys that a GGUF file states, with its scalings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from probe.model.gguf.stated import Stated

FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the configuration takes: what each rotary frequency is divided by."""


def rotation(stated: Stated, model_type: str, width: int, context: int, *, partial: bool) -> dict[str, Any]:
    """Read how a file rotates queries and keys.

    Args:
        stated: Its keys.
        model_type: The type of transformers.
        width: Width of a head.
        context: Longest window.
        partial: True if part of a head may stay unrotated.

    Returns:
        The parameters as transformers has them.

    Raises:
        InputError: If the model does not rotate so.
    """
    rotated = stated.get("rope.dimension_count", width)
    if rotated != width and not partial:
        raise stated.refusal("rope.dimension_count", f"{width}, the width of its heads")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(stated.get("rope.freq_base", 10_000.0))}
    if partial:
        rope["partial_rotary_factor"] = rotated / width
    factor = stated.get("rope.scaling.factor") or stated.get("rope.scale_linear") or 1.0
    # llama.cpp scales linearly where a factor comes without a type.
    kind = stated.get("rope.scaling.type", "linear")
    magnitude = float(stated.get("rope.scaling.attn_factor", 1.0))
    original = int(stated.get("rope.scaling.original_context_length", 0))
    for key in ("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"):
        if (value := stated.get(key)) is not None and kind == "yarn":
            rope[key.removeprefix("rope.scaling.yarn_")] = float(value)
    stated.expect("rope.scaling.yarn_ext_factor", 1.0)
    stated.expect("rope.scaling.yarn_attn_factor", 1.0)
    stated.expect("rope.scaling.yarn_log_multiplier", 0.0)
    factors = {name: stated.file.read(name).ravel() for name in FACTORS if name in stated.file.tensors}
    if any(len(values) != rotated // 2 for values in factors.values()):
        raise stated.refusal("rope.dimension_count", f"twice the {len(next(iter(factors.values())))} rotary factors")
    if kind not in {"none", "linear", "yarn", "longrope"}:
        raise stated.refusal("rope.scaling.type", "none, linear, yarn or longrope")
    if kind == "yarn":
        if factors or magnitude != 1.0 or model_type in {"phi3", "gemma3_text"} or not original:
            raise stated.refusal("rope.scaling.type", "none or linear beside the file's other settings")
        return rope | {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    if kind == "none" or (kind == "longrope" and factors):
        factor = 1.0
    return rope | _divided(
        factors, float(factor), magnitude, original or context, rotated, model_type, rope["rope_theta"]
    )


def _divided(
    factors: Mapping[str, np.ndarray],
    factor: float,
    magnitude: float,
    original: int,
    rotated: int,
    model_type: str,
    theta: float,
) -> dict[str, Any]:
    """The scaling that divides each frequency by its own factor, in the plainest form that says it."""
    ones = np.ones(rotated // 2)
    common = factors.get("rope_freqs.weight", ones) * factor
    short = common * factors.get("rope_factors_short.weight", ones)
    long = common * factors.get("rope_factors_long.weight", ones)
    if magnitude == 1.0 and model_type != "phi3" and np.array_equal(short, long):
        if (short == short[0]).all():
            return {} if short[0] == 1 else {"rope_type": "linear", "factor": float(short[0])}
        if (llama3 := _llama3(short, theta)) is not None:
            return llama3
    elif magnitude == 1.0 and (short == 1).all() and (long == 1).all():
        return {}
    return {
        "rope_type": "longrope",
        "short_factor": [float(value) for value in short],
        "long_factor": [float(value) for value in long],
        "attention_factor": magnitude,
        "factor": 1.0,
        "original_max_position_embeddings": original,
    }


def _llama3(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """Llama 3's scaling, if it gives these factors."""
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    wavelengths = 2 * math.pi * theta ** (np.arange(len(factors)) / len(factors))
    share = (original / wavelengths - low) / (high - low)
    expected = 1 / np.clip((1 - share) / factor + share, 1 / factor, 1)
    if not np.allclose(expected, factors, rtol=1e-5, atol=0):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
