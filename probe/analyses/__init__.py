"""One module an analysis: `run` it, its `Config`, its figures and claims. Loaded on first use.

Other installed packages add analyses of their own through the entry-point group `probe.analyses`: its names are the
analyses', and each leads to a `probe.analysis.Analysis`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

from probe.errors import InputError, renamed

if TYPE_CHECKING:
    from probe.analyses import causes as causes
    from probe.analyses import communities as communities
    from probe.analyses import continuity as continuity
    from probe.analyses import dynamics as dynamics
    from probe.analyses import lens as lens
    from probe.analyses import tokenwise as tokenwise
    from probe.analyses.opening import open_run as open_run
    from probe.analyses.opening import open_runs as open_runs
    from probe.analysis.contract import Analysis

__all__ = ["config_of", "load", "names", "open_run", "open_runs", "summary"]

GROUP = "probe.analyses"
_ANALYSES = frozenset(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
_OPENING = ("open_run", "open_runs")


def names() -> list[str]:
    """List the names of all analyses, those of other installed packages among them.

    Returns:
        Names, sorted.
    """
    return sorted({*_ANALYSES, *_others()})


def load(name: str) -> Analysis[Any]:
    """Load an analysis by its name, and with it what its work needs.

    Args:
        name: One of `names()`.

    Returns:
        The analysis.

    Raises:
        InputError: If there is none of this name, or its package cannot be imported.
    """
    if name in _ANALYSES:
        found: Analysis[Any] = _built_in(name).analysis
        return found
    others = _others()
    if name not in others:
        close = difflib.get_close_matches(name, names(), n=2)
        meant = f"; perhaps {' or '.join(close)}" if close else ""
        raise InputError(f"an analysis must be one of {', '.join(names())}, got {name!r}{meant}")
    entry = others[name]
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the analysis {name} comes from {entry.value}, and that cannot be imported ({error}): repair or remove "
            "the package"
        ) from error
    return found


def config_of(name: str) -> type[Any]:
    """Find the options of an analysis; of one that is built in, no large library is imported.

    Args:
        name: One of `names()`.

    Returns:
        Its configuration, a dataclass.

    Raises:
        InputError: If there is none of this name, or its package cannot be imported.
    """
    kind: type[Any] = _built_in(name).Config if name in _ANALYSES else load(name).config
    return kind


def summary(name: str) -> str:
    """Say in one line what an analysis asks.

    Args:
        name: One of `names()`.

    Returns:
        The first line of its configuration's help; of another package's analysis the summary of that package, which is
        not imported, for that could take long.
    """
    if name in _ANALYSES:
        return (inspect.getdoc(config_of(name)) or "").splitlines()[0]
    entry = _others()[name]
    return str(entry.dist.metadata["Summary"] or entry.dist.name) if entry.dist else entry.value


def _built_in(name: str) -> ModuleType:
    return importlib.import_module(f"probe.analyses.{name}")


def _others() -> dict[str, EntryPoint]:
    """Entry points of other packages by name; no other package takes the name of an analysis that is built in."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in _ANALYSES}


def _late(name: str) -> Any:
    if name in _ANALYSES:
        return _built_in(name)
    if name in _OPENING:
        return getattr(importlib.import_module("probe.analyses.opening"), name)
    raise AttributeError(f"module 'probe.analyses' has no attribute {name!r}")


if not TYPE_CHECKING:  # to type checkers a module with this function has every name there is
    __getattr__ = renamed(__name__, {"read": "open_run"}, _late)


def __dir__() -> list[str]:
    return sorted({*__all__, *_ANALYSES})
