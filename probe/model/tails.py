"""The way from the last block to the logits: norm, head, factors, soft cap and dtypes, followed in a recorded pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from probe.errors import InputError
from probe.model.tracing import Call, Trace, is_coarse, stated_number, tensor_in


@dataclass(frozen=True)
class Step:
    """One module between the last block and the logits.

    Attributes:
        path: The module's path.
        factor: What its input is multiplied by before.
        dtype: Dtype of its input.
    """

    path: str
    factor: float
    dtype: torch.dtype


@dataclass(frozen=True)
class Tail:
    """All that is computed of the stream behind the last block.

    Attributes:
        steps: The modules, in order; the first is the final norm where there is more than one, the last the head.
        factor: What the head's output is multiplied by.
        cap: Soft cap c of the logits, c · tanh(x / c), after the factor; None if there is none.
        dtype: Dtype of the logits.
    """

    steps: tuple[Step, ...]
    factor: float
    cap: float | None
    dtype: torch.dtype

    @property
    def norm(self) -> str | None:
        """Path of the final norm; None if the head reads the stream itself."""
        return self.steps[0].path if len(self.steps) > 1 else None

    @property
    def head(self) -> str:
        """Path of the last module."""
        return self.steps[-1].path

    def within(self, dtype: torch.dtype) -> Tail:
        """Return the same in another dtype throughout.

        Args:
            dtype: A floating dtype.

        Returns:
            The tail for modules of that dtype.
        """
        return replace(self, steps=tuple(replace(step, dtype=dtype) for step in self.steps), dtype=dtype)

    def normed(self, module: nn.Module, states: Tensor) -> Tensor:
        """Apply what comes before the last module.

        Args:
            module: The causal LM.
            states: Outputs of the last block.

        Returns:
            The input of the last module.
        """
        for step in self.steps[:-1]:
            states = _scaled(states, step.factor).to(step.dtype)
            states = tensor_in(module.get_submodule(step.path)(states))
        return states

    def logits(self, module: nn.Module, normed: Tensor) -> Tensor:
        """Apply the last module, and the factor and the soft cap behind it.

        Args:
            module: The causal LM.
            normed: The input of the last module.

        Returns:
            The logits.
        """
        last = self.steps[-1]
        normed = _scaled(normed, last.factor).to(last.dtype)
        logits = _scaled(tensor_in(module.get_submodule(last.path)(normed)), self.factor)
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.to(self.dtype)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else tensor * factor


def tail_in(module: nn.Module, trace: Trace, blocks: str, numbers: Sequence[float]) -> Tail:
    """Follow the stream from the last block to the logits.

    Args:
        module: The causal LM.
        trace: Its record.
        blocks: Path of the list of blocks.
        numbers: Numbers of the configuration, among which a soft cap must be.

    Returns:
        The tail.

    Raises:
        InputError: If the logits are not computed of the last block's output by modules and scalars.
    """
    assert trace.logits is not None
    last = trace.by_path[f"{blocks}.{len(cast('nn.ModuleList', module.get_submodule(blocks))) - 1}"][-1]
    assert last.left is not None
    state, clock, steps = last.left, last.end, list[Step]()
    while True:
        behind = _output_relation(state, trace.logits, numbers) if steps else None
        if behind is not None:
            return Tail(tuple(steps), *behind, trace.logits.dtype)
        following = _next_step(trace, state, clock, numbers)
        if following is None:
            raise InputError(
                f"a model's logits must be computed of its residual stream by a norm, a head, factors and a soft cap, "
                f"and those of {type(module).__name__} are not: use another model"
            )
        call, factor = following
        assert call.entered is not None
        assert call.left is not None
        steps.append(Step(call.path, factor, call.entered.dtype))
        state, clock = call.left, call.end


def _next_step(trace: Trace, state: Tensor, clock: int, numbers: Sequence[float]) -> tuple[Call, float] | None:
    """The next module that reads a state, the outermost one, and the factor between."""
    for call in trace.calls:
        if call.start < clock or call.left is None or call.entered is None or call.entered.numel() != state.numel():
            continue
        factor = _factor_between(state, call.entered.reshape(state.shape), numbers)
        if factor is not None:
            return call, factor
    return None


def _factor_between(one: Tensor, other: Tensor, numbers: Sequence[float] = ()) -> float | None:
    """The factor c with other = c · one; None if there is none. A number of the configuration is preferred."""
    if torch.equal(one, other):
        return 1.0
    allowed = max(_tolerance(one), _tolerance(other))
    one, other = one.double(), other.double()
    size = one.square().sum()
    if not size > 0:
        return None
    factor = float((one * other).sum() / size)
    if factor == 0 or not (other - factor * one).norm() <= allowed * other.norm():
        return None
    return stated_number(factor, numbers, allowed)


def _tolerance(tensor: Tensor) -> float:
    return 1e-2 if is_coarse(tensor) else 1e-5


def _output_relation(state: Tensor, logits: Tensor, numbers: Sequence[float]) -> tuple[float, float | None] | None:
    """Factor and soft cap between the head's output and the logits; None if the logits are not computed so."""
    if state.shape != logits.shape:
        return None
    if torch.equal(state, logits.to(state.dtype)):
        return 1.0, None
    allowed = max(_tolerance(state), _tolerance(logits))
    wanted = logits.double()
    options: list[tuple[float, float, float | None]] = []
    factor = _factor_between(state, logits, numbers)
    if factor is not None:
        options.append((float(((factor * state).double() - wanted).norm()), factor, None))
    for cap in numbers:
        if cap > 0 and bool((wanted.abs() <= cap).all()):
            # in the model's own arithmetic, so that the true cap leaves nothing
            options.append((float(((torch.tanh(state / cap) * cap).double() - wanted).norm()), 1.0, cap))
    best = min(options, key=lambda option: option[0], default=None)
    if best is None or not best[0] <= allowed * float(wanted.norm()):
        return None
    return best[1], best[2]


def numbers_in(config: Any) -> list[float]:
    """List the numbers of a configuration that may be factors or caps: those that are not 0 or 1.

    Args:
        config: A Hugging Face configuration.

    Returns:
        The numbers, floats before integers.
    """
    values = [value for value in _numbers(config.to_dict()) if value not in (0, 1) and math.isfinite(value)]
    floats = [value for value in values if isinstance(value, float)]
    return [*dict.fromkeys(floats), *dict.fromkeys(float(value) for value in values if not isinstance(value, float))]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers(part)
