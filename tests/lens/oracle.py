"""The estimators of a lens by reverse-mode differentiation of the whole network, on hooks of its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def blocks_of(module: Any) -> Any:
    """The list of blocks of a tiny Hugging Face model."""
    for path in ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers", "backbone.layers"):
        found = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise AssertionError(type(module))


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def whole_jacobian(module: Any, tokens: Tensor, layer: int, to_layer: int, *, singly: bool = False) -> Tensor:
    """∂ (stream behind block `to_layer`)/∂ (stream behind block `layer`), float64, (T, d, T, d): [s, i, p, j]."""
    twin = copy.deepcopy(module).double().eval()
    twin.set_attn_implementation("eager")  # the fused kernels have no batching rule
    if singly:
        twin.set_experts_implementation("eager")  # grouped products have no float64
    blocks, seen = blocks_of(twin), list[Tensor]()

    def run(state: Tensor | None) -> Tensor:
        seen.clear()

        def replace(_: Any, __: Any, output: Any) -> Any:
            if state is None:
                seen.append(_first(output).detach())
                return None
            return (state, *output[1:]) if isinstance(output, tuple) else state

        target = list[Tensor]()
        handles = [
            blocks[layer].register_forward_hook(replace),
            blocks[to_layer].register_forward_hook(lambda _, __, output: target.append(_first(output))),
        ]
        try:
            twin(tokens[None])
        finally:
            for handle in handles:
                handle.remove()
        return target[-1][0]

    with torch.no_grad():
        run(None)
    start = seen[0].clone()
    if singly:  # code that has no batching rule
        rows: Tensor = torch.autograd.functional.jacobian(run, start)[:, :, 0]
        return rows.detach()
    found: Tensor = torch.func.jacrev(run)(start)[:, :, 0].detach()
    return found


def document(
    module: Any, tokens: Tensor, layer: int, to_layer: int, first: int, horizon: int | None, *, singly: bool = False
) -> Tensor:
    """The matrix of one document: mean over sources of the sum over targets up to `horizon` later, (d, d)."""
    whole = whole_jacobian(module, tokens, layer, to_layer, singly=singly)
    counted = range(first, len(tokens) - 1)
    total = torch.zeros(whole.shape[1], whole.shape[3], dtype=torch.float64)
    for source in counted:
        for target in counted:
            if target >= source and (horizon is None or target - source <= horizon):
                total += whole[target, :, source]
    return total / len(counted)
