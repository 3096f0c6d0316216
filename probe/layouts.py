"""Where the parts of each architecture are: one row of data an architecture, nothing else.

A `Layout` names, by their paths inside the untouched Hugging Face module, the blocks, the final norm and the head, the
places inside a block that carry the sites of TransformerLens (`hook_resid_mid`, `hook_attn_out` ...), and the matrices
that carry its projections (`q k v o gate up down`, of state-space blocks `in x dt out`).

`hook_attn_out`, `hook_mlp_out` and `hook_mixer_out` are what is *added* to the residual stream: behind a norm that
follows the sub-layer (Gemma 3, OLMo 3) they are that norm's output. So `pre + attn = mid` and `mid + mlp = post`; in a
parallel block, which has no `mid`, `pre + attn + mlp = post`; in a state-space block `pre + mixer = post`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from probe.errors import InputError
from probe.hooks import Side


@dataclass(frozen=True)
class Place:
    """A tensor inside a block: the input or the output of one of its sub-modules.

    Attributes:
        module: path of the sub-module inside the block.
        side: whether its first input or its (first) output is meant.
        flat: the tensor is (windows · positions, width) there and has to be folded back.
    """

    module: str
    side: Side = "output"
    flat: bool = False


@runtime_checkable
class Matrix(Protocol):
    """A matrix of a block: the path of the module that holds it, and the matrix as (out, in)."""

    @property
    def module(self) -> str:
        """Path inside the block."""

    def weight(self, block: nn.Module, heads: int) -> Tensor:
        """Give the matrix as (out, in)."""


@dataclass(frozen=True)
class Projection:
    """A matrix of a block, or one part of a joint matrix.

    Attributes:
        module: path of the linear sub-module inside the block.
        part: which of the `parts` of a joint matrix, counted from 0.
        parts: into how many equal parts the rows are cut (1: the matrix is one projection).
        by_head: the rows are ordered head, part, entry (GPT-NeoX) instead of part, head, entry.
    """

    module: str
    part: int = 0
    parts: int = 1
    by_head: bool = False

    def weight(self, block: nn.Module, heads: int) -> Tensor:
        """Give the matrix as (out, in), so that it acts as `x @ weight.T`.

        Args:
            block: the block that holds it.
            heads: the number of attention heads, which orders the rows of a joint matrix.

        Returns:
            A view of the parameter wherever one exists, otherwise a copy.
        """
        linear = block.get_submodule(self.module)
        matrix = linear.weight
        assert isinstance(matrix, Tensor)
        # GPT-2's Conv1D keeps (in, out); a TransformerLens wrapper says so by the module that it wraps.
        if type(getattr(linear, "original_component", linear)).__name__ == "Conv1D":
            matrix = matrix.T
        if self.parts == 1:
            return matrix
        if self.by_head:
            rows = matrix.reshape(heads, self.parts, -1, matrix.shape[1])
            return rows[:, self.part].reshape(-1, matrix.shape[1])
        return matrix.tensor_split(self.parts)[self.part]


@dataclass(frozen=True)
class Layout:
    """The parts of one architecture, as paths.

    Attributes:
        blocks: path of the list of blocks.
        embedding: path of the token embedding.
        final_norm: path of the norm behind the last block; it may hold None.
        head: path of the unembedding.
        places: the sites inside a block, by their TransformerLens name.
        projections: the matrices of a block.
        parallel: attention and MLP read the same state; a string names the configuration's field that says so.
        recurrent: a block carries a state along the positions instead of attention.
        head_dtype_first: the final states are cast to the head's dtype before it and its logits to float32 (Mamba).
    """

    blocks: str
    embedding: str
    final_norm: str
    head: str = "lm_head"
    places: Mapping[str, Place] = field(default_factory=dict)
    projections: Mapping[str, Matrix] = field(default_factory=dict)
    parallel: bool | str = False
    recurrent: bool = False
    head_dtype_first: bool = False

    @property
    def added(self) -> tuple[str, ...]:
        """The names of the sites that a block adds to the stream."""
        return tuple(name for name in self.places if name.endswith("_out"))

    def restricted_to(self, blocks: Sequence[nn.Module]) -> Layout:
        """Leave out the sites and the matrices that some block does not have.

        Args:
            blocks: all blocks.

        Returns:
            The layout with what is left.
        """

        def everywhere(path: str) -> bool:
            return all(_has(block, path) for block in blocks)

        return replace(
            self,
            places={name: place for name, place in self.places.items() if everywhere(place.module)},
            projections={name: part for name, part in self.projections.items() if everywhere(part.module)},
        )


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _joint(path: str, *, by_head: bool = False) -> dict[str, Projection]:
    return {name: Projection(path, part, 3, by_head) for part, name in enumerate("qkv")}


def _plain(**paths: str) -> dict[str, Projection]:
    return {name.rstrip("_"): Projection(path) for name, path in paths.items()}


_SEPARATE = _plain(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj")
_GATED = _plain(gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj")
_LLAMA_PATHS: dict[str, Any] = {"blocks": "model.layers", "embedding": "model.embed_tokens", "final_norm": "model.norm"}
_LLAMA = Layout(
    **_LLAMA_PATHS,
    places={
        "hook_attn_out": Place("self_attn"),
        "hook_resid_mid": Place("post_attention_layernorm", "input"),
        "hook_mlp_out": Place("mlp"),
    },
    projections={**_SEPARATE, **_plain(o="self_attn.o_proj"), **_GATED},
)
_STATE_SPACE_PATHS: dict[str, Any] = {
    "blocks": "backbone.layers",
    "embedding": "backbone.embeddings",
    "final_norm": "backbone.norm_f",
}

LAYOUTS: Mapping[str, Layout] = MappingProxyType({
    "gpt2": Layout(
        blocks="transformer.h",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        places={
            "hook_attn_out": Place("attn"),
            "hook_resid_mid": Place("ln_2", "input"),
            "hook_mlp_out": Place("mlp"),
        },
        projections={**_joint("attn.c_attn"), **_plain(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj")},
    ),
    "gpt_neox": Layout(
        blocks="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        parallel="use_parallel_residual",
        places={
            "hook_attn_out": Place("attention"),
            "hook_resid_mid": Place("post_attention_layernorm", "input"),
            "hook_mlp_out": Place("mlp"),
        },
        projections={
            **_joint("attention.query_key_value", by_head=True),
            **_plain(o="attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
        },
    ),
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3_text": Layout(
        **_LLAMA_PATHS,
        places={
            "hook_attn_out": Place("post_attention_layernorm"),
            "hook_resid_mid": Place("pre_feedforward_layernorm", "input"),
            "hook_mlp_out": Place("post_feedforward_layernorm"),
        },
        projections=_LLAMA.projections,
    ),
    "olmo3": Layout(
        **_LLAMA_PATHS,
        places={
            "hook_attn_out": Place("post_attention_layernorm"),
            # The MLP has no norm before it: its input is the stream itself.
            "hook_resid_mid": Place("mlp", "input"),
            "hook_mlp_out": Place("post_feedforward_layernorm"),
        },
        projections=_LLAMA.projections,
    ),
    "opt": Layout(
        blocks="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        places={
            "hook_attn_out": Place("self_attn"),
            "hook_resid_mid": Place("final_layer_norm", "input", flat=True),
            "hook_mlp_out": Place("fc2", flat=True),
        },
        projections={**_SEPARATE, **_plain(o="self_attn.out_proj", up="fc1", down="fc2")},
    ),
    "phi": Layout(
        blocks="model.layers",
        embedding="model.embed_tokens",
        final_norm="model.final_layernorm",
        parallel=True,
        places={"hook_attn_out": Place("self_attn"), "hook_mlp_out": Place("mlp")},
        projections={**_SEPARATE, **_plain(o="self_attn.dense", up="mlp.fc1", down="mlp.fc2")},
    ),
    "mamba": Layout(
        **_STATE_SPACE_PATHS,
        recurrent=True,
        head_dtype_first=True,
        places={"hook_mixer_out": Place("mixer")},
        projections=_plain(in_="mixer.in_proj", x="mixer.x_proj", dt="mixer.dt_proj", out="mixer.out_proj"),
    ),
    "mamba2": Layout(
        **_STATE_SPACE_PATHS,
        recurrent=True,
        head_dtype_first=True,
        places={"hook_mixer_out": Place("mixer")},
        projections=_plain(in_="mixer.in_proj", out="mixer.out_proj"),
    ),
})
"""The tested architectures, by the `model_type` of their configuration."""


def require_causal_stream(config: Any) -> None:
    """Refuse the variants that look ahead, or whose blocks do not add to one stream of constant width.

    Args:
        config: the Hugging Face configuration.

    Raises:
        InputError: positions attend to later ones, the embedding has another width than the blocks, or the stream is
            normed after each addition.
    """
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        raise InputError(
            f"a model must be causal, so that no state depends on a later token, but this {config.model_type} attends "
            "to both sides (is_causal, use_bidirectional_attention); use a causal language model"
        )
    width = getattr(config, "hidden_size", None)
    embedded = getattr(config, "word_embed_proj_dim", width)
    if embedded != width:
        raise InputError(
            f"a model needs a residual stream of constant width, but this {config.model_type} embeds in {embedded} and "
            f"computes in {width} dimensions; use another size of the family"
        )
    if not getattr(config, "do_layer_norm_before", True):
        raise InputError(
            f"a model needs a residual stream of constant width that blocks add to, but this {config.model_type} norms "
            "the sum after every addition (do_layer_norm_before=False); use another size of the family"
        )


def logits_from_head(logits: Tensor, config: Any) -> Tensor:
    """Apply what a model does to the head's output: a factor, a divisor, a soft cap (cap · tanh(logits / cap)).

    Args:
        logits: the head's output.
        config: the Hugging Face configuration, whose fields `logit_scale` (Cohere), `logits_scaling` (Granite) and
            `final_logit_softcapping` (Gemma) say which of them apply.

    Returns:
        The logits as the module itself gives them.
    """
    factor = getattr(config, "logit_scale", None)
    if factor is not None:
        logits = logits * factor
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
