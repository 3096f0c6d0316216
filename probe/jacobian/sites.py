"""Jacobians between named sites, to the logits, and from one position to a later one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from probe import replay
from probe.boundary import public
from probe.errors import InputError
from probe.jacobian.block import (
    attention_of,
    pieces_of,
    recorded_jacobian,
    working_copy_of,
)
from probe.jacobian.lengths import by_length
from probe.jacobian.options import MEMORY, ContextName, JacobianOptions, MethodName
from probe.jacobian.parts import PartName, PartOfBlock, mixing_writes, part_of_block, run_of, tap_of
from probe.jacobian.rows import ForwardProducts, jacobian_of_rows, sequence_jacobian
from probe.model import HuggingFaceModel, LanguageModel, require_layer, undisturbed
from probe.text import Given, Which

LOGITS = "logits"
_BLOCK_SITE = re.compile(r"blocks\.(\d+)\.(\w+)")


@public
@undisturbed()
def cross_jacobian(
    model: LanguageModel,
    tokens: Given,
    layer: int,
    *,
    out_position: int,
    in_position: int,
    context: ContextName = "sequence",
    part: PartName = "block",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "window d d"]:
    r"""Compute the Jacobian of a block from one position to a later one, ∂h_{l+1}(s)/∂h_l(t) with s ≥ t.

    The singular values and the non-normality of the whole-sequence Jacobian depend on these; its spectrum does not.
    It runs `torch.func.jacrev` on the block's call with the whole sequence: 2 · d · params · T FLOPs a window.

    Args:
        model: The model.
        tokens: As in `probe.block_jacobian`.
        layer: Index of the block.
        out_position: s, the same in all windows; negative ones count from the end.
        in_position: t, likewise.
        context: "sequence", or "detached" as in `probe.block_jacobian`.
        part: As in `probe.block_jacobian`.
        chunk: Rows at once; by default what fits `memory`.
        memory: Bytes to use besides the result.
        dtype: The dtype of the arithmetic and the result.

    Returns:
        (W, d, d): [w, i, j] = ∂ out_i / ∂ in_j.

    Raises:
        InputError: If s < t, where the Jacobian of a causal block is zero; if `context="alone"`; or if an option, layer
            or position does not exist.
    """
    options = JacobianOptions(context=context, part=part, method="jacrev", chunk=chunk, memory=memory, dtype=dtype)
    options.resolved(model)
    require_layer(model, layer)
    if context == "alone":
        raise InputError(
            'a Jacobian between positions needs a context with several positions, got context="alone": use "sequence" '
            'or "detached"'
        )

    def compute(windows: Tensor, where: Tensor) -> Tensor:
        later, earlier = where[0].tolist()
        if later < earlier:
            raise InputError(
                f"out_position must not lie before in_position, where a causal block's Jacobian is zero, got "
                f"{out_position} and {in_position}: exchange them"
            )
        return _across(model, windows, layer, later, earlier, options)

    return by_length(model, tokens, [out_position, in_position], compute)


def _across(
    model: LanguageModel, tokens: Tensor, layer: int, later: int, earlier: int, options: JacobianOptions
) -> Float[Tensor, "window d d"]:
    recorded = replay.record(model, tokens, [later], layers=[layer])
    part_of = part_of_block(model, layer, working_copy_of(recorded, layer, options, None), options.part)
    rows = options.rows_at_once(recorded, part_of.block)
    matrices = [
        sequence_jacobian(recorded, layer, part_of, window, later, earlier, options.dtype, rows)
        for window in range(len(tokens))
    ]
    return torch.stack(matrices)


@public
@undisturbed()
def site_jacobian(
    model: LanguageModel,
    tokens: Given,
    source: str,
    target: str,
    positions: Which,
    *,
    method: MethodName = "auto",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "window chosen out d"]:
    """Compute the Jacobian between two named sites at one position, ∂target(t)/∂source(t), earlier positions fixed.

    It is the product over all that lies between the sites: the rest of the source's block, whole blocks, the part of
    the target's block before the target, and after the last block the final norm and the head.

    Args:
        model: The model.
        tokens: As in `probe.block_jacobian`.
        source: A site of the stream (`blocks.L.hook_resid_pre`, `hook_resid_mid`, `hook_resid_post`), or of an output
            that is added to it (`hook_attn_out`, `hook_mlp_out`, `hook_mixer_out`).
        target: A later site of the stream or of what is added to it, or "logits".
        positions: As in `probe.block_jacobian`.
        method: Of the whole blocks, as in `probe.block_jacobian`.
        chunk: As in `probe.block_jacobian`.
        memory: As in `probe.block_jacobian`.
        dtype: The dtype of the arithmetic and the result.

    Returns:
        (W, P, out, d), where out is d, or the size of the vocabulary for the logits.

    Raises:
        InputError: If there is no such site, the source is not of the stream, or the target is not after it.
    """
    options = JacobianOptions(method=method, chunk=chunk, memory=memory, dtype=dtype)
    options.resolved(model)
    if target != LOGITS:
        model.site(target)
    if target.startswith("blocks.") and _BLOCK_SITE.fullmatch(target) is None:  # inside a mixture of experts
        raise InputError(
            f"a target must be a tensor of the stream, or added to it, or the logits, got {target}: choose one such as "
            "blocks.0.hook_mlp_out"
        )
    return by_length(
        model, tokens, positions, lambda windows, where: _between(model, windows, where, source, target, options)
    )


def _between(
    model: LanguageModel, tokens: Tensor, where: Tensor, source: str, target: str, options: JacobianOptions
) -> Float[Tensor, "window chosen out d"]:
    layer, inside = _start(model, source)
    last, name = _end(model, target)
    replay.require_chain(model, min(layer, last), min(last + 1, model.n_layers))
    # the block behind the last one that the product takes holds the target, or there is none
    blocks = range(min(layer, model.n_layers - 1), min(max(layer, last) + 1, model.n_layers))
    recorded = replay.record(model, tokens, where, layers=blocks)
    d = model.d_model
    identity = torch.eye(d, dtype=options.dtype, device=model.device).expand(*recorded.positions.shape, d, d)
    order = [*model.sites, LOGITS]
    if source == target or (inside and (last, name) == (layer, "hook_resid_mid")):
        return identity.clone()
    if inside and (last, name) == (layer, "hook_mlp_out"):
        return recorded_jacobian(recorded, layer, replace(options, part="mlp", of="update"))
    if order.index(source) > order.index(target) or last < layer + inside:
        raise InputError(
            f"a target must come after its source in the forward pass, got {source} and {target}: exchange them"
        )
    product = recorded_jacobian(recorded, layer, replace(options, part="mlp")) if inside else identity
    for between in range(layer + inside, last):
        product = recorded_jacobian(recorded, between, options) @ product
    return _local(recorded, last, name, options, product)


def _start(model: LanguageModel, source: str) -> tuple[int, bool]:
    """The block that a source enters, and whether it does so between attention and MLP."""
    model.site(source)
    parsed = _BLOCK_SITE.fullmatch(source)
    if parsed is None:
        raise InputError(
            f"a source must be a site of the stream inside the blocks, or of an output added to it, got {source!r}: "
            "choose one such as blocks.0.hook_resid_pre"
        )
    layer, name = int(parsed[1]), parsed[2]
    if name == "hook_resid_pre":
        return layer, False
    middle = f"blocks.{layer}.hook_resid_mid" in model.sites
    if name == "hook_resid_mid" or (name in mixing_writes(model, layer) and middle):
        return layer, True
    return layer + 1, False  # what is added to the stream moves it one to one


def _end(model: LanguageModel, target: str) -> tuple[int, str]:
    """The block that holds the target (L: after the last block), and the target's name there."""
    parsed = _BLOCK_SITE.fullmatch(target)
    if parsed is None:
        return model.n_layers, target
    if parsed[2] == "hook_resid_post":
        return int(parsed[1]) + 1, "hook_resid_pre"
    return int(parsed[1]), parsed[2]


