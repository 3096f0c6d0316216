"""Location of the data that ships with the library: inside the package in a wheel, in `data/` in a checkout."""

from __future__ import annotations

from pathlib import Path

from probe.errors import InputError

_PACKAGE = Path(__file__).resolve().parent.parent
_IN_WHEEL = _PACKAGE / "_data"
_IN_CHECKOUT = _PACKAGE.parent / "data"


def path(name: str) -> Path:
    """Return the path of one shipped file or folder.

    Args:
        name: Its name inside the shipped data, for example `"sample.txt"` or `"models"`.

    Returns:
        `probe/_data/name` in an installed wheel, `data/name` beside `probe/` in a checkout.

    Raises:
        InputError: If nothing of this name ships with the library.
    """
    folder = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CHECKOUT
    found = folder / name
    if not found.exists():
        raise InputError(f"shipped data must be in {folder}, but {name!r} is not there: install the package again")
    return found
