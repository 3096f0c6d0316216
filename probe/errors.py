"""The exception for wrong input, its words on a command line, and the warning about names that changed."""

from __future__ import annotations

import dataclasses
import importlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """Input or an option is wrong: the message says on one line what must hold, what came, and the repair.

    The command line prints the message on standard error and ends with status 2; in Python it is a `ValueError`.
    """


def as_typed(text: str, options: Iterable[type[Any]]) -> str:
    """Say on the command line what the library says in Python: `--window-length 64` for `window_length=64`.

    Args:
        text: A message.
        options: Dataclasses of the command's options.

    Returns:
        The message with every option as it is typed.
    """
    names = sorted({field.name for kind in options for field in dataclasses.fields(kind)}, key=len, reverse=True)
    if not names:
        return text
    value = r"""(?P<value>True\b|False\b|'[^']*'|"[^"]*"|[\w./-]*\w)?"""

    def typed_so(found: re.Match[str]) -> str:
        option, given = f"--{found['name'].replace('_', '-')}", found["value"]
        if given in ("True", "False"):
            return option if given == "True" else f"--no-{option.removeprefix('--')}"
        return option if given is None else f"{option} {given.strip(chr(34) + chr(39))}"

    return re.sub(rf"(?<![\w-])(?P<name>{'|'.join(names)})={value}", typed_so, text)


def renamed(
    module: str, names: Mapping[str, str], otherwise: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """Make the module-level `__getattr__` (PEP 562) that keeps a module's old public names working for one release.

    Write `__getattr__ = renamed(__name__, {"old": "new"})` at the end of the module. A use of an old name warns with
    a `DeprecationWarning` at the line that uses it.

    Args:
        module: The module's `__name__`.
        names: New name by old name; the new one is the module's own, or a dotted path from it ("curves.aligned") or
            from the top of the package ("probe.spectra.leading_triplets"), where the name has moved.
        otherwise: The `__getattr__` that the module has already, for example one by `lazy_loader`.

    Returns:
        The `__getattr__`.
    """

    def __getattr__(name: str) -> Any:
        if name in names:
            top = f"{module.partition('.')[0]}."
            new = names[name] if names[name].startswith(top) else f"{module}.{names[name]}"
            warnings.warn(
                f"{module}.{name} was renamed and will be removed in the next release; use {new}",
                DeprecationWarning,
                stacklevel=2,
            )
            home, _, attribute = new.rpartition(".")
            return getattr(importlib.import_module(home), attribute)
        if otherwise is not None:
            return otherwise(name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__
