"""Where a run's numbers come from: versions, machine, and what to type or call for them."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from probe import machine
from probe.model.in_memory import InMemory

LIBRARIES = ("residual-probe", "torch", "transformers", "transformer-lens", "numpy", "scipy", "scikit-learn")
"""The libraries on which a run's numbers rest."""


def versions() -> dict[str, str]:
    """Look up the versions of the libraries on which a run's numbers rest, by name."""
    return {name: _version(name) for name in LIBRARIES}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe(config: Any, command: str) -> dict[str, Any]:
    """Describe where, when and how a run is begun: recorded, never compared.

    Args:
        config: Its configuration, a dataclass.
        command: What makes it.

    Returns:
        Date, command, interpreter, commit, machine, threads, and of the configuration seed, device and dtype.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        **machine.describe(),
        "threads": torch.get_num_threads(),
        **{name: getattr(config, name) for name in ("seed", "device", "dtype") if hasattr(config, name)},
    }


def call(config: Any, out: Path | str | None) -> str:
    """Write the call from Python that makes a run.

    Args:
        config: Its configuration, a dataclass.
        out: Its directory, if one was named.

    Returns:
        Lines of Python; or how the script was started that defines the configuration itself.
    """
    package = _public_module(type(config))
    if package == "__main__":
        return shlex.join(sys.orig_argv)
    imports = {package: {"run"}}
    arguments = [_code(config, imports), *([] if out is None else [f"out={_code(Path(out), imports)}"])]
    model = getattr(config, "model", None)
    given = []
    if isinstance(model, InMemory):
        given = [f"# model: {model}, in memory, sha256 of its weights {model.weights}"]
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
    return "\n".join([*lines, "", *given, f"run({', '.join(arguments)})"])


def _code(value: Any, imports: dict[str, set[str]]) -> str:
    """Python that makes the value, a configuration without its defaults; the names it needs go into `imports`."""
    match value:
        case InMemory():
            return "model"
        case Path():
            imports.setdefault("pathlib", set()).add("Path")
            return f"Path({str(value)!r})"
        case tuple():
            return f"({''.join(_code(item, imports) + ', ' for item in value).rstrip()})"
        case _ if dataclasses.is_dataclass(value):
            kind = type(value)
            imports.setdefault(_public_module(kind), set()).add(kind.__name__)
            given = [field for field in dataclasses.fields(value) if getattr(value, field.name) != _default(field)]
            arguments = (f"{field.name}={_code(getattr(value, field.name), imports)}" for field in given)
            return f"{kind.__name__}({', '.join(arguments)})"
        case _:
            return repr(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _public_module(kind: type) -> str:
    """The outermost package that hands a class on: where a user imports it from."""
    parts = kind.__module__.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return next((name for name in names if getattr(sys.modules.get(name), kind.__name__, None) is kind), names[-1])


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, with "-dirty" if it was changed; None in a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def model_in_words(
    model: str, revision: str | None = None, random_init: int | None = None, shuffled_weights: int | None = None
) -> str:
    """Name a run's model, and what was done to its weights.

    Args:
        model: Its name.
        revision: On the hub.
        random_init: Seed of fresh weights.
        shuffled_weights: Seed under which the entries of its weights were permuted.

    Returns:
        For example "pythia-1b @ step0" or "pythia-1b, fresh weights (seed 0)".
    """
    fresh = "" if random_init is None else f", fresh weights (seed {random_init})"
    shuffled = "" if shuffled_weights is None else f", shuffled weights (seed {shuffled_weights})"
    return f"{model}{f' @ {revision}' if revision else ''}{fresh}{shuffled}"
