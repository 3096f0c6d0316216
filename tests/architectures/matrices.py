"""Whether the matrices that the library names act as the model does: by what passes the modules inside a block."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures.case import FLOAT64, WrongError, relative
from tests.architectures.oracle import Oracle, Seen, first_state, output_state


def explained(oracle: Oracle, layer: int, named: Mapping[str, Tensor]) -> float:
    """The largest error of the matrices of a block, each (out, in).

    A matrix is right if some module of the block maps an input x to an output that has x Mᵀ, up to a bias, among its
    columns. Queries, keys and values have to be those that attention is handed at position 0, where rotary embeddings
    do nothing, or the input of the norm that makes them.

    Raises:
        WrongError: If a matrix acts on nothing in the block, or as another one than its name says.
    """
    taps, seen = _taps(oracle, layer)
    worst = 0.0
    for name, matrix in named.items():
        matrix = matrix.detach().double()
        found = [one for one in taps if one.maps(matrix)]
        if not found:
            raise WrongError(float("inf"), f"{name} of block {layer} is no map of any module in it")
        if name in ("q", "k", "v") and seen is not None:
            worst = max(worst, _handed(name, layer, matrix, found[0], taps, seen))
        if name in ("gate", "up"):
            continue
    return worst


class _Tap:
    """What one module of a block was given and gave: the last dimension as columns, all else as rows."""

    def __init__(self, given: Tensor, gave: Tensor) -> None:
        self.given, self.gave = given.flatten(0, -2), gave.flatten(0, -2)
        self.shape = gave.shape

    def columns(self, matrix: Tensor) -> Tensor | None:
        """x Mᵀ, with the bias that the module adds; None if the module does not do it."""
        if self.given.shape[-1] != matrix.shape[1] or len(self.given) != len(self.gave):
            return None
        expected = self.given @ matrix.T
        centred, gave = expected - expected.mean(0), self.gave - self.gave.mean(0)
        scale = centred.norm(dim=0)
        # Each column is looked for among those of the output, for joint matrices order rows in ways of their own.
        distance = torch.cdist(centred.T, gave.T)
        best, index = distance.min(1)
        if not bool((best <= FLOAT64 * scale.clamp_min(1e-9)).all()):
            return None
        return self.gave[:, index]

    def maps(self, matrix: Tensor) -> bool:
        """Whether the module does x Mᵀ, among other things."""
        return self.columns(matrix) is not None


def _taps(oracle: Oracle, layer: int) -> tuple[list[_Tap], Seen | None]:
    taps: list[_Tap] = []

    def keep(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given, gave = first_state(args, kwargs), output_state(output)
        if given is not None and gave is not None and given.is_floating_point() and gave.ndim > 1 < given.ndim:
            taps.append(_Tap(given.detach().clone(), gave.detach().clone()))

    seen = Seen() if oracle.records else None
    with ExitStack() as stack:
        for module in oracle.layers[layer].modules():
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        # A layer is run in its own pass, so that attention's record holds its call alone at a known place.
        before = len(seen.query) if seen is not None else 0
        marks: list[int] = []
        if seen is not None:
            stack.callback(
                oracle.layers[layer].register_forward_pre_hook(lambda *_: marks.append(len(seen.query))).remove
            )
            stack.callback(oracle.layers[layer].register_forward_hook(lambda *_: marks.append(len(seen.query))).remove)
        oracle.run(oracle.tokens, seen=seen)
    if seen is None or marks[1] - marks[0] != 1:
        return taps, None
    call = slice(marks[0] + before, marks[1])
    return taps, Seen(seen.query[call], seen.key[call], seen.value[call], seen.output[call])


def _handed(name: str, layer: int, matrix: Tensor, tap: _Tap, taps: list[_Tap], seen: Seen) -> float:
    """The error of queries, keys or values at position 0, beside what attention is handed."""
    handed = {"q": seen.query, "k": seen.key, "v": seen.value}[name][0]  # (window, head, position, entry)
    windows, heads, length, width = handed.shape
    columns = tap.columns(matrix)
    assert columns is not None
    if columns.numel() != handed.numel():
        return 0.0  # attention is handed something else: expanded latents, keys of another layer
    made = columns.reshape(windows, length, heads, width)
    first = handed.transpose(1, 2)[:, 0]
    candidates = [made]
    for other in taps:  # a norm of queries and keys stands between
        sized = other.given.numel() == made.numel() == other.gave.numel()
        if sized and relative(other.given.reshape(made.shape), made) < FLOAT64:
            candidates.append(other.gave.reshape(made.shape))
    sizes = [(c[:, 0] * first).sum() / (c[:, 0] * c[:, 0]).sum() for c in candidates]  # a scale may be applied
    errors = [relative(size * c[:, 0], first) for size, c in zip(sizes, candidates, strict=True)]
    if not min(errors) <= 1e-5:
        raise WrongError(min(errors), f"{name} of block {layer} is not what attention is handed")
    return min(errors)
