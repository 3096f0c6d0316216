"""Numbers of a model that no code of the library had a hand in: the module's own passes, in float64.

Everything is read by hooks of this file on the decoder's list of layers, which it finds by running the module. A state
that enters a layer is replaced inside the module's own pass, and derivatives of what the layer puts out are taken by
autograd and by central differences. While an oracle runs, the module's requests for float32 give float64, so that norms
and softmaxes that compute in float32 do not spoil the ends of its numbers.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

logger = logging.getLogger(__name__)

STEP = 1e-4
"""Length of the steps of central differences, beside states of length about 10."""


class NotADecoderError(Exception):
    """The module does not run as a decoder of tokens, or has no list of layers that carry a stream."""


@dataclass
class Pass:
    """What one pass of a module showed: what enters and leaves each layer, (window, position, d), and the logits."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    logits: Tensor


@dataclass
class Seen:
    """What the attention function of each layer was handed and gave, in the order of the calls."""

    query: list[Tensor] = field(default_factory=list)
    key: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    output: list[Tensor] = field(default_factory=list)


class _Float64(TorchFunctionMode):
    """Gives float64 where float32 is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


@contextmanager
def in_float64() -> Iterator[None]:
    """Let code that asks for float32 compute in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)


_SEEN: list[Seen] = []
_OWN_VALUE: list[bool] = [True]


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """The module's own eager attention, recorded; without each position's own value where that is asked for."""
    eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    output, weights = eager(module, query, key, value, mask, **kwargs)
    if not _OWN_VALUE[-1]:
        # Attention is linear in the values, whatever else it does (sinks, gates): the own part is that of one value.
        for position in range(query.shape[2]):
            one = torch.zeros_like(value)
            one[:, :, position] = value[:, :, position]
            output[:, position] -= eager(module, query, key, one, mask, **kwargs)[0][:, position]
    if _SEEN:
        seen = _SEEN[-1]
        seen.query.append(query)
        seen.key.append(key)
        seen.value.append(value)
        seen.output.append(output)
    return output, weights


AttentionInterface.register("zoo", _attention)
AttentionMaskInterface.register("zoo", eager_mask)


