"""A run of a block at chosen positions, cut behind its linear modules and its narrowest tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probe.model import first_tensor
from probe.model.architectures import matrix_of


class Tape(TorchFunctionMode):
    """One run of a block, cut.

    Attributes:
        count: Number of positions N; 0 before the block runs.
        where: The place of each chosen position among the N, counted from 1; 0: it is not among them.
        leaves: What begins a section: first the stream that enters.
        ends: What ends one, last the stream that leaves.
        between: For each leaf but the first the end that it is made of, and by which matrix.
        names: For each leaf but the first the module.
    """

    def __init__(self, hidden: Tensor, states: Tensor) -> None:
        super().__init__()
        self.count = hidden.numel() // hidden.shape[-1]
        numbers = torch.arange(1.0, self.count + 1).to(hidden).reshape(*hidden.shape[:-1], 1)
        (found,) = torch.autograd.grad((hidden * numbers).sum(), states, retain_graph=True)
        self.where = found[..., 0].long()
        self.leaves, self.ends = [hidden.detach().requires_grad_()], list[Tensor]()
        self.between = list[tuple[int, Tensor | None]]()
        self.names = list[str]()

    def end(self, tensor: Tensor) -> int:
        """Return the number of an end."""
        for number, known in enumerate(self.ends):
            if known is tensor:
                return number
        self.ends.append(tensor)
        return len(self.ends) - 1

    def cut(self, end: Tensor, matrix: Tensor | None, output: Tensor, name: str) -> Tensor:
        """Begin a section with an output."""
        self.between.append((self.end(end), matrix))
        self.names.append(name)
        self.leaves.append(output.detach().requires_grad_())
        return self.leaves[-1].clone()  # code may write in place, which a leaf does not allow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Cut behind what has one number a position."""
        if func in (nn.functional.layer_norm, nn.functional.rms_norm):
            return self._normed(func, *args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if not (isinstance(output, Tensor) and output.requires_grad and output.numel() == self.count):
            return output
        if output._is_view() or all(output.numel() >= part.numel() for part in args if isinstance(part, Tensor)):
            return output
        return self.cut(output, None, output, getattr(func, "__name__", ""))

    def _normed(
        self,
        func: Any,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        """Norms of torch, step by step."""
        axes = tuple(range(-len(normalized_shape), 0))
        eps = (1e-5 if func is nn.functional.layer_norm else torch.finfo(input.dtype).eps) if eps is None else eps
        with self:
            centred = input - input.mean(axes, keepdim=True) if func is nn.functional.layer_norm else input
            normed = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
        normed = normed if weight is None else normed * weight
        return normed if bias is None else normed + bias


@dataclass
class Cutter:
    """Hooks on a working copy that cut its runs.

    Attributes:
        block: The working copy.
        hidden_name: Name of the argument that is the stream.
        states: What the run begins with.
        joined: Paths of linear modules that belong to the section before them.
        tapes: The runs.
    """

    block: nn.Module
    hidden_name: str
    states: Tensor
    joined: set[str]
    tapes: list[Tape] = field(default_factory=list)
    _running: ExitStack = field(default_factory=ExitStack)

    def install(self, stack: ExitStack) -> None:
        """Put the hooks on; the stack takes them off again."""
        stack.callback(self.close)
        stack.callback(self.block.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        stack.callback(self.block.register_forward_hook(self._leave).remove)
        for path, module in self.block.named_modules():
            if type(module).__name__ in ("Linear", "Conv1D"):
                stack.callback(module.register_forward_hook(self._behind(path, module)).remove)

    def close(self) -> None:
        """Stop the run, also one that was broken off."""
        self._running.close()

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        tape = Tape(args[0] if args else kwargs[self.hidden_name], self.states)
        self.tapes.append(tape)
        self._running.enter_context(tape)
        leaf = tape.leaves[0].clone()
        return ((leaf, *args[1:]), kwargs) if args else (args, {**kwargs, self.hidden_name: leaf})

    def _leave(self, _: nn.Module, __: Any, output: Any) -> None:
        self.close()
        self.tapes[-1].ends.append(first_tensor(output))

    def _behind(self, path: str, module: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None]:
        matrix = matrix_of(module).detach()

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
            given, tape = args[0] if args else None, self.tapes[-1]
            if not (isinstance(given, Tensor) and isinstance(output, Tensor) and given.requires_grad):
                return None
            if (output.numel(), given.numel()) != (tape.count * matrix.shape[0], tape.count * matrix.shape[1]):
                return None
            return (
                tape.cut(output, None, output, path) if path in self.joined else tape.cut(given, matrix, output, path)
            )

        return hook
