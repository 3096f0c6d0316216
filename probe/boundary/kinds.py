"""The kinds of arguments: what an annotation accepts, what is converted to it, and how a refusal says it."""

from __future__ import annotations

import reprlib
import types
import typing
from collections import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Sizes = dict[str, tuple[Any, str]]
"""The sizes of named axes in one call, each with the argument that it was first seen in."""


class Refused(NamedTuple):
    """A value that an argument does not accept.

    Attributes:
        must: What must hold, after "must".
        got: What came.
        repair: What to do about it.
    """

    must: str
    got: str
    repair: str


@typing.runtime_checkable
class Kind(Protocol):
    """A kind of argument: what it may be, and what is converted to it."""

    words: str

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Return the value, what it is converted to, or `Refused`."""


def kind_of(hint: Any) -> Kind | None:
    """Find the kind that an annotation stands for.

    Args:
        hint: The annotation.

    Returns:
        The kind; None if everything is accepted.
    """
    if hint is Any or hint is object or isinstance(hint, str | typing.ForwardRef):
        return None
    if hint is None or hint is type(None):
        return _Of((type(None),), "None")
    if isinstance(hint, typing.TypeVar):
        return kind_of(hint.__bound__ or Any)
    if hasattr(hint, "array_type") and hasattr(hint, "dim_str"):
        from probe.boundary.arrays import Array

        return Array(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kind_of(inner[0])
    if origin is typing.Unpack:
        return None
    if origin in (typing.Union, types.UnionType):
        kinds = [kind_of(each) for each in inner]
        return None if None in kinds else _Either([kind for kind in kinds if kind is not None])
    if origin is typing.Literal:
        return _OneOf(inner)
    return _class_kind(origin or hint, inner)


def _class_kind(kind: Any, inner: tuple[Any, ...]) -> Kind | None:
    if kind in (int, float, bool):
        return _Number(kind)
    if kind is abc.Callable:
        return _Callable()
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return _Row([kind_of(each) for each in inner])
    if kind in _SEVERAL:
        return _Several(kind, kind_of(inner[0]) if inner else None)
    if kind in (dict, abc.Mapping, abc.MutableMapping):
        return _Named(kind, *(kind_of(each) for each in inner or (Any, Any)))
    if getattr(kind, "_is_protocol", False) and not kind.__module__.startswith(("typing", "collections", "os")):
        return _Like(kind)
    if getattr(kind, "__module__", "") == "torch" and kind.__name__ == "Tensor":
        from probe.boundary.arrays import AnyTensor

        return AnyTensor()
    return _Of((kind,), _CLASSES.get(kind, _with_article(getattr(kind, "__name__", str(kind)))))


_SEVERAL = (list, tuple, set, frozenset, abc.Sequence, abc.Collection, abc.Iterable, abc.Set)
_CLASSES: dict[Any, str] = {str: "a text", Path: "a path", bytes: "bytes"}  # others by their names


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeio' else 'a'} {name}"


def shown(value: Any) -> str:
    """Describe a value in a few words, on one line.

    Args:
        value: What came.

    Returns:
        Its dtype and shape if it is an array, the value itself if that is short and plain, else its class.
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        where = f" on {value.device}" if str(getattr(value, "device", "cpu")) not in ("cpu", "cuda:0") else ""
        return f"{_with_article(type(value).__name__)} of {str(dtype).removeprefix('torch.')}, {tuple(shape)}{where}"
    if value is None or isinstance(value, str | bytes | int | float | complex | list | tuple | dict | set | Path):
        text = " ".join(_SHORT.repr(value).split())
        return text if value is None or isinstance(value, str | bytes | bool) else f"{text} ({type(value).__name__})"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return _with_article(type(value).__name__)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _is_plain_number(value: Any) -> bool:
    """A number of numpy, or a tensor or array without axes, that says a number."""
    dtype = str(getattr(value, "dtype", "object"))
    return (
        getattr(value, "shape", None) == ()
        and hasattr(value, "item")
        and "object" not in dtype
        and (str(getattr(value, "device", "cpu")) != "meta")
    )


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


_LARGEST = 2**1023  # whole numbers beyond have no float


class _Number:
    """Whole numbers, numbers, or truth values; what numpy and torch have of them is converted."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self.words = {int: "a whole number", float: "a number", bool: "True or False"}[kind]

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take the number itself, or convert it."""
        if type(value) is self._kind or (self._kind is not bool and _is(value, self._kind)):
            return value
        item = value.item() if convert and _is_plain_number(value) else value
        if type(item) is self._kind or (convert and self._kind is float and _is(item, int) and abs(item) < _LARGEST):
            return self._kind(item)
        return Refused(f"be {self.words}", shown(value), "pass one")


class _OneOf:
    """Words of a list."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self._values = values
        self.words = f"one of {', '.join(repr(value) for value in values)}" if len(values) > 1 else repr(values[0])

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take a word of the list."""
        if any(type(value) is type(each) and value == each for each in self._values):
            return value
        return Refused(f"be {self.words}", shown(value), "choose one")


