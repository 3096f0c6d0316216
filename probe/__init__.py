"""How a language model moves its residual stream: layer updates, Jacobians, continuity of weights.

The public names are loaded on first use (PEP 562), so that importing `probe` is quick and imports no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from probe.errors import InputError

if TYPE_CHECKING:
    from probe.jacobian import (
        block_jacobian,
        cross_jacobian,
        cumulative_jacobian,
        iter_block_jacobians,
        mean_jacobian,
    )
    from probe.model import LanguageModel, load_model
    from probe.patching import intervene, patch
    from probe.stream import ResidualStream, capture
    from probe.text import Prompts, Substring, Windows, load_prompts, load_windows

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "LanguageModel",
    "Prompts",
    "ResidualStream",
    "Substring",
    "Windows",
    "block_jacobian",
    "capture",
    "cross_jacobian",
    "cumulative_jacobian",
    "intervene",
    "iter_block_jacobians",
    "load_model",
    "load_prompts",
    "load_windows",
    "mean_jacobian",
    "patch",
]

# public name -> the module that defines it
_NAMES = {
    "LanguageModel": "probe.model",
    "Prompts": "probe.text",
    "ResidualStream": "probe.stream",
    "Substring": "probe.text",
    "Windows": "probe.text",
    "block_jacobian": "probe.jacobian",
    "capture": "probe.stream",
    "cross_jacobian": "probe.jacobian",
    "cumulative_jacobian": "probe.jacobian",
    "intervene": "probe.patching",
    "iter_block_jacobians": "probe.jacobian",
    "load_model": "probe.model",
    "load_prompts": "probe.text",
    "load_windows": "probe.text",
    "mean_jacobian": "probe.jacobian",
    "patch": "probe.patching",
}
_MODULES = frozenset(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"probe.{name}")
    raise AttributeError(f"module 'probe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
