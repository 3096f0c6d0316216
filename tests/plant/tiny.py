"""Tiny random models of the ten architectures that all tests run on, made in memory: four layers, width 32.

`tiny_module` gives the plain Hugging Face module, `tiny_model` the `LanguageModel` around it, and `tiny_tokenizer` a
byte tokenizer that fits their vocabulary. Every draw is seeded, so two calls give equal weights.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from probe.model import HuggingFaceModel, load_model

VOCABULARY = 264
WIDTH = 32
LAYERS = 4
SLIDING_WINDOW = 6
"""Shorter than the windows of the tests, so that a sliding layer sees another context than a full one."""

_SPECIAL = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
_COMMON = {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS, "hidden_size": WIDTH, **_SPECIAL}
_ATTENTION = {**_COMMON, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
_GROUPED = {**_ATTENTION, "num_key_value_heads": 2}
_SLIDING = {
    **_GROUPED,
    "sliding_window": SLIDING_WINDOW,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}

CONFIGURATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            **_SPECIAL,
            "vocab_size": VOCABULARY,
            "n_layer": LAYERS,
            "n_embd": WIDTH,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 256,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**_ATTENTION, "rotary_pct": 0.25}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_GROUPED, "head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_SLIDING, "head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0},
    ),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", _SLIDING),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            **_COMMON,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": WIDTH,
            "pad_token_id": 258,
        },
    ),
    "phi": ("PhiConfig", "PhiForCausalLM", {**_GROUPED, "partial_rotary_factor": 0.5}),
    "mamba": ("MambaConfig", "MambaForCausalLM", {**_COMMON, "state_size": 8, "expand": 2, "time_step_rank": 4}),
    "mamba2": (
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {**_COMMON, "state_size": 8, "expand": 2, "head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 8},
    ),
}
"""Configuration class, model class and settings of each architecture that all tests run on.

All other rows are tried on models made by rule (`tests.architectures.zoo`).
"""
ARCHITECTURES: tuple[str, ...] = tuple(CONFIGURATIONS)
RECURRENT: tuple[str, ...] = ("mamba", "mamba2")


def tiny_module(architecture: str, *, seed: int = 0, scale: float | None = None, **overrides: Any) -> PreTrainedModel:
    """A random Hugging Face model in evaluation mode.

    `scale` (4; 2 for state-space models, whose states grow fast) multiplies every matrix, so that blocks of so narrow a
    model change the stream by much more than rounding. Gains and biases are moved off 1 and 0, so that a test fails if
    one is left out. `overrides` go to the configuration.
    """
    if scale is None:
        scale = 2.0 if architecture in RECURRENT else 4.0
    config_name, class_name, settings = CONFIGURATIONS[architecture]
    config = getattr(transformers, config_name)(**{**settings, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module: PreTrainedModel = getattr(transformers, class_name)(config)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith(("A_log", ".D", "dt_bias", "dt_proj.bias")):
                    continue
                if parameter.ndim >= 2:
                    parameter.mul_(scale)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def tiny_model(architecture: str, *, with_tokenizer: bool = False, **overrides: Any) -> HuggingFaceModel:
    """The same as a `LanguageModel`; with `with_tokenizer`, it can read text (one token a byte)."""
    module = tiny_module(architecture, **overrides)
    model = load_model(module, tokenizer=tiny_tokenizer() if with_tokenizer else None)
    assert isinstance(model, HuggingFaceModel)
    return model


def tiny_tokenizer(*, add_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: 256 bytes, then `<bos>` 256, `<eos>` 257, `<pad>` 258; puts `<bos>` first if asked to."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<bos>", "<eos>", "<pad>"]
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, *special])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 256)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=64
    )


def tiny_tokens(windows: int = 3, positions: int = 16, *, seed: int = 0) -> torch.Tensor:
    """Random byte tokens, int64 (windows, positions)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (windows, positions), generator=generator)
