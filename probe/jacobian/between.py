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
    vectors of all heads at once. A softmax gives a multiple of the identity for values and a matrix of rank one for
    keys, which take 3 r products; where that is not what one more product finds, they take r · d_v.

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
    live: dict[str, Tensor] = {name: leaves[name] for name in ("k", "v") if name in used}
    cores = _softmax_terms(output, live, count, heads, key_heads) or {}
    rest = [name for name in used if name not in cores]
    for size in dict.fromkeys(sizes[name] for name in rest):
        names = [name for name in rest if sizes[name] == size]
        shared = heads // size
        units = torch.eye(shared * d_value, dtype=output.dtype, device=output.device).repeat(1, size)

        def pull(cotangent: Tensor, names: list[str] = names) -> tuple[Tensor, ...]:
            inputs = [leaves[name] for name in names]
            return torch.autograd.grad(output, inputs, cotangent.expand(output.shape), retain_graph=True)

        for name, rows in zip(names, torch.vmap(pull)(units), strict=True):
            by_head = rows.reshape(shared, d_value, count, size, -1)  # (r, out, n, g, inner)
            cores[name] = by_head.permute(3, 0, 2, 1, 4).flatten(0, 1)
    return cores


def _softmax_terms(
    output: Tensor, live: Mapping[str, Tensor], count: int, heads: int, key_heads: int
) -> dict[str, Float[Tensor, "head n out _"]] | None:
    """The derivatives by a position's own key and value, if they are those of a softmax; None if they are not."""
    shared, d_value = heads // key_heads, output.shape[-1] // heads
    draw = torch.Generator().manual_seed(0)
    tries = torch.randn(2, shared, d_value, generator=draw, dtype=torch.float64).to(output)

    def pull(cotangent: Float[Tensor, "shared d_value"]) -> dict[str, Tensor]:
        flat = cotangent.expand(key_heads, -1, -1).reshape(-1).expand(output.shape)
        found = torch.autograd.grad(output, list(live.values()), flat, retain_graph=True)
        return {name: rows.reshape(count, key_heads, -1) for name, rows in zip(live, found, strict=True)}

    alone = [pull(torch.diag_embed(torch.ones(shared).to(output))[head][:, None] * tries[0]) for head in range(shared)]
    cores, expected = {}, {}
    if "v" in live:
        rows = torch.stack([found["v"] for found in alone], 2)  # (n, g, r, d_value)
        weight = (rows * tries[0]).sum(-1) / tries[0].square().sum(-1)
        cores["v"] = torch.diag_embed(weight[..., None].expand(-1, -1, -1, d_value))
        expected["v"] = (weight[..., None] * tries[1]).sum(2)
    if "k" in live:
        rows = torch.stack([found["k"] for found in alone], 2)
        unit = rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        pushed = _pushed(output, live["k"], unit)
        if pushed is None:
            return None
        cores["k"] = pushed[..., None] * unit[..., None, :]
        expected["k"] = ((pushed * tries[1]).sum(-1, keepdim=True) * unit).sum(2)
    together = pull(tries[1])
    tolerance = 1e3 * torch.finfo(output.dtype).eps
    if not all((together[name] - expected[name]).norm() <= tolerance * together[name].norm() for name in live):
        return None
    return {name: core.permute(1, 2, 0, 3, 4).flatten(0, 1) for name, core in cores.items()}


def _pushed(
    output: Tensor, leaf: Tensor, tangents: Float[Tensor, "n g shared inner"]
) -> Float[Tensor, "n g shared out"] | None:
    """The derivative of each query head's output along a tangent of its key head: a product differentiated twice."""
    count, key_heads, shared, _ = tangents.shape
    cotangent = torch.zeros_like(output, requires_grad=True)
    (pulled,) = torch.autograd.grad(output, leaf, cotangent, create_graph=True)
    if not pulled.requires_grad:
        return None
    found = []
    for head in range(shared):
        along = tangents[:, :, head].reshape(leaf.shape)
        (moved,) = torch.autograd.grad(pulled, cotangent, along, retain_graph=True)
        found.append(moved.reshape(count, key_heads, shared, -1)[:, :, head])
    return torch.stack(found, 2)


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
