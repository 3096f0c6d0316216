"""Interventions: sites of a pass are replaced, by hooks on the module's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probe.boundary import public
from probe.errors import InputError
from probe.model.attending import AttentionCall, attending
from probe.model.hooks import Argument, Item, Site, first_tensor, folded, with_first_tensor
from probe.model.inner import Columns
from probe.model.protocol import LanguageModel

Change = Callable[[Tensor], Tensor]
"""From a site's tensor, as a capture reads it, (windows, positions, ...), to the one that takes its place."""


@public
@contextmanager
def changed(model: LanguageModel, changes: Mapping[str, Change]) -> Iterator[None]:
    """Replace sites in every pass of a model while the context lasts; nothing is left of it afterwards.

    Each function gets a copy of the site's tensor. A block adds `hook_attn_out` and what it leads to: a change of
    `hook_resid_mid` is written into `hook_attn_out`, so that the rest of the block and the sum behind it both see it.

    Args:
        model: The model.
        changes: A function for each site, by the site's full name.

    Yields:
        None: The changes are in place.

    Raises:
        InputError: If there is no such site, it can only be read, or a function returns another shape.
    """
    with ExitStack() as stack:
        for name, change in changes.items():
            if name.endswith(".hook_resid_mid"):
                _change_middle(stack, model, name, change)
            else:
                _change(stack, model.site(name), _checked(name, change))
        yield


def _checked(name: str, change: Change) -> Change:
    """The function, which must return a tensor of the shape that it gets."""

    def checked(tensor: Tensor) -> Tensor:
        found = change(tensor.clone())
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"a change of {name} must return a tensor of shape {tuple(tensor.shape)}, got {what}: return what it "
                "was given with entries changed"
            )
        return found.to(tensor)

    return checked


def _change(stack: ExitStack, site: Site, change: Change) -> None:
    if site.side in ("query", "key", "pattern"):
        stack.enter_context(attending(site.module, _attention_watcher(site.side, change)))
        return
    reading = site.reading
    if not (reading is None or isinstance(reading, Columns | Argument | Item)):
        raise InputError(
            f"a site must be an input or an output of a module to be changed, and {site.name} is computed of several: "
            "change one that it is computed of"
        )
    if site.factor == 0:
        raise InputError(f"{site.name} is multiplied by 0 in its block: a change of it changes nothing")
    entered: list[torch.Size] = []
    if site.block is not None:

        def before_block(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            entered[:] = [(arguments[0] if arguments else named["hidden_states"]).shape]

        stack.enter_context(site.block.register_forward_pre_hook(before_block, with_kwargs=True))

    def other(tensor: Tensor) -> Tensor:
        if site.block is None:
            found = change(tensor * site.factor if site.factor != 1 else tensor)
        else:
            found = change(folded(tensor * site.factor if site.factor != 1 else tensor, entered[-1]))
        return (found / site.factor if site.factor != 1 else found).reshape(tensor.shape).to(tensor)

    def put(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any, whole: Tensor) -> Tensor:
        if not isinstance(reading, Columns):
            return other(whole)
        return reading.put(whole, other(reading(module, arguments, named, output)))

    def before(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        key = reading.key if isinstance(reading, Argument) else 0 if arguments else next(iter(named))
        if isinstance(key, int):
            changed_one = put(module, arguments, named, None, arguments[key])
            return (*arguments[:key], changed_one, *arguments[key + 1 :]), named
        return arguments, {**named, key: put(module, arguments, named, None, named[key])}

    def after(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if isinstance(reading, Item) and not isinstance(output, Tensor):
            parts = list(output)
            parts[reading.index] = put(module, arguments, named, output, parts[reading.index])
            return type(output)(parts)
        return with_first_tensor(output, put(module, arguments, named, output, first_tensor(output)))

    if site.side == "input":
        stack.enter_context(site.module.register_forward_pre_hook(before, with_kwargs=True))
    else:
        stack.enter_context(site.module.register_forward_hook(after, with_kwargs=True))


def _attention_watcher(side: str, change: Change) -> Callable[[AttentionCall], AttentionCall | Tensor]:
    def watcher(call: AttentionCall) -> AttentionCall | Tensor:
        if side == "pattern":
            return change(call.read("pattern")).transpose(1, 2)
        what: Literal["query", "key"] = "query" if side == "query" else "key"
        found = change(call.read(what)).transpose(1, 2).contiguous()
        return replace(call, query=found, computed={}) if what == "query" else replace(call, key=found, computed={})

    return watcher


def _change_middle(stack: ExitStack, model: LanguageModel, name: str, change: Change) -> None:
    """Change the stream between the sub-layers, by what the first one adds to it."""
    middle, block = model.site(name), name.rpartition(".")[0]
    assert middle.layer is not None
    if f"{block}.hook_attn_out" not in model.sites:
        raise InputError(
            f"hook_resid_mid is changed by what leads to it, and {model.name} has no {block}.hook_attn_out: change "
            "hook_resid_pre or hook_resid_post"
        )
    before: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        before[:] = [arguments[0] if arguments else named["hidden_states"]]

    stack.enter_context(model.blocks[middle.layer].register_forward_pre_hook(keep, with_kwargs=True))
    checked = _checked(name, change)

    def written(added: Tensor) -> Tensor:
        return checked(before[-1] + added) - before[-1]

    _change(stack, model.site(f"{block}.hook_attn_out"), written)
