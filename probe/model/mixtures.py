"""The sites of a mixture of experts, found in the tensors of a recorded pass.

A mixture calls its experts with states, the indices of the experts that each position chose, and their weights. The
module that gave those indices is the router, and its logits are those of its outputs, or of the outputs inside it, that
are a matrix times what entered. A mixture without such a call (Llama 4 runs all experts on states that are multiplied
by their weights, most of them zero) has a router whose output is zero but for the chosen experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probe.model.architectures import SitePath
from probe.model.hooks import Argument, Item, first_tensor
from probe.model.tracing import Call, Trace, equal, is_coarse

ROUTER_LOGITS = "mlp.hook_router_logits"
EXPERT_WEIGHTS = "mlp.hook_expert_weights"
EXPERT_INDICES = "mlp.hook_expert_indices"
EXPERTS = "mlp.hook_experts"
ROUTED = "mlp.hook_routed"
SHARED = "mlp.hook_shared"
MIXTURE_SITES = (ROUTER_LOGITS, EXPERT_WEIGHTS, EXPERT_INDICES, EXPERTS, ROUTED, SHARED)
"""Sites of a mixture of experts, in the order of the pass, where E is the number of experts and k that of the chosen:

- `mlp.hook_router_logits`: a matrix of the router times what enters it, (windows, positions, E)
- `mlp.hook_expert_weights`: weights of the chosen experts, (windows, positions, k)
- `mlp.hook_expert_indices`: their indices, integers, (windows, positions, k)
- `mlp.hook_experts`: what each chosen expert gives, before it is weighted, (windows, positions, k, d_model)
- `mlp.hook_routed`: the weighted sum of that
- `mlp.hook_shared`: what the experts that all positions share give, before a factor or a gate that the mixture has for
  it
