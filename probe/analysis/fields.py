"""Fields of a configuration: the values that fit their types, and the explanations that stand below them."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from probe.errors import InputError

_LIST = "a list"
_LONGEST = 60  # characters of a value in a message


@dataclass(frozen=True)
class AtLeast:
    """The least value of an option, as in `windows: Annotated[int, AtLeast(1)] = 32`.

    Attributes:
        bound: The value.
    """

    bound: float | int


@dataclass(frozen=True)
class Among:
    """The names that an option may list, as in `arms: Annotated[tuple[str, ...], Among(ARMS)] = ARMS`.

    Attributes:
        names: The names.
    """

    names: tuple[str, ...]


class UnfitError(Exception):
    """A value does not fit a type.

    Args:
        wanted: What it must be, in words.
        got: The value, or the part of it that does not fit.
    """

    def __init__(self, wanted: str, got: object) -> None:
        super().__init__(wanted)
        self.wanted, self.got = wanted, shown(got)


def shown(value: object) -> str:
    """Write a value for a message, on one line and no longer than that.

    Args:
        value: Any value.

    Returns:
        Its `repr`, perhaps shortened.
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def settle(config: Any) -> None:
    """Give each field of a frozen dataclass the type that is declared, or refuse its value.

    Lists, ranges and arrays become tuples, texts paths, whole numbers floats, numbers of arrays plain ones.

    Args:
        config: The instance; its fields are replaced where they fit after a change.

    Raises:
        InputError: If a value does not fit, lies below its bound, or names something unknown.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        kind, given = hints[field.name], getattr(config, field.name)
        try:
            value = fitted(given, kind)
        except UnfitError as error:
            raise InputError(
                f"{field.name}= must be {error.wanted}, got {error.got}: {_repair(field.name, given, error.wanted)}"
            ) from None
        if value is not given:
            object.__setattr__(config, field.name, value)
        for rule in getattr(kind, "__metadata__", ()):
            _require(rule, field.name, value)


def _repair(name: str, given: object, wanted: str) -> str:
    if wanted == _LIST and isinstance(given, str):
        return f"pass {name}=[{given!r}]"
    return "choose one" if wanted.startswith("one of") else "pass such a value"


def _require(rule: object, name: str, value: Any) -> None:
    if isinstance(rule, AtLeast) and value is not None and not value >= rule.bound:
        raise InputError(f"{name}= must be at least {rule.bound}, got {value}: give a larger number")
    if not isinstance(rule, Among):
        return
    if not value:
        raise InputError(f"{name}= must name at least one, got none: choose among {', '.join(rule.names)}")
    for item in value:
        if item not in rule.names:
            close = difflib.get_close_matches(item, rule.names, n=1)
            cure = f"did you mean {close[0]}?" if close else "leave it out"
            raise InputError(f"{name}= must be among {', '.join(rule.names)}, got {item!r}: {cure}")


def fitted(value: Any, kind: Any) -> Any:
    """Turn a value into a type, where nothing is lost by it.

    Args:
        value: From Python, from JSON or from TOML.
        kind: A type as a field declares it; values of types that are not looked at fit as they are.

    Returns:
        The value.

    Raises:
        UnfitError: If it is of another type.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return fitted(value, parts[0])
    if getattr(value, "shape", None) == ():  # a number of an array or a tensor
        value = value.item()
    if origin is Literal:
        return _checked(value, value in parts, f"one of {', '.join(map(str, parts))}")
    if origin is types.UnionType or origin is typing.Union:
        others = [part for part in parts if part is not types.NoneType]
        if (value is None and len(others) < len(parts)) or len(others) != 1:
            return value
        return fitted(value, others[0])
    if origin is tuple:
        return _as_tuple(value, parts[0])
    if origin is dict:
        return _checked(value, isinstance(value, dict), "a table")
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _checked(value, isinstance(value, kind), f"a {kind.__name__}")
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            if typing.get_origin(hint) is not typing.ClassVar:
                fitted(getattr(value, name), hint)
        return value
    return _plain(value, kind)


def _plain(value: Any, kind: Any) -> Any:
    if kind is Path:
        return Path(_checked(value, isinstance(value, str | Path), "a path"))
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        return value if type(value) is float and number else float(_checked(value, number, "a number"))
    words = {bool: "true or false", int: "a whole number", str: "text"}
    return _checked(value, type(value) is kind, words[kind]) if kind in words else value


def _as_tuple(value: Any, kind: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple | range):
        value = _checked(value, hasattr(value, "tolist"), _LIST).tolist()
    items = tuple(fitted(item, kind) for item in value)
    return value if isinstance(value, tuple) and items == value else items


def _checked(value: Any, right: bool, wanted: str) -> Any:
    if not right:
        raise UnfitError(wanted, value)
    return value


def described(kind: type[Any]) -> str | None:
    """Write the docstring of a configuration with the explanation of each of its fields, for `help` and Shift-Tab.

    Args:
        kind: The class; fields of its bases count, too.

    Returns:
        Its docstring, in which a section `Attributes` lists the fields; None if it has no docstring.
    """
    own = vars(kind).get("__doc__")
    if own is None:
        return None
    head, *rest = re.split(r"\n(?=(?:Attributes|Raises):\n)", inspect.cleandoc(own))
    found = {name: text for base in reversed(kind.__mro__) for name, text in _explanations(base).items()}
    if not found:
        return str(own)
    lines = ["Attributes:"]
    for name, text in found.items():
        lines.append(textwrap.fill(f"{name}: {text}", 116, initial_indent="    ", subsequent_indent=" " * 8))
    kept = [part.rstrip() for part in rest if part.startswith("Raises")]
    return "\n\n".join([head.rstrip(), "\n".join(lines), *kept])


def _explanations(kind: type[Any]) -> dict[str, str]:
    """The strings below the fields that a class itself declares; none where its source is not to be had."""
    if not vars(kind).get("__annotations__"):
        return {}
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return {}
    return dict(_strings_below(typing.cast("ast.ClassDef", tree.body[0]).body))


def _strings_below(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in itertools.pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                yield name, " ".join(text.split())
