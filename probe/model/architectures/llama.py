"""Llama and its relatives: RMSNorm, rotary embedding, gated MLP. The other rows state what differs from Llama's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from probe.model.architectures.form import Form
from probe.model.architectures.layout import (
    SEPARATE_QKV,
    BlockLayout,
    Layout,
    SitePath,
    joint_gate_up,
    joint_qkv,
    separate,
)

FORM = Form(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm")
BLOCK = BlockLayout(
    sites={
        "hook_attn_out": SitePath("self_attn"),
        "hook_resid_mid": SitePath("post_attention_layernorm", "input"),
        "hook_mlp_out": SitePath("mlp"),
    },
    projections={
        **SEPARATE_QKV,
        **separate(o="self_attn.o_proj", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"),
    },
    form=FORM,
)
"""Llama's block."""


def llama(*kinds: BlockLayout) -> Layout:
    """Lay out a model with Llama's paths around its blocks.

    Args:
        *kinds: The kinds of its blocks.

    Returns:
        The row.
    """
    return Layout(blocks="model.layers", embedding="model.embed_tokens", final_norm="model.norm", kinds=kinds)


def scaled(block: BlockLayout, factor: str) -> BlockLayout:
    """Multiply what the sub-layers of a block add to the stream.

    Args:
        block: The block.
        factor: Path of the block's attribute that holds the factor.

    Returns:
        The block with the factor.
    """
    sites = {
        name: replace(site, factor=factor) if name.endswith("_out") else site for name, site in block.sites.items()
    }
    return replace(block, sites=sites)


def _ungated(up: str, down: str) -> BlockLayout:
    attention = {name: BLOCK.projections[name] for name in "qkvo"}
    return replace(BLOCK, projections={**attention, **separate(up=up, down=down)})


# A norm before and after each sub-layer: what is added is the output of the norm after it.
BOTH_NORMS = replace(
    BLOCK,
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
# Norms after the sub-layers only: the input of the MLP is the stream itself.
OUT_NORMS = replace(
    BLOCK,
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
PARALLEL = BlockLayout(
    parallel=True,
    sites={"hook_attn_out": SitePath("self_attn"), "hook_mlp_out": SitePath("mlp")},
    projections=BLOCK.projections,
    form=replace(FORM, mlp_norm="input_layernorm"),
)
"""Attention and MLP behind one norm, side by side."""
_GLM = replace(BLOCK, projections={**BLOCK.projections, **joint_gate_up("mlp.gate_up_proj")})

_AS_LLAMA = (
    *("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "smollm3", "gemma", "olmo", "helium", "cwm"),
    *("hunyuan_v1_dense", "seed_oss", "ernie4_5", "exaone", "internlm3"),
)

ROWS: Mapping[str, Layout] = MappingProxyType({
    **{name: llama(BLOCK) for name in _AS_LLAMA},
    "diffllama": llama(replace(BLOCK, form=replace(FORM, paired_heads=True, head_norm="self_attn.groupnorm"))),
    "granite": llama(scaled(BLOCK, "residual_multiplier")),
    "granite_swa": llama(scaled(BLOCK, "residual_multiplier")),
    "gemma2": llama(BOTH_NORMS),
    "gemma3_text": llama(BOTH_NORMS),
    "vaultgemma": llama(
        replace(
            BLOCK,
            sites={**BLOCK.sites, "hook_resid_mid": SitePath("pre_feedforward_layernorm", "input")},
            form=replace(FORM, mlp_norm="pre_feedforward_layernorm"),
        )
    ),
    "olmo2": llama(OUT_NORMS),
    "olmo3": llama(OUT_NORMS),
    "exaone4": llama(replace(OUT_NORMS, form=replace(OUT_NORMS.form or FORM, query_norm=None, key_norm=None))),
    "phi3": llama(
        replace(
            _GLM,
            projections={
                **joint_qkv("self_attn.qkv_proj", "self_attn.o_proj"),
                **{name: matrix for name, matrix in _GLM.projections.items() if name not in "qkv"},
            },
        )
    ),
    "glm": llama(_GLM),
    "glm4": llama(
        replace(
            _GLM,
            sites={
                "hook_attn_out": SitePath("post_self_attn_layernorm"),
                "hook_resid_mid": SitePath("post_attention_layernorm", "input"),
                "hook_mlp_out": SitePath("post_mlp_layernorm"),
            },
            form=replace(FORM, attention_out_norm="post_self_attn_layernorm", mlp_out_norm="post_mlp_layernorm"),
        )
    ),
    "cohere": llama(PARALLEL),
    "cohere2": llama(PARALLEL),
    "stablelm": llama(BLOCK, PARALLEL),
    "arcee": llama(_ungated("mlp.up_proj", "mlp.down_proj")),
    "nemotron": llama(_ungated("mlp.up_proj", "mlp.down_proj")),
    "nanochat": llama(_ungated("mlp.fc1", "mlp.fc2")),
    "starcoder2": llama(_ungated("mlp.c_fc", "mlp.c_proj")),
    "apertus": llama(
        replace(
            _ungated("mlp.up_proj", "mlp.down_proj"),
            sites={**BLOCK.sites, "hook_resid_mid": SitePath("feedforward_layernorm", "input")},
            form=Form(attention_norm="attention_layernorm", mlp_norm="feedforward_layernorm"),
        )
    ),
    "bitnet": llama(
        replace(
            BLOCK,
            form=replace(FORM, attention_inner_norm="self_attn.attn_sub_norm", mlp_inner_norm="mlp.ffn_sub_norm"),
        )
    ),
    "persimmon": replace(
        llama(
            replace(
                BLOCK,
                projections={
                    **joint_qkv("self_attn.query_key_value", "self_attn.dense", groups="key heads"),
                    **separate(o="self_attn.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
                },
            )
        ),
        final_norm="model.final_layernorm",
    ),
})
