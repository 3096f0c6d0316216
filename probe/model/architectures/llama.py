"""Llama and its relatives: RMSNorm, rotary embedding, a gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from probe.model.architectures.form import Form
from probe.model.architectures.layout import SEPARATE, Layout, Place, separate

_PATHS: dict[str, Any] = {"blocks": "model.layers", "embedding": "model.embed_tokens", "final_norm": "model.norm"}
_MATRICES = {
    **SEPARATE,
    **separate(o="self_attn.o_proj", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"),
}
_PLACES = {
    "hook_attn_out": Place("self_attn"),
    "hook_resid_mid": Place("post_attention_layernorm", "input"),
    "hook_mlp_out": Place("mlp"),
}
_PRE_NORMS: dict[str, Any] = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_QK_NORMS: dict[str, Any] = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}

ROWS: Mapping[str, Layout] = MappingProxyType({
    "llama": Layout(**_PATHS, places=_PLACES, projections=_MATRICES, form=Form("mlp.act_fn", **_PRE_NORMS)),
    "qwen3": Layout(
        **_PATHS, places=_PLACES, projections=_MATRICES, form=Form("mlp.act_fn", **_PRE_NORMS, **_QK_NORMS)
    ),
    "gemma3_text": Layout(
        **_PATHS,
        places={
            "hook_attn_out": Place("post_attention_layernorm"),
            "hook_resid_mid": Place("pre_feedforward_layernorm", "input"),
            "hook_mlp_out": Place("post_feedforward_layernorm"),
        },
        projections=_MATRICES,
        form=Form(
            "mlp.act_fn",
            attention_norm="input_layernorm",
            attention_out_norm="post_attention_layernorm",
            mlp_norm="pre_feedforward_layernorm",
            mlp_out_norm="post_feedforward_layernorm",
            **_QK_NORMS,
            gain_offset=1.0,
        ),
    ),
    "olmo3": Layout(
        **_PATHS,
        places={
            "hook_attn_out": Place("post_attention_layernorm"),
            # The MLP has no norm before it: its input is the stream itself.
            "hook_resid_mid": Place("mlp", "input"),
            "hook_mlp_out": Place("post_feedforward_layernorm"),
        },
        projections=_MATRICES,
        form=Form(
            "mlp.act_fn",
            attention_out_norm="post_attention_layernorm",
            mlp_out_norm="post_feedforward_layernorm",
            **_QK_NORMS,
        ),
    ),
})
