"""Llama and its relatives: RMSNorm, rotary embedding, gated MLP. The other rows state what differs from Llama's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from probe.model.architectures.form import Form
from probe.model.architectures.layout import SEPARATE_QKV, BlockLayout, Layout, SitePath, separate

_FORM = Form(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm")
_BLOCK = BlockLayout(
    sites={
        "hook_attn_out": SitePath("self_attn"),
        "hook_resid_mid": SitePath("post_attention_layernorm", "input"),
        "hook_mlp_out": SitePath("mlp"),
    },
    projections={
        **SEPARATE_QKV,
        **separate(o="self_attn.o_proj", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"),
    },
    form=_FORM,
)


def _llama(*kinds: BlockLayout) -> Layout:
    """A model with Llama's paths around blocks of the given kinds."""
    return Layout(blocks="model.layers", embedding="model.embed_tokens", final_norm="model.norm", kinds=kinds)


ROWS: Mapping[str, Layout] = MappingProxyType({
    "llama": _llama(_BLOCK),
    "qwen3": _llama(_BLOCK),
    # A norm before and after each sub-layer: what is added is the output of the norm after it.
    "gemma3_text": _llama(
        replace(
            _BLOCK,
            sites={
                "hook_attn_out": SitePath("post_attention_layernorm"),
                "hook_resid_mid": SitePath("pre_feedforward_layernorm", "input"),
                "hook_mlp_out": SitePath("post_feedforward_layernorm"),
            },
            form=Form(
                attention_norm="input_layernorm",
                attention_out_norm="post_attention_layernorm",
                mlp_norm="pre_feedforward_layernorm",
                mlp_out_norm="post_feedforward_layernorm",
            ),
        )
    ),
    # Norms after the sub-layers only: the input of the MLP is the stream itself.
    "olmo3": _llama(
        replace(
            _BLOCK,
            sites={
                "hook_attn_out": SitePath("post_attention_layernorm"),
                "hook_resid_mid": SitePath("mlp", "input"),
                "hook_mlp_out": SitePath("post_feedforward_layernorm"),
            },
            form=Form(
                attention_out_norm="post_attention_layernorm",
                mlp_out_norm="post_feedforward_layernorm",
                query_norm="self_attn.q_norm",
                key_norm="self_attn.k_norm",
            ),
        )
    ),
})
