"""Whether the matrices that the library names act as the model does: by what passes the modules inside a block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures.case import FLOAT64, WrongError, relative
from tests.architectures.oracle import Oracle, Seen, first_state, output_state

NORMED = 1e-5
"""Error of a direction that a norm or a scale has passed."""


class Tap:
    """What one module of a block was given and gave in the oracle's pass."""

    def __init__(self, given: Tensor, gave: Tensor) -> None:
        self.given, self.gave = given.detach().clone(), gave.detach().clone()

    def columns(self, matrix: Tensor) -> Tensor | None:
        """x Mᵀ and the bias that the module adds, (window · position, out); None if the module does not do it."""
        given, gave = self.given.flatten(0, -2), self.gave.flatten(0, -2)
        if given.shape[-1] != matrix.shape[1] or len(given) != len(gave) or gave.shape[-1] < len(matrix):
            return None
        expected = given @ matrix.T
        centred = expected - expected.mean(0)
        # Each column is looked for among those of the output, for joint matrices order their rows in ways of their own.
        distance = torch.cdist(centred.T, (gave - gave.mean(0)).T, compute_mode="donot_use_mm_for_euclid_dist")
        nearest, index = distance.min(1)
        if not bool((nearest <= FLOAT64 * centred.norm(dim=0).clamp_min(1e-6)).all()):
            return None
        return gave[:, index]


def explained(oracle: Oracle, layer: int, named: Mapping[str, Tensor]) -> float:
    """The largest error of the matrices of a block, each (out, in).

    A matrix is right if some module of the block maps an input x to an output that has x Mᵀ, up to a bias, among its
    columns. Queries, keys and values have to be those that attention is handed at position 0, where rotary embeddings
    do nothing, or what a norm makes of them; the output matrix has to read what attention gives, or what a gate makes
    of it; act(gate x) · (up x) has to be what `down` reads, where the activation is a module. Of latent attention see
    `_latent`.

    Raises:
        WrongError: If a matrix acts on nothing in the block, or as another one than its name says.
    """
    taps, silent, seen = _taps(oracle, layer)
    found: dict[str, tuple[Tap, Tensor]] = {}
    for name, matrix in named.items():
        matrix = matrix.detach().double()
        maps = [(tap, columns) for tap in taps if (columns := tap.columns(matrix)) is not None]
        if maps:
            found[name] = maps[0]
        elif not any(weight.shape == matrix.shape and torch.equal(weight, matrix) for weight in silent):
            raise WrongError(math.inf, f"{name} of block {layer} is no map of any module in it")
    worst = _latent(layer, found, taps, seen) if "kv_a" in found and seen is not None else 0.0
    roles = (("q", seen.query), ("k", seen.key), ("v", seen.value)) if seen is not None else ()
    for name, handed in () if "kv_a" in found else roles:
        if name in found:
            same = found[name][1].numel() == handed[0].numel()
            error = _handed(found[name][1], handed[0], taps) if same else math.inf
            if not error <= NORMED:
                raise WrongError(error, f"{name} of block {layer} is not what attention is handed")
            worst = max(worst, error)
    if {"gate", "up", "down"} <= set(found):
        worst = max(worst, _gated(layer, found, taps))
    return worst


def _taps(oracle: Oracle, layer: int) -> tuple[list[Tap], list[Tensor], Seen | None]:
    """The modules of a block that ran, weights of those that did not, and attention's call, if there is one alone."""
    taps: list[Tap] = []
    ran: set[nn.Module] = set()

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given, gave = first_state(args, kwargs), output_state(output)
        ran.add(module)
        if given is not None and gave is not None and given.is_floating_point() and min(given.ndim, gave.ndim) > 1:
            taps.append(Tap(given, gave))

    seen, marks = Seen(), []
    block = oracle.layers[layer]
    with ExitStack() as stack:
        for module in block.modules():
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        stack.callback(block.register_forward_pre_hook(lambda *_: marks.append(len(seen.query))).remove)
        stack.callback(block.register_forward_hook(lambda *_: marks.append(len(seen.query))).remove)
        oracle.run(oracle.tokens, seen=seen)
    silent = [
        module.weight.detach().double()
        for module in block.modules()
        if module not in ran and isinstance(module, nn.Linear)
    ]
    start, end = marks
    if end - start != 1:
        return taps, silent, None
    call = slice(start, end)
    return taps, silent, Seen(seen.query[call], seen.key[call], seen.value[call], seen.output[call])