def _local(recorded: replay.Context, layer: int, name: str, options: JacobianOptions, product: Tensor) -> Tensor:
    """Multiply ∂name/∂(stream that enters block `layer`) by `product`."""
    model, d = recorded.model, recorded.model.d_model
    if name in ("hook_resid_pre", "ln_final.hook_in"):
        return product.clone()
    if layer < model.n_layers:
        attention = attention_of(recorded, layer, options)
        copy = working_copy_of(recorded, layer, options, attention)
        part = PartOfBlock(copy, target=tap_of(model, layer, copy, name))
        apart = attention is None and recorded.way(layer) != "keys"
        local = torch.empty_like(product)
        for windows, chosen, piece in pieces_of(recorded, 1 if apart else recorded.positions.numel()):
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                point, output = part.run(piece.state(layer).to(options.dtype), run_of(piece, layer, copy, attention))
            rows = options.rows_at_once(recorded, copy, piece.positions.numel(), layer)
            local[windows, chosen] = jacobian_of_rows(output, point, rows)
        return local @ product
    states = recorded.state(layer).to(options.dtype)
    if name == "ln_final.hook_out":
        norm = replay.working_copy(model.site(name).module, options.dtype)
        return _along_columns(norm, states, product, options.chunk or d)
    bytes_a_column = product.element_size() * recorded.positions.numel() * 3 * model.n_vocab
    columns = options.chunk or max(1, options.memory // bytes_a_column)
    return _along_columns(_head(model, options.dtype), states, product, columns)


def _along_columns(function: Callable[[Tensor], Tensor], states: Tensor, product: Tensor, chunk: int) -> Tensor:
    """Multiply ∂function/∂state by `product`, column by column: there are fewer columns than logits."""
    point = states.detach().requires_grad_()
    with torch.enable_grad():
        multiply = ForwardProducts(function(point), point)
    columns = product.movedim(-1, 0)
    return torch.cat([multiply(part) for part in columns.split(chunk)]).movedim(0, -1)


def _head(model: LanguageModel, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """`model.unembed` in the dtype of the arithmetic."""
    if model.dtype is dtype:
        return model.unembed
    if not isinstance(model, HuggingFaceModel):
        raise InputError(
            f"dtype must be that of the logits of {model.name}, {model.dtype}, got {dtype}: pass dtype={model.dtype}"
        )
    without = model.module.get_submodule(model.layout.blocks)
    copy, tail = replay.working_copy(model.module, dtype, without=without), model.found.tail.within(dtype)
    return lambda states: tail.logits(copy, tail.normed(copy, states))
