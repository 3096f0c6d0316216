"""What a model's blocks are given and how they run again: found once a model by tiny passes, kept on the model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.boundary import at_least, public
from probe.errors import InputError
from probe.model import LanguageModel, entering
from probe.replay.axes import Axes, compare
from probe.replay.calls import BlockCall, Path, rebuilt, recorded_calls, tensors_of
from probe.replay.past import is_container
from probe.stream import watch

logger = logging.getLogger("probe.replay")

FEW, MANY = (2, 6), (3, 8)
"""Windows and length of the two tiny passes."""


@dataclass
class Profile:
    """Facts about a model's blocks that do not change with the text.

    Attributes:
        ways: The way of running a block again that reproduced its output, by layer.
        pushed: Layers whose way gave, from a state that was pushed away, what the whole sequence gives.
        suffixes: The way of running a block on the last positions of windows, by layer and whether it is one position.
        updates: How often a block whose past is keys and values alone puts some into its cache, by layer.
        linear: Whether linearised attention reproduced its output, by layer.
        alone: Layers whose one-token call was proved.
        joined: Whether each block is given exactly the stream that the block before it left.
    """

    ways: dict[int, str] = field(default_factory=dict)
    pushed: set[int] = field(default_factory=set)
    suffixes: dict[tuple[int, bool], str] = field(default_factory=dict)
    updates: dict[int, int] = field(default_factory=dict)
    linear: dict[int, bool] = field(default_factory=dict)
    alone: set[int] = field(default_factory=set)
    joined: bool = True
    _axes: dict[int, dict[tuple[Path, int], Axes | None]] = field(default_factory=dict)
    _lengths: set[int] = field(default_factory=set)
    _caches: dict[int, Any] | None = None
    _reads: dict[int, bool] = field(default_factory=dict)
    _reading: dict[int, frozenset[int]] = field(default_factory=dict)

    def axes(
        self, model: LanguageModel, layer: int, arguments: Mapping[str, Any], length: int
    ) -> dict[Path, Axes | None]:
        """Find the axes of a call's arguments.

        An argument that tiny passes do not have (the mask of a sliding window that is longer than they are) is compared
        in passes of the call's own length and of one more.

        Args:
            model: The model.
            layer: Index of the block.
            arguments: The arguments of its call.
            length: Number of positions of the recorded windows.

        Returns:
            The axes by path; None where they could not be found.
        """
        found = {path: tensor.ndim for path, tensor in tensors_of(arguments).items()}
        self.learn(model)
        known = self._axes.get(layer, {})
        if length not in self._lengths and not all((path, rank) in known for path, rank in found.items()):
            self._lengths.add(length)
            # longer where it can be: a mask may be made from this very length on
            longer = model.max_positions is None or length < model.max_positions
            self._learn(model, (2, length), (1, length + 1 if longer else max(1, length - 1)))
            known = self._axes.get(layer, {})
        return {path: known.get((path, rank)) for path, rank in found.items()}

    def learn(self, model: LanguageModel) -> None:
        """Run the tiny passes, if that was not done.

        Args:
            model: The model.

        Raises:
            InputError: If the blocks do not run once each, in the order of depth.
        """
        if FEW[1] not in self._lengths:
            self._lengths.add(FEW[1])
            self._learn(model, FEW, MANY)

    def _learn(self, model: LanguageModel, few: tuple[int, int], many: tuple[int, int]) -> None:
        try:
            sites = [f"blocks.{layer}.hook_resid_{side}" for layer in range(model.n_layers) for side in ("pre", "post")]
            with watch(model, sites) as seen:
                first = _calls(model, tiny_tokens(model, *few))
            streams = [seen[site] for site in sites]
            self.joined = all(map(torch.equal, streams[1:-1:2], streams[2::2]))
            second = _calls(model, tiny_tokens(model, *many))
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model's code raises, it does not run at this length
            logger.info("%s does not run %d windows of %d tokens: %s", model.name, *few, error)
            return
        for layer, call in first.items():
            known, other = self._axes.setdefault(layer, {}), tensors_of(second[layer].arguments)
            for path, tensor in tensors_of(call.arguments).items():
                if path in other:
                    known.setdefault((path, tensor.ndim), compare(tensor, other[path], few, many))

    def cache(self, model: LanguageModel, layer: int, rows: int) -> Any:
        """Make the empty cache that the model's own code makes for a block.

        Args:
            model: The model.
            layer: Index of the block.
            rows: Number of windows in it, where its tensors exist from the beginning.

        Returns:
            The cache; None if the block is given none.
        """
        if self._caches is None:
            calls = _calls(model, tiny_tokens(model, 2, 2), use_cache=True)
            # One cache serves all blocks; it is still empty when the first of them gets it.
            given = {number: call.cache for number, call in calls.items() if call.cache is not None}
            first = next(iter(given.values()), None)
            self._caches = {number: cache if is_container(cache) else first for number, cache in given.items()}
        cache = self._caches.get(layer)
        if is_container(cache):
            cache = _with_rows(cache, rows)
        return copy.deepcopy(cache)

    def reads(self, model: LanguageModel, layer: int) -> bool:
        """Tell whether a block reads more than its stream: something else that tokens or states decide.

        Args:
            model: The model.
            layer: Index of the block.

        Returns:
            True if its output changes when its other arguments are those of another window.
        """
        if layer not in self._reads:
            self.learn(model)
            known = self._axes.get(layer, {})
            own = {path: axes for (path, _), axes in known.items() if axes is not None and axes.own}
            self._reads[layer] = False
            if own:
                calls, streams = _tiny_pass(model)

                def turned(path: Path, tensor: Tensor) -> Tensor:
                    axes = own.get(path)
                    return tensor if axes is None or axes.window is None else tensor.roll(axes.each, axes.window)

                other = replace(calls[layer], arguments=rebuilt(dict(calls[layer].arguments), turned))
                self._reads[layer] = not _act_alike(model, layer, streams[layer], calls[layer], other)
        return self._reads[layer]

    def reading(self, model: LanguageModel, layer: int) -> frozenset[int]:
        """Find the later blocks that read something of the stream that enters block `layer`, beside their own.

        Args:
            model: The model.
            layer: Index of the block.

        Returns:
            Their indices.
        """
        if layer not in self._reading:
            plain, streams = _tiny_pass(model)
            with entering(model.blocks[layer], lambda hidden: 1.5 * hidden.flip(-1)):
                other, _ = _tiny_pass(model)
            self._reading[layer] = frozenset(
                later
                for later in range(layer + 1, model.n_layers)
                if self.reads(model, later) and not _act_alike(model, later, streams[later], plain[later], other[later])
            )
        return self._reading[layer]

    def chained(self, model: LanguageModel, first: int, last: int) -> bool:
        """Tell whether blocks `first` … `last` − 1 act on the stream alone, so that their Jacobians multiply.

        Args:
            model: The model.
            first: Index of the first block.
            last: One past the index of the last.

        Returns:
            False if one of them is given more of the stream that enters the first, or another stream than the block
            before it left.
        """
        self.learn(model)
        between = range(first + 1, last)
        if not between:
            return True
        if not self.joined:
            return False
        return not any(self.reads(model, later) for later in between) or not self.reading(model, first) & set(between)


def profile_of(model: LanguageModel) -> Profile:
    """Return the profile of a model, which is kept on the model.

    Args:
        model: The model.

    Returns:
        The profile.
    """
    kept: dict[str, Any] = vars(model)
    profile: Profile = kept.setdefault("_replay", Profile())
    return profile


@public(windows=at_least(1), length=at_least(1))
def tiny_tokens(model: LanguageModel, windows: int, length: int) -> Int[Tensor, "window position"]:
    """Draw tokens for a tiny pass, all different in each window where the vocabulary allows, none of them special.

    Args:
        model: The model.
        windows: Number of windows.
        length: Number of positions.

    Returns:
        Int64 ids.
    """
    config = getattr(model.module, "config", None)
    parts = [config, config.get_text_config(decoder=True)] if config is not None else []
    special = {
        value
        for part in parts
        for name, value in vars(part).items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    ids = [index for index in range(min(model.n_vocab, 4096)) if index not in special] or [0]
    draw = torch.randint(len(ids), (windows, length), generator=torch.Generator().manual_seed(0))
    return torch.tensor(ids)[draw].to(model.device)


@torch.no_grad()
def _calls(model: LanguageModel, tokens: Tensor, **kwargs: Any) -> dict[int, BlockCall]:
    with recorded_calls(model) as calls:
        model.final_states(tokens, **kwargs)
    if list(calls) != list(range(model.n_layers)) or any(len(each) != 1 for each in calls.values()):
        raise InputError(
            f"a replay needs blocks that run once each, in the order of depth, and those of {model.name} "
            f"({model.architecture}) do not: use a model of another family"
        )
    return {layer: each[0] for layer, each in calls.items()}


def _with_rows(cache: Any, rows: int) -> Any:
    def first(_: Path, tensor: Tensor) -> Tensor:
        return tensor[:1].repeat(rows, *(1,) * (tensor.ndim - 1)) if tensor.ndim else tensor

    return rebuilt(cache, first)


def _tiny_pass(model: LanguageModel) -> tuple[dict[int, BlockCall], list[Tensor]]:
    """The calls of a tiny pass, and the streams that enter the blocks."""
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    with watch(model, sites) as seen:
        calls = _calls(model, tiny_tokens(model, *FEW))
    return calls, [seen[site] for site in sites]


@torch.no_grad()
def _act_alike(model: LanguageModel, layer: int, stream: Tensor, one: BlockCall, other: BlockCall) -> bool:
    """Tell whether a block gives the same by two calls."""
    first, second = (call.run(model.blocks[layer], stream) for call in (one, other))
    return torch.equal(first, second)
