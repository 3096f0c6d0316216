"""The recorded call of a block in a forward pass, frozen: nothing that runs later changes it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import UserDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probe import display
from probe.model import LanguageModel, evaluating, first_tensor

CACHE_ARGUMENTS = ("cache", "past_key_values", "layer_past", "past_key_value", "cache_params", "state")
"""Names of the cache argument in the architectures and versions of transformers."""

Path = tuple[str, ...]
"""Where a tensor stands among the arguments of a call: the argument's name, then keys and indices."""


@dataclass(frozen=True, repr=False)
class BlockCall(display.Shown):
    """The keyword arguments of one block in a recorded forward pass, except the hidden states and the cache.

    Attributes:
        hidden_name: Name of the argument that is the stream.
        cache_name: Name of the cache argument; None if the block was given none.
        arguments: The others.
        cache: The cache that the block was given, as it was before the block ran.
    """

    hidden_name: str
    cache_name: str | None
    arguments: Mapping[str, Any]
    cache: Any = None

    def _facts(self) -> dict[str, object]:
        return {"hidden_name": self.hidden_name, "cache_name": self.cache_name, "arguments": list(self.arguments)}

    def run(self, block: nn.Module, hidden: Tensor, cache: Any = None, /, **changed: Any) -> Tensor:
        """Run a block on the input `hidden`, with the recorded arguments except those in `changed`."""
        return first_tensor(self.output(block, hidden, cache, **changed))

    def output(self, block: nn.Module, hidden: Tensor, cache: Any = None, /, **changed: Any) -> Any:
        """Run a block as `run` does, and return all that it returns."""
        # Blocks write into dictionaries and lists that they are given.
        arguments = rebuilt({**self.arguments, **changed}, lambda _, tensor: tensor)
        arguments[self.hidden_name] = hidden
        if self.cache_name is not None:
            arguments[self.cache_name] = cache
        with evaluating(block):
            return block(**arguments)


@contextmanager
def recorded_calls(model: LanguageModel, layers: Collection[int] | None = None) -> Iterator[dict[int, list[BlockCall]]]:
    """Record the calls of blocks; the hooks are removed afterwards, also after an exception.

    Args:
        model: The model.
        layers: Indices of the blocks; None: all.

    Yields:
        The calls of each block, in the order in which they came, by layer.
    """
    calls: dict[int, list[BlockCall]] = {}
    frozen: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def remember(layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(layer, []).append(_call(block, args, kwargs, frozen))

    handles = []
    for layer in range(model.n_layers) if layers is None else sorted(layers):

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer) -> None:
            remember(layer, block, args, kwargs)

        handles.append(model.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], frozen: dict[Any, Any]) -> BlockCall:
    # The blocks of a TransformerBridge take *args and pass them on to the block that they wrap.
    bound = inspect.signature(getattr(block, "original_component", block).forward).bind(*args, **kwargs)
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        variadic = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        arguments.update(value if variadic else {name: value})
    hidden_name = next(iter(bound.signature.parameters))
    arguments.pop(hidden_name)
    cache_name = next((name for name in CACHE_ARGUMENTS if name in arguments), None)
    cache = None if cache_name is None else copy.deepcopy(arguments.pop(cache_name))
    return BlockCall(hidden_name, cache_name, rebuilt(arguments, lambda _, tensor: _frozen(tensor, frozen)), cache)


def _frozen(tensor: Tensor, memo: dict[tuple[int, int], tuple[Tensor, Tensor]]) -> Tensor:
    """A copy that later writes do not reach; blocks that are given one tensor share one copy."""
    if tensor.is_inference():
        return tensor.clone()
    key = (id(tensor), tensor._version)
    if key not in memo:
        # what is expanded stays expanded
        kept = tuple(slice(None) if step else slice(0, 1) for step in tensor.stride())
        memo[key] = tensor, tensor.detach()[kept].clone().expand(tensor.shape)
    return memo[key][1]


def rebuilt(value: Any, change: Callable[[Path, Tensor], Any], path: Path = ()) -> Any:
    """Build containers anew, with each tensor in them replaced.

    Args:
        value: A tensor; a tuple, list, dictionary or dataclass of such values; or anything else, which is kept.
        change: Called with the path and the tensor; returns what takes its place.
        path: Where the value itself stands.

    Returns:
        The new value.
    """
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, tuple | list):
        parts = [rebuilt(part, change, (*path, str(index))) for index, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict | UserDict):
        twin: Any = copy.copy(value)
        for key, part in value.items():
            twin[key] = rebuilt(part, change, (*path, str(key)))
        return twin
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for field in dataclasses.fields(value):
            part = getattr(value, field.name)
            object.__setattr__(twin, field.name, rebuilt(part, change, (*path, field.name)))
        return twin
    return value


def tensors_of(value: Any) -> dict[Path, Tensor]:
    """Collect the tensors in containers.

    Args:
        value: As in `rebuilt`.

    Returns:
        Each tensor by its path.
    """
    found: dict[Path, Tensor] = {}

    def collect(path: Path, tensor: Tensor) -> Tensor:
        found[path] = tensor
        return tensor

    rebuilt(value, collect)
    return found


def accepts(block: nn.Module, name: str) -> bool:
    """Check that a block's `forward` takes an argument of this name, or any."""
    parameters = inspect.signature(getattr(block, "original_component", block).forward).parameters
    return name in parameters or any(part.kind is inspect.Parameter.VAR_KEYWORD for part in parameters.values())


def caching(arguments: dict[str, Any]) -> dict[str, Any]:
    """Let a block that is told so write into the cache that it is given."""
    return {**arguments, "use_cache": True} if "use_cache" in arguments else arguments


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Convert the floating tensors of recorded arguments to another dtype.

    Args:
        value: As in `rebuilt`.
        dtype: The floating dtype.

    Returns:
        The value; everything else in it is unchanged.
    """
    return rebuilt(value, lambda _, tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
