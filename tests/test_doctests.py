"""The examples in docstrings run, and what they print is what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch

import probe

ROOT = Path(probe.__file__).parent
NAMES = {"torch": torch, "np": np}


def _with_examples() -> list[str]:
    """Modules whose source holds an example; nothing is imported to find them."""
    found = []
    for module in pkgutil.walk_packages([str(ROOT)], "probe."):
        path = ROOT.joinpath(*module.name.split(".")[1:])
        source = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
        if ">>> " in source.read_text(encoding="utf-8"):
            found.append(module.name)
    return found


MODULES = _with_examples()


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str) -> None:
    module = importlib.import_module(name)
    outcome = doctest.testmod(module, extraglobs=NAMES, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_the_rooms_that_a_user_calls_first_have_examples() -> None:
    rooms = {name.split(".")[1] for name in MODULES}
    assert {"spectra", "geometry", "inference", "maps", "graphs"} <= rooms
