"""The run-time type checker of the tests.

`jaxtyping` wraps every function of the package in a check of shapes, which costs more than most of our functions do. A
function whose annotations name no array shape gets the type check alone, one that is made anew at each call of another
gets none, and of a function that is called thousands of times most calls are let through.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import itertools
import re
import typing
from collections.abc import Callable
from typing import Any, Protocol

import jaxtyping
from beartype import beartype

CHECKED, THEN_EACH = 500, 101
"""The first calls of each function in a process are checked, then one of so many."""

_with_shapes = jaxtyping.jaxtyped
_holds: set[tuple[type, type]] = set()


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the types of a function's arguments and result."""
    checked: Callable[..., Any] = beartype(function)
    return checked


def _jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """Stand in for `jaxtyping.jaxtyped`, which the import hook writes above each function and class."""

    def decorated(function: Any) -> Any:
        if not inspect.isfunction(function):
            return _with_shapes(function, typechecker=typechecker)
        if "<locals>" in function.__qualname__:
            return function
        if _names_no_shape(function):
            return _sampled(function, typechecker(function))
        return _sampled(function, _with_shapes(function, typechecker=typechecker))

    return decorated


def _sampled(function: Any, checked: Any) -> Any:
    calls = itertools.count()

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        plain = jaxtyping.config.jaxtyping_disable or (number >= CHECKED and number % THEN_EACH)
        return (function if plain else checked)(*args, **kwargs)

    return called


def _names_no_shape(function: Any) -> bool:
    """Tell whether all names in a function's annotations are classes without shapes, or words of `typing`."""
    words = {word for hint in function.__annotations__.values() for word in re.findall(r"[A-Za-z_.]\w*", str(hint))}
    for word in words:
        known = function.__globals__.get(word, getattr(builtins, word, None))
        if word != "None" and not _is_plain(known):
            return False
    try:
        typing.get_type_hints(function)
    except (NameError, TypeError):  # what only type checkers know: names behind TYPE_CHECKING, parameters of a stub
        return False
    return True


def _is_plain(known: Any) -> bool:
    if getattr(known, "__module__", "") in {"typing", "collections.abc"}:
        return True
    return inspect.isclass(known) and not type(known).__module__.startswith("jaxtyping")


def _remember_protocols() -> None:
    """Ask one object of a class whether it has a protocol's members: asking each computes all of its properties."""
    meta: Any = type(Protocol)
    ask = meta.__instancecheck__

    def instancecheck(protocol: Any, instance: Any) -> bool:
        pair = protocol, type(instance)
        if pair not in _holds and ask(protocol, instance):
            _holds.add(pair)
        return pair in _holds

    meta.__instancecheck__ = instancecheck


jaxtyping.jaxtyped = _jaxtyped  # type: ignore[assignment]
_remember_protocols()