"""


@dataclass(frozen=True)
class EachExpert:
    """A `Reading` of what each chosen expert gives: the experts run again, with one choice at a time and weight 1.

    Attributes:
        indices: Key of the argument that holds the indices.
        weights: Key of the argument that holds the weights.
    """

    indices: int | str
    weights: int | str

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        """Return the outputs, with an axis of the choices before the last."""
        given: dict[int | str, Any] = dict(enumerate(arguments))
        given.update(named.items())
        indices, weights, found = given[self.indices], given[self.weights], []
        for choice in range(indices.shape[-1]):
            one = slice(choice, choice + 1)
            given |= {self.indices: indices[..., one], self.weights: torch.ones_like(weights[..., one])}
            again = [given[key] for key in range(len(arguments))], {key: given[key] for key in named}
            # `forward` itself, because a call would run the hooks that are reading
            found.append(first_tensor(module.forward(*again[0], **again[1])))
        return torch.stack(found, -2)


@dataclass(frozen=True)
class Largest:
    """A `Reading` of the largest entries of one item of a module's output, the largest first.

    Attributes:
        index: Index of the item.
        count: The number of entries.
        part: "values", or "indices" for their places.
    """

    index: int
    count: int
    part: Literal["values", "indices"]

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        """Return the entries or their places."""
        values, indices = torch.topk(Item(self.index)(module, arguments, named, output), self.count)
        return values if self.part == "values" else indices


@dataclass(frozen=True)
class SumOverExperts:
    """A `Reading` of the sum of an output (experts · positions, width) over the experts.

    Attributes:
        count: Number of experts.
    """

    count: int

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        """Return the sum."""
        every = first_tensor(output)
        return every.reshape(self.count, -1, every.shape[-1]).sum(0)


@torch.no_grad()
def mixture_in(trace: Trace, block: str) -> dict[str, SitePath]:
    """Find the sites of a block's mixture of experts.

    Args:
        trace: The record.
        block: Path of the block.

    Returns:
        The sites by name, in the order of `MIXTURE_SITES`; none where no experts are chosen.
    """
    whole = trace.by_path[block][-1]
    inside = [call for call in trace.calls if whole.start < call.start and 0 <= call.end < whole.end]
    length = trace.tokens.shape[1]
    for call in inside:
        routed = _routing(call, length)
        if routed is not None:
            found = _called(_Mixture(block, inside, _around(call, [whole, *inside]), length), call, *routed)
            break
    else:
        every = (_dense(_Mixture(block, inside, _around(call, [whole, *inside]), length), call) for call in inside)
        found = next((sites for sites in every if sites), {})
    return {name: found[name] for name in MIXTURE_SITES if name in found}


@dataclass(frozen=True)
class _Mixture:
    block: str
    inside: Sequence[Call]
    around: Call
    length: int

    def within(self, call: Call) -> list[Call]:
        return [other for other in self.inside if call.start <= other.start and other.end <= call.end]

    def site(self, call: Call, **settings: Any) -> SitePath:
        return SitePath(call.path.removeprefix(f"{self.block}."), **settings)

    def output(self, call: Call) -> SitePath:
        assert call.left is not None
        return self.site(call, flat=call.left.ndim == 2)


def _around(call: Call, calls: Sequence[Call]) -> Call:
    """The innermost call around a call."""
    return max((one for one in calls if one.start < call.start and call.end < one.end), key=lambda one: one.start)


def _routing(call: Call, length: int) -> tuple[int | str, int | str] | None:
    """The keys of indices and weights among the arguments of a call; None if it is no call of experts."""
    tensors = {key: value for key, value in call.given.items() if isinstance(value, Tensor)}
    for key, indices in tensors.items():
        if indices.dtype in (torch.int64, torch.int32) and _rows(indices) == length and int(indices.min()) >= 0:
            for other, weights in tensors.items():
                if weights.is_floating_point() and weights.shape == indices.shape:
                    return key, other
    return None


def _rows(tensor: Tensor) -> int:
    return tensor[..., 0].numel()


def _called(mixture: _Mixture, call: Call, indices: int | str, weights: int | str) -> dict[str, SitePath]:
    """The sites of a mixture that calls its experts with indices and weights."""
    chosen: Tensor = call.given[indices]
    flat = chosen.ndim == 2
    sites = {
        EXPERT_WEIGHTS: mixture.site(call, side="input", flat=flat, reading=Argument(weights)),
        EXPERT_INDICES: mixture.site(call, side="input", flat=flat, reading=Argument(indices)),
    }
    before = [one for one in mixture.within(mixture.around) if one is not mixture.around and one.end < call.start]
    router = next((one for one in before if any(_same(item, chosen) for item in one.gave)), None)
    logits = _logits(mixture, before, router, chosen)
    if logits is not None:
        sites[ROUTER_LOGITS] = logits
    left = call.left
    if left is None or _rows(left) != mixture.length:
        return sites
    sites[ROUTED] = mixture.output(call)
    each = EachExpert(indices, weights)
    if _adds_up(each, call, weights):
        sites[EXPERTS] = mixture.site(call, side="input", flat=left.ndim == 2, reading=each)
    shared = _shared(mixture, left, without=mixture.within(call) + ([] if router is None else mixture.within(router)))
    return sites if shared is None else {**sites, SHARED: mixture.output(shared)}


def _same(item: Tensor | None, chosen: Tensor) -> bool:
    return item is not None and item.dtype == chosen.dtype and equal(item, chosen)


def _logits(mixture: _Mixture, before: Sequence[Call], router: Call | None, chosen: Tensor) -> SitePath | None:
    """The logits: of the router's outputs, or of those inside it, the one that is a matrix times what entered."""
    k = chosen.shape[-1]
    products = [
        (call, index, item)
        for call in (before if router is None else mixture.within(router))
        for index, item in enumerate(call.gave)
        if item is not None and item.is_floating_point() and item.shape[-1] > k and _rows(item) == mixture.length
        if _is_product(call, item)
    ]
    if router is None:  # then their largest entries must be the chosen ones
        expected = chosen.reshape(-1, k).sort().values
        agreeing = [one for one in products if equal(one[2].topk(k).indices.reshape(-1, k).sort().values, expected)]
        return _item(mixture, *agreeing[0]) if agreeing else None
    given = [(router, index, item) for index, item in enumerate(router.gave) if item is not None and item.ndim > 1]
    for one in given:
        if any(equal(one[2].double().flatten(0, -2), item.double().flatten(0, -2)) for _, _, item in products):
            return _item(mixture, *one)
    inner = [one for one in products if any(one[2].shape[-1] == item.shape[-1] for _, _, item in given)]
    return _item(mixture, *inner[-1]) if inner else None


def _item(mixture: _Mixture, call: Call, index: int, item: Tensor) -> SitePath:
    return mixture.site(call, flat=item.ndim == 2, reading=Item(index))


def _is_product(call: Call, item: Tensor) -> bool:
    """Tell whether an output is a matrix of its module times what entered, with or without a bias."""
    if call.entered is None or _rows(call.entered) != _rows(item):
        return False
    entered, output = call.entered.double().flatten(0, -2), item.double().flatten(0, -2)
    allowed = (0.05 if is_coarse(call.entered) else 1e-4) * output.norm()
    tall = [parameter for parameter in call.module.parameters() if parameter.shape[:1] == (output.shape[-1],)]
    parameters = [parameter.double() for parameter in tall if parameter.ndim < 3]
    biases = [output.new_zeros(()), *(one for one in parameters if one.ndim == 1)]
    matrices = (one for one in parameters if one.shape == (output.shape[-1], entered.shape[-1]))
    rests = (entered @ matrix.mT + bias - output for matrix in matrices for bias in biases)
    return any(bool(rest.norm() <= allowed) for rest in rests)


