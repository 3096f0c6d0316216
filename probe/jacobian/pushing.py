"""Products of a block's Jacobian with a few vectors, at all chosen positions at once, without the matrix."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from probe import replay
from probe.boundary import public
from probe.errors import InputError
from probe.jacobian.block import attention_of, pieces_of, primal_bytes, recorded_jacobian, working_copy_of
from probe.jacobian.options import JacobianOptions, is_standard
from probe.jacobian.parts import run_of
from probe.jacobian.rows import ForwardProducts
from probe.model import require_layer, undisturbed

PushName = Literal["auto", "products", "matrices"]


@public
@undisturbed()
def push_forward(
    recorded: replay.Context,
    layer: int,
    vectors: Float[Tensor, "many window chosen d"],
    options: JacobianOptions | None = None,
    *,
    by: PushName = "auto",
) -> Float[Tensor, "many window chosen d"]:
    """Multiply the Jacobian of block `layer` by vectors, J v at each chosen position, earlier positions fixed.

    By products: a vector costs about one backward pass of its position through the block (2 · params FLOPs, whatever
    T), plus one forward and one backward pass for all vectors. The block's own code is differentiated, so that every
    architecture that runs again is exact. By matrices: `recorded_jacobian`, then a matrix product.

    Args:
        recorded: The context (`probe.replay.record`); its positions are the chosen ones.
        layer: Index of the block.
        vectors: The vectors v by position, (n, W, P, d).
        options: Options of `block_jacobian`; the part is the whole block.
        by: "products", "matrices", or "auto": the matrices where n is so large that they are cheaper.

    Returns:
        J v, or K v with `of="update"`, (n, W, P, d), in the options' dtype.

    Raises:
        InputError: If an option does not exist or the model does not support it, or the vectors do not fit the context.
    """
    options = options or JacobianOptions()
    require_layer(recorded.model, layer)
    options.resolved(recorded.model, layer)
    shape = (*recorded.positions.shape, recorded.model.d_model)
    if vectors.shape[1:] != shape:
        raise InputError(
            f"vectors must be (n, W, P, d) with (W, P, d) = {shape}, got {tuple(vectors.shape)}: expand them to the "
            "chosen positions"
        )
    if by not in get_args(PushName) or options.part != "block":
        raise InputError(
            f"by= must be one of {', '.join(get_args(PushName))} and the part the whole block, got {by!r} and "
            f"{options.part!r}: choose one"
        )
    vectors = vectors.to(recorded.model.device, options.dtype)
    if by == "matrices" or (by == "auto" and _matrices_are_cheaper(recorded, layer, len(vectors))):
        matrices = recorded_jacobian(recorded, layer, options)
        return torch.einsum("wpij,nwpj->nwpi", matrices.reshape(*shape, -1), vectors)
    pushed = _by_products(recorded, layer, vectors, options)
    return pushed - vectors if options.of == "update" else pushed


def _matrices_are_cheaper(recorded: replay.Context, layer: int, vectors: int) -> bool:
    """Compare about 10 d³ FLOPs of a composed matrix with 2 · params of each vector."""
    model = recorded.model
    if vectors >= model.d_model:  # no method takes more than one product a row
        return True
    if not is_standard(model, layer):
        return False
    parameters = sum(parameter.numel() for parameter in model.blocks[layer].parameters())
    return 2 * vectors * parameters > 10 * model.d_model**3


def _by_products(recorded: replay.Context, layer: int, vectors: Tensor, options: JacobianOptions) -> Tensor:
    attention = attention_of(recorded, layer, options)
    copy = working_copy_of(recorded, layer, options, attention)
    itemsize = torch.finfo(options.dtype).bits // 8
    bytes_a_position = max(primal_bytes(recorded, itemsize), len(vectors) * options.bytes_a_row(recorded, copy))
    pushed = torch.empty_like(vectors)
    for windows, chosen, piece in pieces_of(recorded, options.memory // bytes_a_position):
        point = piece.state(layer).to(options.dtype).detach().requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            multiply = ForwardProducts(run_of(piece, layer, copy, attention)(point), point)
        many = options.rows_at_once(recorded, copy, piece.positions.numel(), layer)
        parts = [multiply(part).detach() for part in vectors[:, windows, chosen].split(many)]
        pushed[:, windows, chosen] = torch.cat(parts)
    return pushed
