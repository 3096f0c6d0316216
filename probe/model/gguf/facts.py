"""The configuration that a GGUF file states: every key and every flag-like tensor of it, or a refusal by name.

A key that nothing here asks for could change what the model computes, so it is refused; a tensor that stands for a
setting (a bias, the factors of the rotary frequencies) sets it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from probe.errors import InputError
from probe.model.gguf.container import GGUFFile
from probe.model.gguf.rotation import rotation
from probe.model.gguf.stated import Stated


@dataclass(frozen=True)
class Architecture:
    """An architecture of GGUF as one of transformers'.

    Attributes:
        model_type: The type of transformers.
        sizes: Name in the configuration of each further key, besides those that all architectures share.
        flags: Setting that is on if block 0 has a tensor, by the tensor's name inside the block.
        fixed: Settings that every file of the architecture has.
        partial: True if part of a head may stay unrotated.
        window: True if attention may be windowed.
        rotary: True if positions enter by rotation.
    """

    model_type: str
    sizes: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False
    window: bool = False
    rotary: bool = True


_ATTENTION = {"attention_bias": "attn_q.bias"}
_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_STATE = {"ssm.conv_kernel": "conv_kernel", "ssm.state_size": "state_size", "ssm.time_step_rank": "time_step_rank"}
_STATE_FLAGS = {"use_bias": "ssm_in.bias", "use_conv_bias": "ssm_conv1d.bias"}

ARCHITECTURES = {
    "llama": Architecture("llama", flags={**_ATTENTION, "mlp_bias": "ffn_up.bias"}),
    "qwen2": Architecture("qwen2"),
    "qwen2moe": Architecture(
        "qwen2_moe",
        {**_EXPERTS, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        {"qkv_bias": "attn_q.bias"},
        {"norm_topk_prob": False},
    ),
    "qwen3": Architecture("qwen3", flags=_ATTENTION),
    "qwen3moe": Architecture("qwen3_moe", _EXPERTS, _ATTENTION, {"norm_topk_prob": True}),
    "falcon": Architecture("falcon", flags={"bias": "attn_output.bias"}),
    "phi3": Architecture("phi3", partial=True, window=True),
    "bloom": Architecture("bloom", rotary=False),
    "stablelm": Architecture("stablelm", flags={"use_qkv_bias": "attn_q.bias"}, partial=True),
    "gpt2": Architecture("gpt2", rotary=False),
    "starcoder2": Architecture("starcoder2", flags={"use_bias": "attn_output.bias"}, window=True),
    "mamba": Architecture("mamba", _STATE, _STATE_FLAGS, rotary=False),
    "nemotron": Architecture("nemotron", flags={**_ATTENTION, "mlp_bias": "ffn_up.bias"}, partial=True),
    "gemma2": Architecture("gemma2", flags=_ATTENTION, window=True),
    "gemma3": Architecture("gemma3_text", flags=_ATTENTION, window=True),
}
"""What is read here, by the file's `general.architecture`; transformers itself makes the others of `readable()`."""

_SHARED = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "norm_epsilon")
_HARMLESS = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "use_parallel_residual")
"""The vocabulary is as large as the embedding; a parallel residual shows in the tensors; the others describe."""
_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Blocks of the 27B models, which alone scale queries by the width of the model and not of a head; no key says so."""


class _Asked(dict[str, Any]):
    """Keys as transformers' own functions take them, which tell `Stated` what they read."""

    def __init__(self, stated: Stated) -> None:
        fields = stated.file.fields
        values = {name: stated.file.value(name) for name in fields if not name.startswith("tokenizer.")}
        ids = {name: stated.file.value(name) for name in fields if name.endswith("_token_id")}
        tokens = {"tokenizer.ggml.tokens": stated.file.shape("token_embd.weight")[0]}
        super().__init__({**values, **ids, **tokens})
        self.stated = stated

    def __getitem__(self, key: str) -> Any:
        if key.startswith(self.stated.prefix):
            self.stated.require(key.removeprefix(self.stated.prefix))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]


def readable() -> list[str]:
    """List the architectures of GGUF that are read.

    Returns:
        Their names, sorted.
    """
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    return sorted({*ARCHITECTURES, *GGUF_CONFIG_ARCHS})


