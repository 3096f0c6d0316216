"""Any small model of transformers as a GGUF file, by the conventions of llama.cpp's converter."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import nn

ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "falcon_mamba": "mamba",
    "gemma3_text": "gemma3",
    "qwen3_5_text": "qwen35",
}
"""GGUF's architecture of each type of transformers that has another name."""

Change = Callable[[gguf.GGUFWriter], object]


def made(kind: type, *, seed: int = 0, **settings: Any) -> Any:
    """A model whose every setting shows in its logits: large matrices, gains and biases that are not one and zero."""
    torch.manual_seed(seed)
    module = kind(kind.config_class(**settings))  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2 and "conv1d" not in name:
                parameter.mul_(5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


def tensors(module: Any) -> dict[str, np.ndarray]:
    """The tensors of the file, by the file's names."""
    config = module.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    stored: dict[str, np.ndarray] = {}
    tied = set(module._tied_weights_keys or {}) if config.tie_word_embeddings else set()
    for name, tensor in module.state_dict().items():
        if name in tied:
            continue
        values = tensor.float().numpy()
        block = next(iter(re.findall(r"\.(\d+)\.", name)), "")
        if name.endswith("experts.gate_up_proj"):
            half = values.shape[1] // 2
            stored[f"blk.{block}.ffn_gate_exps.weight"] = values[:, :half]
            stored[f"blk.{block}.ffn_up_exps.weight"] = values[:, half:]
        elif name.endswith("experts.down_proj"):
            stored[f"blk.{block}.ffn_down_exps.weight"] = values
        else:
            plain = name.replace("dt_bias", "dt_proj.bias")
            tries = (plain, plain.removeprefix("transformer."))
            new = next(filter(None, (names.get_name(one, try_suffixes=(".weight", ".bias")) for one in tries)), None)
            assert new is not None, name
            stored[new] = _as_stored(new, values, architecture, config)
    return {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in stored.items()}


def _as_stored(name: str, values: np.ndarray, architecture: str, config: Any) -> np.ndarray:
    heads = config.num_attention_heads if hasattr(config, "num_attention_heads") else 0
    groups = groups_of(config)
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        own = heads if ".attn_q." in name else groups
        return values.reshape(own, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if architecture in {"gemma2", "gemma3", "nemotron"} and name.endswith("norm.weight"):
        return values + 1
    if architecture == "qwen35":
        return _qwen35(name, values, config)
    if architecture == "gpt2" and re.search(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", name):
        return values.T
    if architecture == "bloom" and "attn_qkv" in name:
        return values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    if architecture == "falcon" and "attn_qkv" in name:
        per = heads // groups
        grouped = values.reshape(groups, per + 2, -1, *values.shape[1:])
        parts = [grouped[:, :per], grouped[:, per : per + 1], grouped[:, per + 1 :]]
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return values.squeeze(0)
    if "conv1d.weight" in name or "shortconv.conv.weight" in name:
        return values.squeeze(1)
    if name.endswith("ssm_a"):
        return -np.exp(values)
    return values


def groups_of(config: Any) -> int:
    """The number of heads of keys and values."""
    if config.model_type == "falcon" and config.multi_query and not config.new_decoder_architecture:
        return 1
    groups = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    return int(groups or getattr(config, "num_attention_heads", 0))


def _qwen35(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    keys, each = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads

    def tiled(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(keys, each, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    before = 2 * keys * config.linear_key_head_dim
    if name.endswith("norm.weight") and not name.endswith("ssm_norm.weight"):
        return values + 1
    if name.endswith("ssm_a"):
        return tiled(-np.exp(values))
    if re.search(r"ssm_dt|ssm_alpha|ssm_beta|attn_gate", name):
        return tiled(values)
    if "attn_qkv" in name or "ssm_conv1d" in name:
        values = values.squeeze(1) if values.ndim == 3 else values
        return np.concatenate([values[:before], tiled(values[before:])])
    if "ssm_out" in name:
        return tiled(values.T).T
    return values


def write(
    path: Path,
    module: Any,
    *,
    keys: Change = lambda _: None,
    extra: dict[str, np.ndarray] | None = None,
    without: Sequence[str] = (),
    parts: int = 1,
) -> dict[str, np.ndarray]:
    """Write the file, in parts or not; `keys` adds further keys, `extra` and `without` change the tensors."""
    stored = {name: values for name, values in tensors(module).items() if name not in without} | (extra or {})
    listed = list(stored.items())
    size = -(-len(listed) // parts)
    for number in range(parts):
        config = module.config
        file = path if parts == 1 else path.with_name(f"{path.stem}-{number + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(file, ARCHITECTURES.get(config.model_type, config.model_type))
        if number == 0:
            add_sizes(writer, config)
            add_byte_tokenizer(writer, config.vocab_size)
            keys(writer)
        if parts > 1:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", parts)
            writer.add_int32("split.tensors.count", len(listed))
        for name, values in listed[number * size : (number + 1) * size]:
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return stored


def add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    """The keys that llama.cpp's converter writes of every model; without rotary scalings."""
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", 0) or 64)
    writer.add_embedding_length(config.hidden_size)
    recurrent = "mamba" in config.model_type
    width = getattr(config, "intermediate_size", None) or getattr(config, "ffn_hidden_size", None)
    writer.add_feed_forward_length(0 if recurrent else width or 4 * config.hidden_size)
    epsilons = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "norm_epsilon")
    epsilon = next(getattr(config, name) for name in epsilons if hasattr(config, name))
    root = hasattr(config, "rms_norm_eps") or recurrent or config.model_type == "lfm2"
    (writer.add_layer_norm_rms_eps if root else writer.add_layer_norm_eps)(epsilon)
    if recurrent:
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_inner_size(config.intermediate_size)
        writer.add_ssm_state_size(config.state_size)
        writer.add_ssm_time_step_rank(config.time_step_rank)
        writer.add_ssm_dt_b_c_rms(config.model_type == "falcon_mamba")
        return
    heads = config.num_attention_heads
    groups = groups_of(config)
    writer.add_head_count(heads)
    if config.model_type == "lfm2":
        writer.add_head_count_kv([groups if kind == "full_attention" else 0 for kind in config.layer_types])
        writer.add_shortconv_l_cache(config.conv_L_cache)
    elif config.model_type != "gpt2":
        writer.add_head_count_kv(groups)
    writer.add_vocab_size(config.vocab_size)
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if "rope_theta" in rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
        writer.add_key_length(width)
        writer.add_value_length(width)
    if config.model_type in {"gemma2", "gemma3_text", "phi3", "mistral"} and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if hasattr(config, "moe_intermediate_size"):
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if hasattr(config, "shared_expert_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if config.model_type == "qwen3_5_text":
        writer.add_uint32("qwen35.full_attention_interval", 4)
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
        writer.add_rope_dimension_sections([*rope["mrope_section"], 0])


def add_byte_tokenizer(writer: gguf.GGUFWriter, size: int, *, pre: str = "gpt-2", more: Sequence[str] = ()) -> None:
    """A byte-level tokenizer: one special token, the bytes, "he", and unused ones."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = ["<|endoftext|>", *bytes_to_unicode().values(), "he", *more]
    words = [*words, *(f"[PAD{index}]" for index in range(len(words), size))][:size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_merges(["h e"])
    writer.add_token_types([3] + [1] * (size - 1))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def error(module: nn.Module, loaded: nn.Module, length: int = 200) -> float:
    """Relative error of the logits of a loaded model."""
    tokens = torch.arange(1, length)[None] % module.config.vocab_size  # type: ignore[union-attr, operator]
    with torch.no_grad():
        expected, got = module(tokens).logits, loaded(tokens).logits
    return float((expected - got).norm() / expected.norm())
