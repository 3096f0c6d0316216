"""Exact block Jacobians J = ∂h_{l+1}(t)/∂h_l(t) at chosen positions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe import replay
from probe.boundary import public
from probe.errors import InputError
from probe.jacobian import analytic, rows, sections
from probe.jacobian.detached import detach, freeze_routing
from probe.jacobian.options import (
    MEMORY,
    ContextName,
    JacobianOptions,
    MethodName,
    OutputName,
    RoutingName,
    heads_of,
    is_standard,
)
from probe.jacobian.parts import PartName, part_of_block, run_of
from probe.jacobian.primal import primal_point
from probe.jacobian.proof import require_proved
from probe.model import HuggingFaceModel, LanguageModel, require_layer, undisturbed
from probe.model.architectures import gain_of
from probe.text import Given, Which, as_rows

logger = logging.getLogger("probe.jacobian")


@public
def block_jacobian(
    model: LanguageModel,
    tokens: Given,
    layer: int,
    positions: Which,
    *,
    context: ContextName = "sequence",
    part: PartName = "block",
    of: OutputName = "state",
    method: MethodName = "auto",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
    routing: RoutingName = "live",
) -> Float[Tensor, "window chosen d d"]:
    r"""Compute the exact Jacobian of a block at chosen positions.

    .. math:: J_{wpij} = \partial h_{l+1}(t)_i \,/\, \partial h_l(t)_j, \qquad t = \mathrm{positions}[w, p]

    Args:
        model: The model.
        tokens: Windows of `load_windows`, prompts of `load_prompts`, or what that takes: a string or a list of them,
            int64 (T,) or (W, T); no padding.
        layer: Index of the block.
        positions: (P,) for all windows, or (W, P); negative ones count from the window's end. Or by name, the same
            number in each window: "last", or a `probe.Substring`.
        context: "sequence": the real context, held fixed. "alone": the block gets the state as a one-token input
            (softmax is 1, so queries and keys drop out). "detached": norms, attention probabilities and gates are held
            fixed (Golden 2025, arXiv 2505.24293): not the block's own Jacobian, and for standard blocks only.
        part: "block", or its sub-layers "attention" (resid_pre → resid_mid) and "mlp" (resid_mid → resid_post).
        of: "state": J. "update": K = J − I.
        method: "jacrev": backward passes through the block's call with the whole sequence, the reference, 2 · d ·
            params · T FLOPs a position. "frozen": vector-Jacobian products with earlier positions constant, and
            attention linearised at its primal where it can be exchanged, 2 · d · params FLOPs whatever T. "analytic":
            composed of the weight matrices, about 10 d³ FLOPs, where the block is standard. "auto": the last of these
            that the model supports (`probe.jacobian.method_of`), which is logged.
        chunk: Rows (jacrev, frozen) or positions (analytic) at once; by default what fits `memory`.
        memory: Bytes to use besides the result and the recorded context.
        dtype: `torch.float32` or `torch.float64`, of the arithmetic and of the result. Where the model has another
            dtype, a copy of the block is cast. Model code that computes in float32 (Llama's norms, for example) still
            does so in "jacrev" and "frozen".
        routing: In a mixture of experts the choice of a position's experts is constant; how far it is from another
            one, `probe.jacobian.routing_margin` says. "live": their weights are differentiated. "frozen": the weights
            are held fixed too.

    Returns:
        J, (W, P, d, d), on the model's device.

    Raises:
        InputError: If an option, layer or position does not exist, or the model does not support an option.
    """
    options = JacobianOptions(
        context=context, part=part, of=of, method=method, chunk=chunk, memory=memory, dtype=dtype, routing=routing
    )
    ((_, jacobian),) = jacobians_by_layer(model, tokens, [layer], positions, options)
    return jacobian


@public
def iter_block_jacobians(
    model: LanguageModel,
    tokens: Given,
    layers: Sequence[int] | None,
    positions: Which,
    *,
    batch_size: int | None = None,
    context: ContextName = "sequence",
    part: PartName = "block",
    of: OutputName = "state",
    method: MethodName = "auto",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
    routing: RoutingName = "live",
) -> Iterator[tuple[int, Float[Tensor, "window chosen d d"]]]:
    """Yield the block Jacobians of many layers from one forward pass, one layer at a time.

    Args:
        model: The model.
        tokens: As in `block_jacobian`.
        layers: Indices of the blocks; None: all.
        positions: As in `block_jacobian`.
        batch_size: Windows in a forward pass; by default all. With B windows at once the layers come for windows
            0 … B−1, then again for windows B … 2B−1, and so on; those of unequal lengths come length by length, as
            `groups()` of the windows has them.
        context: As in `block_jacobian`.
        part: As in `block_jacobian`.
        of: As in `block_jacobian`.
        method: As in `block_jacobian`.
        chunk: As in `block_jacobian`.
        memory: As in `block_jacobian`.
        dtype: As in `block_jacobian`.
        routing: As in `block_jacobian`.

    Yields:
        The layer and its J, (windows of the batch, P, d, d).

    Raises:
        InputError: If `block_jacobian` would raise it, or a batch holds no window.
    """
    options = JacobianOptions(
        context=context, part=part, of=of, method=method, chunk=chunk, memory=memory, dtype=dtype, routing=routing
    )
    yield from jacobians_by_layer(model, tokens, layers, positions, options, batch_size)


def jacobians_by_layer(
    model: LanguageModel,
    tokens: Given,
    layers: Sequence[int] | None,
    positions: Which,
    options: JacobianOptions,
    batch_size: int | None = None,
) -> Iterator[tuple[int, Float[Tensor, "window chosen d d"]]]:
    """Yield what `iter_block_jacobians` yields, of options that were gathered already.

    Args:
        model: The model.
        tokens: As in `block_jacobian`.
        layers: Indices of the blocks; None: all.
        positions: As in `block_jacobian`.
        options: All other options of `block_jacobian`.
        batch_size: Windows in a forward pass; by default all.

    Yields:
        The layer and its J, (windows of the batch, P, d, d).

    Raises:
        InputError: If a batch holds no window.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"a batch must hold at least one window, got batch_size={batch_size}: leave it out for all")
    chosen = range(model.n_layers) if layers is None else layers
    for layer in chosen:
        require_layer(model, layer)
        options.resolved(model, layer)
    rows = as_rows(model, tokens, argument="tokens")
    where = rows.positions(positions)
    contexts = _contexts(model, rows.groups(), where, list(chosen), options, batch_size)
    if batch_size is not None:
        for _, recorded in contexts:
            for layer in chosen:
                yield layer, _by_window(recorded, layer, where.shape[1], options)
        return
    kept = list(contexts)
    for layer in chosen:
        parts = [(indices, _by_window(recorded, layer, where.shape[1], options)) for indices, recorded in kept]
        if len(parts) == 1:
            yield layer, parts[0][1]
            continue
        jacobian = parts[0][1].new_empty((len(where), *parts[0][1].shape[1:]))
        for indices, part in parts:
            jacobian[indices.to(part.device)] = part
        yield layer, jacobian


