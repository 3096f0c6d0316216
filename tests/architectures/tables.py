"""The data of the zoo: small settings by the name of a configuration's field, and what single types need beside them.

`SMALL` is the rule. A type stands in `EXCEPTIONS` only where the rule does not build it, or would leave a part of it
untried. `VARIANTS` are further settings, each tried on every type whose configuration has the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH = 32
HEADS = 4
HEAD = WIDTH // HEADS
VOCABULARY = 96
POSITIONS = 64

_GROUPS: tuple[tuple[Any, str], ...] = (
    (
        WIDTH,
        "hidden_size n_embd d_model embedding_dim emb_dim dim embedding_size input_embedding_size "
        "output_embedding_size word_embed_proj_dim lru_width attention_hidden_size hidden_dim "
        "pronunciation_embed_dim shape_embed_dim",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_decoder_attention_heads num_encoder_attention_heads linear_num_heads num_query_groups "
        "swa_num_attention_heads linear_num_value_heads mamba_n_heads mamba_num_heads n_mamba_heads",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads indexer_kv_heads kv_n_heads "
        "n_groups mamba_n_groups mamba_ngroups encoder_layers num_encoder_layers type_vocab_size",
    ),
    (
        HEAD,
        "head_dim d_head dim_head kv_channels attention_head_size swa_head_dim linear_key_head_dim "
        "linear_value_head_dim linear_head_dim qk_nope_head_dim qk_rope_head_dim index_head_dim indexer_head_dim "
        "rotary_dim state_size ssm_state_size mamba_d_state block_size chunk_size mamba_chunk_size d_rel rel_extent",
    ),
    (2 * HEAD, "qk_head_dim mamba_d_head mamba_head_dim mamba_headdim mamba_d_ssm"),
    (12, "v_head_dim kv_lora_rank gated_norm_rank loop_gate_rank router_hidden_size"),
    (16, "q_lora_rank o_lora_rank laurel_rank adapter_rank hc_lowrank hidden_size_per_layer_input"),
    # the scores of few index heads tie at 0, and then a row's length decides which keys are kept
    (64, "index_n_heads indexer_n_heads"),
    (
        48,
        "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_inner feed_forward_size "
        "dim_ff dff prompt_mid_dim intermediate_size_mlp dense_intermediate_size prefix_dense_intermediate_size "
        "shared_intermediate_size",
    ),
    (
        24,
        "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size expert_ffn_hidden_size "
        "moe_shared_expert_intermediate_size",
    ),
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num moe_num_experts"),
    (2, "num_experts_per_tok moe_topk moe_k num_experts_per_token top_k_experts moe_top_k"),
    (
        1,
        "n_group topk_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts "
        "num_nextn_predict_layers first_k_dense_replace num_dense_layers moe_layer_start_index",
    ),
    (
        POSITIONS,
        "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions "
        "max_source_positions model_max_length original_max_position_embeddings",
    ),
    (
        4,
        "sliding_window sliding_window_size window_size attention_window_size local_attention attention_chunk_size "
        "local_attention_window_len keep_window_size index_topk index_block_size index_topk_blocks time_step_rank "
        "mamba_dt_rank o_groups",
    ),
    (
        VOCABULARY,
        "vocab_size vocab_size_per_layer_input unpadded_vocab_size pronunciation_vocab_size shape_vocab_size",
    ),
    # factors that are 1 by default, so that a forgotten one shows
    (0.7, "residual_multiplier logit_scale"),
    (0.8, "lm_head_multiplier attention_out_multiplier ssm_out_multiplier"),
    (0.4, "attention_multiplier"),
    (1.2, "key_multiplier time_step_scale attention_in_multiplier ssm_in_multiplier"),
    (1.3, "routed_scaling_factor moe_routed_scaling_factor route_scale"),
    (1.4, "logits_scaling"),
    (1.7, "embedding_multiplier"),
    ([1.2, 0.8], "mlp_multipliers"),
    ([0.9, 1.1, 0.8, 1.2, 0.7], "ssm_multipliers"),
    (True, "is_decoder"),
    (False, "use_cache"),
    (0.0, "hidden_dropout_prob"),
    (0, "pad_token_id"),
    (1, "bos_token_id"),
    (2, "eos_token_id"),
    (3, "num_channels"),
    (4, "patch_size"),
    (8, "image_size"),
)

SMALL: dict[str, Any] = {name: value for value, names in _GROUPS for name in names.split()}
"""The value of a field, wherever a configuration has it."""

DEPTH = frozenset((
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_blocks",
    "decoder_layers",
    "num_decoder_layers",
))
"""Fields that hold the number of layers."""

SLOW = ("mlp", "moe", "indexer")
"""Lists by layer whose names hold one of these change every other layer, so that they meet each kind of the others."""

KEPT = frozenset(("head_dim", "num_key_value_heads", "num_hidden_layers"))
"""Fields that are set although the class leaves them unset, which means "computed" and not "absent"."""

_ATTENTION = ["sliding_attention", "full_attention"] * 2
"""Lists of four are cut where a model has fewer layers."""
_GEMMA_4 = {"global_head_dim": 16}
_GEMMA_4_E = {"num_kv_shared_layers": 0}
_DOTS_3 = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "indexed_attention"] * 2,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 12,
    "swa_head_dim": 12,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
_QWEN_4 = {
    "indexer_n_heads": 64,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
}

EXCEPTIONS: dict[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        "encoder_config.hidden_size_global": WIDTH,
        "decoder_config.hidden_size_global": WIDTH,
        "encoder_hash_byte_group_vocab": 50,
    },
    "cohere_compass_text": {
        "layer_types": _ATTENTION,
        "rope_parameters": {name: {"rope_type": "default", "rope_theta": 1e4} for name in _ATTENTION},
    },
    "dbrx": {
        "attn_config.rope_theta": 1e4,
        "attn_config.kv_n_heads": 2,
        "attn_config.clip_qkv": 8.0,
        "ffn_config.ffn_hidden_size": 48,
        "ffn_config.moe_num_experts": 4,
        "ffn_config.moe_top_k": 2,
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note": {
        "vision_config.adapter_in_dim": WIDTH,
        "vision_config.adapter_out_dim": WIDTH,
        "audio_config.adapter_input_size": WIDTH,
        "audio_config.adapter_out_dim": WIDTH,
        **{f"text_config.{name}": value for name, value in _DOTS_3.items()},
    },
    "dots3_note_text": _DOTS_3,
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "layer_types": _ATTENTION},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 16},
    "gemma4": {f"text_config.{name}": value for name, value in {**_GEMMA_4, **_GEMMA_4_E}.items()},
    "gemma4_assistant": {
        "text_config.hidden_size_per_layer_input": 0,
        "text_config.vocab_size_per_layer_input": 0,
        "text_config.num_kv_shared_layers": lambda layers: layers,
        "text_config.global_head_dim": 16,
    },
    "gemma4_text": {**_GEMMA_4, **_GEMMA_4_E},
    "gemma4_unified": {f"text_config.{name}": value for name, value in _GEMMA_4.items()},
    "gemma4_unified_text": _GEMMA_4,
    "gpt_neo": {"attention_types": lambda layers: [[["global", "local"], layers // 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "laguna": {"layer_types": _ATTENTION},
    "lfm2": {"full_attn_idxs": [1, 3], "layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "index_n_heads": 2,
        "index_block_size": 2,
        "index_topk_blocks": 2,
    },
    "qwen4_exp": {f"text_config.{name}": value for name, value in _QWEN_4.items()},
    "qwen4_exp_text": _QWEN_4,
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 24],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hash_seed": 0,
    },
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_head_dim": 16, "attention_hidden_size": 2 * WIDTH},
    "zaya": {"num_experts_per_tok": 1},
}
"""Further settings by type; `sub.field` is a field of a sub-configuration, a function gets the number of layers."""

AT_LEAST = {"zamba": 4}
"""The least number of layers of a type."""

SWITCHES = (
    r"(?!output_|return_|is_|use_cache|summary_|classifier|rescale_prenorm|use_mem|use_mambapy|use_associative|apply_spec"
    r"|norm_reduction|mtp_|chain_|add_cross|disable_|use_task|share_|use_weighted|use_lang|asm|moe_shared_expert_overlap"
    r"|patch_in|use_ordered|projector_bias|attention_softmax|scale_attention_softmax|enable_pron|enable_shape|prefix_lm"
    r"|use_long|slow_but|enable_moe_fp32|use_mems|bi_data|causal|use_prompt).*"
)
"""Names of fields whose other setting is a variant of the type, where the field is True or False."""

OPTIONAL: dict[str, Any] = {
    "sliding_window": 4,
    "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": 2.0,
    "clip_qkv": 0.5,
    "attn_config.clip_qkv": 0.5,
    "q_lora_rank": 16,
    "logit_scale": 0.7,
    "moe_latent_size": 16,
    "position_embedding_type": "rope",
}
"""Values of fields that are unset by default: a variant each."""

NUMBERS: dict[str, dict[str, Any]] = {
    "one_key_head": {"num_key_value_heads": 1},
    "all_key_heads": {"num_key_value_heads": HEADS},
    "wide_heads": {"head_dim": 12},
    "one_group": {"n_groups": 1},
    "no_query_rank": {"q_lora_rank": None},
    "dense": {"first_k_dense_replace": 4},
    "sparse": {"first_k_dense_replace": 0},
    "shared_keys": {"num_kv_shared_layers": 2},
    "no_inputs_by_layer": {"hidden_size_per_layer_input": 0},
    "narrow_embedding": {"word_embed_proj_dim": 16},
    "key_heads": {"num_kv_heads": HEADS},
    "no_softcap": {"final_logit_softcapping": None, "attn_logit_softcapping": None},
    "no_shared_expert": {"n_shared_experts": 0},
    "relu": {"hidden_act": "relu"},
    "both_directions": {"is_decoder": False},
}
"""Variants that set fields to further values, where the configuration has them all."""

PAIRS: dict[str, dict[str, Any]] = {
    "falcon:new_decoder_architecture": {"num_kv_heads": 2},
    "gemma4_text:enable_moe_block": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    "gpt_bigcode:multi_query": {},
    "qwen2:use_sliding_window": {"layer_types": _ATTENTION},
    "qwen3:use_sliding_window": {"layer_types": _ATTENTION},
    "opt:narrow_embedding": {"do_layer_norm_before": False},
}
"""What a variant needs beside its own field."""
