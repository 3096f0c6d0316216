"""A block, its attention sub-layer or its MLP sub-layer, as a function of the stream that enters it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from probe.errors import InputError
from probe.model import LanguageModel, first_tensor

Part = Literal["block", "attention", "mlp"]
Run = Callable[[Tensor], Tensor]
"""Runs the working copy of a block: the stream that enters it to the stream that leaves it."""


def require_part(model: LanguageModel, part: str) -> None:
    """Refuse a part that the model's blocks do not have.

    Args:
        model: The model.
        part: "block", "attention" (resid_pre → resid_mid) or "mlp" (resid_mid → resid_post).

    Raises:
        InputError: If an unknown part, or a block without a stream between attention and MLP.
    """
    if part not in get_args(Part):
        raise InputError(f"part must be one of {', '.join(get_args(Part))}; got {part!r}")
    if part == "block":
        return
    if model.recurrent:
        raise InputError(
            f"part={part!r} needs blocks with attention and an MLP: {model.name} is a state-space model, whose block "
            'is one mixer; use part="block"'
        )
    if model.parallel or "blocks.0.hook_resid_mid" not in model.sites:
        raise InputError(
            f"part={part!r} needs a stream between attention and MLP (hook_resid_mid), and the blocks of {model.name} "
            'have none: both read the same state; use part="block"'
        )


@dataclass(frozen=True)
class PartOfBlock:
    """A part of a block, over a working copy of it.

    Attributes:
        block: The working copy.
        source: Place inside it where the part's input is put; None: the block's input.
        target: Place inside it where the part's output is read; None: the block's output.
        residual: The input is added to what is read.
    """

    block: nn.Module
    source: Tap | None = None
    target: Tap | None = None
    residual: bool = False

    def entering(self, states: Tensor, run: Run) -> Tensor:
        """The stream that enters the part, for the stream that enters the block."""
        if self.source is None:
            return states
        with torch.no_grad(), self.source.reading() as seen:
            run(states)
        return seen[-1].reshape(states.shape)

    def leaving(self, entering: Tensor, run: Run) -> Tensor:
        """The stream that leaves the part, differentiable in the stream that enters it."""
        if self.target is None:
            return run(entering)
        with self.target.reading() as seen:
            if self.source is None:
                run(entering)
            else:  # what the block itself is fed does not matter: the target reads the replaced input alone
                with self.source.writing(entering):
                    run(entering)
        read = seen[-1].reshape(entering.shape)
        return entering + read if self.residual else read

    def run(self, states: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """A leaf with the stream that enters the part, and what leaves it."""
        point = self.entering(states, run).detach().requires_grad_()
        return point, self.leaving(point, run)


@dataclass(frozen=True)
class Tap:
    """A module of a working copy whose first input or output is read or replaced."""

    module: nn.Module
    side: Literal["input", "output"]

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Collects the tensor of each run, with its graph."""
        seen: list[Tensor] = []
        if self.side == "input":
            handle = self.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        else:
            handle = self.module.register_forward_hook(lambda _, __, output: seen.append(first_tensor(output)))
        try:
            yield seen
        finally:
            handle.remove()

    @contextmanager
    def writing(self, value: Tensor) -> Iterator[None]:
        """Replaces the module's first input."""

        def replace(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (value.reshape(args[0].shape), *args[1:])

        handle = self.module.register_forward_pre_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def tap_of(model: LanguageModel, layer: int, copy: nn.Module, name: str) -> Tap:
    """The place of a site in a working copy of its block.

    Args:
        model: The model.
        layer: Which block.
        copy: Its working copy.
        name: The site's short name, for example "hook_mlp_out".

    Returns:
        The place.
    """
    site = model.site(f"blocks.{layer}.{name}")
    path = next(path for path, module in model.blocks[layer].named_modules() if module is site.module)
    return Tap(copy.get_submodule(path), site.side)


def part_of_block(model: LanguageModel, layer: int, copy: nn.Module, part: str) -> PartOfBlock:
    """The part of block `layer`, over its working copy.

    Args:
        model: The model.
        layer: Which block.
        copy: The working copy.
        part: Which part.

    Returns:
        The part.
    """
    if part == "block":
        return PartOfBlock(copy)
    if part == "attention":
        return PartOfBlock(copy, target=tap_of(model, layer, copy, "hook_resid_mid"))
    source, target = (tap_of(model, layer, copy, name) for name in ("hook_resid_mid", "hook_mlp_out"))
    return PartOfBlock(copy, source, target, residual=True)
