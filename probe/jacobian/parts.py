"""A block, its attention or its MLP, as a function of the stream that enters it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from probe import replay
from probe.errors import InputError
from probe.model import LanguageModel, first_tensor, with_first_tensor

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
    if model.recurrent and "blocks.0.hook_attn_out" not in model.sites:
        raise InputError(
            f"part={part!r} needs blocks with attention and an MLP, and {model.name} is a state-space model, whose "
            'block is one mixer: use part="block"'
        )
    without = [layer for layer in range(model.n_layers) if f"blocks.{layer}.hook_resid_mid" not in model.sites]
    if without:
        why = "for both read the same state" if model.parallel else "or none that a module reads"
        raise InputError(
            f"part={part!r} needs a stream between attention and MLP (hook_resid_mid), and the blocks of {model.name} "
            f'have none, {why}: use part="block"'
        )


@dataclass(frozen=True)
class PartOfBlock:
    """A part of a block, over a working copy of it.

    With mid = pre + Σ writes of the mixing sub-layer, "attention" reads those writes. "mlp" is the block itself with
    these writes put to zero: what then enters the block is the middle, for all that reads it.

    Attributes:
        block: The working copy.
        writes: What the mixing sub-layer adds to the stream.
        name: The part.
        target: Where the part's output is read instead; None: the stream.
    """

    block: nn.Module
    writes: tuple[Tap, ...] = ()
    name: PartName = "block"
    target: Tap | None = None

    def entering(self, states: Tensor, run: Run) -> Tensor:
        """Return the stream that enters the part, for the stream that enters the block."""
        if self.name != "mlp":
            return states
        with torch.no_grad():
            return self._middle(states, run)

    def leaving(self, entering: Tensor, run: Run) -> Tensor:
        """Return the stream that leaves the part, differentiable in the stream that enters it."""
        if self.target is not None:
            with self.target.reading() as seen:
                run(entering)
            return self.target.factor * seen[-1].reshape(entering.shape)
        if self.name == "attention":
            return self._middle(entering, run)
        with ExitStack() as stack:
            for write in self.writes if self.name == "mlp" else ():
                stack.enter_context(write.silenced())
            return run(entering)

    def run(self, states: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """Return a leaf with the stream that enters the part, and the stream that leaves it."""
        point = self.entering(states, run).detach().requires_grad_()
        return point, self.leaving(point, run)

    def _middle(self, states: Tensor, run: Run) -> Tensor:
        with ExitStack() as stack:
            seen = [(write.factor, stack.enter_context(write.reading())) for write in self.writes]
            run(states)
        return states + sum(factor * read[-1].reshape(states.shape) for factor, read in seen)


@dataclass(frozen=True)
class Tap:
    """A module of a working copy, and the side of it on which its first tensor is read.

    Attributes:
        module: The module.
        side: "input" or "output".
        factor: What the block multiplies the tensor by before it adds it.
    """

    module: nn.Module
    side: Literal["input", "output"]
    factor: float = 1.0

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Collect the tensor of each run, with its graph."""
        seen: list[Tensor] = []
        if self.side == "input":
            handle = self.module.register_forward_pre_hook(
                lambda _, args, named: seen.append(args[0] if args else named["hidden_states"]), with_kwargs=True
            )
        else:
            handle = self.module.register_forward_hook(lambda _, __, output: seen.append(first_tensor(output)))
        try:
            yield seen
        finally:
            handle.remove()

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Replace the module's first output by zeros."""

        def nothing(_: nn.Module, __: Any, output: Any) -> Any:
            return with_first_tensor(output, torch.zeros_like(first_tensor(output)))

        handle = self.module.register_forward_hook(nothing)
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
        The module, the side and the factor.
    """
    site = model.site(f"blocks.{layer}.{name}")
    path = next(path for path, module in model.blocks[layer].named_modules() if module is site.module)
    return Tap(copy.get_submodule(path), "input" if site.side == "input" else "output", site.factor)


def mixing_writes(model: LanguageModel, layer: int) -> tuple[str, ...]:
    """List the sites that a block's mixing sub-layer, attention or what stands in its place, adds to the stream.

    Args:
        model: The model.
        layer: Index of the block.

    Returns:
        Short names: one, or two where two mixers write at once (Falcon-H1).
    """
    names = ("hook_mixer_out", "hook_attn_out")
    return tuple(name for name in names if f"blocks.{layer}.{name}" in model.sites)


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
    return PartOfBlock(copy, tuple(tap_of(model, layer, copy, name) for name in mixing_writes(model, layer)), part)


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
