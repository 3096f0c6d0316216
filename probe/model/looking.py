"""A layout found by running: what the modules of a model do in one short pass, whatever they are called.

`traced` runs the module once on a few tokens and writes down, in the order of the calls, what enters and leaves each of
its modules. From this record

- `blocks_in` finds the list of modules that all run once, each starting where the one before it ended: the blocks;
- `tail_in` follows the stream from the last block to the logits: the final norm, the head, and the factors, the soft
  cap and the dtypes between them;
- `sites_in` finds what a block adds to the stream, and the stream between its two sub-layers.

Nothing is taken from names. A relation counts if it holds to rounding in the recorded tensors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from probe.errors import InputError
from probe.model.architectures import BlockLayout, Layout, SitePath, number_of
from probe.model.hooks import evaluating

TOKENS = 8
"""Length of the pass, in tokens."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module in the pass.

    Attributes:
        module: The module.
        path: Its path.
        entered: Its first tensor, copied; None if it got none.
        left: Its (first) output tensor, copied; None while it runs, or if it gave none.
        start: Rank of the call's beginning among all beginnings and ends.
        end: Rank of its end.
        takes_tokens: Whether the tokens are among its arguments.
    """

    module: nn.Module
    path: str
    entered: Tensor | None
    start: int
    takes_tokens: bool
    left: Tensor | None = None
    end: int = -1


@dataclass(frozen=True, eq=False)
class Trace:
    """The record of one pass.

    Attributes:
        tokens: The tokens, (1, T).
        calls: The calls in the order of their beginnings.
        logits: The module's logits; None if it has no head.
    """

    tokens: Tensor
    calls: Sequence[Call]
    logits: Tensor | None
    by_path: Mapping[str, list[Call]] = field(init=False)

    def __post_init__(self) -> None:
        by_path: dict[str, list[Call]] = {}
        for call in self.calls:
            by_path.setdefault(call.path, []).append(call)
        object.__setattr__(self, "by_path", by_path)


def probe_tokens(n_vocab: int, length: int = TOKENS) -> Tensor:
    """Choose the tokens of a short pass: different ones, spread over the vocabulary, none of its first or last.

    Args:
        n_vocab: Size of the vocabulary.
        length: Number of tokens.

    Returns:
        Int64 (1, length).
    """
    return (torch.arange(length) * 7 + 5).remainder(max(1, n_vocab - 2))[None]


@torch.no_grad()
def traced(module: nn.Module, tokens: Tensor, **kwargs: Any) -> Trace:
    """Run a causal LM once and record the calls of all its modules.

    Args:
        module: The causal LM.
        tokens: Int64 (1, T).
        **kwargs: Further arguments of the pass.

    Returns:
        The record. Memory: inputs and outputs of all modules for T tokens.
    """
    calls: list[Call] = []
    open_calls: dict[str, list[int]] = {}
    clock = iter(range(10**9))

    def before(part: nn.Module, path: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [*arguments, *named.values()]
        entered = _first(given)
        takes_tokens = any(isinstance(value, Tensor) and _equal(value, tokens) for value in given)
        open_calls.setdefault(path, []).append(len(calls))
        calls.append(Call(part, path, None if entered is None else entered.clone(), next(clock), takes_tokens))

    def after(path: str, output: Any) -> None:
        index = open_calls[path].pop()
        left = _first(output.values() if isinstance(output, Mapping) else _listed(output))
        copied = None if left is None else left.clone()
        call = calls[index]
        calls[index] = Call(call.module, call.path, call.entered, call.start, call.takes_tokens, copied, next(clock))

    with ExitStack() as stack, evaluating(module):
        for path, part in module.named_modules():
            stack.callback(
                part.register_forward_pre_hook(
                    lambda part, arguments, named, path=path: before(part, path, arguments, named), with_kwargs=True
                ).remove
            )
            stack.callback(part.register_forward_hook(lambda _, __, output, path=path: after(path, output)).remove)
        output: Any = module(input_ids=tokens, **({"use_cache": False, "return_dict": True} | kwargs))
    logits = getattr(output, "logits", None)
    return Trace(tokens, tuple(calls), None if logits is None else logits.detach().clone())


def _listed(output: Any) -> Sequence[Any]:
    return output if isinstance(output, tuple | list) else [output]


def _first(values: Any) -> Tensor | None:
    """The first floating tensor among values."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None


