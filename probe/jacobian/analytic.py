"""The Jacobian of a standard block, composed of its weight matrices: about 10 d³ FLOPs a position.

With x the stream, the sub-layers a(x) = N_o(W_O attention(N_a x)) and m(x) = N_p(W_down φ(W_in N_m x)), and A, M their
derivatives, a block has

    J = (I + M)(I + A), a parallel one J = I + A + M.

- A norm's derivative is diagonal times identity minus rank one or two: it acts at O(d) a row (`NormDerivative`).
- Same-position attention is, head by head, `M_h R` on the queries, a rank-one term on the keys and p on the values,
  all at the primal point (`probe.replay.attention`); then one product with W_O.
- The MLP is W_down (diag(φ') W_in); a gated one W_down (diag(φ'(g) u) W_gate + diag(φ(g)) W_up), where the sum comes
  first, so that there is one product.

FLOPs a position, with d_q = heads · d_head: 2 d² d_q (W_O) + 2 d d_q d_head (queries) + 2 d² d_ff (MLP) + 2 d³ (the
product M A); SmolLM2-135M: 2 + 0.22 + 5.33 + 2 = 9.6 d³.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.jacobian.detached import detached_ratio
from probe.jacobian.norms import NormDerivative, norm_derivative
from probe.jacobian.parts import PartName
from probe.model import HuggingFaceModel
from probe.model.architectures import Form, form_of
from probe.replay import AttentionPrimal, Context


@dataclass(frozen=True)
class StandardBlock:
    """Matrices of a standard block, in the dtype of the arithmetic, and its working copy.

    Attributes:
        block: Working copy of the block, with linearised attention.
        form: Paths of its norms and its activation.
        query: W_Q by head, (head, d_head, d).
        key: W_K by key head.
        value: W_V by key head.
        output: W_O, (d, head · d_head).
        gate: W_gate, (d_ff, d), or None.
        up: W_up or W_in, (d_ff, d).
        down: W_down, (d, d_ff).
        paths: Paths of the modules that hold the projections, by name.
        parallel: Whether attention and MLP read the same state.
    """

    block: nn.Module
    form: Form
    query: Float[Tensor, "head d_head d"]
    key: Float[Tensor, "g d_head d"]
    value: Float[Tensor, "g d_head d"]
    output: Float[Tensor, "d q"]
    gate: Float[Tensor, "d_ff d"] | None
    up: Float[Tensor, "d_ff d"]
    down: Float[Tensor, "d d_ff"]
    paths: dict[str, str]
    parallel: bool

    @classmethod
    def of(cls, model: HuggingFaceModel, layer: int, copy: nn.Module, dtype: torch.dtype) -> StandardBlock:
        """Gather the matrices of block `layer`.

        Args:
            model: The model.
            layer: Index of the block, whose layout has a form.
            copy: Its working copy.
            dtype: The dtype of the arithmetic.

        Returns:
            The block.
        """
        matrices = {name: matrix.detach().to(dtype) for name, matrix in model.projections(layer).items()}
        laid_out = model.at(layer)
        assert laid_out.form is not None
        form, heads = form_of(laid_out.form, copy), int(model.config.num_attention_heads)
        if form.query_scale is not None:
            matrices["q"] = matrices["q"] * attrgetter(form.query_scale)(copy)
        d_head = matrices["q"].shape[0] // heads
        query, key, value = (matrices[name].unflatten(0, (-1, d_head)) for name in "qkv")
        paths = {name: projection.module for name, projection in laid_out.projections.items()}
        return cls(
            copy,
            form,
            query,
            key,
            value,
            matrices["o"],
            matrices.get("gate"),
            matrices["up"],
            matrices["down"],
            paths,
            bool(laid_out.parallel),
        )


@dataclass(frozen=True)
class Primal:
    """Tensors of one replay of a block, of which its derivative at N positions is made.

    Attributes:
        seen: Inputs of the norms and of the activation, outputs of the projections, by path, each (N, width).
        attention: The attention's primal point.
        rotation: Cosines and sines at the positions, each (N, rotated part of d_head), or None.
    """

    seen: dict[str, Float[Tensor, "n width"]]
    attention: AttentionPrimal
    rotation: tuple[Tensor, Tensor] | None


@contextmanager
def _seeing(block: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path in inputs:

            def before(_: nn.Module, args: tuple[Any, ...], path: str = path) -> None:
                seen[path] = args[0]

            stack.callback(block.get_submodule(path).register_forward_pre_hook(before).remove)
        for path in outputs:

            def after(_: nn.Module, __: Any, output: Tensor, path: str = path) -> None:
                seen[path] = output

            stack.callback(block.get_submodule(path).register_forward_hook(after).remove)
        yield seen


@torch.no_grad()
def primal_point(context: Context, layer: int, standard: StandardBlock) -> Primal:
    """Replay the block once at the chosen positions and keep what its derivative needs.

    Args:
        context: The recorded context.
        layer: Index of the block.
        standard: The block.

    Returns:
        The primal point of its W · P positions, windows first.
    """
    form = standard.form
    inputs = [*form.stream_norms, form.activation]
    outputs = [standard.paths[name] for name in (("q", "k", "up") if form.query_norm else ("up",))]
    states = context.state(layer).to(standard.up.dtype)
    primals: list[AttentionPrimal] = []
    with _seeing(standard.block, inputs, outputs) as seen:
        context.linearised(layer, states, standard.block, primals)
    count = context.positions.numel()
    return Primal(
        {path: tensor.reshape(count, -1) for path, tensor in seen.items()},
        primals[-1],
        context.rotation(layer, states.dtype),
    )


def update_jacobian(
    standard: StandardBlock,
    primal: Primal,
    rows: slice,
    part: PartName,
    *,
    detached: bool,
    symmetrised_ov: bool = False,
) -> Float[Tensor, "n d d"]:
    """Compute K = J − I of a part of a standard block.

    Args:
        standard: The block.
        primal: Its primal point.
        rows: Rows of the primal point: the positions.
        part: The block, its attention or its MLP.
        detached: Hold the norms' variances, the attention probabilities and the gates fixed.
        symmetrised_ov: Replace each head's W_O W_V by its symmetric part.

    Returns:
        The matrices.
    """
    if part == "mlp":
        return _mlp(standard, primal, rows, detached=detached)
    attention = _attention(standard, primal, rows, detached=detached, symmetrised_ov=symmetrised_ov)
    if part == "attention":
        return attention
    mlp = _mlp(standard, primal, rows, detached=detached)
    if standard.parallel:
        return attention.add_(mlp)
    return (attention + mlp).baddbmm_(mlp, attention)


def _norm(
    standard: StandardBlock, primal: Primal, path: str | None, rows: slice, detached: bool
) -> NormDerivative | None:
    if path is None:
        return None
    module = standard.block.get_submodule(path)
    return norm_derivative(module, primal.seen[path][rows], standard.form.gain_offset, detached=detached)


def _between_norms(
    standard: StandardBlock,
    primal: Primal,
    rows: slice,
    matrix: Float[Tensor, "n d d"],
    before: str | None,
    after: str | None,
    detached: bool,
) -> Float[Tensor, "n d d"]:
    outer = _norm(standard, primal, after, rows, detached)
    inner = _norm(standard, primal, before, rows, detached)
    if outer is not None:
        matrix = outer.times(matrix)
    return matrix if inner is None else inner.after(matrix)


def _attention(
    standard: StandardBlock, primal: Primal, rows: slice, *, detached: bool, symmetrised_ov: bool
) -> Float[Tensor, "n d d"]:
    """N_o' W_O [diag_h(M_h R) W_Q' + u_h w_hᵀ W_K' + p_h W_V] N_a', W' with the norm of the queries or keys."""
    form, point = standard.form, primal.attention
    live = _by_position(point.live.diagonal(dim1=-2, dim2=-1)[..., None])[rows]  # p: (n, g, r, 1)
    value = live[..., None] * standard.value[:, None]  # (n, g, r, d_head, d)
    if detached:
        mixed = value.flatten(1, 2)
    else:
        assert point.query_map is not None
        slope = _by_position(point.slope.diagonal(dim1=-2, dim2=-1)[..., None])[rows]
        query_map = _unrotated(_by_position(point.query_map)[rows], primal.rotation, rows)  # (n, g, r, d_head, d_head)
        to_key = _unrotated(_by_position(point.query)[rows], primal.rotation, rows)  # (n, g, r, d_head)
        surprise = live * slope * (_by_position(point.value)[rows] - _by_position(point.output)[rows])
        query = _normed(standard, primal, form.query_norm, "q", standard.query, rows)
        key = _normed(standard, primal, form.key_norm, "k", standard.key, rows)
        along = to_key @ key  # (n, g, r, d)
        count, heads = len(live), len(standard.query)
        mixed = torch.bmm(
            query_map.flatten(0, 2), query.expand(count, -1, -1, -1).reshape(count * heads, *query.shape[-2:])
        ).unflatten(0, (count, heads))
        mixed += value.flatten(1, 2)
        mixed.flatten(0, 1).baddbmm_(surprise.reshape(-1, surprise.shape[-1], 1), along.reshape(-1, 1, along.shape[-1]))
    written = torch.matmul(standard.output, mixed.flatten(1, 2))
    if symmetrised_ov:
        carried = torch.matmul(standard.output, value.flatten(1, 2).flatten(1, 2))  # Σ_h p_h W_O W_V
        written = written + (carried.mT - carried) / 2
    return _between_norms(standard, primal, rows, written, form.attention_norm, form.attention_out_norm, detached)


