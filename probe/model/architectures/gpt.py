"""GPT-2 and its relatives: LayerNorm and an MLP that is not gated. Each row is spelled out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from probe.model.architectures.form import Form
from probe.model.architectures.layout import SEPARATE_QKV, BlockLayout, Layout, SitePath, joint_qkv, separate

ROWS: Mapping[str, Layout] = MappingProxyType({
    "gpt2": Layout(
        blocks="transformer.h",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        kinds=(
            BlockLayout(
                sites={
                    "hook_attn_out": SitePath("attn"),
                    "hook_resid_mid": SitePath("ln_2", "input"),
                    "hook_mlp_out": SitePath("mlp"),
                },
                projections={
                    **joint_qkv("attn.c_attn", "attn.c_proj"),
                    **separate(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"),
                },
                form=Form(attention_norm="ln_1", mlp_norm="ln_2"),
            ),
        ),
    ),
    "gpt_neox": Layout(
        blocks="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        kinds=(
            BlockLayout(
                parallel="use_parallel_residual",
                sites={
                    "hook_attn_out": SitePath("attention"),
                    "hook_resid_mid": SitePath("post_attention_layernorm", "input"),
                    "hook_mlp_out": SitePath("mlp"),
                },
                projections={
                    **joint_qkv("attention.query_key_value", "attention.dense", groups="key heads"),
                    **separate(o="attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
                },
                form=Form(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
            ),
        ),
    ),
    "opt": Layout(
        blocks="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        kinds=(
            BlockLayout(
                sites={
                    "hook_attn_out": SitePath("self_attn"),
                    "hook_resid_mid": SitePath("final_layer_norm", "input", flat=True),
                    "hook_mlp_out": SitePath("fc2", flat=True),
                },
                projections={**SEPARATE_QKV, **separate(o="self_attn.out_proj", up="fc1", down="fc2")},
                form=Form(attention_norm="self_attn_layer_norm", mlp_norm="final_layer_norm"),
            ),
        ),
    ),
    "phi": Layout(
        blocks="model.layers",
        embedding="model.embed_tokens",
        final_norm="model.final_layernorm",
        kinds=(
            BlockLayout(
                parallel=True,
                sites={"hook_attn_out": SitePath("self_attn"), "hook_mlp_out": SitePath("mlp")},
                projections={**SEPARATE_QKV, **separate(o="self_attn.dense", up="mlp.fc1", down="mlp.fc2")},
                # Attention and MLP of the parallel block share their norm.
                form=Form(attention_norm="input_layernorm", mlp_norm="input_layernorm"),
            ),
        ),
    ),
})