def _adds_up(each: EachExpert, call: Call, weights: int | str) -> bool:
    """Tell whether the weighted sum of what each chosen expert gives is what the experts give."""
    count = sum(isinstance(key, int) for key in call.given)
    named = {key: value for key, value in call.given.items() if isinstance(key, str)}
    assert call.left is not None
    try:
        outputs = each(call.module, tuple(call.given[index] for index in range(count)), named, None).double()
    except Exception:  # noqa: BLE001 - whatever the module's code raises, it does not run so
        return False
    if outputs[..., 0, :].numel() != call.left.numel():
        return False
    outputs = outputs.flatten(0, -3)
    terms = outputs * call.given[weights].double().reshape(len(outputs), -1, 1)
    return _agree(terms.sum(1), call.left, terms.abs().sum(1))


def _agree(found: Tensor, expected: Tensor, size: Tensor) -> bool:
    allowed = 0.05 if is_coarse(expected) else 1e-5
    return bool((found.flatten() - expected.double().flatten()).norm() <= allowed * size.norm())


def _shared(mixture: _Mixture, routed: Tensor, without: Sequence[Call]) -> Call | None:
    """The call whose output, times a number or a gate, is what the mixture gives beside the sum of routed experts."""
    whole = mixture.around.left
    if whole is None or whole.numel() != routed.numel():
        return None
    for call in mixture.within(mixture.around):
        output, known = call.left, call is mixture.around or any(call is other for other in without)
        if known or output is None or output.numel() != routed.numel():
            continue
        sums = [tensor.double().reshape(mixture.length, -1) for tensor in (routed, output, whole)]
        if _makes_up(sums[0], sums[1], sums[2], whole):
            return call
    return None


def _makes_up(routed: Tensor, shared: Tensor, whole: Tensor, stored: Tensor) -> bool:
    """Tell whether whole = a · routed + b · shared, with numbers a and b, or with a = 1 and a number b a position."""
    size = routed.abs() + shared.abs()
    terms = torch.stack([routed.flatten(), shared.flatten()], 1)
    a, b = torch.linalg.lstsq(terms, whole.flatten()[:, None]).solution[:, 0]
    rest = whole - routed
    gate = (rest * shared).sum(-1, keepdim=True) / shared.square().sum(-1, keepdim=True)
    numbers = bool(min(abs(a), abs(b)) > 1e-3) and _agree(a * routed + b * shared, stored, size)
    return numbers or (bool(gate.abs().max() > 1e-3) and _agree(routed + gate * shared, stored, size))


def _dense(mixture: _Mixture, call: Call) -> dict[str, SitePath]:
    """The sites of a mixture whose router gives weights of all experts, zero but for the chosen."""
    outputs = {index: item for index, item in enumerate(call.gave) if item is not None and item.is_floating_point()}
    for (at, weights), (logits_at, logits) in permutations(outputs.items(), 2):
        if weights.shape != logits.shape or _rows(weights) != mixture.length:
            continue
        counts, experts = weights.count_nonzero(-1), weights.shape[-1]
        k = int(counts.max())
        if not (1 <= k < experts and bool((counts == k).all()) and _is_product(call, logits)):
            continue
        if equal(weights.topk(k).indices.sort().values, logits.topk(k).indices.sort().values):
            flat = weights.ndim == 2
            sites = {
                ROUTER_LOGITS: mixture.site(call, flat=flat, reading=Item(logits_at)),
                EXPERT_WEIGHTS: mixture.site(call, flat=flat, reading=Largest(at, k, "values")),
                EXPERT_INDICES: mixture.site(call, flat=flat, reading=Largest(at, k, "indices")),
            }
            return sites | _sum_of_all(mixture, call, experts)
    return {}


def _sum_of_all(mixture: _Mixture, router: Call, experts: int) -> dict[str, SitePath]:
    """The sites of the sums, where all experts run on all positions behind the router."""
    for call in mixture.within(mixture.around):
        left = call.left
        if call.start > router.end and left is not None and left.ndim == 2 and len(left) == experts * mixture.length:
            total = left.unflatten(0, (experts, -1)).sum(0)
            shared = _shared(mixture, total, without=[call])
            if shared is not None:
                routed = mixture.site(call, flat=True, reading=SumOverExperts(experts))
                return {ROUTED: routed, SHARED: mixture.output(shared)}
    return {}
