"""Derivatives of what lies between the matrices of a block, in as many products as a head or a leaf is wide."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def derivative_by_head(
    output: Tensor, leaves: Mapping[str, Tensor], count: int, heads: int
) -> dict[str, Float[Tensor, "head n out _"]]:
    """Differentiate the attention's output by the leaves, head by head.

    With r query heads a key head and values d_v wide, the queries take d_v vector-Jacobian products, with the unit
    vectors of all heads at once, and keys and values r · d_v.

    Args:
        output: The output, (..., head · d_v), with its graph.
        leaves: The leaves, (..., rows), by name: `v` and `k` by key head, all others by query head.
        count: Number of positions N.
        heads: Number of query heads.

    Returns:
        The derivatives by name, without those that are zero.
    """
    d_value = output.shape[-1] // heads
    key_heads = leaves["v"].shape[-1] // d_value
    sizes = {name: key_heads if name in ("k", "v") else heads for name in leaves}
    first = torch.autograd.grad(output.sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
    used = [name for name, gradient in zip(leaves, first, strict=True) if gradient is not None]
    cores: dict[str, Tensor] = {}
    for size in dict.fromkeys(sizes[name] for name in used):
        names = [name for name in used if sizes[name] == size]
        shared = heads // size
        units = torch.eye(shared * d_value, dtype=output.dtype, device=output.device).repeat(1, size)

        def pull(cotangent: Tensor, names: list[str] = names) -> tuple[Tensor, ...]:
            inputs = [leaves[name] for name in names]
            return torch.autograd.grad(output, inputs, cotangent.expand(output.shape), retain_graph=True)

        for name, rows in zip(names, torch.vmap(pull)(units), strict=True):
            by_head = rows.reshape(shared, d_value, count, size, -1)  # (r, out, n, g, inner)
            cores[name] = by_head.permute(3, 0, 2, 1, 4).flatten(0, 1)
    return cores


def derivative_by_column(
    output: Float[Tensor, "*batch out"], leaf: Float[Tensor, "*places leaf"], count: int
) -> Float[Tensor, "n out leaf"] | None:
    """Differentiate an output by a leaf of which all of it depends, with as many products as the leaf is wide.

    A vector-Jacobian product is linear in its cotangent; its derivative by the cotangent is the product from the other
    side.

    Args:
        output: The output, with its graph.
        leaf: The leaf, of the same positions.
        count: Number of positions N.

    Returns:
        The derivative; None if it is zero.
    """
    cotangent = torch.zeros_like(output, requires_grad=True)
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        output, leaf, cotangent, create_graph=True, allow_unused=True
    )
    if (pulled := found[0]) is None:
        return None

    def push(tangent: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(pulled, cotangent, tangent.expand(pulled.shape), retain_graph=True)
        return pushed

    units = torch.eye(leaf.shape[-1], dtype=output.dtype, device=output.device)
    columns: Tensor = torch.vmap(push)(units)
    return columns.reshape(len(units), count, -1).permute(1, 2, 0)
