"""The checks of types at run time, which all tests rely on, are there."""

from __future__ import annotations

import functools

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from probe import patching
from tests import typechecker
from tests.typechecker import CHECKED, THEN_EACH, check

checked = jaxtyping.jaxtyped(typechecker=check)  # as the import hook writes it above each function


@checked
def joined(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return a + b


@checked
def doubled(number: int) -> int:
    return 2 * number


def test_the_package_is_imported_under_the_hook() -> None:
    assert jaxtyping.jaxtyped is typechecker._jaxtyped
    assert patching.kl_divergence.__code__ is not patching.kl_divergence.__wrapped__.__code__


def test_shapes_that_differ_and_wrong_types_are_refused() -> None:
    assert joined(torch.ones(2), torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(TypeCheckError):
        joined(torch.ones(2), torch.ones(1))
    with pytest.raises(BeartypeCallHintParamViolation):
        doubled("a")  # type: ignore[arg-type]


def test_of_many_calls_a_sample_is_checked() -> None:
    passed = [0]

    def plain() -> None:
        passed[0] += 1

    seen = [0]

    @functools.wraps(plain)
    def counted() -> None:
        seen[0] += 1

    called = typechecker._sampled(plain, counted)
    for _ in range(CHECKED + 3 * THEN_EACH):
        called()
    assert seen[0] + passed[0] == CHECKED + 3 * THEN_EACH
    assert seen[0] == CHECKED + 3