def _latent(layer: int, found: Mapping[str, tuple[Tap, Tensor]], taps: list[Tap], seen: Seen) -> float:
    """The largest error of the matrices of latent attention.

    All that read the stream have to read one tensor. What the spreading matrices read has to be a module's output on
    the columns of `q_a` or `kv_a`: their norm. At position 0 the queries have to be those that attention is handed, the
    keys `k_b` of each head followed by the one `k_rot`, the values `v_b`; a rotary embedding may reorder the
    coordinates of the rotary part there.

    Raises:
        WrongError: If one of these is not so.
    """
    worst = 0.0

    def require(error: float, what: str, tolerance: float = FLOAT64) -> None:
        nonlocal worst
        worst = max(worst, error)
        if not error <= tolerance:
            raise WrongError(error, f"{what} of block {layer}")

    read = found["kv_a"][0].given
    for name in ("q_a", "k_rot", "q"):
        if name in found:
            require(relative(found[name][0].given, read), f"another input than that of kv_a enters {name}")
    for name, latent in (("q_b", "q_a"), ("k_b", "kv_a"), ("v_b", "kv_a")):
        if latent in found:
            made, entered = found[latent][1], found[name][0].given
            norms = [tap for tap in taps if tap.given.numel() == made.numel() == entered.numel()]
            norms = [tap for tap in norms if relative(tap.given.reshape(made.shape), made) < FLOAT64]
            ways = [relative(tap.gave.reshape(entered.shape), entered) for tap in norms]
            require(min(ways, default=math.inf), f"no norm of {latent} gives what {name} reads")
    windows, heads, length, _ = seen.query[0].shape
    first = {
        name: columns.reshape(windows, length, -1)[:, 0].unflatten(-1, (1 if name == "k_rot" else heads, -1))
        for name, (_, columns) in found.items()
        if name in ("q", "q_b", "k_b", "k_rot", "v_b")
    }
    rotary = first["k_rot"].shape[-1]
    keys = torch.cat([first["k_b"], first["k_rot"].expand(-1, heads, -1)], -1)
    for what, columns, handed in (
        ("the queries", first.get("q_b", first.get("q")), seen.query),
        ("the keys", keys, seen.key),
        ("the values", first["v_b"], seen.value),
    ):
        assert columns is not None
        expected = handed[0][:, :, 0]
        plain = columns.shape[-1] if what == "the values" else columns.shape[-1] - rotary
        require(relative(columns[..., :plain], expected[..., :plain]), f"{what} that attention is handed", NORMED)
        require(_reordered(columns[..., plain:], expected[..., plain:]), f"rotary part of {what}", NORMED)
    return worst


def _reordered(columns: Tensor, expected: Tensor) -> float:
    """The error between two lists of columns, (window, head, n), in whatever order, the same for all heads."""
    if not expected.shape[-1]:
        return 0.0
    ours, theirs = (part.movedim(-1, 0).flatten(1) for part in (columns, expected))
    order = torch.cdist(theirs, ours).argmin(1)
    if len(order.unique()) < len(order):
        return math.inf
    return relative(ours[order], theirs)


def _handed(columns: Tensor, handed: Tensor, taps: list[Tap]) -> float:
    """The error of queries, keys or values at position 0 to what attention is handed, (window, head, position, n)."""
    windows, heads, length, width = handed.shape
    first = columns.reshape(windows, length, heads, width)[:, 0]
    candidates = [first]
    for tap in taps:  # a norm of queries and keys may stand between, heads before positions or behind them
        for given, gave in _at_position_0(tap, windows, length):
            if given.numel() == first.numel() == gave.numel() and relative(given.reshape(first.shape), first) < FLOAT64:
                candidates.append(gave.reshape(first.shape))
    expected = handed[:, :, 0]
    # a scale may be applied to all of them
    sizes = [(one * expected).sum() / (one * one).sum() for one in candidates]
    return min(relative(size * one, expected) for size, one in zip(sizes, candidates, strict=True))


def _at_position_0(tap: Tap, windows: int, length: int) -> list[tuple[Tensor, Tensor]]:
    given, gave = tap.given, tap.gave
    places = [axis for axis in (1, 2) if given.ndim > axis + 1 and given.shape[axis] == length == gave.shape[axis]]
    if given.shape != gave.shape or len(given) != windows:
        return []
    return [(given.select(axis, 0), gave.select(axis, 0)) for axis in places]


def _gated(layer: int, found: Mapping[str, tuple[Tap, Tensor]], taps: list[Tap]) -> float:
    """The error of act(gate x) · (up x) beside what `down` reads; 0 where no module of the block is the activation."""
    (_, gate), (_, up), (down, _) = found["gate"], found["up"], found["down"]
    read = down.given.flatten(0, -2)
    acts = [tap for tap in taps if tap.given.shape == tap.gave.shape and tap.given.numel() == gate.numel()]
    acts = [tap for tap in acts if any(relative(tap.given.reshape(one.shape), one) < FLOAT64 for one in (gate, up))]
    if not acts or read.shape != up.shape:
        return 0.0
    acts = [tap for tap in acts if relative(tap.given.reshape(gate.shape), gate) < FLOAT64]
    products = [tap.gave.reshape(up.shape) * up for tap in acts]
    products += [  # a norm may stand before down
        tap.gave.flatten(0, -2)
        for tap in taps
        for one in products
        if tap.given.numel() == one.numel() == tap.gave.numel()
        and relative(tap.given.reshape(one.shape), one) < FLOAT64
    ]
    error = min((relative(one, read) for one in products if one.shape == read.shape), default=math.inf)
    if not error <= NORMED:
        raise WrongError(error, f"act(gate) · up of block {layer} is not what down reads")
    return error
