"""Where the parts of a standard block are that its Jacobian is composed of: one row of data an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Form:
    """The norms and the activation of a block, as paths inside it.

    The block is attention and an MLP, each with a norm before it, behind it, or both, and each added to the stream;
    its matrices are the layout's projections `q k v o gate up down` (without `gate` the MLP is not gated).

    Attributes:
        activation: the MLP's activation.
        attention_norm: the norm before attention.
        attention_out_norm: the norm behind attention.
        mlp_norm: the norm before the MLP.
        mlp_out_norm: the norm behind the MLP.
        query_norm: the norm of the queries, of each head or of all together.
        key_norm: the norm of the keys.
        gain_offset: what the norms add to their weight to get the gain.
        query_scale: attribute that the projected queries are multiplied by before attention.
    """

    activation: str
    attention_norm: str | None = None
    attention_out_norm: str | None = None
    mlp_norm: str | None = None
    mlp_out_norm: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    gain_offset: float = 0.0
    query_scale: str | None = None


_LLAMA_PATHS: dict[str, Any] = {
    "activation": "mlp.act_fn",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_QK_NORMS: dict[str, Any] = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}

FORMS: Mapping[str, Form] = MappingProxyType({
    "gpt2": Form("mlp.act", attention_norm="ln_1", mlp_norm="ln_2"),
    "gpt_neox": Form("mlp.act", attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
    "llama": Form(**_LLAMA_PATHS),
    "qwen3": Form(**_LLAMA_PATHS, **_QK_NORMS),
    "gemma3_text": Form(
        "mlp.act_fn",
        attention_norm="input_layernorm",
        attention_out_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_out_norm="post_feedforward_layernorm",
        **_QK_NORMS,
        gain_offset=1.0,
    ),
    "olmo3": Form(
        "mlp.act_fn",
        attention_out_norm="post_attention_layernorm",
        mlp_out_norm="post_feedforward_layernorm",
        **_QK_NORMS,
    ),
    "opt": Form(
        "activation_fn",
        attention_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        query_scale="self_attn.scaling",
    ),
    # In Phi's parallel block attention and MLP share their norm.
    "phi": Form("mlp.activation_fn", attention_norm="input_layernorm", mlp_norm="input_layernorm"),
})
"""The architectures whose block is standard, by the `model_type` of their configuration."""
