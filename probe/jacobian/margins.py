"""The margin of a router's choice: how far a position is from another choice of experts.

The choice is a constant of a block's Jacobian, and jumps where two scores are equal: at a tie there is no derivative.
No formula of a router is needed for its margin. The mixture's own code runs up to its experts, and each of its calls of
`torch.topk` is looked at: the gap between the last chosen score and the first that is not. A call counts at a position
if putting the one in the place of the other changes what the experts are called with there. (Calls whose indices are
not used, such as that of DeepSeek's sum of a group's two best scores, change nothing.)
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probe.boundary import public
from probe.errors import InputError
from probe.jacobian.lengths import by_length
from probe.model import HuggingFaceModel, LanguageModel, evaluating, require_layer
from probe.model.architectures import SitePath
from probe.model.mixtures import EXPERT_INDICES, EXPERT_WEIGHTS
from probe.text import Given, Which


@public
@torch.no_grad()
def routing_margin(model: LanguageModel, tokens: Given, layer: int, positions: Which) -> Float[Tensor, "window chosen"]:
    """Measure how far the experts of a block are from being chosen otherwise, at chosen positions.

    It is the least gap between the last chosen and the first not chosen score, over all selections that decide on the
    experts of the position: of experts, and of groups of experts where they are chosen first (DeepSeek-V3). Scores are
    those by which the code chooses: logits, probabilities, or these with a bias that balances the load. At 0 the block
    has no derivative; where the margin is small the Jacobian holds in a small neighbourhood of the state only.

    Args:
        model: The model.
        tokens: As in `probe.block_jacobian`.
        layer: Index of a block with a mixture of experts.
        positions: As in `probe.block_jacobian`.

    Returns:
        The margins, (W, P), in units of the scores. One pass up to the block.

    Raises:
        InputError: If the block has no mixture of experts, or its router does not choose by `torch.topk`.
    """
    require_layer(model, layer)
    if not isinstance(model, HuggingFaceModel) or EXPERT_INDICES not in model.at(layer).sites:
        raise InputError(
            f"a margin needs a block that chooses among experts, and block {layer} of {model.name} does not: choose a "
            f"layer with the site {EXPERT_INDICES}"
        )

    def compute(windows: Tensor, where: Tensor) -> Tensor:
        every = _margins(model, windows, layer).reshape(windows.shape)
        return every.gather(1, where.to(every.device))

    return by_length(model, tokens, positions, compute)


def _margins(model: HuggingFaceModel, tokens: Tensor, layer: int) -> Float[Tensor, " token"]:
    """The margin at every position of every window."""
    mixture = _Mixture.of(model, tokens, layer)
    selections, plain = mixture.run()
    count = tokens.numel()
    margin = torch.full((count,), torch.inf, dtype=torch.float64, device=plain.device)
    decided = torch.zeros(count, dtype=torch.bool, device=plain.device)
    for index, gaps in enumerate(selections):
        if gaps is None or gaps.numel() % count:
            continue
        _, other = mixture.run(exchanged=index)
        width = max(plain.shape[1], other.shape[1])
        one, another = (nn.functional.pad(weights, (0, width - weights.shape[1])) for weights in (plain, other))
        changed = (one != another).any(1)
        margin = torch.where(changed, torch.minimum(margin, gaps.reshape(count, -1).amin(1)), margin)
        decided |= changed
    if not decided.all():
        raise InputError(
            f"a margin needs a router that chooses experts by torch.topk, and that of block {layer} of {model.name} "
            f"({model.architecture}) chooses otherwise: compare the scores in mlp.hook_router_logits"
        )
    return margin


class _Topk(TorchFunctionMode):
    """Looks at each call of topk, and exchanges in one of them the last chosen for the first not chosen index.

    Attributes:
        exchanged: Rank of that call; None: in none.
        gaps: The gaps of each call, one a row; None where it chooses all there is.
    """

    def __init__(self, exchanged: int | None) -> None:
        super().__init__()
        self.exchanged = exchanged
        self.gaps: list[Tensor | None] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk):
            return output
        gaps, indices = _next_of(output.values, output.indices, *args, **(kwargs or {}))
        self.gaps.append(gaps)
        if self.exchanged != len(self.gaps) - 1:
            return output
        return torch.return_types.topk((output.values, indices))


def _next_of(
    values: Tensor, indices: Tensor, input: Tensor, k: int, dim: int = -1, largest: bool = True, **_: Any
) -> tuple[Tensor | None, Tensor]:
    """The gap to the first entry that topk did not choose, and the indices with that entry for the last chosen."""
    if k == input.shape[dim] or k == 0:
        return None, indices
    sign = 1 if largest else -1
    scores = (sign * input.double()).scatter(dim, indices, -torch.inf)
    following, other = scores.max(dim, keepdim=True)
    last, place = (sign * values.double()).min(dim, keepdim=True)
    gaps = last - following  # NaN where fewer than k entries may be chosen
    return gaps.movedim(dim, -1).nan_to_num(0.0, torch.inf), indices.scatter(dim, place, other)


class _ReachedError(Exception):
    """The point up to which a module is to run."""


@dataclass(frozen=True)
class _Mixture:
    """The code around the experts of a block, with what it was called with.

    Attributes:
        module: The smallest module around router and experts.
        arguments: Its arguments by position.
        named: Its arguments by name.
        chooser: The module at which the choice is read: the experts, or the router.
        indices: Place of the chosen experts there.
        weights: Place of their weights.
    """

    module: nn.Module
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    chooser: nn.Module
    indices: SitePath
    weights: SitePath

    @classmethod
    def of(cls, model: HuggingFaceModel, tokens: Tensor, layer: int) -> _Mixture:
        """Run a model up to a mixture and keep what enters it."""
        block, sites = model.blocks[layer], model.at(layer).sites
        indices, weights = sites[EXPERT_INDICES], sites[EXPERT_WEIGHTS]
        module = block.get_submodule(indices.module.rpartition(".")[0])
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            given.append((arguments, named))
            raise _ReachedError

        with module.register_forward_pre_hook(stop, with_kwargs=True), suppress(_ReachedError):
            model.final_states(tokens)
        return cls(module, *given[0], block.get_submodule(indices.module), indices, weights)

    def run(self, exchanged: int | None = None) -> tuple[list[Tensor | None], Float[Tensor, "position expert"]]:
        """Run the mixture up to its experts.

        Args:
            exchanged: The call of topk in which the last chosen is exchanged for the first not chosen.

        Returns:
            The gaps of each call, and the weights of all experts, zero for those that are not chosen.
        """
        reached: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = []

        def stop(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any = None) -> None:
            reached.append((module, arguments, named, output))
            raise _ReachedError

        hooked = (
            self.chooser.register_forward_pre_hook(stop, with_kwargs=True)
            if self.indices.side == "input"
            else self.chooser.register_forward_hook(stop, with_kwargs=True)
        )
        with hooked, evaluating(self.module), suppress(_ReachedError), _Topk(exchanged) as calls:
            self.module(*self.arguments, **self.named)
        # behind the context, because a reading may call topk itself
        indices, weights = (_read(site, *reached[0]).flatten(0, -2) for site in (self.indices, self.weights))
        every = weights.new_zeros((len(weights), int(indices.max()) + 1))
        return calls.gaps, every.scatter_add(1, indices, weights)


def _read(site: SitePath, *call: Any) -> Tensor:
    assert site.reading is not None
    return site.reading(*call)
