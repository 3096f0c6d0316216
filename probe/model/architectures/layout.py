"""The row of an architecture: the paths of its parts inside the Hugging Face module, which is not changed.

A `Layout` names the list of blocks, the embedding, the final norm and the head; the sites inside a block by their
TransformerLens names (`hook_resid_mid`, `hook_attn_out` ...); and its projections (`q k v o gate up down`, of
state-space blocks `in x dt out`).

`hook_attn_out`, `hook_mlp_out` and `hook_mixer_out` are what is *added* to the residual stream: if a norm follows the
sub-layer (Gemma 3, OLMo 3), they are that norm's output. So `pre + attn = mid` and `mid + mlp = post`; in a parallel
block, which has no `mid`, `pre + attn + mlp = post`; in a state-space block `pre + mixer = post`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from probe.model.architectures.form import Form, form_of
from probe.model.hooks import Reading, Side

LATENT_READERS = ("q_a", "kv_a", "k_rot")
"""Matrices with which latent attention reads the stream: of queries, of keys and values, and the keys' rotary part."""
SPREADERS = ("q_b", "k_b", "v_b")
"""Matrices that make queries, keys and values of a normed latent."""


@dataclass(frozen=True)
class SitePath:
    """A site inside a block: the input or the output of one of its sub-modules.

    Attributes:
        module: Path of the sub-module inside the block.
        side: "input" for its first input, "output" for its (first) output; of attention also "query", "key", "pattern".
        flat: True if the tensor's shape is, or may be, (windows · positions, ...), so that it has to be folded back.
        factor: What the block multiplies the tensor by before it adds it: a number, or the path of the block's
            attribute (Granite).
        reading: The way to read the tensor, if it is not the first one on that side.
    """

    module: str
    side: Side = "output"
    flat: bool = False
    factor: float | str = 1.0
    reading: Reading | None = None


@runtime_checkable
class Matrix(Protocol):
    """A matrix of a block: the path of the module that holds it, and the matrix as (out, in)."""

    @property
    def module(self) -> str:
        """Path inside the block."""

    def weight(self, block: nn.Module, heads: int) -> Tensor:
        """Return the matrix as (out, in)."""


