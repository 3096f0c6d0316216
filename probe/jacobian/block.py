"""Block Jacobians J = ∂h_{l+1}(t)/∂h_l(t), exactly, at chosen positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe import replay
from probe.errors import InputError
from probe.jacobian import analytic, rows
from probe.jacobian.detached import detach
from probe.jacobian.norms import gain_of
from probe.jacobian.options import MEMORY, Options, heads_of, method_of
from probe.jacobian.parts import part_of_block
from probe.model import HuggingFaceModel, LanguageModel
from probe.model.architectures import STANDARD

Positions = Sequence[int] | Int[Tensor, "*window chosen"]


def block_jacobian(
    model: LanguageModel,
    tokens: Int[Tensor, "window position"],
    layer: int,
    positions: Positions,
    *,
    context: str = "sequence",
    part: str = "block",
    of: str = "state",
    method: str = "auto",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "window chosen d d"]:
    r"""The exact Jacobian of a block at chosen positions.

    .. math:: J_{wpij} = \partial h_{l+1}(t)_i \,/\, \partial h_l(t)_j, \qquad t = \mathrm{positions}[w, p]

    Args:
        model: The model.
        tokens: Int64 (W, T), windows of one length without padding.
        layer: Which block.
        positions: (P,) for all windows, or (W, P); negative ones count from the window's end.
        context: "sequence": the real context, held fixed. "alone": the state is fed to the block as a one-token input
            (softmax is 1, so queries and keys drop out). "detached": norms, attention probabilities and gates are held
            fixed (Golden 2025, arXiv 2505.24293): another operator, offered for standard blocks.
        part: "block", or its sub-layers "attention" (resid_pre → resid_mid) and "mlp" (resid_mid → resid_post).
        of: "state": J. "update": K = J − I.
        method: "jacrev": `torch.func.jacrev` on the block's call with the whole sequence, the reference, 2 · d · params
            · T FLOPs a position. "frozen": vector-Jacobian products with earlier positions constant and attention
            linearised at its primal, 2 · d · params FLOPs whatever T. "analytic": composed of the weight matrices,
            about 10 d³ FLOPs, where the block is standard. "auto": the last of these that the model has
            (`probe.jacobian.method_of`), logged.
        chunk: Rows (jacrev, frozen) or positions (analytic) at once; by default what fits `memory`.
        memory: Bytes to be used besides the result and the recorded context.
        dtype: Torch.float32 or torch.float64, of the arithmetic and of the result, whatever the model's own; of
            another dtype a copy of the block is cast. Code of the model's that computes in float32 (the norms of Llama,
            for example) goes on to do so in "jacrev" and "frozen".

    Returns:
        J, (W, P, d, d), on the model's device.

    Raises:
        InputError: If an option, layer or position that is not there, or one that the model does not have.
    """
    (found,) = iter_block_jacobians(
        model,
        tokens,
        [layer],
        positions,
        context=context,
        part=part,
        of=of,
        method=method,
        chunk=chunk,
        memory=memory,
        dtype=dtype,
    )
    return found[1]


def iter_block_jacobians(
    model: LanguageModel,
    tokens: Int[Tensor, "window position"],
    layers: Sequence[int] | None,
    positions: Positions,
    *,
    batch_size: int | None = None,
    context: str = "sequence",
    part: str = "block",
    of: str = "state",
    method: str = "auto",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, Float[Tensor, "window chosen d d"]]]:
    """Block Jacobians of many layers from one forward pass, one layer at a time: never are all of them held.

    Args:
        model: The model.
        tokens: Int64 (W, T).
        layers: Which blocks; None: all.
        positions: (P,) or (W, P), as in `block_jacobian`.
        batch_size: Windows a forward pass; by default all. With B windows at once the layers come once for windows
            0 … B−1, then again for windows B … 2B−1, and so on.
        context: As in `block_jacobian`.
        part: As in `block_jacobian`.
        of: As in `block_jacobian`.
        method: As in `block_jacobian`.
        chunk: As in `block_jacobian`.
        memory: As in `block_jacobian`.
        dtype: As in `block_jacobian`.

    Yields:
        The layer and its J, (windows of the batch, P, d, d).

    Raises:
        InputError: If as `block_jacobian`, or a batch of no window.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"a batch must hold at least one window, got batch_size={batch_size}; leave it out for all")
    options = Options(context=context, part=part, of=of, method=method, chunk=chunk, memory=memory, dtype=dtype)
    options.resolved(model)
    chosen = range(model.n_layers) if layers is None else layers
    for layer in chosen:
        require_layer(model, layer)
    where = positions_of(tokens, positions)
    size = len(tokens) if batch_size is None else batch_size
    for start in range(0, len(tokens), size):
        recorded = replay.record(model, tokens[start : start + size], where[start : start + size])
        if context == "alone":
            recorded = recorded.alone()
        for layer in chosen:
            found = recorded_jacobian(recorded, layer, options)
            yield layer, found.reshape(-1, where.shape[1], *found.shape[2:])