# The blocks


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
    """Why a list of modules is no chain of blocks; None if it is one."""
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
        if not _equal(one.left, other.entered):
            return f"something between blocks {index} and {index + 1} that changes the stream"
    return None


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


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


# What follows the last block


@dataclass(frozen=True)
class Step:
    """One module between the last block and the logits.

    Attributes:
        path: The module's path.
        factor: What its input is multiplied by before.
        dtype: Dtype of its input.
    """

    path: str
    factor: float
    dtype: torch.dtype


@dataclass(frozen=True)
class Tail:
    """All that is computed of the stream behind the last block.

    Attributes:
        steps: The modules, in order; the first is the final norm where there is more than one, the last the head.
        factor: What the head's output is multiplied by.
        cap: Soft cap c of the logits, c · tanh(x / c), after the factor; None if there is none.
        dtype: Dtype of the logits.
    """

    steps: tuple[Step, ...]
    factor: float
    cap: float | None
    dtype: torch.dtype

    @property
    def norm(self) -> str | None:
        """Path of the final norm; None if the head reads the stream itself."""
        return self.steps[0].path if len(self.steps) > 1 else None

    @property
    def head(self) -> str:
        """Path of the last module."""
        return self.steps[-1].path

    def within(self, dtype: torch.dtype) -> Tail:
        """Return the same in another dtype throughout.

        Args:
            dtype: A floating dtype.

        Returns:
            The tail for modules of that dtype.
        """
        return replace(self, steps=tuple(replace(step, dtype=dtype) for step in self.steps), dtype=dtype)

    def normed(self, module: nn.Module, states: Tensor) -> Tensor:
        """Apply what comes before the last module.

        Args:
            module: The causal LM.
            states: Outputs of the last block.

        Returns:
            The input of the last module.
        """
        for step in self.steps[:-1]:
            states = _scaled(states, step.factor).to(step.dtype)
            states = _tensor_of(module.get_submodule(step.path)(states))
        return states

    def logits(self, module: nn.Module, normed: Tensor) -> Tensor:
        """Apply the last module, and the factor and the soft cap behind it.

        Args:
            module: The causal LM.
            normed: The input of the last module.

        Returns:
            The logits.
        """
        last = self.steps[-1]
        normed = _scaled(normed, last.factor).to(last.dtype)
        logits = _scaled(_tensor_of(module.get_submodule(last.path)(normed)), self.factor)
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.to(self.dtype)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else tensor * factor


def _tensor_of(output: Any) -> Tensor:
    found = _first(_listed(output))
    assert found is not None
    return found


def tail_in(module: nn.Module, trace: Trace, blocks: str, numbers: Sequence[float]) -> Tail:
    """Follow the stream from the last block to the logits.

    Args:
        module: The causal LM.
        trace: Its record.
        blocks: Path of the list of blocks.
        numbers: Numbers of the configuration, among which a soft cap must be.

    Returns:
        The tail.

    Raises:
        InputError: If the logits are not computed of the last block's output by modules and scalars.
    """
    assert trace.logits is not None
    last = trace.by_path[f"{blocks}.{len(cast('nn.ModuleList', module.get_submodule(blocks))) - 1}"][-1]
    assert last.left is not None
    state, clock, steps = last.left, last.end, list[Step]()
    while True:
        behind = _output_relation(state, trace.logits, numbers) if steps else None
        if behind is not None:
            return Tail(tuple(steps), *behind, trace.logits.dtype)
        following = _next_step(trace, state, clock, numbers)
        if following is None:
            raise InputError(
                f"a model's logits must be computed of its residual stream by a norm, a head, factors and a soft cap, "
                f"and those of {type(module).__name__} are not: use another model"
            )
        call, factor = following
        assert call.entered is not None
        assert call.left is not None
        steps.append(Step(call.path, factor, call.entered.dtype))
        state, clock = call.left, call.end


def _next_step(trace: Trace, state: Tensor, clock: int, numbers: Sequence[float]) -> tuple[Call, float] | None:
    """The next module that reads a state, the outermost one, and the factor between."""
    for call in trace.calls:
        if call.start < clock or call.left is None or call.entered is None or call.entered.numel() != state.numel():
            continue
        factor = _factor_between(state, call.entered.reshape(state.shape), numbers)
        if factor is not None:
            return call, factor
    return None


