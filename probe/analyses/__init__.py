"""One module an analysis: `run` it, its `Config`, its figures and claims. Loaded on first use."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

_ANALYSES = frozenset(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> Any:
    if name in _ANALYSES:
        return importlib.import_module(f"probe.analyses.{name}")
    raise AttributeError(f"module 'probe.analyses' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ANALYSES})
