"""GPT-2 and its relatives: LayerNorm and an MLP that is not gated. Each row is spelled out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from probe.model.architectures.form import Form
from probe.model.architectures.layout import SEPARATE_QKV, BlockLayout, Layout, SitePath, joint_qkv, separate

_GPT2 = BlockLayout(
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
)
_OPT = BlockLayout(
    sites={
        "hook_attn_out": SitePath("self_attn"),
        "hook_resid_mid": SitePath("final_layer_norm", "input", flat=True),
        "hook_mlp_out": SitePath("fc2", flat=True),
    },
    projections={**SEPARATE_QKV, **separate(o="self_attn.out_proj", up="fc1", down="fc2")},
    form=Form(attention_norm="self_attn_layer_norm", mlp_norm="final_layer_norm"),
)
# Like OPT, but windows and positions keep an axis each.
_XGLM = replace(_OPT, sites={name: replace(site, flat=False) for name, site in _OPT.sites.items()})
_FALCON = {
    **joint_qkv("self_attention.query_key_value", "self_attention.dense", groups="key heads"),
    **separate(o="self_attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
}


def _falcon(attention_norm: str, mlp_norm: str, *, parallel: bool = True) -> BlockLayout:
    sites = {"hook_attn_out": SitePath("self_attention"), "hook_mlp_out": SitePath("mlp")}
    if not parallel:
        middle = SitePath(mlp_norm, "input")
        sites = {
            "hook_attn_out": sites["hook_attn_out"],
            "hook_resid_mid": middle,
            "hook_mlp_out": sites["hook_mlp_out"],
        }
    return BlockLayout(
        parallel=parallel,
        sites=sites,
        projections=_FALCON,
        form=Form(attention_norm=attention_norm, mlp_norm=mlp_norm),
    )


ROWS: Mapping[str, Layout] = MappingProxyType({
    "gpt2": Layout(
        blocks="transformer.h",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        kinds=(_GPT2,),
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
        kinds=(_OPT,),
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
    **{
        name: Layout(
            blocks="transformer.h",
            embedding="transformer.wte",
            final_norm="transformer.ln_f",
            kinds=(
                BlockLayout(
                    parallel=True,
                    sites={"hook_attn_out": SitePath("attn"), "hook_mlp_out": SitePath("mlp")},
                    projections={
                        **queries,
                        **separate(o="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out"),
                    },
                    form=Form(attention_norm="ln_1", mlp_norm="ln_1"),
                ),
            ),
        )
        for name, queries in (
            ("gptj", separate(q="attn.q_proj", k="attn.k_proj", v="attn.v_proj")),
            # rows as four shards of a model hold them
            ("codegen", joint_qkv("attn.qkv_proj", "attn.out_proj", groups=4, order="qvk")),
        )
    },
    "gpt_neo": Layout(
        blocks="transformer.h",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        kinds=(
            replace(
                _GPT2,
                projections={
                    **separate(q="attn.attention.q_proj", k="attn.attention.k_proj", v="attn.attention.v_proj"),
                    **separate(o="attn.attention.out_proj", up="mlp.c_fc", down="mlp.c_proj"),
                },
            ),
        ),
    ),
    "gpt_bigcode": Layout(
        blocks="transformer.h",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        kinds=(
            replace(
                _GPT2,
                projections={
                    **joint_qkv("attn.c_attn", "attn.c_proj", groups="key heads"),
                    **separate(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"),
                },
            ),
        ),
    ),
    "falcon": Layout(
        blocks="transformer.h",
        embedding="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        kinds=(
            _falcon("ln_attn", "ln_mlp"),
            _falcon("input_layernorm", "post_attention_layernorm", parallel=False),
            _falcon("input_layernorm", "input_layernorm"),
        ),
    ),
    "bloom": Layout(
        blocks="transformer.h",
        embedding="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        kinds=(
            # Attention and MLP add the stream themselves: what they add to it is the output of their last matrix.
            BlockLayout(
                sites={
                    "hook_attn_out": SitePath("self_attention.dense"),
                    "hook_resid_mid": SitePath("post_attention_layernorm", "input"),
                    "hook_mlp_out": SitePath("mlp.dense_4h_to_h"),
                },
                projections=_FALCON,
                form=Form(
                    attention_norm="input_layernorm",
                    mlp_norm="post_attention_layernorm",
                    normed_residual="apply_residual_connection_post_layernorm",
                ),
            ),
        ),
    ),
    "mpt": Layout(
        blocks="transformer.blocks",
        embedding="transformer.wte",
        final_norm="transformer.norm_f",
        kinds=(
            BlockLayout(
                sites={
                    "hook_attn_out": SitePath("attn"),
                    "hook_resid_mid": SitePath("norm_2", "input"),
                    "hook_mlp_out": SitePath("ffn.down_proj"),
                },
                projections={
                    **joint_qkv("attn.Wqkv", "attn.out_proj"),
                    **separate(o="attn.out_proj", up="ffn.up_proj", down="ffn.down_proj"),
                },
                form=Form(attention_norm="norm_1", mlp_norm="norm_2"),
            ),
        ),
    ),
    **{
        name: Layout(
            blocks=f"{trunk}.layers",
            embedding=f"{trunk}.embed_tokens",
            final_norm=f"{trunk}.layer_norm",
            head=head,
            kinds=(_XGLM,),
        )
        for name, trunk, head in (("xglm", "model", "lm_head"), ("biogpt", "biogpt", "output_projection"))
    },
    "ctrl": Layout(
        blocks="transformer.h",
        embedding="transformer.w",
        final_norm="transformer.layernorm",
        kinds=(
            BlockLayout(
                sites={
                    "hook_attn_out": SitePath("multi_head_attention"),
                    "hook_resid_mid": SitePath("layernorm2", "input"),
                    "hook_mlp_out": SitePath("ffn"),
                },
                projections={
                    **separate(q="multi_head_attention.Wq", k="multi_head_attention.Wk", v="multi_head_attention.Wv"),
                    **separate(o="multi_head_attention.dense", up="ffn.0", down="ffn.2"),
                },
                form=Form(attention_norm="layernorm1", mlp_norm="layernorm2"),
            ),
        ),
    ),
})
