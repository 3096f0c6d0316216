"""The past of a block: keys and values of all positions, or what the block's own cache carried into each of them."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from probe import display
from probe.model import Reached
from probe.replay.axes import Uncuttable


@dataclass(frozen=True, repr=False)
class PastKeys(display.Shown):
    """A read-only cache for one block: recorded keys and values of all positions, followed by live ones.

    Transformers' attention modules call `update`, as they would a cache's; nothing is ever written.

    Attributes:
        layers: Keys and values of each attention in the block, by its index in the cache.
        indexed: Keys of an indexer, likewise.
        without: Which live values count as zero: "own", or "all" with the recorded ones.
    """

    layers: dict[int, tuple[Float[Tensor, "window head position d_key"], Float[Tensor, "window head position d_value"]]]
    indexed: dict[int, Tensor]
    without: str = ""

    def _facts(self) -> dict[str, object]:
        return {"layers": {layer: keys.shape for layer, (keys, _) in self.layers.items()}, "without": self.without}

    def select(self, windows: slice) -> PastKeys:
        """Select the part of some windows."""
        layers = {index: (keys[windows], values[windows]) for index, (keys, values) in self.layers.items()}
        return replace(self, layers=layers, indexed={index: keys[windows] for index, keys in self.indexed.items()})

    def before(self, position: int, windows: Int[Tensor, " row"]) -> PastKeys:
        """Take what lies before a position, a row for each of the given windows."""
        layers = {
            index: (keys[windows][..., :position, :], values[windows][..., :position, :])
            for index, (keys, values) in self.layers.items()
        }
        indexed = {index: keys[windows][..., :position, :] for index, keys in self.indexed.items()}
        return replace(self, layers=layers, indexed=indexed)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Join recorded and live keys and values."""
        keys, values = self.layers[layer_idx]
        if self.without:
            value = torch.zeros_like(value)
        if self.without == "all":
            values = torch.zeros_like(values)
        return torch.cat([keys, key], dim=-2), torch.cat([values, value], dim=-2)

    def update_indexer(self, key: Tensor, layer_idx: int) -> Tensor:
        """Join recorded and live keys of an indexer."""
        return torch.cat([self.indexed[layer_idx], key], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of recorded positions."""
        return int(self.layers[layer_idx][0].shape[-2])


def unbounded(cache: Any) -> Any:
    """Let a fresh cache keep the keys of all positions, in sliding layers too."""
    for index, layer in enumerate(getattr(cache, "layers", [])):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = DynamicLayer()
    return cache


@contextmanager
def counted_updates(cache: Any, last: int | None = None) -> Iterator[list[int]]:
    """Count how often a block puts keys and values into its cache, and stop the block when they are all there.

    Args:
        cache: The cache.
        last: The number of updates after which the block ends; None: it runs to its end.

    Yields:
        A list of one number, the count.
    """
    count = [0]
    if not hasattr(cache, "update"):
        yield count
        return
    put = cache.update

    def update(*args: Any, **kwargs: Any) -> Any:
        joined = put(*args, **kwargs)
        count[0] += 1
        if count[0] == last:
            raise Reached
        return joined

    cache.update = update
    try:
        yield count
    except Reached:
        pass
    finally:
        del cache.update


def keys_of(cache: Any) -> PastKeys:
    """Take the keys and values that a block left in its cache.

    Args:
        cache: The cache, after a run of the block on whole sequences.

    Returns:
        The past.

    Raises:
        Uncuttable: If it left something else too.
    """
    layers, indexed, kept = {}, {}, set[int]()
    for index, layer in enumerate(getattr(cache, "layers", [])):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or not keys.numel():
            continue
        layers[index] = keys, values
        kept |= {id(keys), id(values)}
        for name, held in vars(layer).items():
            if "indexer" in name and isinstance(held, Tensor) and held.numel():
                indexed[index] = held
                kept.add(id(held))
    if any(id(tensor) not in kept for tensor in tensors_in(cache) if tensor.ndim and tensor.numel()):
        raise Uncuttable("the cache holds more than keys and values")
    return PastKeys(layers, indexed)


@dataclass(frozen=True)
class Carried:
    """A block's own cache as it stood before one position, a row for each window that chose the position.

    Attributes:
        position: The position.
        windows: Index of each row's window.
        columns: Index of the row's position among its window's chosen ones.
        cache: The cache; None if the block is given none.
    """

    position: int
    windows: list[int]
    columns: list[int]
    cache: Any

    @property
    def keys(self) -> int:
        """Number of keys that the cache holds."""
        return max((layer.shape[-2] for layer in _keys_in(self.cache)), default=0)

    @property
    def width(self) -> int:
        """Numbers in the largest tensor of one row, beside keys and values."""
        pairs = ((layer.keys, layer.values) for layer in getattr(self.cache, "layers", []) if hasattr(layer, "keys"))
        beside = {id(tensor) for pair in pairs for tensor in pair}
        own = (tensor.numel() // len(self.windows) for tensor in tensors_in(self.cache) if id(tensor) not in beside)
        return max(own, default=0)

    def rows(self) -> Iterator[Carried]:
        """Iterate over the rows, each with a cache of its own."""
        for row, (window, column) in enumerate(zip(self.windows, self.columns, strict=True)):
            yield Carried(self.position, [window], [column], rows_of([self], 1, torch.tensor([row])))

    @property
    def signature(self) -> tuple[Any, ...]:
        """Two caches of one signature may be joined along their rows."""
        rows = len(self.windows)
        shapes = tuple(
            tensor.shape[1:] if tensor.ndim and len(tensor) == rows else tuple(tensor.reshape(-1).tolist())
            for tensor in tensors_in(self.cache)
        )
        return (*shapes, *_scalars_in(self.cache))


def rows_of(carried: Sequence[Carried], alternatives: int, rows: Tensor | None = None) -> Any:
    """Join caches along their rows, each row several times, in a copy that a run may overwrite.

    Args:
        carried: Caches of one signature.
        alternatives: Copies of each row.
        rows: The rows to take of each cache; None: all.

    Returns:
        The cache.
    """
    if carried[0].cache is None:
        return None
    parts = [list(tensors_in(one.cache)) for one in carried]
    memo: dict[int, Any] = {}
    for column in zip(*parts, strict=True):
        taken = [
            (tensor if rows is None else tensor[rows]).repeat_interleave(alternatives, dim=0)
            for one, tensor in zip(carried, column, strict=True)
            if tensor.ndim and len(tensor) == len(one.windows)
        ]
        memo[id(column[0])] = torch.cat(taken) if len(taken) == len(column) else column[0].clone()
    return copied(carried[0].cache, memo)


def copied(cache: Any, memo: dict[int, Any] | None = None) -> Any:
    """Copy a cache; tensors named in `memo` by their identity are replaced."""
    memo = {} if memo is None else memo
    for part in _parts_of(cache):
        if isinstance(part, PreTrainedConfig):
            memo[id(part)] = part
    return copy.deepcopy(cache, memo)


def is_container(cache: Any) -> bool:
    """Tell whether a cache is plain tensors in tuples, lists or dictionaries, with rows from the beginning."""
    return isinstance(cache, Tensor | tuple | list | dict)


def tensors_in(cache: Any) -> Iterator[Tensor]:
    """Iterate over the tensors of a cache, always in the same order."""
    return (part for part in _parts_of(cache) if isinstance(part, Tensor))


def _scalars_in(cache: Any) -> Iterator[Any]:
    return (part for part in _parts_of(cache) if isinstance(part, int | float | str))


def _keys_in(cache: Any) -> Iterator[Tensor]:
    for layer in getattr(cache, "layers", []):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, Tensor) and keys.ndim > 2:
            yield keys


def _parts_of(value: Any) -> Iterator[Any]:
    """All that a cache is made of; configurations are not entered."""
    if isinstance(value, dict | UserDict):
        for part in value.values():
            yield from _parts_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _parts_of(part)
    elif isinstance(value, Tensor | PreTrainedConfig | int | float | str) or not hasattr(value, "__dict__"):
        yield value
    elif not isinstance(value, nn.Module | type):
        for part in vars(value).values():
            yield from _parts_of(part)


def chosen_by(positions: Int[Tensor, "window chosen"]) -> dict[int, tuple[list[int], list[int]]]:
    """Gather windows and columns by the position that was chosen there, in rising order."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for window, row in enumerate(positions.tolist()):
        for column, position in enumerate(row):
            windows, columns = found.setdefault(position, ([], []))
            windows.append(window)
            columns.append(column)
    return dict(sorted(found.items()))
