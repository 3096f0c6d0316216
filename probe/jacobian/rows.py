"""Jacobians row by row by automatic differentiation."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from probe.jacobian.parts import PartOfBlock
from probe.replay import Context

logger = logging.getLogger("probe.jacobian")


def jacobian_of_rows(
    output: Float[Tensor, "window chosen m"], point: Float[Tensor, "window chosen d"], chunk: int
) -> Float[Tensor, "window chosen m d"]:
    """Compute ∂output/∂point where each position's output depends on the point at that position alone.

    Row i of every matrix comes from one vector-Jacobian product with the cotangent e_i at all positions at once;
    `chunk` rows make one batch.

    Args:
        output: The output computed from `point`, with its graph.
        point: The leaf.
        chunk: Rows at once.

    Returns:
        The matrices.
    """
    windows, chosen, rows = output.shape
    jacobian = output.new_empty((windows, chosen, rows, point.shape[-1]))
    for start in range(0, rows, chunk):
        cotangents = units(start, min(rows, start + chunk), rows, output)[:, None, None].expand(-1, windows, chosen, -1)
        part = pulled(output, point, cotangents)
        jacobian[:, :, start : start + chunk] = part.permute(1, 2, 0, 3)
    return jacobian


def pulled(output: Tensor, point: Tensor, cotangents: Float[Tensor, "many ..."]) -> Float[Tensor, "many ..."]:
    """Compute vector-Jacobian products of ∂output/∂point with many cotangents.

    Args:
        output: The output, with its graph.
        point: The point.
        cotangents: Tensors of the output's shape.

    Returns:
        The products, each of the point's shape.
    """
    return pulled_by_each(output, [point], cotangents)[0]


def pulled_by_each(
    output: Tensor, points: Sequence[Tensor], cotangents: Float[Tensor, "many ..."]
) -> tuple[Float[Tensor, "many ..."], ...]:
    """Compute what `pulled` does, of several points at once.

    `torch.vmap` batches the rules of nearly all backward passes, where `is_grads_batched` loops over most of them. What
    has no rule at all (an `autograd.Function` of the old style) is computed one cotangent at a time.

    Args:
        output: The output, with its graph.
        points: The points.
        cotangents: Tensors of the output's shape.

    Returns:
        The products by each point.
    """

    def pull(cotangent: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, points, cotangent, retain_graph=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            found: tuple[Tensor, ...] = torch.vmap(pull)(cotangents)
            return found
        except Exception as error:  # noqa: BLE001 - of whatever kind: one at a time needs no rule
            logger.info("backward passes run one at a time: %s", error)
    return tuple(map(torch.stack, zip(*map(pull, cotangents), strict=True)))


class ForwardProducts:
    """Products of ∂output/∂point with vectors on its right, made of backward passes.

    The vector-Jacobian product is linear in its cotangent, and its derivative by it is the Jacobian. (Forward-mode
    differentiation would take half the time, but does not allow the in-place writes of state-space blocks.)
    """

    def __init__(self, output: Tensor, point: Tensor) -> None:
        self.cotangent = torch.zeros_like(output, requires_grad=True)
        (self.pulled,) = torch.autograd.grad(output, point, self.cotangent, create_graph=True)

    def __call__(self, vectors: Float[Tensor, "many ..."]) -> Float[Tensor, "many ..."]:
        """Multiply ∂output/∂point by each vector, of the point's shape; the products have the output's shape."""
        return pulled(self.pulled, self.cotangent, vectors)


def units(first: int, last: int, size: int, like: Tensor) -> Float[Tensor, "row size"]:
    """Return the unit vectors e_first … e_(last − 1).

    Args:
        first: Index of the first one.
        last: One past the index of the last.
        size: Number of entries of each.
        like: A tensor of the wanted dtype and device.

    Returns:
        One unit vector a row.
    """
    rows = like.new_zeros((last - first, size))
    rows.diagonal(first).fill_(1)
    return rows


def reference(
    context: Context, layer: int, part: PartOfBlock, dtype: torch.dtype, chunk: int
) -> Float[Tensor, "window chosen d d"]:
    """Compute ∂ part(x)/∂x at the chosen positions in their whole sequences; 2 · d · params · T FLOPs a position.

    Args:
        context: The recorded context.
        layer: Index of the block.
        part: The block's part, over a working copy with its own attention.
        dtype: The dtype of the arithmetic.
        chunk: Rows at once.

    Returns:
        The matrices.
    """
    windows, chosen = context.positions.shape
    matrices = [
        sequence_jacobian(context, layer, part, window, position, position, dtype, chunk)
        for window in range(windows)
        for position in context.positions[window].tolist()
    ]
    return torch.stack(matrices).reshape(windows, chosen, *matrices[0].shape)


def sequence_jacobian(
    context: Context,
    layer: int,
    part: PartOfBlock,
    window: int,
    out_position: int,
    in_position: int,
    dtype: torch.dtype,
    chunk: int,
) -> Float[Tensor, "d d"]:
    """Compute ∂ part(sequence)(s)/∂ sequence(t) by backward passes through a window's whole sequence.

    SDPA's fused kernels have no batching rule for their backward pass, so the plain mathematical kernel runs instead.

    Args:
        context: The recorded context.
        layer: Index of the block.
        part: The block's part, over a working copy with its own attention.
        window: Index of the window.
        out_position: s.
        in_position: t.
        dtype: The dtype of the arithmetic.
        chunk: Rows at once.

    Returns:
        The matrix.
    """
    windows = torch.tensor([window], device=context.tokens.device)

    def run(sequence: Tensor) -> Tensor:
        return context.block_on_sequences(layer, sequence, windows, part.block)

    sequence = part.entering(context.states[layer][window : window + 1].to(dtype), run).detach()
    before, after = sequence[:, :in_position], sequence[:, in_position + 1 :]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        point = sequence[:, in_position : in_position + 1].clone().requires_grad_()
        left = part.leaving(torch.cat([before, point, after], dim=1), run)
    return jacobian_of_rows(left[:, out_position : out_position + 1], point, chunk)[0, 0]