def _by_position(tensor: Float[Tensor, "window g r n *rest"]) -> Float[Tensor, "position g r *rest"]:
    return tensor.movedim(3, 1).flatten(0, 1)


def _unrotated(vectors: Tensor, rotation: tuple[Tensor, Tensor] | None, rows: slice) -> Tensor:
    """Apply the transposed rotation of the positions to the last dimension: Rᵀ y = cos ∘ y − rot(sin ∘ y)."""
    if rotation is None:
        return vectors
    cosine, sine = (table[rows].reshape(-1, *(1,) * (vectors.ndim - 2), table.shape[-1]) for table in rotation)
    width = cosine.shape[-1]
    turned, rest = vectors[..., :width], vectors[..., width:]
    first, second = (sine * turned).chunk(2, -1)
    return torch.cat([cosine * turned + torch.cat([second, -first], -1), rest], -1)


def _normed(
    standard: StandardBlock,
    primal: Primal,
    path: str | None,
    name: str,
    weight: Float[Tensor, "head d_head d"],
    rows: slice,
) -> Float[Tensor, "#n head d_head d"]:
    """Multiply the weight of the queries or keys by the derivative of their norm, a head's own or one for all heads."""
    if path is None:
        return weight[None]
    projected = primal.seen[standard.paths[name]][rows]  # (n, head · d_head)
    module, gain_offset = standard.block.get_submodule(path), standard.form.gain_offset
    assert isinstance(module.weight, Tensor)
    by_head = module.weight.numel() == weight.shape[1]
    points = projected.reshape(-1, weight.shape[1]) if by_head else projected
    derivative = norm_derivative(module, points, gain_offset, detached=False)
    rows_of_weight = weight if by_head else weight.flatten(0, 1)[None]
    repeated = rows_of_weight.repeat(len(projected), 1, 1)
    return derivative.times(repeated).reshape(len(projected), *weight.shape)