def _contexts(
    model: LanguageModel,
    groups: Sequence[tuple[Tensor, Tensor]],
    where: Tensor,
    layers: list[int],
    options: JacobianOptions,
    batch_size: int | None,
) -> Iterator[tuple[Tensor, replay.Context]]:
    """The windows of each batch, all of one length, and their recorded context."""
    for indices, tokens in groups:
        size = len(tokens) if batch_size is None else batch_size
        for start in range(0, len(tokens), size):
            batch = slice(start, start + size)
            recorded = replay.record(model, tokens[batch], where[indices[batch]], layers=layers)
            yield indices[batch], recorded.alone() if options.context == "alone" else recorded


def _by_window(recorded: replay.Context, layer: int, chosen: int, options: JacobianOptions) -> Tensor:
    jacobian = recorded_jacobian(recorded, layer, options)
    return jacobian.reshape(-1, chosen, *jacobian.shape[2:])


@public
@undisturbed()
def recorded_jacobian(
    recorded: replay.Context, layer: int, options: JacobianOptions | None = None
) -> Float[Tensor, "window chosen d d"]:
    """Compute the Jacobians of block `layer` in a context that is recorded already (`probe.replay.record`).

    Args:
        recorded: The context; its positions are the chosen ones. `recorded.alone()` gives the context "alone".
        layer: Index of the block.
        options: The options of `block_jacobian`; `context` "alone" and "sequence" are the same here.

    Returns:
        J or K, (W, P, d, d).

    Raises:
        InputError: If the model does not support an option.
    """
    options = options or JacobianOptions()
    require_layer(recorded.model, layer)
    method = options.resolved(recorded.model, layer)
    cheaper_first: tuple[MethodName, ...] = ("analytic", "frozen", "jacrev")
    methods = cheaper_first[cheaper_first.index(method) :] if options.method == "auto" else (method,)
    for method in methods:
        try:
            jacobian = _by_method(recorded, layer, options, method)
            logger.info("Jacobian of block %d of %s by method %s", layer, recorded.model.name, method)
            if options.method == "auto" and isinstance(recorded.model, HuggingFaceModel):
                way = recorded.way(layer) if method == "frozen" else method
                recorded.model.trials[layer] = (method, "frozen" if way == "keys" else way)
            break
        except Exception as error:  # whether a block runs so shows only when it runs
            logger.info("no Jacobian of block %d of %s by %s: %s", layer, recorded.model.name, method, error)
            if method != methods[-1] and not isinstance(error, MemoryError | torch.OutOfMemoryError):
                continue
            if isinstance(error, InputError | MemoryError | torch.OutOfMemoryError):
                raise
            raise InputError(
                f"a Jacobian needs blocks that run again with gradients, and block {layer} of {recorded.model.name} "
                f"does not by {method} ({type(error).__name__}): use a model of another family"
            ) from error
    if (method == "analytic") != (options.of == "update"):
        jacobian.diagonal(dim1=-2, dim2=-1).add_(1.0 if options.of == "state" else -1.0)
    return jacobian


