"""A tiny random model of every causal type that the installed transformers knows, made by rule."""

from __future__ import annotations

import dataclasses
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures.tables import (
    AT_LEAST,
    DEPTH,
    EXCEPTIONS,
    HEADS,
    KEPT,
    NUMBERS,
    OPTIONAL,
    PAIRS,
    SLOW,
    SMALL,
    SWITCHES,
)

SCALE = 0.2
"""Standard deviation of the matrices: at width 32 a matrix keeps the length of a state."""
DEEP = 4
"""Layers of a model: enough for each kind of mixing beside each kind of MLP."""


def types() -> tuple[str, ...]:
    """All causal types of the installed transformers, in its order."""
    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def settings(kind: type[PreTrainedConfig], layers: int) -> dict[str, Any]:
    """Small settings of a configuration class by rule; sub-configurations as dicts."""
    fields = [field.name for field in dataclasses.fields(kind)]
    found: dict[str, Any] = {name: SMALL[name] for name in fields if name in SMALL}
    found |= {name: layers for name in fields if name in DEPTH}
    if "kv_lora_rank" in found and "num_key_value_heads" in found:
        found["num_key_value_heads"] = HEADS  # latents are expanded to every head
    default = _default(kind)
    for name, sub in (getattr(kind, "sub_configs", None) or {}).items():
        part = type(_get(default, name)) if _get(default, name) is not None else sub
        if part is AutoConfig and hasattr(kind.sub_configs_defaults[name], "model_type"):
            part = CONFIG_MAPPING[kind.sub_configs_defaults[name].model_type]
        if part is not AutoConfig:
            found[name] = {"model_type": part.model_type, **settings(part, layers)}
    if default is None:
        return found
    depths = {_get(default, name) for name in fields if name in DEPTH}
    for name in fields:
        value = _get(default, name)
        if name not in SMALL and isinstance(value, list | tuple) and len(value) in depths and len(value) > 1:
            found[name] = by_layer(name, value, layers)
    # what the class itself leaves unset means that the type has no such part
    absent = {name for name in found if name in SMALL and name not in KEPT and _get(default, name, 0) is None}
    return {name: value for name, value in found.items() if name not in absent}


def by_layer(name: str, values: list[Any] | tuple[Any, ...], layers: int) -> list[Any]:
    """A list with an entry a layer, cut to `layers` so that it keeps every kind of entry."""
    kinds = [value for index, value in enumerate(values) if value not in values[:index]]
    pace = 2 if layers == DEEP and any(part in name for part in SLOW) else 1
    return [kinds[layer // pace % len(kinds)] for layer in range(layers)]


def _default(kind: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    try:
        return kind()
    except Exception:  # noqa: BLE001 - some classes have no valid default
        return None


def _get(default: PreTrainedConfig | None, name: str, otherwise: Any = None) -> Any:
    try:
        return getattr(default, name, otherwise)
    except AttributeError:
        return otherwise
    except Exception:  # noqa: BLE001 - an attribute that has a value a layer refuses to be read for all
        return otherwise


def configuration(name: str, layers: int = DEEP, **changes: Any) -> PreTrainedConfig:
    """The small configuration of a type."""
    kind = CONFIG_MAPPING[name]
    layers = max(layers, AT_LEAST.get(name, 1))
    chosen = settings(kind, layers)
    for path, value in {**EXCEPTIONS.get(name, {}), **changes}.items():
        inside = chosen
        *parents, last = path.split(".")
        for parent in parents:
            inside = inside.setdefault(parent, {})
        if callable(value):
            value = value(layers)
        inside[last] = value[:layers] if isinstance(value, list) and len(value) == DEEP else value
    return kind(**chosen)


def variants(name: str) -> dict[str, dict[str, Any]]:
    """Further settings of a type by the variant's name: switches turned, unset fields set, kinds of layers alone."""
    kind = CONFIG_MAPPING[name]
    default = _default(kind)
    if default is None:
        return {}
    fields = [field.name for field in dataclasses.fields(kind)]
    chosen = {**settings(kind, DEEP), **EXCEPTIONS.get(name, {})}
    found: dict[str, dict[str, Any]] = {}
    for field in fields:
        value = chosen.get(field, _get(default, field))
        if isinstance(value, bool) and re.fullmatch(SWITCHES, field):
            found[field] = {field: not value}
        elif value is None and field in OPTIONAL:
            found[field] = {field: OPTIONAL[field]}
    for variant, changes in NUMBERS.items():
        if set(changes) <= set(fields) and any(
            chosen.get(field, _get(default, field)) != changes[field] for field in changes
        ):
            found[variant] = changes
    kinds = chosen.get("layer_types", _get(default, "layer_types")) or ()
    for one in dict.fromkeys(kinds) if len(set(kinds)) > 1 else ():
        found[f"all_{one}"] = {"layer_types": [one] * DEEP}
    if len(set(kinds)) == 1 and "full_attention" in kinds and "sliding_window" in fields:
        found["sliding"] = {"layer_types": ["sliding_attention", "full_attention"] * (DEEP // 2)}
    return {variant: {**changes, **PAIRS.get(f"{name}:{variant}", {})} for variant, changes in found.items()}


def tiny(name: str, *, layers: int = DEEP, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny random model of a type, float32, in evaluation mode, its weights moved off every neutral value.

    Args:
        name: The type, or a variant of it, as in "llama:attention_bias".
        layers: Number of layers.
        seed: Seed of the weights.
        **changes: Further settings.
    """
    name, _, variant = name.partition(":")
    if variant:
        changes = {**variants(name)[variant], **changes}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(configuration(name, layers, **changes))
        randomise(module, seed)
    return module.eval().requires_grad_(False)


def multimodal(name: str, *, layers: int = 2) -> PreTrainedModel:
    """A tiny random model of images and text, as `tiny` makes one of text.

    Args:
        name: The type, one of `AutoModelForImageTextToText`.
        layers: Number of layers.
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = configuration(name, layers)
        rotary = getattr(config.get_text_config(), "rope_parameters", None)
        if isinstance(rotary, dict) and "mrope_section" in rotary:
            rotary["mrope_section"] = [2, 1, 1]  # half a head of width 8
        module = AutoModelForImageTextToText.from_config(config)
        randomise(module, 0)
    return module.eval().requires_grad_(False)


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> None:
    """Draw every matrix anew, and move gains, biases and layer scalars off 1 and 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.dtype)

    for name, parameter in module.named_parameters():
        last = name.rpartition(".")[2]
        if "A_log" in last or last in ("dt_bias",):
            parameter.mul_(1 + 0.1 * normal(parameter))
        elif parameter.ndim > 1:
            parameter.copy_(SCALE * normal(parameter))
        else:
            if not torch.isfinite(parameter).all() or parameter.abs().max() > 100:
                parameter.zero_()
            parameter.add_(0.1 * normal(parameter))
    for name, buffer in module.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.copy_(0.8 + 0.1 * normal(buffer))
        elif "correction_bias" in name:
            buffer.copy_(0.1 * normal(buffer))


def questions(windows: int = 2, length: int = 10) -> tuple[Tensor, Tensor]:
    """Tokens (window, position) that are not special, and two positions of each window, others in each."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 90, (windows, length), generator=generator)
    places = [[length - 1 - w % 3, 4 + w % 2] for w in range(windows)]
    return tokens, torch.tensor(places)
