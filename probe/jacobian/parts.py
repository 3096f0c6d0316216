"""A block, its attention or its MLP, as a function of the stream that enters it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from probe import replay
from probe.errors import InputError
from probe.model import LanguageModel, first_tensor

PartName = Literal["block", "attention", "mlp"]
Run = Callable[[Tensor], Tensor]
"""A run of a block's working copy: from the stream that enters it to the stream that leaves it."""


def require_part(model: LanguageModel, part: PartName) -> None:
    """Refuse a part that the model's blocks do not have.

    Args:
        model: The model.
        part: "block", "attention" (resid_pre → resid_mid) or "mlp" (resid_mid → resid_post).

    Raises:
        InputError: If the part is unknown, or the blocks have no stream between attention and MLP.
    """
    if part not in get_args(PartName):
        raise InputError(f"part must be one of {', '.join(get_args(PartName))}, got {part!r}: choose one")
    if part == "block":
        return
    if model.recurrent:
        raise InputError(
            f"part={part!r} needs blocks with attention and an MLP, and {model.name} is a state-space model, whose "
            'block is one mixer: use part="block"'
        )
    if model.parallel or "blocks.0.hook_resid_mid" not in model.sites:
        raise InputError(
            f"part={part!r} needs a stream between attention and MLP (hook_resid_mid), and the blocks of {model.name} "
            'have none, for both read the same state: use part="block"'
        )


@dataclass(frozen=True)
class PartOfBlock:
    """A part of a block, over a working copy of it.

    Attributes:
        block: The working copy.
        source: Where the part's input is put; None: at the block's input.
        target: Where the part's output is read; None: at the block's output.
        residual: Whether the input is added to what is read.
    """

    block: nn.Module
    source: Tap | None = None
    target: Tap | None = None
    residual: bool = False

    def entering(self, states: Tensor, run: Run) -> Tensor:
        """Return the stream that enters the part, for the stream that enters the block."""
        if self.source is None:
            return states
        with torch.no_grad(), self.source.reading() as seen:
            run(states)
        return seen[-1].reshape(states.shape)

    def leaving(self, entering: Tensor, run: Run) -> Tensor:
        """Return the stream that leaves the part, differentiable in the stream that enters it."""
        if self.target is None:
            return run(entering)
        with self.target.reading() as seen:
            if self.source is None:
                run(entering)
            else:  # the block's own input does not matter: the target sees only the replaced one
                with self.source.writing(entering):
                    run(entering)
        read = seen[-1].reshape(entering.shape)
        return entering + read if self.residual else read

    def run(self, states: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """Return a leaf with the stream that enters the part, and the stream that leaves it."""
        point = self.entering(states, run).detach().requires_grad_()
        return point, self.leaving(point, run)


@dataclass(frozen=True)
class Tap:
    """A module of a working copy, and the side of it on which its first tensor is read or replaced."""

    module: nn.Module
    side: Literal["input", "output"]

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Collect the tensor of each run, with its graph."""
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
        """Replace the module's first input."""

        def replace(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (value.reshape(args[0].shape), *args[1:])

        handle = self.module.register_forward_pre_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def tap_of(model: LanguageModel, layer: int, copy: nn.Module, name: str) -> Tap:
    """Find a site in a working copy of its block.

    Args:
        model: The model.
        layer: Index of the block.
        copy: Its working copy.
        name: The site's short name, for example "hook_mlp_out".

    Returns:
        The module and the side.
    """
    site = model.site(f"blocks.{layer}.{name}")
    path = next(path for path, module in model.blocks[layer].named_modules() if module is site.module)
    return Tap(copy.get_submodule(path), site.side)


def part_of_block(model: LanguageModel, layer: int, copy: nn.Module, part: PartName) -> PartOfBlock:
    """Cut a part out of a block, over its working copy.

    Args:
        model: The model.
        layer: Index of the block.
        copy: The working copy.
        part: The part's name.

    Returns:
        The part.
    """
    if part == "block":
        return PartOfBlock(copy)
    if part == "attention":
        return PartOfBlock(copy, target=tap_of(model, layer, copy, "hook_resid_mid"))
    source, target = (tap_of(model, layer, copy, name) for name in ("hook_resid_mid", "hook_mlp_out"))
    return PartOfBlock(copy, source, target, residual=True)


def run_of(recorded: replay.Context, layer: int, copy: nn.Module, attention: str | None) -> Run:
    """Return the run of a working copy at the chosen positions.

    Args:
        recorded: The context, or a part of it.
        layer: Index of the block.
        copy: Its working copy.
        attention: Name of its attention function; None: its own.

    Returns:
        A function from the stream that enters the block, (W, P, d), to the stream that leaves it.
    """
    if attention is None:
        return lambda states: recorded.replay(layer, states[:, None], copy)[:, 0]
    return lambda states: recorded.linearised(layer, states, copy)