def configuration(file: GGUFFile) -> Any:
    """Make the configuration that a file states.

    Args:
        file: The file.

    Returns:
        The configuration of transformers, with which the model computes what the file means.

    Raises:
        InputError: If its architecture is not read, or something that it states has no place.
    """
    import transformers
    from transformers import AutoConfig
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    architecture, kind = file.architecture, file.value("general.type", "model")
    if kind != "model" or architecture not in readable():
        what = f"architecture {architecture!r}" if kind == "model" else f"type {kind!r}"
        raise InputError(
            f"a GGUF file must be a language model of {', '.join(readable())}, and {file.path} is of {what}, which is "
            f"not read from GGUF (transformers {transformers.__version__}): load the model from its original weights"
        )
    if "token_embd.weight" not in file.tensors:
        raise InputError(
            f"a GGUF file must hold every tensor of its model, and {file.path} holds no token_embd.weight: fetch it "
            "again"
        )
    stated = Stated(file)
    if architecture in GGUF_CONFIG_ARCHS:
        values = GGUF_CONFIG_ARCHS[architecture](_Asked(stated), tuple(file.tensors))
        _check_shared(stated, values)
    else:
        values = _values(stated, ARCHITECTURES[architecture])
    for key in _HARMLESS:
        stated.get(key)
    stated.expect("attention.causal", True)
    stated.expect("pooling_type", 0)
    # Experts are chosen by a softmax, as transformers' models of these types do.
    stated.expect("expert_weights_norm", values.get("norm_topk_prob", True))
    stated.expect("expert_weights_scale", 0.0, 1.0)
    stated.expect("expert_gating_func", 1)
    stated.require_all_asked()
    with taken(file):
        return AutoConfig.for_model(**values)


@contextmanager
def taken(file: GGUFFile) -> Iterator[None]:
    """Turn what transformers raises about the sizes of a model into one sentence.

    Args:
        file: The file that states them.

    Yields:
        None.

    Raises:
        InputError: If transformers raised inside the context.
    """
    import transformers

    try:
        yield
    except Exception as error:  # configurations and modules check themselves, each in its own words
        lines = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the sizes of a GGUF file must be ones that transformers {transformers.__version__} takes, and those of "
            f"{file.path} ({file.architecture}) are not ({lines}): load the model from its original weights"
        ) from error


def _check_shared(stated: Stated, values: Mapping[str, Any]) -> None:
    """Check what transformers' own functions do not read because it follows from what they do."""
    width = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    stated.expect("attention.key_length", width)
    stated.expect("attention.value_length", width)
    if "partial_rotary_factor" not in values["rope_parameters"]:
        stated.expect("rope.dimension_count", width)
    stated.expect("rope.scaling.type", "none")
    stated.expect("rope.scaling.factor", 1.0)


def _values(stated: Stated, row: Architecture) -> dict[str, Any]:
    file, model_type = stated.file, row.model_type
    window = stated.get("attention.sliding_window") if row.window or model_type == "llama" else None
    experts = stated.get("expert_count", 0) if model_type == "llama" else 0
    if experts:
        model_type = "mixtral"
    elif model_type == "llama" and window:
        model_type = "mistral"
    names = _names(model_type)
    values: dict[str, Any] = {"model_type": model_type, "tie_word_embeddings": "output.weight" not in file.tensors}
    # A zero says that there is none: blocks of state space have neither heads nor an MLP.
    values |= {name: value for key, name in _SHARED.items() if (value := stated.alike(key))}
    values |= {name: value for key, name in row.sizes.items() if (value := stated.get(key)) is not None}
    values |= row.fixed
    for key in ("block_count", "embedding_length"):
        stated.require(key)
    values["vocab_size"] = file.shape("token_embd.weight")[0]
    for name in ("bos", "eos", "pad"):
        values[f"{name}_token_id"] = _token_id(file, name, values["vocab_size"])
    epsilon = stated.get("attention.layer_norm_rms_epsilon", stated.get("attention.layer_norm_epsilon"))
    if epsilon is not None:
        values[next(name for name in _EPSILONS if name in names)] = epsilon
    values |= {flag: f"blk.0.{tensor}" in file.tensors for flag, tensor in row.flags.items() if flag in names}
    if experts:
        values |= {"num_local_experts": experts, "num_experts_per_tok": stated.require("expert_used_count")}
        stated.expect("expert_feed_forward_length", values["intermediate_size"])
    elif row.model_type == "llama":
        stated.expect("expert_used_count", 0)
    if row.window or model_type in {"mistral", "mixtral"}:
        values["sliding_window"] = window or None
    if values.get("num_attention_heads"):
        _attend(stated, row, values)
    _special(stated, model_type, values)
    return _renamed(model_type, values)


