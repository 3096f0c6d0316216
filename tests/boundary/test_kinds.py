"""What annotations accept, what they convert, and what a refusal says."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Bool, Complex, Float, Int, Int64, Shaped
from torch import Tensor

from probe.boundary import at_least, between, filled, finite, public, within
from tests.plant.refusing import refused


@pytest.fixture(autouse=True)
def as_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run-time checks of types but the boundary's."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def taken(hint: Any, value: Any) -> Any:
    """What a function with one argument `x` of that annotation gets."""

    def function(x):
        return x

    function.__annotations__ = {"x": hint}
    return public(function)(value)


X = torch.arange(6.0).reshape(2, 3)


class Named(Protocol):
    @property
    def name(self) -> str:
        """Its name."""


class Costly:
    @property
    def name(self) -> str:
        raise AssertionError("a property was computed to look whether it is there")


def test_numbers_of_numpy_and_torch_become_pythons() -> None:
    for value in (3, np.int64(3), np.array(3), torch.tensor(3)):
        found = taken(int, value)
        assert (found, type(found)) == (3, int)
    for value in (2.0, 2, np.float32(2), torch.tensor(2.0), torch.tensor(2)):
        found = taken(float, value)
        assert (found, type(found)) == (2.0, float)
    assert taken(bool, np.bool_(True)) is True
    assert taken(Path, "a/b") == Path("a/b")
    assert taken(float | None, None) is None


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (int, True, ("whole number", "True")),
        (int, 3.7, ("whole number", "3.7 (float)")),
        (int, torch.tensor(3.0), ("whole number", "Tensor of float32, ()")),
        (int, torch.tensor(3, device="meta"), ("whole number", "on meta")),
        (float, "a", ("must be a number, got 'a'",)),
        (float, 10**400, ("must be a number", "(int)")),
        (bool, 1, ("True or False", "1 (int)")),
        (str, None, ("must be a text, got None",)),
        (str, b"a", ("must be a text, got b'a'",)),
        (Literal["up", "down"], "left", ("one of 'up', 'down', got 'left': choose one",)),
        (Literal[1, 2], True, ("one of 1, 2, got True",)),
        (Fraction, 0.5, ("must be a Fraction, got 0.5 (float)",)),
        (int | str, [], ("a whole number or a text, got [] (list)",)),
        (Sequence[int], 3, ("sequence of whole numbers, got 3 (int): put it into a list",)),
        (Sequence[int], [1, "a"], ("sequence of whole numbers, got 'a' as item 1",)),
        (Sequence[str], "word", ("sequence of texts, got 'word': put it into a list",)),
        (Sequence[int], np.zeros((2, 2), dtype=int), ("sequence of whole numbers, got a ndarray of int64, (2, 2)",)),
        (Sequence[int], torch.zeros(2, device="meta"), ("on meta",)),
        (tuple[int, str], (1, 2), ("item 1 must be a text, got 2 (int)",)),
        (tuple[int, str], (1,), ("must be (a whole number, a text), got (1,) (tuple)",)),
        (Mapping[str, int], {1: 1}, ("keys are each a text, got the key 1",)),
        (Mapping[str, int], {"a": 0.5}, ("a whole number for each key, got 0.5 (float) for 'a'",)),
        (Mapping[str, int], [1], ("a dict of whole numbers, got [1] (list)",)),
        (Callable[[int], int], 3, ("a function, got 3 (int)",)),
        (Named, object(), ("a Named, got an object, which has no name",)),
        (Named, Costly, ("a Named, got the class Costly: pass an object",)),
        (Tensor, "a", ("a tensor, got 'a'",)),
        (Tensor, torch.zeros(1, device="meta"), ("must hold numbers", "on meta")),
    ],
)
def test_what_is_refused_says_what_must_hold_what_came_and_the_repair(hint, value, said) -> None:
    message = refused(lambda: taken(hint, value), "x= must ", ": ", *said)
    assert message.count(" got ") == 1


def test_members_of_a_protocol_are_not_computed() -> None:
    one = Costly()
    assert taken(Named, one) is one


def test_sequences_of_any_kind_are_taken_item_by_item() -> None:
    assert taken(Sequence[int], np.arange(3)) == [0, 1, 2]
    assert taken(Sequence[int], torch.arange(3)) == [0, 1, 2]
    assert [type(each) for each in taken(Sequence[int], [np.int64(1), 2])] == [int, int]
    assert taken(tuple[int, ...], [1, 2]) == (1, 2)
    assert taken(list[int], range(2)) == [0, 1]
    assert taken(tuple[float, str], [1, "a"]) == (1.0, "a")
    given = ["a", "b"]
    assert taken(Sequence[str], given) is given
    numbers = (each for each in (1, 2))
    assert taken(Iterator[int], numbers) is numbers
    assert taken(Mapping[str, float], {"a": 1, "b": 2.0}) == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("kind", ["numpy", "list", "backwards", "big endian", "read-only", "float64"])
def test_numbers_in_every_form_become_tensors(kind) -> None:
    array = X.numpy()
    frozen = array.copy()
    frozen.flags.writeable = False
    form = {
        "numpy": array,
        "list": X.tolist(),
        "backwards": array[::-1].copy()[::-1],
        "big endian": array.astype(">f4"),
        "read-only": frozen,
        "float64": array.astype(np.float64),
    }[kind]
    found = taken(Float[Tensor, "n d"], form)
    assert found.dtype is (torch.float64 if kind == "float64" else torch.float32)
    assert torch.equal(found.float(), X)


def test_tensors_become_arrays_where_arrays_stand() -> None:
    for given in (X, X.clone().requires_grad_(), X.to(torch.bfloat16), X.tolist()):
        found = taken(Float[np.ndarray, "n d"], given)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, X.numpy())
    assert taken(Float[np.ndarray, "n d"] | Float[Tensor, "n d"], X) is X  # what fits is left as it is


def test_integers_become_wider_but_never_floats() -> None:
    assert taken(Int64[Tensor, " n"], torch.tensor([1, 2], dtype=torch.int32)).dtype is torch.int64
    assert taken(Int64[np.ndarray, " n"], np.array([1, 2], dtype=np.uint8)).dtype == np.int64
    assert taken(Int[Tensor, " n"], []).dtype is torch.int64
    assert taken(Float[Tensor, " n"], [1, 2]).tolist() == [1.0, 2.0]  # Python's numbers have no dtype
    refused(lambda: taken(Float[Tensor, " n"], torch.arange(2)), "x= must hold floats, got", "int64", "pass x.float()")
    refused(lambda: taken(Float[np.ndarray, " n"], np.arange(2)), "pass x.astype(float)")
    refused(lambda: taken(Int[Tensor, " n"], torch.zeros(2)), "must hold integers", "pass x.long()")
    refused(lambda: taken(Bool[Tensor, " n"], torch.arange(2)), "must hold truth values", "pass x.bool()")
    refused(lambda: taken(Float[Tensor, " n"], torch.zeros(2, dtype=torch.complex64)), "pass x.real if its imaginary")


@pytest.mark.parametrize(
    "value", ["a", None, object(), {}, [[1.0], [2.0, 3.0]], np.array([object()]), np.array(["a"]), True, X.to("meta")]
)
def test_what_holds_no_numbers_is_no_tensor(value) -> None:
    refused(lambda: taken(Float[Tensor, "*n"], value), "x= must ", "got ")


def test_texts_may_be_entries_of_an_array() -> None:
    names = np.array(["a", "b"], dtype=object)
    assert taken(Shaped[np.ndarray, " row"], names) is names


@public
def two(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], z: Float[Tensor, "*batch d"] | None = None) -> None:
    """Share two axes."""


@public
def broadcast(a: Float[Tensor, "*#batch d"], b: Float[Tensor, "*#batch d"]) -> None:
    """Broadcast all axes but the last."""


@public
def rows(a: Float[Tensor, "#n d"], b: Float[Tensor, "#n d"]) -> None:
    """Broadcast one axis."""


@public
def square(A: Float[Tensor, "*batch d d"], three: Float[Tensor, "3 _"] | None = None) -> None:
    """Take square matrices."""


def test_axes_of_one_name_have_one_size() -> None:
    two(torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(5, 6, 2))
    refused(
        lambda: two(torch.zeros(4, 2), torch.zeros(5, 3)),
        "y= must have the shape (n, e) with n = 4 as in x=, got a Tensor of float32, (5, 3)",
    )
    refused(lambda: two(torch.zeros(4, 2), y=torch.zeros(4, 3), z=torch.zeros(3)), "z= must", "(…, d) with d = 2")
    refused(lambda: two(torch.zeros(4), torch.zeros(4, 3)), "x= must have the shape (n, d)", "pass x[None] for one")
    refused(lambda: two(torch.zeros(1, 4, 2), torch.zeros(4, 3)), "give it 2 axes")
    refused(lambda: square(torch.zeros(2, 3)), "A= must have the shape (…, d, d)", "(2, 3)")
    refused(lambda: square(torch.zeros(2)), "A= must")
    refused(lambda: square(torch.eye(2), torch.zeros(4, 1)), "three= must have the shape (3, _)")
    refused(lambda: two(torch.zeros(4, 2), torch.zeros(1, 3)), "with n = 4 as in x=")  # no broadcasting
    two(torch.zeros(4, 2), torch.zeros(4, 3))  # names last for one call


def test_broadcast_axes_may_be_one() -> None:
    broadcast(torch.zeros(4, 1, 2), torch.zeros(3, 2))
    rows(torch.zeros(1, 2), torch.zeros(3, 2))
    refused(lambda: rows(torch.zeros(2, 2), torch.zeros(3, 2)), "b= must have the shape (n, d)")
    refused(lambda: broadcast(torch.zeros(4, 2), torch.zeros(3, 2)), "b= must have the shape (…, d)")


@public(k=at_least(1), level=between(0, 1), x=(filled, finite), share=within(0, 1), ranks=at_least(0), names=filled)
def limited(
    x: Float[Tensor, " n"] | None = None,
    *,
    k: int = 1,
    level: float | None = None,
    share: Float[np.ndarray, " n"] | float = 0.5,
    ranks: Sequence[int] = (),
    names: Mapping[str, int] | None = None,
) -> int:
    """Have limits."""
    return k


def test_limits_are_said_with_the_default() -> None:
    assert limited(torch.ones(2), k=3, level=0.5, share=np.array([0.0, 1.0]), ranks=[0, 4]) == 3
    refused(lambda: limited(k=0), "k= must be at least 1, got 0 (int): raise it, or leave it out for 1")
    refused(lambda: limited(level=1.0), "level= must lie between 0 and 1, got 1.0")
    refused(lambda: limited(level=float("nan")), "level= must lie between 0 and 1, got nan")
    refused(lambda: limited(torch.ones(0)), "x= must hold at least one entry")
    refused(lambda: limited(torch.tensor([1.0, torch.inf])), "x= must be finite")
    refused(lambda: limited(share=np.array([0.5, 1.5])), "share= must lie in [0, 1]")
    refused(lambda: limited(share=-0.1), "share= must lie in [0, 1], got -0.1")
    refused(lambda: limited(ranks=[1, -1]), "ranks= must be at least 0, got -1")
    refused(lambda: limited(names={}), "names= must hold at least one entry, got {} (dict)")


def test_a_limit_of_no_argument_is_an_error_of_the_code() -> None:
    @public(other=filled)
    def limited_wrongly(one: int) -> None:
        """Nothing."""

    with pytest.raises(TypeError, match="limited_wrongly has no argument other"):
        limited_wrongly(1)


def test_wrong_numbers_of_arguments_stay_pythons_own() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        limited(other=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes from 0 to 1 positional"):
        limited(None, 1)  # type: ignore[misc]


def test_methods_classes_and_contexts_have_boundaries() -> None:
    @public
    @dataclass(frozen=True)
    class Point:
        x: int
        where: Path = Path()

        @public
        def plus(self, other: int) -> int:
            return self.x + other

        @classmethod
        @public
        def at(cls, x: int) -> Point:
            return cls(x)

    assert Point(np.int64(2), "a") == Point(2, Path("a"))  # type: ignore[arg-type]
    assert Point.at(1).plus(2) == 3
    refused(lambda: Point("a"), "x= must be a whole number, got 'a'")  # type: ignore[arg-type]
    refused(lambda: Point.at("a"), "x= must be a whole number")  # type: ignore[arg-type]
    refused(lambda: Point(1).plus(0.5), "other= must be a whole number, got 0.5")  # type: ignore[arg-type]

    @public
    @contextmanager
    def inside(x: int) -> Iterator[int]:
        yield x

    with inside(np.int64(3)) as found:  # type: ignore[arg-type]
        assert found == 3
    refused(lambda: inside("a"), "x= must be a whole number")  # type: ignore[arg-type]


def test_a_function_keeps_its_face() -> None:
    def plain(x: int, /, *rest: int, flag: bool = False, **more: float) -> tuple[Any, ...]:
        """Say this."""
        return x, rest, flag, more

    dressed = public(plain)
    assert (dressed.__name__, dressed.__doc__) == ("plain", "Say this.")
    assert functools.WRAPPER_ASSIGNMENTS[0] == "__module__"
    assert dressed(np.int64(1), np.int64(2), flag=True, a=np.float64(3)) == (1, (2,), True, {"a": 3.0})
    refused(lambda: dressed(1, "a"), "rest= must be a whole number, got 'a'")  # type: ignore[arg-type]
    refused(lambda: dressed(1, a="b"), "more= must be a number, got 'b'")  # type: ignore[arg-type]


@public(x=(filled, finite), share=within(0, 1))
def scaled(x: Float[Tensor, " d"], share: Float[Tensor, ""] | float = 0.5) -> Float[Tensor, " d"]:
    """Have limits that look at entries."""
    return share * x.square()


def test_a_decorated_function_is_pickled_read_and_transformed_as_before() -> None:
    assert pickle.loads(pickle.dumps(scaled)) is scaled
    assert list(inspect.signature(scaled).parameters) == ["x", "share"]
    shares = torch.tensor([0.0, 1.0])
    assert torch.equal(torch.func.vmap(scaled)(X[:2], shares), shares[:, None] * X[:2].square())
    assert torch.equal(torch.func.jacrev(scaled)(X[0]), X[0].diag())
    assert torch.equal(torch.func.vmap(torch.func.grad(lambda x: scaled(x).sum()))(X), X)
    refused(lambda: torch.func.vmap(scaled)(X[None], shares[:1]), "x= must have the shape (d,)")


def test_long_values_are_shortened_to_a_line() -> None:
    message = refused(lambda: taken(int, "line\n" * 100), "x= must be a whole number")
    assert len(message) < 200
    assert len(refused(lambda: taken(int, list(range(1000))), "x= must")) < 200


def test_complex_numbers_are_taken() -> None:
    assert taken(Complex[Tensor, " n"], np.array([1j])).dtype is torch.complex128
