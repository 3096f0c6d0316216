"""Limits of an argument that its annotation cannot say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limit:
    """A property that a value must have.

    Attributes:
        must: What must hold, after "must": "be at least 1".
        holds: Tells whether it does; of a sequence each item is asked, unless `whole`.
        repair: What to do about it.
        whole: Ask a sequence, not its items.
    """

    must: str
    holds: Callable[[Any], bool]
    repair: str
    whole: bool = False

    def failing(self, value: Any) -> tuple[Any] | None:
        """Find what breaks the limit.

        Args:
            value: An argument.

        Returns:
            The argument, or its first item that breaks the limit; None if all is well.
        """
        items = value if isinstance(value, list | tuple | range) and not self.whole else [value]
        return next(((item,) for item in items if item is not None and not self.holds(item)), None)


def at_least(bound: float | int) -> Limit:
    """Limit a number, or all numbers of a sequence, from below.

    Args:
        bound: The least number.

    Returns:
        The limit.
    """
    return Limit(f"be at least {bound}", lambda value: not isinstance(value, float | int) or value >= bound, "raise it")


def between(low: float | int, high: float | int) -> Limit:
    """Limit a number to the inside of an interval.

    Args:
        low: Its lower end, which is excluded.
        high: Its upper end, which is excluded.

    Returns:
        The limit.
    """
    must = f"lie above {low}" if high == math.inf else f"lie between {low} and {high}"
    return Limit(must, lambda value: not isinstance(value, float | int) or low < value < high, "choose one that does")


def within(low: float | int, high: float | int) -> Limit:
    """Limit a number, or all numbers of an array, to an interval.

    Args:
        low: Its lower end, which is included.
        high: Its upper end, which is included.

    Returns:
        The limit.
    """

    def holds(value: Any) -> bool:
        inside = (low <= value) & (value <= high)
        return inside if isinstance(inside, bool) else _all(inside)

    return Limit(f"lie in [{low}, {high}]", holds, "choose what does")


def _all(truth: Any) -> bool:
    """Tell whether all entries are true; those inside a transform of torch.func cannot be looked at, and pass."""
    if hasattr(truth, "is_meta"):
        from torch._C import _functorch

        if _functorch.is_functorch_wrapped_tensor(truth):
            return True
    return bool(truth.all())


def _filled(value: Any) -> bool:
    count = getattr(value, "numel", None)  # of a tensor, whose length is that of its first axis alone
    if count is not None:
        return bool(count())
    size = getattr(value, "size", None)
    if isinstance(size, int):
        return size > 0
    return not isinstance(value, Sized) or len(value) > 0


def _finite(value: Any) -> bool:
    if isinstance(value, float | int):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(_finite(item) for item in value.values())
    if isinstance(value, Sequence):
        return all(_finite(item) for item in value)
    if hasattr(value, "isfinite"):
        return _all(value.isfinite())
    if hasattr(value, "dtype") and hasattr(value, "__array__"):
        import numpy as np

        return _all(np.isfinite(value))
    return True


filled = Limit("hold at least one entry", _filled, "pass some", whole=True)
"""The limit of arrays and sequences that must not be empty."""

finite = Limit("be finite", _finite, "leave out what is NaN or infinite")
"""The limit of numbers, tensors and arrays whose entries must all be finite."""
