"""The outputs that a block adds to the stream, found in the tensors of a recorded pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from probe.model.architectures import BlockLayout, SitePath, number_of
from probe.model.tracing import Call, Trace, equal, is_coarse, stated_number


@dataclass(frozen=True)
class Sums:
    """The sum that is a block's output.

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
            if any(equal(mid, one) for one in seen):
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
        """Find what is added to the middle: post = scale · (mid + Σ c · y), of one output or two."""
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
        return stated_number(factor, self.numbers, 3e-3 if is_coarse(self.post) else 1e-5)

    def _name(self, call: Call) -> str:
        return call.path.removeprefix(f"{self.block}.")

    def _site(self, term: Term) -> SitePath:
        call, factor = term
        assert call.left is not None
        return SitePath(self._name(call), flat=call.left.ndim == 2, factor=factor)


def _nested(calls: Sequence[Call]) -> bool:
    """Tell whether one of the calls lies inside another."""
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
        solved = torch.linalg.solve(gram, matrix.T @ (wanted - base))
        # what the normal equations left: float64 sums are held to float64 rounding
        solved += torch.linalg.solve(gram, matrix.T @ (wanted - base - matrix @ solved))
        solution = solved.tolist()
    found, size = base, base.abs()
    for column, factor in zip(columns, solution, strict=True):
        found, size = found + factor * column, size + abs(factor) * column.abs()
    return solution if _agrees(found, end, size) else None


def _agrees(found: Tensor, end: Tensor, size: Tensor) -> bool:
    """Tell whether a sum is a recorded tensor up to the rounding of its terms, of the given sizes, entry by entry."""
    recorded = end.double().flatten()
    close = bool(((found - recorded).abs() <= 4 * torch.finfo(end.dtype).eps * (size + recorded.abs())).all())
    if not close or not is_coarse(end):
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
        if tensor is None or tensor.numel() != pre.numel() or (tensor.ndim == 2) != site.flat:
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