def _factor_between(one: Tensor, other: Tensor, numbers: Sequence[float] = ()) -> float | None:
    """The factor c with other = c · one; None if there is none. A number of the configuration is preferred."""
    if torch.equal(one, other):
        return 1.0
    allowed = max(_tolerance(one), _tolerance(other))
    one, other = one.double(), other.double()
    size = one.square().sum()
    if not size > 0:
        return None
    factor = float((one * other).sum() / size)
    if factor == 0 or not (other - factor * one).norm() <= allowed * other.norm():
        return None
    return _known(factor, numbers, allowed)


def _tolerance(tensor: Tensor) -> float:
    return 1e-2 if _is_coarse(tensor) else 1e-5


def _is_coarse(tensor: Tensor) -> bool:
    return torch.finfo(tensor.dtype).bits < 32


def _known(factor: float, numbers: Sequence[float], allowed: float = 1e-5) -> float:
    """The stated number, or its inverse or root, that a measured factor stands for: the nearest, 1 among them."""
    candidates = [1.0]
    for number in numbers:
        root = math.sqrt(abs(number))
        candidates += [number, 1 / number, root, 1 / root]
    nearest = min(candidates, key=lambda candidate: abs(candidate - factor))
    return nearest if abs(nearest - factor) <= allowed * abs(factor) else factor


def _output_relation(state: Tensor, logits: Tensor, numbers: Sequence[float]) -> tuple[float, float | None] | None:
    """Factor and soft cap between the head's output and the logits; None if the logits are not computed so."""
    if state.shape != logits.shape:
        return None
    if torch.equal(state, logits.to(state.dtype)):
        return 1.0, None
    allowed = max(_tolerance(state), _tolerance(logits))
    wanted = logits.double()
    options: list[tuple[float, float, float | None]] = []
    factor = _factor_between(state, logits, numbers)
    if factor is not None:
        options.append((float(((factor * state).double() - wanted).norm()), factor, None))
    for cap in numbers:
        if cap > 0 and bool((wanted.abs() <= cap).all()):
            # in the model's own arithmetic, so that the true cap leaves nothing
            options.append((float(((torch.tanh(state / cap) * cap).double() - wanted).norm()), 1.0, cap))
    best = min(options, key=lambda option: option[0], default=None)
    if best is None or not best[0] <= allowed * float(wanted.norm()):
        return None
    return best[1], best[2]


def numbers_in(config: Any) -> list[float]:
    """List the numbers of a configuration that may be factors or caps: those that are not 0 or 1.

    Args:
        config: A Hugging Face configuration.

    Returns:
        The numbers, floats before integers.
    """
    values = [value for value in _numbers(config.to_dict()) if value not in (0, 1) and math.isfinite(value)]
    floats = [value for value in values if isinstance(value, float)]
    return [*dict.fromkeys(floats), *dict.fromkeys(float(value) for value in values if not isinstance(value, float))]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers(part)


# What a block adds


@dataclass(frozen=True)
class Sums:
    """How a block's output is made of its input.

    Attributes:
        sites: What it adds, and the stream between the sub-layers.
        parallel: True if all is computed of the stream that enters the block.
        scale: Factor of the sum that leaves the block.
    """

    sites: Mapping[str, SitePath]
    parallel: bool = False
    scale: float = 1.0


def sites_in(trace: Trace, block: str, numbers: Sequence[float] = ()) -> Sums:
    """Find what a block adds to the stream, from the tensors of the pass.

    One mixer: post = pre + m. Sub-layers in a row: mid = pre + a, where some module reads mid, and post = mid + m. (In
    post = c · (mid + m + p), as of Gemma 4 with its inputs by layer, no one module's output leads from mid to post, and
    m has no site.) In parallel: post = pre + a + m. Where two mixers write at once, a
    is the sum of two outputs (Falcon-H1). Each is a module's output, times a factor; the sum that leaves may have a
    factor too.

    What comes first is `hook_attn_out`, whether it is attention or a recurrent mixer in its place; of two mixers the
    other is `hook_mixer_out`; what comes second is `hook_mlp_out`. A block of one mixer has `hook_mixer_out` alone.

    Args:
        trace: The record.
        block: Path of the block.
        numbers: Numbers of the configuration and the block, by which factors are made exact.

    Returns:
        The sites; none if the block's output is made otherwise.
    """
    whole = trace.by_path[block][-1]
    assert whole.entered is not None
    assert whole.left is not None
    inside = [
        call
        for call in trace.calls
        if call.path.startswith(f"{block}.")
        and whole.start < call.start
        and 0 <= call.end < whole.end
        and call.left is not None
    ]
    outputs = [call for call in inside if call.left is not None and call.left.numel() == whole.entered.numel()]
    outputs.sort(key=lambda call: (call.path.count("."), call.start))
    finder = _Finder(block, whole.entered, whole.left, inside, outputs[:_OUTPUTS], numbers)
    return finder.sequential() or finder.single() or finder.parallel() or Sums({})