def _attend(stated: Stated, row: Architecture, values: dict[str, Any]) -> None:
    """Widths of heads, rotation, scale of the queries."""
    usual = values["hidden_size"] // values["num_attention_heads"]
    width = stated.get("attention.key_length", usual)
    stated.expect("attention.value_length", width)
    if width != usual or "head_dim" in _names(values["model_type"]):
        values["head_dim"] = width
    if row.rotary:
        values["rope_parameters"] = rotation(
            stated, row.model_type, width, values.get("max_position_embeddings", 0), partial=row.partial
        )
    if row.model_type not in {"gemma2", "gemma3_text"}:
        stated.expect("attention.scale", width**-0.5)


def _special(stated: Stated, model_type: str, values: dict[str, Any]) -> None:
    """The settings that a single architecture states in its own way."""
    file = stated.file
    if model_type == "mamba":
        inner, width = stated.require("ssm.inner_size"), values["hidden_size"]
        if inner % width:
            raise stated.refusal("ssm.inner_size", f"a multiple of its width, {width}")
        values["expand"] = inner // width
        if stated.get("ssm.dt_b_c_rms", False):
            values["model_type"] = "falcon_mamba"
        stated.expect("ssm.group_count", 0)
    elif model_type == "falcon":
        heads, groups = values["num_attention_heads"], values.pop("num_key_value_heads", values["num_attention_heads"])
        second = "blk.0.attn_norm_2.weight" in file.tensors
        new = second or groups not in {1, heads}
        values |= {"num_kv_heads": groups, "multi_query": groups == 1, "new_decoder_architecture": new}
        values["num_ln_in_parallel_attn"] = (2 if second else 1) if new else None
        values["ffn_hidden_size"] = values.pop("intermediate_size", 4 * values["hidden_size"])
    elif model_type == "stablelm":
        values["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in file.tensors
        values["qk_layernorm"] = "blk.0.attn_q_norm.weight" in file.tensors
    elif model_type == "gpt2":
        values["n_inner"] = values.pop("intermediate_size", None)
        stated.expect("attention.head_count_kv", values["num_attention_heads"])
    elif model_type == "phi3":
        original = values["rope_parameters"].get("original_max_position_embeddings")
        values["original_max_position_embeddings"] = original or values.get("max_position_embeddings")
    elif model_type == "bloom":
        stated.expect("feed_forward_length", 4 * values["hidden_size"])
        stated.expect("attention.head_count_kv", values["num_attention_heads"])
        stated.expect("attention.max_alibi_bias", 8.0)
    elif model_type in {"gemma2", "gemma3_text"}:
        _gemma(stated, values)


def _gemma(stated: Stated, values: dict[str, Any]) -> None:
    second, layers = values["model_type"] == "gemma2", values["num_hidden_layers"]
    scale = stated.get("attention.scale")
    by_model = values["hidden_size"] // values["num_attention_heads"]
    by_head = by_model if layers == _LARGEST[stated.file.architecture] else values.get("head_dim", by_model)
    values["query_pre_attn_scalar"] = by_head if scale is None else round(scale**-2)
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} if second else {}
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        values[name] = stated.get(name, caps.get(name)) or None
    pattern = stated.get("attention.sliding_window_pattern", 2 if second else 6)
    if not isinstance(pattern, list):
        pattern = [pattern > 0 and (layer + 1) % pattern != 0 for layer in range(layers)]
    values["layer_types"] = ["sliding_attention" if windowed else "full_attention" for windowed in pattern[:layers]]
    if values["sliding_window"] is None:
        values["layer_types"] = ["full_attention"] * layers
    if not second:
        local = {"rope_type": "default", "rope_theta": float(stated.get("rope.freq_base_swa", 10_000.0))}
        values["rope_parameters"] = {"full_attention": values["rope_parameters"], "sliding_attention": local}


def _names(model_type: str) -> set[str]:
    """The settings that the configuration of a type has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return set(CONFIG_MAPPING[model_type].__dataclass_fields__)


def _renamed(model_type: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings under the names that the configuration's own class has for them."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own: Mapping[str, str] = CONFIG_MAPPING[model_type].attribute_map
    return {own.get(name, name): value for name, value in values.items()}


def _token_id(file: GGUFFile, name: str, size: int) -> int | None:
    key = "padding" if name == "pad" else name
    index = file.value(f"tokenizer.ggml.{key}_token_id")
    return int(index) if index is not None and index < size else None
