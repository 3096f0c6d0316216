"""Every public function takes a right argument and refuses a wrong one, in one line that names it."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from probe.boundary.calls import hint_of
from probe.errors import InputError
from tests.boundary import walk
from tests.boundary.walk import Public, everything, wrong

MODULES = walk.modules()


@pytest.fixture(autouse=True)
def as_a_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No run-time checks of types, no network, a folder to write in."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path_factory.mktemp("folder"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the subject is what is refused: a NaN may warn on its way
        yield


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_refuses_wrong_arguments_by_name(module: str) -> None:
    """A new public function is found by itself; one with arguments of a new kind needs a valid call."""
    failures: list[str] = []
    for function in everything():
        if function.module == module:
            failures += _failures(function)
    assert not failures, "\n".join(failures)


def _failures(function: Public) -> Iterator[str]:
    try:
        function.call(function.arguments())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        yield f"{function}: its valid call fails, add one to tests/boundary/valid.py: {type(error).__name__}: {error}"
        return
    for parameter in function.parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        arguments = function.arguments()
        for name, value in wrong(parameter.name, arguments.get(parameter.name, parameter.default)).items():
            if said := _wrong_outcome(function, arguments, parameter, value):
                yield f"{function}({parameter.name}={name}): {said}"


def _wrong_outcome(function: Public, arguments: dict[str, Any], parameter: inspect.Parameter, value: Any) -> str | None:
    """What is wrong with the outcome of a call: an error of another kind, or a refusal that says too little."""
    try:
        function.call({**arguments, parameter.name: value})
    except InputError as error:
        return _missing(str(error), parameter.name, value)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return f"{type(error).__name__} instead of an InputError: {str(error).partition(chr(10))[0]}"
    if value is None or isinstance(value, str | bytes | int | float | complex | dict):
        hint = hint_of(function.plain(), parameter.annotation)
        if not _may_be(hint, value):
            return f"taken, though the annotation {hint} excludes it"
    return None


def _missing(message: str, name: str, value: Any) -> str | None:
    if "\n" in message:
        return f"more than one line: {message}"
    words = (name, name.rstrip("s"), name.rpartition("_")[2], *CALLED.get(name, ()))
    if not any(word in message for word in words):
        return f"does not name the argument: {message}"
    told = {repr(value), str(value), type(value).__name__, str(getattr(value, "dtype", "?")).removeprefix("torch.")}
    told |= {str(tuple(getattr(value, "shape", ("?",)))), "none", "an empty", f"as in {name}="}
    told |= {"()"} if isinstance(value, int | float | complex) else set()  # the shape of a number
    if isinstance(value, list | dict | Tensor | np.ndarray):
        told |= {"(0,)", "()", "[]", "got 0"} if not len(value) else {"NaN", "nan"} if _is_nan(value) else set()
    return None if any(word in message for word in told) else f"does not say what came: {message}"


def _is_nan(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and not value.is_meta and bool(value.isnan().any())
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and bool(np.isnan(value).any())


CALLED = {
    "given": ("prompt",),
    "graph": ("states",),
    "name": ("site", "model", "device"),
    "name_or_object": ("model",),
    "path": ("run directory",),
    "source": ("site",),
    "target": ("site",),
    "which": ("position",),
}
"""What messages call an argument whose name says less."""


def _may_be(hint: Any, value: Any) -> bool:
    """Tell whether a plain value is of an annotation, by another way than the boundary's: beartype's."""
    from beartype.door import is_bearable

    if hint is inspect.Parameter.empty or "TypeVar" in str(type(hint)):
        return True
    takes_numbers = any(word in str(hint) for word in ("Tensor", "ndarray"))  # numbers and lists become arrays
    if takes_numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return True
    takes_paths = isinstance(value, str) and "Path" in str(hint)
    whole = isinstance(value, int) and not isinstance(value, bool) and "float" in str(hint)  # an int is a float
    return takes_paths or whole or bool(is_bearable(value, hint))


@pytest.mark.parametrize("module", MODULES)
def test_numpy_arrays_are_taken_where_tensors_are(module: str) -> None:
    for function in everything():
        if function.module != module:
            continue
        tensors = {name: value for name, value in function.arguments().items() if _is_numbers(value)}
        for name, value in tensors.items():
            expected = function.call(function.arguments())
            found = function.call({**function.arguments(), name: value.numpy()})
            _assert_same(found, expected, f"{function}({name}=)")


def _is_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter)


def _assert_same(found: Any, expected: Any, where: str) -> None:
    assert type(found) is type(expected), where
    if isinstance(found, Tensor | np.ndarray):
        one, other = (value.detach().numpy() if isinstance(value, Tensor) else value for value in (found, expected))
        np.testing.assert_array_equal(one, other, err_msg=where)
    elif isinstance(found, dict):
        for key, value in found.items():
            _assert_same(value, expected[key], f"{where}[{key}]")
    elif isinstance(found, list | tuple):
        for one, other in zip(found, expected, strict=True):
            _assert_same(one, other, where)
    elif isinstance(found, float | int | str):
        assert found == expected or found != found, where


def test_the_walk_is_of_what_users_see() -> None:
    labels = {function.label for function in everything()}
    assert len(labels) > 250
    known = {"block_jacobian", "capture", "LinearMap", "Map.fit", "henrici_departure", "patch", "cosine", "Graph"}
    assert known <= labels
    rooms = Counter(function.module for function in everything())
    assert min(rooms[name] for name in ("probe", "probe.spectra", "probe.graphs", "probe.weights", "probe.maps")) > 8


def test_what_says_nothing_of_an_argument_is_seen() -> None:
    assert _missing("layer= must be a whole number, got 'a'", "layer", "a") is None
    assert _missing("a layer must lie in 0 … 3, got -1", "from_layer", -1) is None
    assert "does not name" in str(_missing("must be a whole number, got 'a'", "layer", "a"))
    assert "does not say" in str(_missing("layer= must be a whole number", "layer", 3.7))
    assert "one line" in str(_missing("layer= must\n be 3.7", "layer", 3.7))


def test_a_raw_error_and_a_silent_acceptance_are_seen() -> None:
    def raw(layer: int) -> int:
        return [1, 2][layer]

    def silent(layer: int) -> None:
        """Takes everything."""

    for function, said in ((raw, "IndexError instead of"), (silent, "taken, though")):
        parameters = tuple(inspect.signature(function).parameters.values())
        public = Public(function.__name__, "probe", parameters, lambda function=function: function)
        assert any(said in failure for failure in _failures(public))