def first_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The stream among the arguments of a layer: the first that is given by position, or `hidden_states`."""
    value = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
    return value if isinstance(value, Tensor) else None


def replaced_state(args: tuple[Any, ...], kwargs: Mapping[str, Any], state: Tensor) -> tuple[Any, dict[str, Any]]:
    """The arguments of a layer with another stream."""
    if args:
        return (state, *args[1:]), dict(kwargs)
    return args, {**kwargs, ("hidden_states" if "hidden_states" in kwargs else "x"): state}


def output_state(output: Any) -> Tensor | None:
    """The stream in what a layer gives: the tensor, or the first of several."""
    value = output[0] if isinstance(output, tuple | list) else output
    return value if isinstance(value, Tensor) else None


def find_layers(module: nn.Module, tokens: Tensor) -> tuple[str, nn.ModuleList]:
    """The outermost list of layers that all run once, in order, and hand a stream (windows, positions, d) on.

    Raises:
        NotADecoderError: If the module does not run on token ids, or there is no such list.
    """
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    runs: dict[str, list[tuple[int, Any, Any]]] = {name: [] for name in lists}
    shape = tuple(tokens.shape)

    def watch(name: str, index: int) -> Callable[..., None]:
        def keep(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            runs[name].append((index, first_state(args, kwargs), output_state(output)))

        return keep

    with ExitStack() as stack:
        for name, part in lists.items():
            for index, layer in enumerate(part):
                handle = layer.register_forward_hook(watch(name, index), with_kwargs=True)
                stack.callback(handle.remove)
        try:
            with torch.no_grad():
                module(input_ids=tokens, use_cache=False, return_dict=True).logits  # noqa: B018
        except Exception as error:
            raise NotADecoderError(f"does not run on token ids alone: {type(error).__name__}") from error
    whys = []
    for name, part in sorted(lists.items(), key=lambda item: item[0].count(".")):
        if not runs[name]:
            continue
        order = [index for index, _, _ in runs[name]]
        states = [state for _, before, after in runs[name] for state in (before, after)]
        if not all(state is not None and state.ndim == 3 and tuple(state.shape[:2]) == shape for state in states):
            whys.append(f"{name} hands on no (windows, positions, width)")
        elif order != list(range(len(part))):
            whys.append(f"{name} runs in the order {order[:8]}")
        elif len({state.shape[-1] for state in states}) > 1:
            whys.append(f"{name} has a stream of several widths")
        else:
            return name, part
    raise NotADecoderError("no list of layers carries a stream: " + ("; ".join(whys) or "no list runs"))


class Oracle:
    """A float64 copy of a module, of which states may be replaced in its own pass.

    Attributes:
        module: The copy, with eager attention and eager experts.
        records: Whether its attention is recorded.
        path: Path of the list of layers.
    """

    def __init__(self, module: PreTrainedModel, tokens: Tensor) -> None:
        self.module = copy.deepcopy(module).double().eval()
        self.tokens = tokens
        if hasattr(self.module, "set_experts_implementation"):
            with suppress(ValueError):
                self.module.set_experts_implementation("eager")
        self.records = self._records()
        with in_float64():
            self.path, self.layers = find_layers(self.module, tokens)
        self.plain = self.run(tokens)
        self.d = self.plain.inputs[0].shape[-1]

    @property
    def ends(self) -> bool:
        """Whether a position's logits depend on the last layer's output there, and on nothing else."""
        state, middle = self.plain.outputs[-1].clone(), self.tokens.shape[1] // 2

        def hold(_module: nn.Module, _args: Any, output: Any) -> Any:
            return state if isinstance(output, Tensor) else type(output)((state, *output[1:]))

        handle = self.layers[-1].register_forward_hook(hold)
        try:
            other = self.run((self.tokens * 7 + 3) % 80 + 5).logits
            state[:, middle] *= 1.5
            moved = self.run(self.tokens).logits != self.plain.logits
        finally:
            handle.remove()
        return torch.equal(other, self.plain.logits) and not moved[:, middle + 1 :].any()

    def _records(self) -> bool:
        """Set eager attention, recorded if that changes nothing: some code asks for an implementation by name."""
        if not hasattr(self.module, "set_attn_implementation"):
            return False
        logits = []
        seen = Seen()
        _SEEN.append(seen)
        try:
            for implementation in ("eager", "zoo"):
                self.module.set_attn_implementation(implementation)
                with torch.no_grad(), in_float64():
                    logits.append(self.module(input_ids=self.tokens, use_cache=False).logits)
            if seen.query and bool((logits[0] - logits[1]).norm() <= 1e-9 * logits[0].norm()):
                return True
        except Exception as error:  # noqa: BLE001 - whatever a model's code raises, it does not take this attention
            logger.info("attention is not recorded: %s", error)
        finally:
            _SEEN.pop()
        with suppress(ValueError, NotImplementedError):
            self.module.set_attn_implementation("eager")
        return False

    @property
    def continuous(self) -> bool:
        """Whether each layer gets what the one before it gave, and nothing else."""
        pairs = zip(self.plain.outputs, self.plain.inputs[1:], strict=False)
        return all(torch.equal(after, before) for after, before in pairs)

    @property
    def causal(self) -> bool:
        """Whether logits depend on no later token."""
        changed = self.tokens.clone()
        half = self.tokens.shape[1] // 2
        changed[:, half:] = (changed[:, half:] * 7 + 3) % 80 + 5
        logits = self.run(changed).logits[:, :half]
        expected = self.plain.logits[:, :half]
        return bool((logits - expected).norm() <= 1e-7 * expected.norm())

    def run(
        self,
        tokens: Tensor,
        into: Mapping[int, Tensor] | None = None,
        *,
        grad: bool = False,
        own_value: bool = True,
        seen: Seen | None = None,
        islands: bool = False,
    ) -> Pass:
        """One pass, with other states put into some layers; with `islands`, what asks for float32 gets it."""
        into = into or {}
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}

        def before(index: int) -> Callable[..., Any]:
            def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
                if index in into:
                    args, kwargs = replaced_state(args, kwargs, into[index])
                state = first_state(args, kwargs)
                assert state is not None
                inputs[index] = state if grad else state.clone()
                return args, kwargs

            return hook

        def after(index: int) -> Callable[..., Any]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                state = output_state(output)
                assert state is not None
                outputs[index] = state if grad else state.clone()

            return hook

        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                stack.callback(layer.register_forward_pre_hook(before(index), with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(after(index)).remove)
            if not islands:
                stack.enter_context(in_float64())
            stack.enter_context(torch.set_grad_enabled(grad))
            _OWN_VALUE.append(own_value)
            stack.callback(_OWN_VALUE.pop)
            if seen is not None:
                _SEEN.append(seen)
                stack.callback(_SEEN.pop)
            logits = self.module(input_ids=tokens, use_cache=False, return_dict=True).logits
        return Pass([inputs[i] for i in range(len(inputs))], [outputs[i] for i in range(len(outputs))], logits)

    def leaves(self, states: list[Tensor]) -> dict[int, Tensor]:
        """Copies of the states that enter the layers, of which derivatives can be taken."""
        return {index: state.detach().clone().requires_grad_() for index, state in enumerate(states)}

    def rows(
        self, positions: Tensor, rows: Tensor, *, islands: bool = False, states: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Rows vᵀJ of every layer's Jacobian at the positions: (window, chosen, row, d) for `rows` (row, d)."""
        leaves = self.leaves(self.plain.inputs if states is None else states)
        done = self.run(self.tokens, leaves, grad=True, islands=islands)
        return [pulled(done.outputs[i], leaves[i], positions, rows) for i in leaves]

    def rows_through(self, layer: int, positions: Tensor, rows: Tensor, *, logits: bool = False) -> Tensor:
        """Rows of the Jacobian from a layer's input to the last layer's output, or to the logits."""
        (leaf,) = self.leaves([self.plain.inputs[layer]]).values()
        done = self.run(self.tokens, {layer: leaf}, grad=True)
        return pulled(done.logits if logits else done.outputs[-1], leaf, positions, rows)

    def rows_alone(self, positions: Tensor, rows: Tensor) -> list[Tensor]:
        """The same of one-token passes of the tokens at the positions, each layer fed with the recorded state."""
        alone = self.tokens.gather(1, positions).reshape(-1, 1)
        states = [at(state, positions).reshape(-1, 1, self.d) for state in self.plain.inputs]
        leaves = self.leaves(states)
        done = self.run(alone, leaves, grad=True)
        first = torch.zeros((len(alone), 1), dtype=torch.int64)
        shape = (*positions.shape, len(rows), self.d)
        return [pulled(done.outputs[i], leaves[i], first, rows).reshape(shape) for i in leaves]

    def parts(self, layer: int, path: str, side: str, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of ∂mid/∂pre and ∂post/∂mid at the positions, and of their product, which is J if mid is all there is.

        Args:
            layer: The layer.
            path: The module whose input or output is the tensor that is called mid.
            side: "input" or "output".
            positions: (window, chosen).
            rows: (row, d).
        """
        leaves = self.leaves(self.plain.inputs)
        with self._held(path, side) as held:
            done = self.run(self.tokens, {layer: leaves[layer]}, grad=True)
        (middle,) = held
        before = middle.reshape(done.inputs[layer].shape)
        attention = pulled(before, leaves[layer], positions, rows)
        mlp = pulled(done.outputs[layer], middle, positions, rows)
        through = torch.empty_like(mlp)
        window = torch.arange(len(positions))
        for column in range(positions.shape[1]):
            place = positions[:, column]
            for index in range(len(rows)):
                read = (before[window, place] * mlp[:, column, index]).sum()
                (gradient,) = torch.autograd.grad(read, leaves[layer], retain_graph=True)
                through[:, column, index] = gradient[window, place]
        return attention, mlp, through

    def attends(self, layer: int) -> bool:
        """Whether a layer calls the attention function, and that is recorded."""
        if not self.records:
            return False
        seen, marks = Seen(), []
        with ExitStack() as stack:
            block = self.layers[layer]
            stack.callback(block.register_forward_pre_hook(lambda *_: marks.append(len(seen.query))).remove)
            stack.callback(block.register_forward_hook(lambda *_: marks.append(len(seen.query))).remove)
            self.run(self.tokens, seen=seen)
        return marks[1] > marks[0]

    def off_position(self, layer: int, path: str, side: str) -> Tensor:
        """What passes the module at `path` of a layer where each position's own value is left out of attention."""
        with self._held(path, side) as held:
            self.run(self.tokens, dict(enumerate(self.plain.inputs)), own_value=False)
        (write,) = held
        return write.reshape(self.plain.inputs[layer].shape)

    @contextmanager
    def _held(self, path: str, side: str) -> Iterator[list[Tensor]]:
        """A list that gets what a module is given ("input") or gives ("output"), the tensor itself."""
        held: list[Tensor] = []

        def keep(state: Tensor | None) -> None:
            assert state is not None
            held.append(state)

        part = self.module.get_submodule(path)
        if side == "input":
            hook = part.register_forward_pre_hook(lambda _m, a, k: keep(first_state(a, k)), with_kwargs=True)
        else:
            hook = part.register_forward_hook(lambda _m, _a, output: keep(output_state(output)))
        try:
            yield held
        finally:
            hook.remove()

    def columns(self, layer: int, positions: Tensor, direction: Tensor) -> Tensor:
        """J · direction at the positions by central differences of fourth order, (window, chosen, d)."""
        windows, chosen = positions.shape
        steps = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64) * STEP
        weights = torch.tensor([8.0, -8.0, -1.0, 1.0], dtype=torch.float64) / (12 * STEP)
        place = positions.flatten().repeat_interleave(len(steps))
        window = torch.arange(windows).repeat_interleave(chosen * len(steps))
        moved = {i: state[window] for i, state in enumerate(self.plain.inputs)}
        state = moved[layer].clone()
        state[torch.arange(len(place)), place] += steps.repeat(windows * chosen)[:, None] * direction
        after = self.run(self.tokens[window], {**moved, layer: state}).outputs[layer]
        read = after[torch.arange(len(place)), place].reshape(windows, chosen, len(steps), -1)
        return torch.einsum("wcsd,s->wcd", read, weights)