def _mlp(standard: StandardBlock, primal: Primal, rows: slice, *, detached: bool) -> Float[Tensor, "n d d"]:
    written = torch.matmul(standard.down, _read(standard, primal, rows, detached=detached))
    form = standard.form
    return _between_norms(standard, primal, rows, written, form.mlp_norm, form.mlp_out_norm, detached)


def _read(standard: StandardBlock, primal: Primal, rows: slice, *, detached: bool) -> Float[Tensor, "n d_ff d"]:
    """Differentiate the MLP's neurons, the input of the matrix `down`, by the MLP's normed input."""
    activation = standard.block.get_submodule(standard.form.activation)
    before = primal.seen[standard.form.activation][rows]
    active, slope = _activation(activation, before)
    if standard.gate is None:
        factor = detached_ratio(active, before) if detached else slope
        return factor[..., None] * standard.up
    if detached:
        return active[..., None] * standard.up
    upward = primal.seen[standard.paths["up"]][rows]
    return torch.mul(standard.gate, (slope * upward)[..., None]).addcmul_(standard.up, active[..., None])


def neuron_terms(standard: StandardBlock, primal: Primal) -> Float[Tensor, "n d_ff"]:
    """Compute the norm of each MLP neuron's rank-one term in K; see `probe.jacobian.mlp_neuron_gain`.

    Args:
        standard: The block.
        primal: Its primal point.

    Returns:
        ``‖N_o' w_i‖ ‖N' ∂a_i/∂x‖`` at each position.
    """
    form, terms = standard.form, list[Tensor]()
    for position in range(next(iter(primal.seen.values())).shape[0]):
        rows = slice(position, position + 1)
        read, write = _read(standard, primal, rows, detached=False), standard.down[None].clone()
        inner = _norm(standard, primal, form.mlp_norm, rows, False)
        outer = _norm(standard, primal, form.mlp_out_norm, rows, False)
        read = read if inner is None else inner.after(read)
        write = write if outer is None else outer.times(write)
        terms.append(torch.linalg.vector_norm(read, dim=-1) * torch.linalg.vector_norm(write, dim=-2))
    return torch.cat(terms)


def _activation(module: nn.Module, before: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate φ and φ', elementwise."""
    with torch.enable_grad():
        point = before.detach().requires_grad_()
        active = module(point)
        (slope,) = torch.autograd.grad(active.sum(), point)
    return active.detach(), slope
