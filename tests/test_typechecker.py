"""The checks of types at run time, which all tests rely on, are there."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from probe import geometry, patching
from probe.errors import as_typed


def test_shapes_that_differ_are_refused() -> None:
    same = torch.full((2, 3), 0.5)
    patching.kl_divergence(same, same)
    with pytest.raises(TypeCheckError):
        patching.kl_divergence(same, same[:, :2])
    with pytest.raises(TypeCheckError):
        geometry.cosine(same, same[0].repeat(4))


def test_types_without_shapes_are_checked_too() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        as_typed(3, [])  # type: ignore[arg-type]