def at(states: Tensor, positions: Tensor) -> Tensor:
    """States at chosen positions, (window, chosen, d)."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


def pulled(output: Tensor, leaf: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    """Rows vᵀ ∂output(t)/∂leaf(t), (window, chosen, row, d)."""
    found = leaf.new_zeros((*positions.shape, len(rows), leaf.shape[-1]))
    width = leaf.shape[-1]
    window = torch.arange(len(positions))
    for column in range(positions.shape[1]):
        place = positions[:, column]
        read = output[window, place]
        for index, row in enumerate(rows):
            (gradient,) = torch.autograd.grad((read @ row).sum(), leaf, retain_graph=True)
            found[:, column, index] = gradient.reshape(*output.shape[:2], width)[window, place]
    return found


def own_states(module: PreTrainedModel, path: str, tokens: Tensor) -> list[Tensor]:
    """What enters each layer of a module's list of layers, and what leaves the last, in its own dtype and code."""
    layers = list(module.get_submodule(path))  # type: ignore[call-overload]
    seen: list[Tensor] = []

    def keep(state: Tensor | None) -> None:
        assert state is not None
        seen.append(state.clone())

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            hook = layer.register_forward_pre_hook(lambda _m, a, k: keep(first_state(a, k)), with_kwargs=True)
            stack.callback(hook.remove)
        stack.callback(layers[-1].register_forward_hook(lambda _m, _a, output: keep(output_state(output))).remove)
        module(input_ids=tokens, use_cache=False, return_dict=True)
    return seen
