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
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from probe.model.architectures.form import Form
from probe.model.hooks import Side


@dataclass(frozen=True)
class Place:
    """A tensor inside a block: the input or the output of one of its sub-modules.

    Attributes:
        module: Path of the sub-module inside the block.
        side: Whether its first input or its (first) output is meant.
        flat: The tensor is (windows · positions, width) there and has to be folded back.
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
        module: Path of the linear sub-module inside the block.
        part: Which of the `parts` of a joint matrix, counted from 0.
        parts: Into how many equal parts the rows are cut (1: the matrix is one projection).
        by_head: The rows are ordered head, part, entry (GPT-NeoX) instead of part, head, entry.
    """

    module: str
    part: int = 0
    parts: int = 1
    by_head: bool = False

    def weight(self, block: nn.Module, heads: int) -> Tensor:
        """Give the matrix as (out, in), so that it acts as `x @ weight.T`.

        Args:
            block: The block that holds it.
            heads: The number of attention heads, which orders the rows of a joint matrix.

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
        blocks: Path of the list of blocks.
        embedding: Path of the token embedding.
        final_norm: Path of the norm behind the last block; it may hold None.
        head: Path of the unembedding.
        places: The sites inside a block, by their TransformerLens name.
        projections: The matrices of a block.
        parallel: Attention and MLP read the same state; a string names the configuration's field that says so.
        recurrent: A block carries a state along the positions instead of attention.
        head_dtype_first: The final states are cast to the head's dtype before it and its logits to float32 (Mamba).
        form: Norms and activation of a standard block, of which its Jacobian is composed; None where it is not known.
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
    form: Form | None = None

    @property
    def added(self) -> tuple[str, ...]:
        """The names of the sites that a block adds to the stream."""
        return tuple(name for name in self.places if name.endswith("_out"))

    def restricted_to(self, blocks: Sequence[nn.Module]) -> Layout:
        """Leave out the sites and the matrices that some block does not have.

        Args:
            blocks: All blocks.

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


def joint(path: str, *, by_head: bool = False) -> dict[str, Projection]:
    """Queries, keys and values that one matrix holds.

    Args:
        path: The module of that matrix.
        by_head: Its rows go head by head, each with its queries, keys and values.

    Returns:
        The projections by name.
    """
    return {name: Projection(path, part, 3, by_head) for part, name in enumerate("qkv")}


def separate(**paths: str) -> dict[str, Projection]:
    """Projections that have a matrix each.

    Args:
        **paths: The module of each, by the projection's name; `in_` stands for `in`, which Python keeps for itself.

    Returns:
        The projections by name.
    """
    return {name.rstrip("_"): Projection(path) for name, path in paths.items()}


SEPARATE = separate(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj")
"""Queries, keys and values as most families name them."""