@dataclass(frozen=True)
class Cut:
    """The order of the rows of a joint matrix: groups of rows, and in each group one piece for each part.

    Attributes:
        parts: Names of the parts in their order: `q k v` in some order, or others, which then are equal.
        groups: Number of groups; or "heads", one for each; or "key heads": one for each, with its queries, its key and
            its value.
        output: Path of the module `o`, whose input tells the width of a head; None for equal parts.
        read: The one of two parts that another module reads, and that module's path: in each group the part is as wide
            as the group's share of that module's input, and the other part is the rest.
    """

    parts: tuple[str, ...]
    groups: int | Literal["heads", "key heads"] = 1
    output: str | None = None
    read: tuple[str, str] | None = None

    def rows(self, part: str, block: nn.Module, total: int, heads: int) -> Tensor:
        """Find the rows of a part.

        Args:
            part: Its name.
            block: The block.
            total: Number of rows of the joint matrix.
            heads: Number of attention heads.

        Returns:
            Their indices, in the order of the heads.
        """
        groups, sizes = heads if self.groups == "heads" else self.groups, [1] * len(self.parts)
        if self.output is not None:
            width = matrix_of(block.get_submodule(self.output)).shape[1] // heads
            key_heads = (total // width - heads) // 2
            groups = key_heads if groups == "key heads" else groups
            sizes = [heads if name == "q" else key_heads for name in self.parts]
        assert isinstance(groups, int)
        unit = total // sum(sizes)
        widths = [size * unit // groups for size in sizes]
        if self.read is not None:
            width = matrix_of(block.get_submodule(self.read[1])).shape[1] // groups
            widths = [width if name == self.read[0] else total // groups - width for name in self.parts]
        pieces = torch.arange(total).reshape(groups, -1).split(widths, dim=1)
        rows: Tensor = pieces[self.parts.index(part)].reshape(-1)
        return rows


def matrix_of(linear: nn.Module) -> Tensor:
    """Return the matrix of a linear module as (out, in).

    Args:
        linear: The module: GPT-2's Conv1D holds (in, out), all others hold (out, in).

    Returns:
        A view of the parameter.
    """
    matrix = linear.weight
    assert isinstance(matrix, Tensor)
    # A wrapper of TransformerLens is known by the module that it wraps.
    is_conv1d = type(getattr(linear, "original_component", linear)).__name__ == "Conv1D"
    return matrix.mT if is_conv1d else matrix


@dataclass(frozen=True)
class Pairs:
    """The order of the rows of a matrix in which heads h and h + H/2 follow each other.

    Attributes:
        output: Path of the module `o`, whose input tells the width of a head.
    """

    output: str

    def rows(self, part: str, block: nn.Module, total: int, heads: int) -> Tensor:
        """Find the order.

        Args:
            part: Not used.
            block: The block.
            total: Number of rows.
            heads: Number of pairs of query heads.

        Returns:
            Indices of all rows.
        """
        width = matrix_of(block.get_submodule(self.output)).shape[1] // (2 * heads)
        return torch.arange(total).reshape(2, -1, width).transpose(0, 1).reshape(-1)


@dataclass(frozen=True)
class Projection:
    """A matrix of a block, or one part of a joint matrix.

    Attributes:
        module: Path of the linear sub-module inside the block.
        part: Name of the part in `cut`.
        cut: How a joint matrix is cut; None: the matrix is one projection.
    """

    module: str
    part: str = ""
    cut: Cut | Pairs | None = None

    def rows(self, block: nn.Module, heads: int) -> Tensor | None:
        """Find the rows of the module's matrix that are the projection's, in the order of the heads.

        Args:
            block: The block that holds it.
            heads: The number of attention heads.

        Returns:
            Indices, or None for all rows as they stand.
        """
        if self.cut is None:
            return None
        return self.cut.rows(self.part, block, len(matrix_of(block.get_submodule(self.module))), heads)

    def weight(self, block: nn.Module, heads: int) -> Tensor:
        """Return the matrix as (out, in), so that it acts as `x @ weight.T`.

        Args:
            block: The block that holds it.
            heads: The number of attention heads, which orders the rows of a joint matrix.

        Returns:
            A view of the parameter if possible, otherwise a copy.
        """
        matrix, rows = matrix_of(block.get_submodule(self.module)), self.rows(block, heads)
        if rows is None:
            return matrix
        first, count = int(rows[0]), len(rows)
        if torch.equal(rows, torch.arange(first, first + count)):
            return matrix[first : first + count]
        return matrix[rows.to(matrix.device)]


@dataclass(frozen=True)
class BlockLayout:
    """The parts of one kind of block, as paths inside it.

    Attributes:
        sites: The sites inside the block, by their TransformerLens name, in the order of the forward pass.
        projections: Its matrices, by name.
        parallel: True if attention and MLP read the same state; or the name of the configuration's field that says so.
        recurrent: True if the block carries a state along the positions instead of attention.
        scale: Factor of the sum that leaves the block: a number, or the path of the block's attribute (Gemma 4).
        form: Norms and activation of a standard block, for its Jacobian and its gains; None if the block is another.
        withheld: Path of a module whose matrix is not named, because the module does more than multiply by it; None
            where there is none.
    """

    sites: Mapping[str, SitePath] = field(default_factory=dict)
    projections: Mapping[str, Matrix] = field(default_factory=dict)
    parallel: bool | str = False
    recurrent: bool = False
    scale: float | str = 1.0
    form: Form | None = None
    withheld: str | None = None

    @property
    def added(self) -> tuple[str, ...]:
        """The names of the sites that the block adds to the stream."""
        return tuple(name for name in self.sites if name.endswith("_out"))

    def norm_of(self, projection: str) -> str | None:
        """Find the norm between the stream and a projection.

        Args:
            projection: A name of `projections`.

        Returns:
            The norm's path inside the block; None if there is none, or none that the row names.
        """
        if self.form is None:
            return "norm" if self.recurrent and projection == "in" else None
        readers = ("q", "k", "v", *LATENT_READERS)
        paths = dict.fromkeys(readers, self.form.attention_norm) | dict.fromkeys(("gate", "up"), self.form.mlp_norm)
        paths |= {"o": self.form.attention_out_norm, "down": self.form.mlp_out_norm}
        paths |= {latent.spreader: latent.norm for latent in self.form.latents.values()}
        return paths.get(projection)

    def missing(self, block: nn.Module) -> tuple[str, ...]:
        """Find the modules that the sites name, the norms and the experts of the form, and that a block does not have.

        Args:
            block: The block.

        Returns:
            Their paths; empty if the block is of this kind.
        """
        paths = [site.module for site in self.sites.values()]
        if self.form is not None:
            paths += [*self.form.stream_norms, *self.form.latent_norms]
            paths += [] if self.form.experts is None else [self.form.experts.module]
        return tuple(dict.fromkeys(path for path in paths if not _has(block, path)))

    def fits(self, block: nn.Module) -> bool:
        """Tell whether a block has every module that the sites name, and every norm and the experts of the form.

        Args:
            block: The block.

        Returns:
            False if a module is missing.
        """
        return not self.missing(block)

    def restricted_to(self, block: nn.Module) -> BlockLayout:
        """Leave out the sites, the matrices and the norms that a block does not have.

        Args:
            block: The block.

        Returns:
            The layout with the rest; without a form if the block is of another kind.
        """
        return replace(
            self,
            form=form_of(self.form, block) if self.form is not None and self.fits(block) else None,
            sites={name: site for name, site in self.sites.items() if _has(block, site.module)},
            projections={name: matrix for name, matrix in self.projections.items() if _has(block, matrix.module)},
        )


@dataclass(frozen=True)
class Layout:
    """The parts of one architecture, as paths.

    Attributes:
        blocks: Path of the list of blocks.
        embedding: Path of the token embedding.
        final_norm: Path of the norm after the last block; the attribute may be None.
        head: Path of the unembedding.
        kinds: The kinds of its blocks: a block is of the first that fits it, unless `order` says otherwise.
        order: For each block the index of its kind; None: by what fits.
    """

    blocks: str
    embedding: str
    final_norm: str
    head: str = "lm_head"
    kinds: tuple[BlockLayout, ...] = (BlockLayout(),)
    order: tuple[int, ...] | None = None

    def at(self, layer: int, block: nn.Module) -> BlockLayout:
        """Lay out the block at a depth.

        Args:
            layer: Its index.
            block: The block; it may have no values (on the meta device).

        Returns:
            Its kind, without what the block does not have.
        """
        return self.of(block) if self.order is None else self.kinds[self.order[layer]].restricted_to(block)

    def of(self, block: nn.Module) -> BlockLayout:
        """Lay out a block.

        Args:
            block: One of the blocks; it may have no values (on the meta device).

        Returns:
            The first kind that fits it, or else the first, without what the block does not have.
        """
        kind = next((kind for kind in self.kinds if kind.fits(block)), self.kinds[0])
        return kind.restricted_to(block)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def separate(**paths: str) -> dict[str, Projection]:
    """List projections that have a matrix each.

    Args:
        **paths: The module of each, by the projection's name; write `in_` for `in`, a word that Python reserves.

    Returns:
        The projections by name.
    """
    return {name.rstrip("_"): Projection(path) for name, path in paths.items()}


def joint_qkv(
    path: str, output: str, *, groups: int | Literal["key heads"] = 1, order: str = "qkv"
) -> dict[str, Projection]:
    """List the projections of queries, keys and values that share one matrix.

    Args:
        path: The module of that matrix.
        output: The module `o`.
        groups: Number of groups of rows, each with a piece of queries, keys and values; or "key heads": a group for
            each key head.
        order: The order of the three in a group.

    Returns:
        The projections `q k v` by name.
    """
    cut = Cut(tuple(order), groups, output)
    return {name: Projection(path, name, cut) for name in "qkv"}


def joint_gate_up(path: str, *, order: tuple[str, str] = ("gate", "up")) -> dict[str, Projection]:
    """List the projections of an MLP's gate and its other input that share one matrix.

    Args:
        path: The module of that matrix.
        order: The order of the two.

    Returns:
        The projections `gate up` by name.
    """
    return {name: Projection(path, name, Cut(order)) for name in ("gate", "up")}


SEPARATE_QKV = separate(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj")
"""Queries, keys and values under the paths that most families use."""


def number_of(block: nn.Module, value: float | str) -> float:
    """Read a factor of a layout: a number, or the path of an attribute of the block that holds it.

    Args:
        block: The block.
        value: The number or the path.

    Returns:
        The number.
    """
    return float(attrgetter(value)(block)) if isinstance(value, str) else value