@public
@undisturbed()
def mlp_neuron_gain(
    recorded: replay.Context, layer: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "window chosen d_ff"]:
    r"""Measure how much each MLP neuron adds to the block's Jacobian: the norm of its rank-one term.

    .. math:: K_{\mathrm{MLP}} = \sum_i w_i (\partial a_i / \partial x)^\top, \qquad
       g_i = \lVert w_i \rVert \, \lVert \partial a_i / \partial x \rVert

    with a_i the neuron's activation (an input of the matrix `down`), w_i the vector that it writes into the stream and
    x the stream that enters the MLP, norms included on both sides.

    Args:
        recorded: The recorded context; its positions are the chosen ones.
        layer: Index of the block.
        dtype: The dtype of the arithmetic.

    Returns:
        g, (W, P, d_ff).

    Raises:
        InputError: If the model's blocks are not standard (see `method_of`: "analytic").
    """
    model = recorded.model
    require_layer(model, layer)
    if (
        not isinstance(model, HuggingFaceModel)
        or not is_standard(model, layer)
        or "up" not in model.at(layer).projections
    ):
        raise InputError(
            f"gains of MLP neurons need standard blocks (attention, then an MLP), and those of "
            f"{model.name} ({model.architecture}) are not: use the coordinates of the residual stream instead"
        )
    attention = attention_of(recorded, layer, JacobianOptions(dtype=dtype))
    require_proved(recorded, layer, attention)
    standard = analytic.StandardBlock.of(model, layer, dtype, attention)
    gains = analytic.neuron_terms(standard, primal_point(recorded, layer, standard.cuts, attention))
    return gains.reshape(*recorded.positions.shape, -1)


@public
def norm_gains(model: LanguageModel, layer: int) -> list[Float[Tensor, " d"]]:
    """Return the gains of the norms through which a block reads the stream: of attention and MLP, or of the mixer.

    Args:
        model: The model.
        layer: Index of the block.

    Returns:
        One vector a norm; none for blocks whose norms are unknown, or come after the sub-layers.
    """
    require_layer(model, layer)
    if not isinstance(model, HuggingFaceModel):
        return []
    block, laid_out = model.blocks[layer], model.at(layer)
    paths = dict.fromkeys(laid_out.norm_of(name) for name in ("q", "up", "in"))
    gains = [gain_of(block.get_submodule(path), model.d_model) for path in paths if path is not None]
    return [gain for gain in gains if gain is not None]


def working_copy_of(recorded: replay.Context, layer: int, options: JacobianOptions, attention: str | None) -> nn.Module:
    """Make the working copy of a block to differentiate through, detached if the options say so.

    Args:
        recorded: The context.
        layer: Index of the block.
        options: The options.
        attention: Name of the attention function, for blocks with attention; None: the model's own.

    Returns:
        The copy.
    """
    model, detached = recorded.model, options.context == "detached"
    attention = replay.DETACHED if detached else attention
    copy = replay.working_copy(model.blocks[layer], options.dtype, attention)
    form = model.at(layer).form if isinstance(model, HuggingFaceModel) else None
    if options.routing == "frozen" and form is not None and form.experts is not None:
        freeze_routing(copy, form.experts)
    if not detached:
        return copy
    assert isinstance(model, HuggingFaceModel)
    assert form is not None
    return detach(copy, form, model.at(layer).projections, heads_of(model))


def attention_of(recorded: replay.Context, layer: int, options: JacobianOptions) -> str | None:
    """Choose the attention function of a working copy that runs at the chosen positions.

    Args:
        recorded: The context.
        layer: Index of the block.
        options: The options.

    Returns:
        Its name; None for the block's own, where it cannot be exchanged.
    """
    if options.context == "detached":
        return replay.DETACHED
    return replay.LINEARISED if recorded.linear(layer) else None