def require_layer(model: LanguageModel, layer: int) -> None:
    """Refuse a block that the model does not have.

    Args:
        model: The model.
        layer: Index of the block.

    Raises:
        InputError: If it is outside.
    """
    if not 0 <= layer < model.n_layers:
        raise InputError(f"a layer must lie in 0 … {model.n_layers - 1} for {model.name}, got {layer}")


def positions_of(tokens: Int[Tensor, "window position"], positions: Positions) -> Int[Tensor, "window chosen"]:
    """Positions of each window, counted from its start.

    Args:
        tokens: The windows.
        positions: (P,) for all windows, or (W, P); negative ones count from the end.

    Returns:
        int64 (W, P).

    Raises:
        InputError: If wrong shape or outside the windows.
    """
    windows, length = tokens.shape
    found = torch.as_tensor(positions, dtype=torch.int64).to(tokens.device)
    if found.ndim == 1:
        found = found.expand(windows, -1)
    if found.ndim != 2 or len(found) != windows or not found.numel():
        raise InputError(
            f"positions must be (P,) for all windows or (W, P) with W = {windows}, at least one; got shape "
            f"{tuple(torch.as_tensor(positions).shape)}"
        )
    if found.min() < -length or found.max() >= length:
        raise InputError(
            f"positions must lie in [0, {length}), or [-{length}, -1] counted from the window's end; got "
            f"{int(found.min())} to {int(found.max())}"
        )
    return found.remainder(length)


def recorded_jacobian(
    recorded: replay.Context, layer: int, options: Options | None = None
) -> Float[Tensor, "window chosen d d"]:
    """The Jacobians of block `layer` in a context that is recorded already (`probe.replay.record`).

    Args:
        recorded: The context; its positions are the chosen ones. `recorded.alone()` gives the context "alone".
        layer: Which block.
        options: The options of `block_jacobian`; `context` "alone" and "sequence" are the same here.

    Returns:
        J or K, (W, P, d, d).

    Raises:
        InputError: If an option that the model does not have.
    """
    options = options or Options()
    method = options.resolved(recorded.model)
    if method == "frozen" and options.method == "auto":
        try:
            found = _by_rows(recorded, layer, options, "frozen")
        except InputError:  # an architecture of whose blocks only a run shows whether its attention can be exchanged
            method = "jacrev"
            found = _by_rows(recorded, layer, options, method)
    elif method == "analytic":
        found = _composed(recorded, layer, options)
    else:
        found = _by_rows(recorded, layer, options, method)
    if (method == "analytic") != (options.of == "update"):
        found.diagonal(dim1=-2, dim2=-1).add_(1.0 if options.of == "state" else -1.0)
    return found


def mlp_unit_gain(
    recorded: replay.Context, layer: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "window chosen d_ff"]:
    r"""How much each unit of a block's MLP adds to the block's Jacobian: the norm of its term of rank one.

    .. math:: K_{\mathrm{MLP}} = \sum_i w_i (\partial a_i / \partial x)^\top, \qquad
       g_i = \lVert w_i \rVert \, \lVert \partial a_i / \partial x \rVert

    with a_i the unit's activation (what enters the matrix `down`), w_i what it writes into the stream and x the stream
    that enters the MLP, norms included on both sides.

    Args:
        recorded: The recorded context; its positions are the chosen ones.
        layer: Which block.
        dtype: Of the arithmetic.

    Returns:
        g, (W, P, d_ff).

    Raises:
        InputError: If the model's blocks are not standard (see `method_of`: "analytic").
    """
    model = recorded.model
    if not isinstance(model, HuggingFaceModel) or method_of(model) != "analytic":
        raise InputError(
            f"the units of an MLP can be told apart in standard blocks ({', '.join(STANDARD)}), and {model.name} is "
            f"{model.architecture}: look at residual units instead"
        )
    copy = replay.working_copy(model.blocks[layer], dtype, replay.LINEARISED)
    standard = analytic.StandardBlock.of(model, layer, copy, dtype)
    found = analytic.unit_terms(standard, analytic.primal_point(recorded, layer, standard))
    return found.reshape(*recorded.positions.shape, -1)


