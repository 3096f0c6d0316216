"""Latent attention: queries, and keys with values, are spread to the heads from a normed latent of the stream.

`q_a` and `kv_a` read the stream; a norm follows; `q_b`, `k_b` and `v_b` act on the normed latents. `k_rot` reads the
stream too: the part of the keys that is rotated, one for all heads. Without a latent of the queries, `q` reads the
stream as elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from probe.model.architectures.experts import sparse
from probe.model.architectures.form import Latent
from probe.model.architectures.layout import BlockLayout, Cut, Layout, Projection, separate
from probe.model.architectures.llama import BLOCK, FORM, llama, scaled

_DOWN, _UP, _OUTPUT = "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj", "self_attn.o_proj"
_READ = Cut(("kv_a", "k_rot"), read=("kv_a", _UP))
_SPREAD = Cut(("k_b", "v_b"), "heads", read=("v_b", _OUTPUT))
_QUERIES = Latent("q_a", "self_attn.q_a_layernorm", "q_b")
_PAIRS = {name: Latent("kv_a", "self_attn.kv_a_layernorm", f"{name}_b") for name in "kv"}
_UNKNOWN = replace(
    BLOCK, projections={name: BLOCK.projections[name] for name in ("o", "gate", "up", "down")}, form=None
)
"""A block with another mixer in the place of latent attention."""


def latent(*blocks: BlockLayout) -> tuple[BlockLayout, ...]:
    """Put latent attention into blocks, with a latent of the queries or without.

    Args:
        *blocks: The blocks.

    Returns:
        Two kinds for each.
    """
    shared = {
        **{name: Projection(_DOWN, name, _READ) for name in ("kv_a", "k_rot")},
        **{name: Projection(_UP, name, _SPREAD) for name in ("k_b", "v_b")},
    }
    queries = {
        "q_b": ({"q": _QUERIES, **_PAIRS}, separate(q_a="self_attn.q_a_proj", q_b="self_attn.q_b_proj")),
        "q": (_PAIRS, separate(q="self_attn.q_proj")),
    }
    return tuple(
        replace(
            block,
            projections={**matrices, **shared, **{name: block.projections[name] for name in _kept(block)}},
            form=replace(block.form or FORM, latents=latents),
        )
        for latents, matrices in queries.values()
        for block in blocks
    )


def _kept(block: BlockLayout) -> list[str]:
    return [name for name in block.projections if name not in ("q", "k", "v")]


_SHARED = sparse(shared="mlp.shared_experts")
_GATED = tuple(
    replace(block, form=replace(block.form or FORM, attention_gate=Projection("self_attn.g_proj")))
    for block in (_SHARED, BLOCK)
)
_NORMED = replace(_SHARED, form=replace(_SHARED.form or FORM, mlp_out_norm="mlp.post_mlp_layernorm"))

ROWS: Mapping[str, Layout] = MappingProxyType({
    "minicpm3": llama(*latent(scaled(BLOCK, "residual_scale"))),
    "youtu": llama(*latent(BLOCK)),
    **{name: llama(*latent(_SHARED, BLOCK)) for name in ("deepseek_v2", "deepseek_v3", "sarvam_mla", "glm4_moe_lite")},
    # An indexer chooses the keys that a position attends to, so that blocks do not run at single positions.
    **{name: llama(replace(latent(BLOCK)[0], form=None)) for name in ("deepseek_v32", "glm_moe_dsa")},
    "axk1": llama(*latent(_NORMED, BLOCK)),
    "kimi_linear": llama(*latent(_SHARED, BLOCK), _UNKNOWN),
    "bailing_hybrid": llama(*latent(*_GATED), _UNKNOWN),
})
