"""The run-time type checker of the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the types of a function's arguments and result, unless it is made anew at each call of another one."""
    return function if "<locals>" in getattr(function, "__qualname__", "") else beartype(function)
