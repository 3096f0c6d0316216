"""The Jacobian of a standard block, composed of its weight matrices: about 10 d³ FLOPs a position.

With x the stream, the sub-layers a(x) = N_o(W_O attention(N_a x)) and m(x) = N_p(W_down φ(W_in N_m x)), and A, M their
derivatives, a block has

    J = (I + M)(I + A), a parallel one J = I + A + M.

- A norm's derivative is diagonal times identity minus rank one or two: it acts at O(d) a row (`NormDerivative`).
- Same-position attention is, head by head, a small matrix times the rows of W_Q, W_K and W_V that the head reads
  (`probe.jacobian.primal`); then one product with W_O. Where the heads read a latent of the stream, c = N_c(W_A N_a x),
  the product with W_O is as wide as the latent, and the norm's derivative and W_A come last.
- The MLP is W_down (diag(s) W_in); a gated one W_down (diag(s) W_gate + diag(t) W_up), where the sum comes first, so
  that there is one product.

FLOPs a position, with H heads of width d_head, r of them a key head, and d_q = H · d_head: 2 d² d_q (W_O) +
6 d d_q d_head (cores) + 2 d² d_ff (MLP) + 2 d³ (the product M A); SmolLM2-135M: 2 + 0.67 + 5.33 + 2 = 10 d³. With
latents of widths that add up to c, attention takes 2 d c (d_q + d) and the cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe import replay
from probe.errors import InputError
from probe.jacobian.experts import ExpertWeights
from probe.jacobian.norms import DetachedNorm
from probe.jacobian.parts import PartName
from probe.jacobian.primal import ATTENDING, Cuts, Primal
from probe.model import HuggingFaceModel
from probe.model.architectures import Form, Pairs, Projection, matrix_of, number_of


@dataclass(frozen=True)
class StandardBlock:
    """Matrices of a standard block, in the dtype of the arithmetic, and its working copy.

    Attributes:
        cuts: Its working copy, and the cuts in it.
        reading: W_Q, W_K and W_V, and the matrix of a gate of attention, by head: (heads or key heads, rows of a head,
            d or the width of the latent).
        matrices: W_O, and W_gate, W_up and W_down, and those that make latents, by the projection's name.
        parallel: Whether attention and MLP read the same state.
        normed_residual: Whether the norms before attention and MLP act on the stream itself.
        attention_factor: Factor of what attention adds to the stream.
        mlp_factor: Factor of what the MLP adds.
        scale: Factor of the sum that leaves the block.
        experts: The experts in the place of the MLP.
    """

    cuts: Cuts
    reading: Mapping[str, Float[Tensor, "head inner d"]]
    matrices: Mapping[str, Float[Tensor, "out in"]]
    parallel: bool
    normed_residual: bool
    attention_factor: float
    mlp_factor: float
    scale: float
    experts: ExpertWeights | None = None

    @property
    def form(self) -> Form:
        """Paths of its norms."""
        return self.cuts.form

    @classmethod
    def of(cls, model: HuggingFaceModel, layer: int, dtype: torch.dtype, attention: str | None) -> StandardBlock:
        """Gather the matrices of block `layer`.

        Args:
            model: The model.
            layer: Index of the block, whose layout has a form.
            dtype: The dtype of the arithmetic.
            attention: Name of the attention function of the working copy; None: the model's own.

        Returns:
            The block.

        Raises:
            InputError: If the heads do not share the rows of the matrices evenly.
        """
        laid_out, block = model.at(layer), model.blocks[layer]
        form, projections = laid_out.form, dict[str, Projection]()
        assert form is not None
        role = {latent.spreader: name for name, latent in form.latents.items()}
        for name, matrix in laid_out.projections.items():
            assert isinstance(matrix, Projection)
            projections[role.get(name, name)] = matrix
        if form.attention_gate is not None:
            projections["attention_gate"] = form.attention_gate
        if form.experts is not None:
            projections |= {f"shared.{name}": matrix for name, matrix in form.experts.shared.items()}
        copy = replay.working_copy(block, dtype, attention)
        heads = _heads(model, block, projections)
        if form.paired_heads:
            pairs, heads = Pairs(projections["o"].module), heads // 2
            projections |= {name: replace(projections[name], cut=pairs) for name in "qkv"}
        if form.head_norm is not None and attention == replay.DETACHED:
            copy.set_submodule(form.head_norm, DetachedNorm(copy.get_submodule(form.head_norm)))
        matrices = {name: each.weight(block, heads).detach().to(dtype) for name, each in projections.items()}
        experts = None
        if form.experts is not None:
            experts = ExpertWeights.of(copy.get_submodule(form.experts.module))
            if form.experts.shared_gate is not None:
                matrices["shared_gate"] = matrix_of(copy.get_submodule(form.experts.shared_gate))
        d_value = matrices["o"].shape[1] // heads
        sizes = {"q": heads, "k": matrices["v"].shape[0] // d_value, "v": matrices["v"].shape[0] // d_value}
        if form.attention_gate is not None:
            sizes["attention_gate"] = heads
        for name, size in sizes.items():
            if size < 1 or heads % size or matrices[name].shape[0] % size:
                raise InputError(
                    f"heads must share the rows of a matrix evenly, and {len(matrices[name])} rows of {name} are not "
                    f'{size} heads: use method="frozen"'
                )
        sites = laid_out.sites
        return cls(
            Cuts(copy, form, projections, heads),
            {name: matrices[name].unflatten(0, (size, -1)) for name, size in sizes.items()},
            matrices,
            bool(laid_out.parallel),
            form.normed_residual is not None and bool(getattr(model.config, form.normed_residual)),
            number_of(block, sites["hook_attn_out"].factor if "hook_attn_out" in sites else 1.0),
            number_of(block, sites["hook_mlp_out"].factor if "hook_mlp_out" in sites else 1.0),
            number_of(block, laid_out.scale),
            experts,
        )

    @property
    def widest(self) -> int:
        """Numbers in the largest matrix that is made for a position."""
        inner = max((len(matrix) for name, matrix in self.matrices.items() if name.endswith("up")), default=0)
        return self.matrices["o"].shape[0] * max(inner, self.experts.inner.shape[1] if self.experts else 0)


def _heads(model: HuggingFaceModel, block: nn.Module, projections: Mapping[str, Projection]) -> int:
    """The number of a block's query heads: the configuration's, unless its matrix has rows for others."""
    heads = int(model.config.num_attention_heads)
    width = getattr(block.get_submodule(projections["o"].module.rpartition(".")[0]), "head_dim", None)
    if "q" not in projections or projections["q"].cut is not None or not isinstance(width, int):
        return heads
    rows = len(matrix_of(block.get_submodule(projections["q"].module)))
    return heads if rows == heads * width or rows % width else rows // width


def update_jacobian(
    standard: StandardBlock, primal: Primal, rows: slice, part: PartName, *, symmetrised_ov: bool = False
) -> Float[Tensor, "n d d"]:
    """Compute K = J − I of a part of a standard block.

    Args:
        standard: The block.
        primal: Its primal point.
        rows: Rows of the primal point: the positions.
        part: The block, its attention or its MLP.
        symmetrised_ov: Replace each head's W_O W_V by its symmetric part.

    Returns:
        The matrices.
    """
    form = standard.form
    if part == "mlp":
        return _beside(standard, primal, rows, form.mlp_norm, _mlp(standard, primal, rows))
    attention = _attention(standard, primal, rows, symmetrised_ov=symmetrised_ov)
    attention = _beside(standard, primal, rows, form.attention_norm, attention)
    if part == "attention":
        return attention
    mlp = _beside(standard, primal, rows, form.mlp_norm, _mlp(standard, primal, rows))
    update = attention.add_(mlp) if standard.parallel else (attention + mlp).baddbmm_(mlp, attention)
    if standard.scale != 1.0:
        update *= standard.scale
        update.diagonal(dim1=-2, dim2=-1).add_(standard.scale - 1.0)
    return update


def _beside(
    standard: StandardBlock, primal: Primal, rows: slice, norm: str | None, added: Float[Tensor, "n d d"]
) -> Float[Tensor, "n d d"]:
    """Add what a norm of the stream itself changes in it."""
    derivative = primal.norm(norm, rows) if standard.normed_residual else None
    if derivative is None:
        return added
    added += derivative.dense()
    added.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    return added


def _between_norms(
    primal: Primal, rows: slice, matrix: Float[Tensor, "n d d"], before: str | None, after: str | None, factor: float
) -> Float[Tensor, "n d d"]:
    outer, inner = primal.norm(after, rows), primal.norm(before, rows)
    if outer is not None:
        matrix = outer.times(matrix)
    if inner is not None:
        matrix = inner.after(matrix)
    return matrix if factor == 1.0 else matrix.mul_(factor)


def _mixed(standard: StandardBlock, primal: Primal, rows: slice, present: Sequence[str]) -> Float[Tensor, "n o _"]:
    """Differentiate the input of W_O by what these matrices read: head by head a small matrix times rows of theirs."""
    heads, mixed = standard.cuts.heads, torch.empty(0)
    for name in present:
        core, weight = primal.cores[name][:, rows], standard.reading[name]
        factor = core.reshape(len(weight), -1, core.shape[-1])  # (heads or key heads, r · n · out, inner)
        if name == present[0]:
            mixed = torch.bmm(factor, weight)
        else:
            mixed.view(len(weight), -1, mixed.shape[-1]).baddbmm_(factor, weight)
    count = primal.cores[present[0]][:, rows].shape[1]
    mixed = mixed.reshape(heads, count, -1, mixed.shape[-1]).transpose(0, 1).flatten(1, 2)
    for name in present:
        if name in primal.across:
            out, directions = (part[rows] for part in primal.across[name])
            mixed.baddbmm_(out, directions.mT @ standard.matrices[name], alpha=-1)
    return mixed


def _written(
    standard: StandardBlock, primal: Primal, rows: slice, names: Sequence[str] = ATTENDING
) -> Float[Tensor, "n d d"]:
    """Differentiate what W_O writes by the normed stream, as far as it comes through these matrices."""
    form, output = standard.form, standard.matrices["o"]
    inner, used = primal.norm(form.attention_inner_norm, rows), [name for name in names if name in primal.cores]
    direct = [name for name in used if name not in form.latents]
    columns, readers = list[Tensor](), list[Tensor]()
    for made in dict.fromkeys((latent.reader, latent.norm) for latent in form.latents.values()):
        present = [name for name in used if name not in direct and form.latents[name].reader == made[0]]
        if present:
            norm = primal.norm(made[1], rows)
            assert norm is not None
            columns.append(norm.after(_mixed(standard, primal, rows, present)))
            readers.append(standard.matrices[made[0]])
    if primal.rotary is not None and "k" in used:
        columns.append(primal.rotary[rows])
        readers.append(standard.matrices["k_rot"])
    mixed = _mixed(standard, primal, rows, direct) if direct else torch.cat(columns, -1)
    if direct and columns:
        mixed += torch.cat(columns, -1) @ torch.cat(readers)
    written = torch.matmul(output, mixed if inner is None else inner.times(mixed))
    return written if direct else written @ torch.cat(readers)


def _attention(standard: StandardBlock, primal: Primal, rows: slice, *, symmetrised_ov: bool) -> Float[Tensor, "n d d"]:
    form = standard.form
    attention = _written(standard, primal, rows)
    if symmetrised_ov:
        carried = _written(standard, primal, rows, ("v",))  # Σ_h p_h W_O W_V
        attention = attention + (carried.mT - carried) / 2
    ends = form.attention_norm, form.attention_out_norm
    return _between_norms(primal, rows, attention, *ends, standard.attention_factor)


def _mlp(standard: StandardBlock, primal: Primal, rows: slice) -> Float[Tensor, "n d d"]:
    form = standard.form
    if standard.experts is None:
        neurons, inner = _read(standard, primal.slopes, rows), primal.norm(form.mlp_inner_norm, rows)
        written = torch.matmul(standard.matrices["down"], neurons if inner is None else inner.times(neurons))
    else:
        written = _mixture(standard, primal, rows)
    return _between_norms(primal, rows, written, form.mlp_norm, form.mlp_out_norm, standard.mlp_factor)


def _mixture(standard: StandardBlock, primal: Primal, rows: slice) -> Float[Tensor, "n d d"]:
    experts = primal.experts
    assert standard.experts is not None
    assert experts is not None
    written = standard.experts.derivative(experts, rows)
    if experts.shared_scale is not None:
        shared = torch.matmul(standard.matrices["shared.down"], _read(standard, primal.shared, rows, "shared."))
        written.addcmul_(shared, experts.shared_scale[rows][..., None])
    if experts.shared_gate is not None:
        written += experts.shared_gate[rows] * standard.matrices["shared_gate"]
    return written


def _read(
    standard: StandardBlock, slopes: Mapping[str, Tensor], rows: slice, prefix: str = ""
) -> Float[Tensor, "n d_ff d"]:
    """Differentiate an MLP's neurons by its normed input."""
    terms = [(slope[rows][..., None], standard.matrices[prefix + name]) for name, slope in slopes.items()]
    (slope, matrix), *others = terms
    neurons = torch.mul(matrix, slope)
    for slope, matrix in others:
        neurons.addcmul_(matrix, slope)
    return neurons


def neuron_terms(standard: StandardBlock, primal: Primal) -> Float[Tensor, "n d_ff"]:
    """Compute the norm of each MLP neuron's rank-one term in K; see `probe.jacobian.mlp_neuron_gain`.

    Args:
        standard: The block.
        primal: Its primal point.

    Returns:
        ``‖N_o' w_i‖ ‖N' ∂a_i/∂x‖`` at each position.
    """
    form, terms = standard.form, list[Tensor]()
    for position in range(len(primal.slopes["up"])):
        rows = slice(position, position + 1)
        read, write = _read(standard, primal.slopes, rows), standard.matrices["down"][None] * standard.mlp_factor
        within, inner = primal.norm(form.mlp_inner_norm, rows), primal.norm(form.mlp_norm, rows)
        outer = primal.norm(form.mlp_out_norm, rows)
        read = read if within is None else within.times(read)
        read = read if inner is None else inner.after(read)
        write = write if outer is None else outer.times(write)
        terms.append(torch.linalg.vector_norm(read, dim=-1) * torch.linalg.vector_norm(write, dim=-2))
    return torch.cat(terms)
