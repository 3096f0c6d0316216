"""How a language model moves its residual stream: layer updates, Jacobians, continuity of weights.

The public names are loaded on first use (PEP 562), so that importing `probe` is quick and imports no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from probe.errors import InputError

if TYPE_CHECKING:
    from probe import analyses as analyses
    from probe import analysis as analysis
    from probe import attribution as attribution
    from probe import claims as claims
    from probe import directions as directions
    from probe import geometry as geometry
    from probe import graphs as graphs
    from probe import inference as inference
    from probe import jacobian as jacobian
    from probe import lens as lens
    from probe import maps as maps
    from probe import model as model
    from probe import patching as patching
    from probe import plots as plots
    from probe import replay as replay
    from probe import report as report
    from probe import runs as runs
    from probe import spectra as spectra
    from probe import stream as stream
    from probe import text as text
    from probe import training as training
    from probe import weights as weights
    from probe.analyses import open_run, open_runs
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
    "open_run",
    "open_runs",
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
    "open_run": "probe.analyses",
    "open_runs": "probe.analyses",
    "patch": "probe.patching",
}
# the rooms that users work in; each has a page in docs/api
_ROOMS = (
    "analyses",
    "analysis",
    "attribution",
    "claims",
    "directions",
    "geometry",
    "graphs",
    "inference",
    "jacobian",
    "lens",
    "maps",
    "model",
    "patching",
    "plots",
    "replay",
    "report",
    "runs",
    "spectra",
    "stream",
    "text",
    "training",
    "weights",
)
_MODULES = frozenset(module.name for module in pkgutil.iter_modules(__path__))

if not TYPE_CHECKING:  # to type checkers a module with this function has every name there is

    def __getattr__(name: str) -> Any:
        if name in _NAMES:
            return getattr(importlib.import_module(_NAMES[name]), name)
        if name in _MODULES:
            return importlib.import_module(f"probe.{name}")
        raise AttributeError(f"module 'probe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, "__version__"})
