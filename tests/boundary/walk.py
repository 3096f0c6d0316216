"""Every public function, and calls of it in which one argument is wrong."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import probe
from tests.boundary.valid import INSTANCES, argument

INSIDE = {"analyses", "analysis", "boundary", "cli", "display", "errors", "machine", "runs", "study", "__main__"}
"""Rooms that the program uses, with options and errors of its own."""

ALSO = ("probe.weights.curves", "probe.weights.nulls", "probe.spectra.products")
"""Modules of rooms whose functions have pages, too."""

RESULTS = {
    "ActivationPatching",
    "Decoder",
    "DirectionPath",
    "Intervention",
    "Patched",
    "Page",
    "Picture",
    "AttentionPrimal",
    "BlockCall",
    "Communities",
    "Context",
    "CumulativeSpectra",
    "HuggingFaceModel",
    "Interval",
    "LanguageModel",
    "LensEffect",
    "MeanJacobian",
    "NullComparison",
    "PastKeys",
    "PermutationNull",
    "Prompts",
    "Readout",
    "Reached",
    "ResidualStream",
    "ResolutionChoice",
    "Seen",
    "Site",
    "TokenRows",
    "Windows",
    "InputError",
    "Map",
}
"""Classes that functions return and users do not make."""

INNER = {
    "JacobianOptions",
    "AttentionPrimal",
    "BlockCall",
    "Context",
    "LanguageModel",
    "PastKeys",
    "Reached",
    "Seen",
    "InputError",
}
"""Classes whose methods the library calls, with what it has made itself."""


PYTHON = {"Interval.__getitem__", "Windows.part"}
"""Methods with errors of their own: Python's, which ends a loop; a refusal of everything."""

COSTLY = frozenset(
    """
    batch blocks columns count d dpi draws e font_size height held_out inputs iterations k last length n others outputs
    permutations points probes resamples resolution rows seeds steps trials_per_edge width windows
    """.split()  # noqa: SIM905
)
"""Counts of work and memory, of which a huge number is right but takes for ever."""


@dataclass(frozen=True)
class Public:
    """A function, a method or a constructor.

    Attributes:
        label: "cosine", "LinearMap.fit" or "LinearMap".
        module: The module that exports it.
        parameters: Its parameters, without `self`.
        make: Gives what is called; a method is bound to a new object.
    """

    label: str
    module: str
    parameters: tuple[inspect.Parameter, ...]
    make: Callable[[], Callable[..., Any]]

    def __str__(self) -> str:
        return self.label

    def plain(self) -> Any:
        """The function as it is written, whose module knows the names in its annotations."""
        called = self.make()
        return inspect.unwrap(called.__init__ if inspect.isclass(called) else called)

    def arguments(self) -> dict[str, Any]:
        """The arguments of a valid call."""
        given = {
            each.name: argument(self.module, self.label, each) for each in self.parameters if each.kind not in _VARIADIC
        }
        return {name: value for name, value in given.items() if value is not inspect.Parameter.empty}

    def call(self, arguments: dict[str, Any]) -> Any:
        """Call it, and begin what is computed later: a context is entered, the first item of an iterator taken."""
        by_position = [
            arguments[each.name]
            for each in self.parameters
            if each.kind is each.POSITIONAL_ONLY and each.name in arguments
        ]
        by_name = {
            each.name: arguments[each.name]
            for each in self.parameters
            if each.kind is not each.POSITIONAL_ONLY and each.name in arguments
        }
        found = self.make()(*by_position, **by_name)
        if isinstance(found, AbstractContextManager) and not isinstance(found, torch.nn.Module):
            with found as entered:
                return entered
        return next(found, None) if isinstance(found, Iterator) else found


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def modules() -> list[str]:
    rooms = [room.name for room in pkgutil.iter_modules(probe.__path__) if room.name not in INSIDE]
    return ["probe", *(f"probe.{room}" for room in rooms), *ALSO]


@functools.cache
def everything() -> tuple[Public, ...]:
    """All public functions, methods and constructors."""
    return tuple(_walk())


def _walk() -> Iterator[Public]:
    seen: set[int] = set()
    for name in modules():
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", None) or [
            each
            for each, value in vars(module).items()
            if not each.startswith("_") and getattr(value, "__module__", None) == name
        ]
        for each in exported:
            value = getattr(module, each)
            if id(value) in seen or not (
                inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value)) if callable(value) else False
            ):
                continue
            seen.add(id(value))
            if inspect.isclass(value):
                yield from _of_class(each, name, value)
            else:
                yield Public(each, name, _parameters(value), functools.partial(_itself, value))


def _of_class(label: str, module: str, kind: Any) -> Iterator[Public]:
    if label not in RESULTS:
        yield Public(label, module, _parameters(kind), functools.partial(_itself, kind))
    if label in INNER:
        return
    for name, member in vars(kind).items():
        if f"{label}.{name}" in PYTHON or (name.startswith("_") and name not in ("__getitem__", "__call__")):
            continue
        bound = isinstance(member, classmethod | staticmethod)
        plain = member.__func__ if bound else member
        if not inspect.isfunction(inspect.unwrap(plain)) if callable(plain) else True:
            continue
        parameters = _parameters(plain)[0 if isinstance(member, staticmethod) else 1 :]
        if all(each.kind in _VARIADIC for each in parameters):
            continue
        make = functools.partial(getattr, kind, name) if bound else functools.partial(_method, label, name)
        yield Public(f"{label}.{name}", module, parameters, make)


def _itself(value: Any) -> Any:
    return value


def _method(label: str, name: str) -> Any:
    if label not in INSTANCES:
        raise AssertionError(
            f"add an object of {label} to INSTANCES in tests/boundary/valid.py: it has a method {name}"
        )
    return getattr(INSTANCES.get(f"{label}.{name}", INSTANCES[label])(), name)


def _parameters(value: Any) -> tuple[inspect.Parameter, ...]:
    if not inspect.isfunction(inspect.unwrap(value)) and not inspect.isfunction(value.__init__):
        return ()  # a dict or an exception
    return tuple(inspect.signature(value).parameters.values())


def wrong(name: str, valid: Any) -> dict[str, Any]:
    """Values that most arguments of that name cannot take; arrays are like the valid one, but for one property."""
    values: dict[str, Any] = {
        "none": None,
        "word": "nonsense",
        "bytes": b"",
        "fraction": 3.7,
        "negative": -1,
        "huge": 10**9,
        "true": True,
        "empty list": [],
        "empty dict": {},
        "object": object(),
        "complex": 1 + 2j,
        "integers of seven axes": torch.zeros((1,) * 7, dtype=torch.int64),
        "floats of seven axes": torch.zeros((1,) * 7),
        "empty tensor": torch.empty(0),
        "NaN": torch.full((2, 2), torch.nan),
        "meta": torch.empty(2, 2, device="meta"),
        "objects": np.array([object(), None]),
    }
    if name in COSTLY:
        del values["huge"]
    if isinstance(valid, np.ndarray):
        values["empty array"] = valid[:0]
        if valid.dtype.kind == "f":
            values["NaN array"] = np.full_like(valid, np.nan)
    if isinstance(valid, Tensor):
        values["empty tensor"] = valid[:0]
        values["meta"] = valid.to("meta")
        if valid.is_floating_point():
            values["NaN"] = torch.full_like(valid, torch.nan)
    return values