_OUTPUTS = 40
Term = tuple[Call, float]


@dataclass(frozen=True)
class _Finder:
    block: str
    pre: Tensor
    post: Tensor
    inside: Sequence[Call]
    outputs: Sequence[Call]
    numbers: Sequence[float]

    def sequential(self) -> Sums | None:
        seen: list[Tensor] = [self.pre]
        for reader in self.inside:
            if reader.entered is None or reader.entered.numel() != self.pre.numel():
                continue
            mid = reader.entered.reshape(self.pre.shape)
            if any(_equal(mid, one) for one in seen):
                continue
            seen.append(mid)
            before = [call for call in self.outputs if call.end < reader.start]
            first = self._terms(self.pre, mid, before, 2)
            if first is None:
                continue
            after = [call for call in self.outputs if call.start >= reader.start]
            rest = self._rest(mid, after)
            if rest is not None:
                scale, second = rest
                names = ("hook_attn_out",) if len(first) == 1 else ("hook_mixer_out", "hook_attn_out")
                sites = {name: self._site(term) for name, term in zip(names, first, strict=True)}
                sites["hook_resid_mid"] = SitePath(self._name(reader), "input", flat=reader.entered.ndim == 2)
                if scale == 1 and len(second) == 1:
                    sites["hook_mlp_out"] = self._site(second[0])
                return Sums(sites, scale=scale)
        return None

    def single(self) -> Sums | None:
        only = self._terms(self.pre, self.post, self.outputs, 1)
        return None if only is None else Sums({"hook_mixer_out": self._site(only[0])})

    def parallel(self) -> Sums | None:
        both = self._terms(self.pre, self.post, self.outputs, 2)
        if both is None:
            return None
        return Sums({"hook_attn_out": self._site(both[0]), "hook_mlp_out": self._site(both[1])}, parallel=True)

    def _rest(self, mid: Tensor, after: Sequence[Call]) -> tuple[float, list[Term]] | None:
        """What is added to the middle: post = scale · (mid + Σ c · y), of one output or two."""
        plain = self._terms(mid, self.post, after, 1)
        if plain is not None:
            return 1.0, plain
        for many in (1, 2):
            for calls in combinations(after, many):
                if _nested(calls):
                    continue
                solution = _solved([mid, *(call.left for call in calls if call.left is not None)], self.post)
                if solution is None or not all(1e-3 < abs(value) < 1e3 for value in solution):
                    continue
                scale = self._exact(solution[0])
                factors = [self._exact(value / solution[0]) for value in solution[1:]]
                return scale, list(zip(calls, factors, strict=True))
        return None

    def _terms(self, start: Tensor, end: Tensor, calls: Sequence[Call], most: int) -> list[Term] | None:
        """Outputs y and factors c with end = start + Σ c · y, of as few outputs as will do."""
        for many in range(1, most + 1):
            for chosen in combinations(calls, many):
                if _nested(chosen):
                    continue
                factors = _solved([call.left for call in chosen if call.left is not None], end, start)
                if factors is not None and all(1e-6 < abs(value) < 1e6 for value in factors):
                    terms = [(call, self._exact(value)) for call, value in zip(chosen, factors, strict=True)]
                    return sorted(terms, key=lambda term: term[0].start)
        return None

    def _exact(self, factor: float) -> float:
        """A factor as the configuration states it, where it states it."""
        return _known(factor, self.numbers, 3e-3 if _is_coarse(self.post) else 1e-5)

    def _name(self, call: Call) -> str:
        return call.path.removeprefix(f"{self.block}.")

    def _site(self, term: Term) -> SitePath:
        call, factor = term
        assert call.left is not None
        return SitePath(self._name(call), flat=call.left.ndim == 2, factor=factor)


def _nested(calls: Sequence[Call]) -> bool:
    """Whether one of the calls lies inside another."""
    return any(one is not other and other.path.startswith(f"{one.path}.") for one in calls for other in calls)