def norm_gains(model: LanguageModel, layer: int) -> list[Float[Tensor, " d"]]:
    """The gains of the norms through which a block reads the stream: of attention and MLP, or of the mixer.

    Args:
        model: The model.
        layer: Which block.

    Returns:
        One vector a norm; none for blocks whose norms are not known, or stand behind the sub-layers.
    """
    block: Any = model.blocks[layer]
    if model.recurrent and hasattr(block, "norm"):
        return [gain_of(block.norm, block.norm.weight, 0.0)]
    form = STANDARD.get(model.architecture)
    if form is None:
        return []
    norms = [block.get_submodule(path) for path in dict.fromkeys((form.attention_norm, form.mlp_norm)) if path]
    return [gain_of(norm, norm.weight, form.gain_offset) for norm in norms]


def working_copy_of(recorded: replay.Context, layer: int, options: Options, attention: str | None) -> nn.Module:
    """The block to differentiate through: a working copy, detached if the options say so.

    Args:
        recorded: The context.
        layer: Which block.
        options: The options.
        attention: The attention function of blocks that have attention; None: the model's own.

    Returns:
        The copy.
    """
    model, detached = recorded.model, options.context == "detached"
    attention = replay.DETACHED if detached else attention
    copy = replay.working_copy(model.blocks[layer], options.dtype, None if model.recurrent else attention)
    return detach(copy, STANDARD[model.architecture], gated="gate" in model.projections(layer)) if detached else copy


def _by_rows(recorded: replay.Context, layer: int, options: Options, method: str) -> Tensor:
    attention = replay.LINEARISED if method == "frozen" else None
    copy = working_copy_of(recorded, layer, options, attention)
    part = part_of_block(recorded.model, layer, copy, options.part)
    if method == "jacrev":
        return rows.reference(recorded, layer, part, options.dtype, options.rows_at_once(recorded, copy))
    d, itemsize = recorded.model.d_model, torch.finfo(options.dtype).bits // 8
    found = recorded.states[layer].new_empty((*recorded.positions.shape, d, d), dtype=options.dtype)
    position = max(_primal_bytes(recorded, itemsize), min(d, 32) * options.bytes_a_row(recorded, copy))
    for windows, chosen, piece in _pieces(recorded, options.memory // position):
        chunk = options.rows_at_once(recorded, copy, positions=piece.positions.numel())
        found[windows, chosen] = rows.frozen(piece, layer, part, options.dtype, chunk)
    return found


def _composed(recorded: replay.Context, layer: int, options: Options) -> Tensor:
    model = recorded.model
    assert isinstance(model, HuggingFaceModel)
    copy = replay.working_copy(model.blocks[layer], options.dtype, replay.LINEARISED)
    standard = analytic.StandardBlock.of(model, layer, copy, options.dtype)
    d, itemsize = recorded.model.d_model, torch.finfo(options.dtype).bits // 8
    found = recorded.states[layer].new_empty((*recorded.positions.shape, d, d), dtype=options.dtype)
    one = itemsize * (standard.up.numel() + 3 * standard.output.numel() + 4 * d * d)
    # A batch larger than the caches is slower on a CPU; a GPU wants many matrices at once.
    size = options.chunk or (max(1, options.memory // (2 * one)) if found.is_cuda else 1)
    for windows, chosen, piece in _pieces(recorded, options.memory // (2 * _primal_bytes(recorded, itemsize))):
        primal = analytic.primal_point(piece, layer, standard)
        into = found[windows, chosen]
        for start in range(0, piece.positions.numel(), size):
            part_of = analytic.update_jacobian(
                standard,
                primal,
                slice(start, start + size),
                options.part,
                detached=options.context == "detached",
                symmetrised_ov=options.symmetrised_ov,
            )
            for index, matrix in enumerate(part_of, start):
                into[index // into.shape[1], index % into.shape[1]] = matrix
    return found


def _primal_bytes(recorded: replay.Context, itemsize: int) -> int:
    """What the primal point takes at one position: scores over the keys, attention's maps, what the block computes."""
    heads = heads_of(recorded.model)
    keys, d = recorded.tokens.shape[1] + recorded.positions.shape[1], recorded.model.d_model
    return itemsize * (6 * heads * keys + d * d // heads + 20 * d)


def _pieces(recorded: replay.Context, positions: int) -> Iterator[tuple[slice, slice, replay.Context]]:
    """Parts of a context of about as many positions: whole windows, or, where one has too many, some of its own."""
    windows, chosen = recorded.positions.shape
    if windows * chosen <= max(1, positions):
        yield slice(None), slice(None), recorded
        return
    at_once = max(1, positions // chosen)
    columns = chosen if positions >= chosen else max(1, positions)
    for window in range(0, windows, at_once):
        for column in range(0, chosen, columns):
            piece = slice(window, window + at_once), slice(column, column + columns)
            yield *piece, recorded.select(*piece)
