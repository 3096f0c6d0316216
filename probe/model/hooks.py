"""Forward hooks that read tensors and change nothing.

A *site* is a tensor of the forward pass: an input or output of some module, or what is read of them. Hooks live in
context managers and are removed when it ends, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from probe.boundary import public
from probe.errors import InputError
from probe.model.attending import attending

Side = Literal["input", "output", "query", "key", "pattern"]
"""Of a module: its input or output; of attention: what its function is handed, or makes of it."""


@runtime_checkable
class Reading(Protocol):
    """A way to read a tensor of a module's call that is not its first input or output."""

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        """Return the tensor; `output` is None where the call is yet to run."""


@dataclass(frozen=True)
class Argument:
    """A `Reading` of one argument of a call.

    Attributes:
        key: Its index among the arguments by position, or its name.
    """

    key: int | str

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        """Return the argument."""
        found = arguments[self.key] if isinstance(self.key, int) else named[self.key]
        assert isinstance(found, Tensor)
        return found


@dataclass(frozen=True)
class Item:
    """A `Reading` of one item of a module's output.

    Attributes:
        index: Its index; 0 also where the output is a tensor.
    """

    index: int

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        """Return the item."""
        found = output if isinstance(output, Tensor) else output[self.index]
        assert isinstance(found, Tensor)
        return found


@dataclass(frozen=True, eq=False)
class Site:
    """A tensor of the forward pass: the input or the output of one module.

    Attributes:
        name: Its TransformerLens name.
        module: The module to hook.
        side: "input" for the module's first input, "output" for its (first) output; of an attention module also
            "query", "key" and "pattern".
        layer: The block's index; None outside the blocks.
        block: The block around a tensor whose shape may be (windows · positions, ...); the block's input has the axes
            to restore. None if the tensor is (windows, positions, ...) already.
        factor: What the block multiplies the tensor by before it adds it; what is read is the product.
        reading: The way to read the tensor, if it is not the module's first input or output.
    """

    name: str
    module: nn.Module
    side: Side
    layer: int | None = None
    block: nn.Module | None = None
    factor: float = 1.0
    reading: Reading | None = None


class Seen(dict[str, Tensor]):
    """The tensor of each site whose module has run; to ask for another is refused with the reason."""

    def __missing__(self, name: str) -> Tensor:
        raise InputError(not_run(name, "did not run in this pass"))


@public
def not_run(name: str, what: str) -> str:
    """Say that a pass did not bring a site as it should.

    Args:
        name: Name of the site.
        what: What its module did instead of running once on every window.

    Returns:
        The message.
    """
    return (
        f"a site is read where its module runs, once on every window, and the module of {name} {what}: something goes "
        "around its hooks (torch.compile, a scripted or replaced forward) or repeats it; load the plain module"
    )


Returned = Tensor | tuple[Any, ...] | list[Any]
"""What a block or an attention module returns: a tensor, or a tuple or list that begins with it."""


@public
def first_tensor(output: Returned) -> Tensor:
    """Return a block's hidden state: blocks return a tensor, or a tuple or list that begins with it.

    Args:
        output: What a block or an attention module returned.

    Returns:
        The hidden state.

    Raises:
        InputError: If there is none.
    """
    first = output if isinstance(output, Tensor) else next(iter(output), None)
    if not isinstance(first, Tensor):
        raise InputError(
            f"output= must be a tensor or begin with one, got a {type(output).__name__} that begins with "
            f"{type(first).__name__}: pass what a block returned"
        )
    return first


@public
def with_first_tensor(output: Returned, state: Tensor) -> Returned:
    """Put another hidden state into a block's output, which stays a tensor, a tuple or a list as it was.

    Args:
        output: What a block returned.
        state: The hidden state to put in.

    Returns:
        The changed output.
    """
    if isinstance(output, Tensor):
        return state
    return type(output)((state, *output[1:]))


@public
@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout off: evaluation mode inside the context, every sub-module's own mode restored afterwards.

    Experts of a float64 model run one after the other, because transformers' grouped kernel has no float64.

    Args:
        module: The module, which may belong to the user.

    Yields:
        None: The module is in evaluation mode.
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    config: Any = getattr(module, "config", None)
    experts = getattr(config, "_experts_implementation", None)
    wide = experts == "grouped_mm" and next(module.parameters()).dtype is torch.float64
    if wide:
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        if wide:
            config._experts_implementation = experts
        for part in training:
            part.training = True


@public
@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute as asked for, whatever surrounds the call: with gradients, not in inference mode, without autocast.

    Yields:
        None: Modes of torch are those of a fresh program.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@public
@contextmanager
def hooked(sites: Iterable[Site], receive: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Call a function with each site's tensor whenever the site's module runs.

    Args:
        sites: The sites to read.
        receive: Called with the site and its tensor (windows, positions, ...), detached but not copied: the memory is
            the model's.

    Yields:
        None: The hooks are in place.
    """
    with ExitStack() as stack:
        for site in sites:
            _register(stack, site, receive)
        yield


class Reached(Exception):
    """The signal that all that was wanted of a pass is there."""


@public
@contextmanager
def ending_after(block: nn.Module) -> Iterator[None]:
    """Stop a pass behind a block, whose output is the last that is needed; hooks put on before see that output.

    Args:
        block: The block.

    Yields:
        None: A pass inside the context ends there.
    """

    def stop(_module: nn.Module, _args: Any, _output: Any) -> None:
        raise Reached

    handle = block.register_forward_hook(stop)
    try:
        yield
    except Reached:
        pass
    finally:
        handle.remove()


@public
@contextmanager
def entering(block: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the stream that enters a block, while the context lasts.

    Args:
        block: The block.
        change: From the stream that the pass brings to the one that the block gets.

    Yields:
        None: The block gets the other stream.
    """

    def put(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    handle = block.register_forward_pre_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _register(stack: ExitStack, site: Site, receive: Callable[[Site, Tensor], None]) -> None:
    shape: list[torch.Size] = []

    def take(tensor: Tensor) -> None:
        found = tensor.detach() if site.factor == 1 else tensor.detach() * site.factor
        receive(site, found if site.block is None else folded(found, shape[-1]))

    def before_block(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        shape[:] = [_first_input(arguments, named).shape]

    def before(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        reading = site.reading
        take(_first_input(arguments, named) if reading is None else reading(module, arguments, named, None))

    def after(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        reading = site.reading
        take(first_tensor(output) if reading is None else reading(module, arguments, named, output))

    if site.side in ("query", "key", "pattern"):
        what: Any = site.side
        stack.enter_context(attending(site.module, lambda call: take(call.read(what))))
        return
    if site.block is not None:
        stack.enter_context(site.block.register_forward_pre_hook(before_block, with_kwargs=True))
    if site.side == "input":
        stack.enter_context(site.module.register_forward_pre_hook(before, with_kwargs=True))
    else:
        stack.enter_context(site.module.register_forward_hook(after, with_kwargs=True))


def folded(tensor: Tensor, entered: torch.Size) -> Tensor:
    """Return a tensor with axes of windows and of positions, where a module has joined them.

    Args:
        tensor: (windows, positions, ...) or (windows · positions, ...).
        entered: Shape of what entered the block, (windows, positions, d_model).

    Returns:
        (windows, positions, ...).
    """
    if tensor.shape[:2] == entered[:2] and tensor.ndim > 2:
        return tensor
    return tensor.reshape(*entered[:2], *tensor.shape[1:])


def _first_input(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    first = arguments[0] if arguments else named["hidden_states"]
    assert isinstance(first, Tensor)
    return first