def _by_method(recorded: replay.Context, layer: int, options: JacobianOptions, method: MethodName) -> Tensor:
    if method == "analytic":
        return _composed(recorded, layer, options)
    if method == "frozen":
        return _frozen(recorded, layer, options)
    copy = working_copy_of(recorded, layer, options, None)
    part = part_of_block(recorded.model, layer, copy, options.part)
    return rows.reference(recorded, layer, part, options.dtype, options.rows_at_once(recorded, copy))


def _frozen(recorded: replay.Context, layer: int, options: JacobianOptions) -> Tensor:
    attention = attention_of(recorded, layer, options)
    if attention is None and not recorded.at_positions(layer):
        raise _not_alone(recorded, layer)
    copy = working_copy_of(recorded, layer, options, attention)
    # The attention of a block that joins keys itself can be exchanged as well, which the sections prove.
    joins = attention is None and recorded.way(layer) == "carried"
    cut = working_copy_of(recorded, layer, options, replay.LINEARISED) if joins else copy
    part = part_of_block(recorded.model, layer, copy, options.part)
    d, itemsize = recorded.model.d_model, torch.finfo(options.dtype).bits // 8
    jacobian = recorded.states[layer].new_empty((*recorded.positions.shape, d, d), dtype=options.dtype)
    bytes_a_position = max(primal_bytes(recorded, itemsize), min(d, 32) * options.bytes_a_row(recorded, copy))
    # Rows over carried states run in an order of their own, so that what a module gives is read one position at a time.
    apart = options.part != "block" and attention is None and recorded.way(layer) != "keys"
    for windows, chosen, piece in pieces_of(recorded, 1 if apart else options.memory // bytes_a_position):
        chunk = options.rows_at_once(recorded, copy, piece.positions.numel(), layer)
        runs = [(each, run_of(piece, layer, each, attention)) for each in (copy, cut)]
        jacobian[windows, chosen] = sections.frozen(piece, layer, part, runs, options.dtype, chunk)
    return jacobian


def _not_alone(recorded: replay.Context, layer: int) -> InputError:
    return InputError(
        f"a frozen context needs blocks that run at single positions, and block {layer} of {recorded.model.name} "
        'does not: use method="jacrev"'
    )


def _composed(recorded: replay.Context, layer: int, options: JacobianOptions) -> Tensor:
    model = recorded.model
    assert isinstance(model, HuggingFaceModel)
    attention = attention_of(recorded, layer, options)
    if attention is None and not recorded.at_positions(layer):
        raise _not_alone(recorded, layer)
    require_proved(recorded, layer, replay.LINEARISED if attention == replay.DETACHED else attention)
    standard = analytic.StandardBlock.of(model, layer, options.dtype, attention)
    d, itemsize = recorded.model.d_model, torch.finfo(options.dtype).bits // 8
    jacobian = recorded.states[layer].new_empty((*recorded.positions.shape, d, d), dtype=options.dtype)
    bytes_a_matrix = itemsize * (standard.widest + 2 * standard.matrices["o"].numel() + 4 * d * d)
    # A batch larger than the caches is slower on a CPU; a GPU wants many matrices at once.
    size = options.chunk or (max(1, options.memory // (2 * bytes_a_matrix)) if jacobian.is_cuda else 1)
    # Over its own cache a block runs position by position, and a cut run has one call.
    alone = attention is None and recorded.way(layer) == "carried"
    at_once = 1 if alone else options.memory // (2 * primal_bytes(recorded, itemsize))
    for windows, chosen, piece in pieces_of(recorded, at_once):
        primal = primal_point(piece, layer, standard.cuts, attention, live=options.routing == "live")
        target = jacobian[windows, chosen]
        for start in range(0, piece.positions.numel(), size):
            updates = analytic.update_jacobian(
                standard,
                primal,
                slice(start, start + size),
                options.part,
                symmetrised_ov=options.symmetrised_ov,
            )
            for index, matrix in enumerate(updates, start):
                target[index // target.shape[1], index % target.shape[1]] = matrix
    return jacobian


def primal_bytes(recorded: replay.Context, itemsize: int) -> int:
    """Estimate the bytes of the primal point at one position: scores over keys, maps of attention, the block's tensors.

    Args:
        recorded: The context.
        itemsize: Bytes of a number.

    Returns:
        Bytes.
    """
    heads = heads_of(recorded.model)
    keys, d = recorded.tokens.shape[1] + recorded.positions.shape[1], recorded.model.d_model
    return itemsize * (6 * heads * keys + d * d // heads + 20 * d)


def pieces_of(recorded: replay.Context, positions: int) -> Iterator[tuple[slice, slice, replay.Context]]:
    """Cut a context into parts of about so many positions: whole windows, or some of a window's where it has more.

    Args:
        recorded: The context.
        positions: The number.

    Yields:
        Windows and columns of a part, and the part.
    """
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
