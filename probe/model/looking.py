"""A layout found by running: what the modules of a model do in two short passes, whatever they are called.

From the record of a pass (`probe.model.tracing`)

- `blocks_in` finds the list of modules that all run once, each starting where the one before it ended: the blocks;
- `tail_in` (`probe.model.tails`) follows the stream from the last block to the logits;
- `sites_in` (`probe.model.sums`) finds the outputs that a block adds to the stream, and the stream between them;
- `mixture_in` (`probe.model.mixtures`) finds the router and the experts of a block that chooses among experts.

Nothing is taken from names. A relation counts if it holds to rounding in the recorded tensors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from probe.errors import InputError
from probe.model.architectures import BlockLayout, Layout, SitePath, number_of
from probe.model.hooks import evaluating, undisturbed
from probe.model.matrices import doing_more, put_aside
from probe.model.mixtures import mixture_in
from probe.model.sums import Sums, holds, sites_in
from probe.model.tails import Tail, numbers_in, tail_in
from probe.model.tracing import Call, Trace, equal, probe_tokens, tensor_in, traced


def blocks_in(module: nn.Module, trace: Trace) -> str:
    """Find the list of blocks: all run once, in order, each on what the one before it gave.

    Args:
        module: The causal LM.
        trace: Its record.

    Returns:
        The path of the list.

    Raises:
        InputError: If there is no such list, in words that say what there is instead.
    """
    reasons: list[tuple[int, str]] = []
    name = type(module).__name__
    found: tuple[int, str] | None = None
    lists = [(path, part) for path, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    for path, part in lists:
        if found is not None and path.startswith(found[1] + "."):
            continue  # inside a list of blocks
        calls = [trace.by_path.get(f"{path}.{index}", []) for index in range(len(part))]
        if not all(calls):
            continue
        reason = _not_a_stream(trace, calls)
        if reason is None:
            if found is None or len(part) > found[0]:
                found = (len(part), path)
        else:
            reasons.append((len(part), reason))
    if found is not None:
        return found[1]
    why = max(reasons)[1] if reasons else "no list of modules of which all run"
    raise InputError(
        f"a model must be a chain of blocks that add to one residual stream, and {name} has {why}: use another model"
    )


def _not_a_stream(trace: Trace, calls: Sequence[Sequence[Call]]) -> str | None:
    """Say why a list of modules is no chain of blocks; None if it is one."""
    if any(len(of_one) > 1 for of_one in calls):
        return f"blocks that run more than once in a pass ({max(len(of_one) for of_one in calls)} times)"
    chain = [of_one[0] for of_one in calls]
    length = trace.tokens.shape[1]
    for call in chain:
        if call.entered is None or call.left is None:
            return "blocks that are not given the stream as a tensor"
        for state in (call.entered, call.left):
            if state.ndim != 3:
                return f"a stream of several columns (blocks pass on tensors of {state.ndim} axes)"
            if state.shape[:2] == (length, 1):
                return "a stream that is laid out (positions, windows, width)"
            if state.shape[:2] != (1, length):
                return "blocks that do not run on all positions"
    if len({state.shape[-1] for call in chain for state in (call.entered, call.left) if state is not None}) > 1:
        return "blocks whose stream changes its width"
    for index, (one, other) in enumerate(pairwise(chain)):
        assert one.left is not None
        assert other.entered is not None
        if one.end > other.start:
            return "blocks that run inside each other"
        if not equal(one.left, other.entered):
            return f"something between blocks {index} and {index + 1} that changes the stream"
    return None


def embedding_in(module: nn.Module) -> str:
    """Find the path of the token embedding.

    Args:
        module: The causal LM.

    Returns:
        The path.

    Raises:
        InputError: If the model names none.
    """
    try:
        wanted = module.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        wanted = None
    for path, part in module.named_modules():
        if part is wanted:
            return str(path)
    raise InputError(f"a model must have a token embedding, and {type(module).__name__} names none: use another model")


def trunk_in(module: nn.Module, trace: Trace, blocks: str) -> str:
    """Find the smallest module around the blocks that takes the tokens, as `input_ids`.

    Args:
        module: The causal LM.
        trace: The record.
        blocks: Path of the list of blocks.

    Returns:
        Its path; "" for the whole model.
    """
    around = [
        call.path
        for call in trace.calls
        if call.takes_tokens
        and f"{blocks}.".startswith(f"{call.path}." if call.path else "")
        and "input_ids" in inspect.signature(module.get_submodule(call.path).forward).parameters
    ]
    return max(around, key=len, default="")


@dataclass(frozen=True)
class Found:
    """Parts of a causal LM, as a short pass shows them.

    Attributes:
        blocks: Path of the list of blocks.
        trunk: Path of the smallest module around them that takes the tokens; "" for the whole model.
        embedding: Path of the token embedding.
        tail: What follows the last block.
        sums: For each block, how its output is made.
        mixtures: For each block, the sites of its mixture of experts; none where there is no mixture.
        d_model: Width of the stream.
        stream_dtype: Its dtype.
        n_vocab: Number of logits.
        more: Modules of the blocks that hold a matrix and do more than multiply by it: adapters that are not merged,
            packed or scaled weights; and those in whose place others run.
    """

    blocks: str
    trunk: str
    embedding: str
    tail: Tail
    sums: tuple[Sums, ...]
    mixtures: tuple[Mapping[str, SitePath], ...]
    d_model: int
    stream_dtype: torch.dtype
    n_vocab: int
    more: frozenset[nn.Module] = frozenset()


@undisturbed()
def look(module: nn.Module, stated: Layout | None = None) -> Found:
    """Find the parts of a causal LM by two passes of a few tokens.

    Args:
        module: The causal LM, with values.
        stated: What is stated of its architecture; it is taken where it holds.

    Returns:
        Its parts.

    Raises:
        InputError: If it does not run on token ids alone, has no chain of blocks on one stream, looks ahead, or
            computes its logits otherwise than by a norm, a head, factors and a soft cap; in one line that says which.
    """
    name, config = type(module).__name__, _text_config(module)
    if getattr(module.config, "is_encoder_decoder", False):
        raise InputError(
            f"a model must be a decoder of one text, and {name} is an encoder-decoder, whose decoder also reads an "
            "encoder's output: use a causal language model"
        )
    embedding = embedding_in(module)
    table = getattr(module.get_submodule(embedding), "weight", None)
    n_vocab = len(table) if isinstance(table, Tensor) else int(config.vocab_size)
    tokens = probe_tokens(n_vocab).to(next(module.parameters()).device)
    try:
        trace = traced(module, tokens)
    except Exception as error:
        raise InputError(
            f"a model must run on token ids alone, and {name} does not ({type(error).__name__}: {_line(error)}): "
            "use a causal language model"
        ) from error
    if trace.logits is None:
        raise InputError(
            f"a model must give logits, and {name} is a trunk without a head: pass the causal language model around it"
        )
    blocks = blocks_in(module, trace)
    count = len(cast("nn.ModuleList", module.get_submodule(blocks)))
    end = trace.by_path[f"{blocks}.{count - 1}"][0].left
    assert end is not None
    _require_causal(module, tokens, f"{blocks}.{count - 1}", end)
    numbers = numbers_in(config)
    with evaluating(module):
        mixtures = tuple(mixture_in(trace, f"{blocks}.{index}") for index in range(count))
    return Found(
        blocks,
        trunk_in(module, trace, blocks),
        embedding,
        tail_in(module, trace, blocks, numbers),
        tuple(
            _sums_of(trace, block, f"{blocks}.{index}", numbers, None if stated is None else stated.at(index, block))
            for index, block in enumerate(cast("nn.ModuleList", module.get_submodule(blocks)))
        ),
        mixtures,
        end.shape[-1],
        end.dtype,
        trace.logits.shape[-1],
        frozenset((
            *doing_more(call for call in trace.calls if call.path.startswith(f"{blocks}.")),
            *put_aside(module.get_submodule(blocks)),
        )),
    )


def _sums_of(trace: Trace, block: nn.Module, path: str, numbers: Sequence[float], stated: BlockLayout | None) -> Sums:
    """Choose what a block adds: the stated sites if they hold, or those that the pass shows."""
    if stated is not None and holds(trace, block, path, stated):
        return Sums(stated.sites, bool(stated.parallel), number_of(block, stated.scale))
    return sites_in(trace, path, [*_scalars(block), *numbers])


def _scalars(block: nn.Module) -> Iterator[float]:
    """The numbers that a block itself holds: attributes, and buffers of one entry."""
    for value in [*vars(block).values(), *block._buffers.values(), *block._parameters.values()]:
        if isinstance(value, Tensor) and value.numel() == 1:
            value = float(value.detach())
        if isinstance(value, float) and math.isfinite(value) and value not in (0.0, 1.0):
            yield value


def _require_causal(module: nn.Module, tokens: Tensor, last: str, end: Tensor) -> None:
    """Refuse a model in which a later token changes an earlier state."""
    changed = tokens.clone()
    changed[0, -1] = tokens[0, 0]
    seen: list[Tensor] = []
    handle = module.get_submodule(last).register_forward_hook(
        lambda _, __, output: seen.append(tensor_in(output).clone())
    )
    try:
        with torch.no_grad(), evaluating(module):
            module(input_ids=changed, use_cache=False, return_dict=True)
    finally:
        handle.remove()
    before, after = end[:, :-1].double(), seen[-1][:, :-1].double()
    if not (after - before).norm() <= max(1e-4, 4 * torch.finfo(end.dtype).eps) * before.norm():
        raise InputError(
            f"a model must be causal, so that no state depends on a later token, but this {type(module).__name__} "
            "attends to both sides; use a causal language model"
        )


def _text_config(module: nn.Module) -> Any:
    config: Any = module.config
    return config.get_text_config(decoder=True)


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]