def _solved(parts: Sequence[Tensor], end: Tensor, start: Tensor | None = None) -> list[float] | None:
    """Factors c with end = start + Σ c · part, by least squares; None if a rest stays that is no rounding."""
    wanted = end.double().flatten()
    base = torch.zeros_like(wanted) if start is None else start.double().flatten()
    columns = [part.double().flatten() for part in parts]
    sizes = [float(column @ column) for column in columns]
    if not all(sizes):
        return None
    if len(columns) == 1:
        solution = [float(columns[0] @ (wanted - base)) / sizes[0]]
    else:
        matrix = torch.stack(columns, 1)
        gram = matrix.T @ matrix
        scale = gram.diagonal().rsqrt()
        if float(torch.linalg.eigvalsh(scale[:, None] * gram * scale)[0]) < 1e-12:
            return None  # parts that are multiples of each other
        solution = torch.linalg.solve(gram, matrix.T @ (wanted - base)).tolist()
    found, size = base, base.abs()
    for column, factor in zip(columns, solution, strict=True):
        found, size = found + factor * column, size + abs(factor) * column.abs()
    return solution if _agrees(found, end, size) else None


def _agrees(found: Tensor, end: Tensor, size: Tensor) -> bool:
    """Whether a sum is a recorded tensor up to the rounding of its terms, of the given sizes, entry by entry."""
    recorded = end.double().flatten()
    close = bool(((found - recorded).abs() <= 4 * torch.finfo(end.dtype).eps * (size + recorded.abs())).all())
    if not close or not _is_coarse(end):
        return close
    # In half precision small terms drown in rounding: rounding the sum must often give the very number.
    return float((found.to(end.dtype).double() == recorded).double().mean()) > 0.3


def holds(trace: Trace, block: nn.Module, path: str, kind: BlockLayout) -> bool:
    """Tell whether the sites that are stated of a block are what it adds to the stream.

    Args:
        trace: The record.
        block: The block.
        path: Its path.
        kind: Its layout.

    Returns:
        False if a sum fails, a site did not run, or nothing is stated.
    """
    if not kind.added:
        return False
    whole = trace.by_path[path][-1]
    assert whole.entered is not None
    assert whole.left is not None
    pre, seen = whole.entered, dict[str, Tensor]()
    for name, site in kind.sites.items():
        # by the module itself, for wrappers give one module several paths
        module = block.get_submodule(site.module)
        call = next((call for call in trace.calls if call.module is module), None)
        tensor = None if call is None else (call.entered if site.side == "input" else call.left)
        if tensor is None or tensor.numel() != pre.numel():
            return False
        seen[name] = tensor.reshape(pre.shape).double() * number_of(block, site.factor)
    middle = seen.get("hook_resid_mid")
    if middle is not None:
        first = [seen[name] for name in ("hook_attn_out", "hook_mixer_out") if name in seen]
        if not _is_sum([pre, *first], middle.to(pre.dtype)):
            return False
    scale = number_of(block, kind.scale)
    return _is_sum([scale * pre.double(), *(scale * seen[name] for name in kind.added)], whole.left)


def _is_sum(parts: Sequence[Tensor], end: Tensor) -> bool:
    terms = torch.stack([part.double().flatten() for part in parts])
    return _agrees(terms.sum(0), end, terms.abs().sum(0))


# All of it


@dataclass(frozen=True)
class Found:
    """What a short pass tells about a causal LM.

    Attributes:
        blocks: Path of the list of blocks.
        trunk: Path of the smallest module around them that takes the tokens; "" for the whole model.
        embedding: Path of the token embedding.
        tail: What follows the last block.
        sums: For each block, how its output is made.
        d_model: Width of the stream.
        stream_dtype: Its dtype.
        n_vocab: Number of logits.
    """

    blocks: str
    trunk: str
    embedding: str
    tail: Tail
    sums: tuple[Sums, ...]
    d_model: int
    stream_dtype: torch.dtype
    n_vocab: int


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
    return Found(
        blocks,
        trunk_in(module, trace, blocks),
        embedding,
        tail_in(module, trace, blocks, numbers),
        tuple(
            _sums_of(trace, block, f"{blocks}.{index}", numbers, None if stated is None else stated.at(index, block))
            for index, block in enumerate(cast("nn.ModuleList", module.get_submodule(blocks)))
        ),
        end.shape[-1],
        end.dtype,
        trace.logits.shape[-1],
    )


def _sums_of(trace: Trace, block: nn.Module, path: str, numbers: Sequence[float], stated: BlockLayout | None) -> Sums:
    """What a block adds: what is stated if it holds, or what the pass shows."""
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
        lambda _, __, output: seen.append(_tensor_of(output).clone())
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
