"""Names of the parts, which options import without torch, are those of the parts; the public face loads on use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from probe import training
from probe.training import activations, names, optimisers, transformer


def test_the_names_are_those_of_the_parts():
    assert tuple(activations.FUNCTION_OF) == names.ACTIVATIONS
    assert tuple(optimisers.LEARNING_RATES) == names.OPTIMISERS
    assert tuple(transformer.ARM_OF) == names.ARMS
    for form in names.TOY_FORMS:
        for norm in names.NORMS:
            shape = training.Shape(4, 1, 2, 2)
            training.ToyMLP(form=form, residual=True, activation="gelu", norm=norm, scale=1.0, seed=0, shape=shape)
    for teacher in names.TEACHERS:
        training.Regression((0,), teacher, batch=2)


def test_the_names_need_no_torch():
    code = "import sys, probe.training.names; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_loads_and_old_ones_warn():
    assert all(getattr(training, name) is not None for name in training.__all__)
    moved = {
        "Plan": (training.Schedule, "Schedule"),
        "FORMS": (names.TOY_FORMS, "names.TOY_FORMS"),
        "best_matches": (training.measures.best_squared_cosines, "measures.best_squared_cosines"),
        "leading_triplets": (training.measures.batched_triplets, "measures.batched_triplets"),
        "orthogonalise": (optimisers.orthogonalise, "optimisers.orthogonalise"),
    }
    for old, (new, path) in moved.items():
        with pytest.warns(DeprecationWarning, match=rf"use probe\.training\.{path}$"):
            assert getattr(training, old) is new
    with pytest.raises(AttributeError, match="nothing"):
        _ = training.nothing
