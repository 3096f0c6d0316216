"""Llama's relatives with a mixture of experts in the place of some or all MLPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from probe.model.architectures.form import Experts, Form
from probe.model.architectures.layout import BlockLayout, Cut, Layout, Projection, SitePath, joint_qkv, separate
from probe.model.architectures.llama import BLOCK, FORM, OUT_NORMS, PARALLEL, llama, scaled

_ATTENTION = {name: BLOCK.projections[name] for name in "qkvo"}
_WIDE = replace(FORM, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
_GATED = Projection("self_attn.q_proj", "q", Cut(("q", "attention_gate"), "heads"))


def sparse(
    block: BlockLayout = BLOCK,
    mixture: str = "mlp",
    *,
    shared: str | None = None,
    shared_gate: str | None = None,
) -> BlockLayout:
    """Put a mixture of experts in the place of a block's MLP.

    Args:
        block: The block.
        mixture: Path of the mixture.
        shared: Path of an MLP that is added to the experts.
        shared_gate: Path of that MLP's gate.

    Returns:
        The block with the experts.
    """
    within = {} if shared is None else {name: f"{shared}.{name}_proj" for name in ("gate", "up", "down")}
    experts = Experts(f"{mixture}.experts", separate(**within), shared_gate)
    sites = dict(block.sites)
    if sites["hook_mlp_out"].module == "mlp":
        sites["hook_mlp_out"] = replace(sites["hook_mlp_out"], module=mixture)
    projections = {name: matrix for name, matrix in block.projections.items() if name not in ("gate", "up", "down")}
    form = block.form
    assert form is not None
    return replace(block, sites=sites, projections=projections, form=replace(form, experts=experts))


_SHARED = sparse(shared="mlp.shared_experts")
_BOTH = replace(
    BLOCK,
    sites={
        "hook_attn_out": SitePath("post_self_attn_layernorm"),
        "hook_resid_mid": SitePath("post_attention_layernorm", "input"),
        "hook_mlp_out": SitePath("post_mlp_layernorm"),
    },
    form=replace(FORM, attention_out_norm="post_self_attn_layernorm", mlp_out_norm="post_mlp_layernorm"),
)
_AFMOE = replace(
    BLOCK,
    sites={
        "hook_attn_out": SitePath("post_attention_layernorm"),
        "hook_resid_mid": SitePath("pre_mlp_layernorm", "input"),
        "hook_mlp_out": SitePath("post_mlp_layernorm"),
    },
    form=Form(
        attention_norm="input_layernorm",
        attention_out_norm="post_attention_layernorm",
        mlp_norm="pre_mlp_layernorm",
        mlp_out_norm="post_mlp_layernorm",
        attention_gate=Projection("self_attn.gate_proj"),
    ),
)

ROWS: Mapping[str, Layout] = MappingProxyType({
    **{name: llama(sparse()) for name in ("mixtral", "phimoe", "mellum", "gpt_oss")},
    "qwen3_moe": llama(sparse(), BLOCK),
    "qwen2_moe": llama(sparse(shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate"), BLOCK),
    "flint": llama(sparse(shared="mlp.shared_expert"), BLOCK),
    "hunyuan_v1_moe": llama(sparse(shared="mlp.shared_mlp"), BLOCK),
    **{
        name: llama(_SHARED, BLOCK)
        for name in ("glm4_moe", "aria_text", "dots1", "ernie4_5_moe", "exaone_moe", "hy_v3", "solar_open")
    },
    "olmoe": llama(sparse(replace(BLOCK, form=_WIDE))),
    "minimax_m2": llama(sparse(replace(BLOCK, form=_WIDE))),
    "flex_olmo": llama(sparse(OUT_NORMS)),
    "granitemoe": llama(sparse(scaled(BLOCK, "residual_multiplier"), "block_sparse_moe")),
    "cohere2_moe": llama(sparse(PARALLEL, shared="mlp.shared_experts"), PARALLEL),
    "laguna": llama(
        *(
            replace(block, form=replace(block.form or FORM, attention_gate=Projection("self_attn.g_proj")))
            for block in (_SHARED, BLOCK)
        )
    ),
    "kolibri1": llama(sparse(_BOTH, shared="mlp.shared_experts"), _BOTH),
    "afmoe": llama(sparse(_AFMOE, shared="mlp.shared_experts"), _AFMOE),
    "dbrx": Layout(
        blocks="transformer.blocks",
        embedding="transformer.wte",
        final_norm="transformer.norm_f",
        kinds=(
            BlockLayout(
                sites={
                    "hook_attn_out": SitePath("norm_attn_norm.attn"),
                    "hook_resid_mid": SitePath("norm_attn_norm.norm_2", "input"),
                    "hook_mlp_out": SitePath("ffn"),
                },
                projections={
                    **joint_qkv("norm_attn_norm.attn.Wqkv", "norm_attn_norm.attn.out_proj"),
                    **separate(o="norm_attn_norm.attn.out_proj"),
                },
                form=Form(
                    attention_norm="norm_attn_norm.norm_1",
                    mlp_norm="norm_attn_norm.norm_2",
                    experts=Experts("ffn.experts"),
                ),
            ),
        ),
    ),
})