class _Of:
    """Objects of a class; a text where a path is meant becomes one."""

    def __init__(self, classes: tuple[Any, ...], words: str) -> None:
        self._classes = classes
        self.words = words

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take an object of the class."""
        if isinstance(value, self._classes):
            return value
        if convert and Path in self._classes and isinstance(value, str):
            return Path(value)
        return Refused(f"be {self.words}", shown(value), "pass one")


class _Callable:
    """Functions, and whatever else can be called."""

    words = "a function"

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take what can be called."""
        return value if callable(value) else Refused("be a function", shown(value), "pass one")


class _Like:
    """Objects that have the members of a protocol. Members are looked up without computing properties."""

    def __init__(self, protocol: Any) -> None:
        bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
        self._members = sorted({
            member
            for base in bases
            for member in [*vars(base), *vars(base).get("__annotations__", {})]
            if not member.startswith("_") or member in ("__call__", "__iter__", "__len__", "__getitem__")
        })
        self.words = _with_article(protocol.__name__.lstrip("_"))
        self._protocol = protocol

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take an object with all members."""
        if isinstance(value, type):
            return Refused(f"be {self.words}", shown(value), "pass an object")
        kind = type(value)
        if self._protocol in kind.__mro__:
            return value
        for member in self._members:
            if not hasattr(kind, member) and not hasattr(value, member):
                return Refused(f"be {self.words}", f"{shown(value)}, which has no {member}", "pass one")
        return value


class _Several:
    """Sequences, collections and iterables; arrays of one axis become lists, and lists tuples where a tuple stands."""

    def __init__(self, kind: Any, item: Kind | None) -> None:
        self._kind, self._item = kind, item
        self.words = "a sequence" + ("" if item is None else f" of {item.words.removeprefix('a ')}")
        if item is not None and item.words in ("a whole number", "a number", "a text", "a path", "a tensor"):
            self.words += "s"

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take the sequence, its items taken one by one."""
        if convert and hasattr(value, "tolist") and len(getattr(value, "shape", ())) == 1:
            if str(getattr(value, "device", "cpu")) == "meta":
                return Refused(f"be {self.words}", shown(value), "pass numbers")
            value = value.tolist()
        if convert and self._kind is tuple and isinstance(value, list | range):
            value = tuple(value)
        if convert and self._kind is list and isinstance(value, tuple | range):
            value = list(value)
        if isinstance(value, str | bytes | bytearray) or hasattr(value, "shape") or not isinstance(value, self._kind):
            return Refused(f"be {self.words}", shown(value), "put it into a list" if _single(value) else "pass one")
        if self._item is None or not isinstance(value, list | tuple | set | frozenset):
            return value
        taken = [self._item.take(item, sizes, name, convert) for item in value]
        for index, item in enumerate(taken):
            if type(item) is Refused:
                return Refused(f"be {self.words}", f"{item.got} as item {index}", "change that item")
        if all(new is old for new, old in zip(taken, value, strict=True)):
            return value
        return type(value)(taken)


def _single(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


class _Row:
    """A tuple of fixed length; a list becomes one."""

    def __init__(self, items: list[Kind | None]) -> None:
        self._items = items
        self.words = f"({', '.join('anything' if item is None else item.words for item in items)})"

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take the tuple, its items taken one by one."""
        if not isinstance(value, tuple | list if convert else tuple) or len(value) != len(self._items):
            return Refused(f"be {self.words}", shown(value), "pass a tuple")
        taken = []
        for index, (kind, item) in enumerate(zip(self._items, value, strict=True)):
            one = item if kind is None else kind.take(item, sizes, f"{name}[{index}]", convert)
            if type(one) is Refused:
                return Refused(f"be {self.words}, and item {index} must {one.must}", one.got, one.repair)
            taken.append(one)
        return tuple(taken)


class _Named:
    """Mappings; keys and values are taken one by one."""

    def __init__(self, kind: Any, key: Kind | None, value: Kind | None) -> None:
        self._kind, self._key, self._value = kind, key, value
        self.words = "a dict" + ("" if value is None else f" of {value.words.removeprefix('a ')}s")

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take the mapping."""
        if not isinstance(value, Mapping if self._kind is not dict else dict):
            return Refused(f"be {self.words}", shown(value), "pass one")
        changed = {}
        for key, item in value.items():
            if self._key is not None and type(self._key.take(key, sizes, name, False)) is Refused:
                return Refused(f"be a dict whose keys are each {self._key.words}", f"the key {shown(key)}", "change it")
            if self._value is None:
                continue
            taken = self._value.take(item, sizes, name, convert)
            if type(taken) is Refused:
                return Refused(f"hold {self._value.words} for each key", f"{taken.got} for {key!r}", taken.repair)
            if taken is not item:
                changed[key] = taken
        return {**value, **changed} if changed else value


class _Either:
    """One of several kinds: first what is one of them, then what can be converted to one, in their order."""

    def __init__(self, kinds: list[Kind]) -> None:
        self._kinds = kinds
        words = list(dict.fromkeys(kind.words for kind in kinds))
        self.words = " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take the value as the first kind that accepts it."""
        refused = []
        for converting in (False, True) if convert else (False,):
            for kind in self._kinds:
                taken = kind.take(value, sizes, name, converting)
                if type(taken) is not Refused:
                    return taken
                refused.append(taken)
        telling = [each for each in refused if not each.must.startswith("be ")]  # the dtype or the shape of an array
        return telling[-1] if telling else Refused(f"be {self.words}", shown(value), "pass one of these")
