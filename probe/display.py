"""How things are shown: objects in a notebook, tables and single lines in a terminal.

Nothing that a notebook shows has a colour of its own, for it may be light or dark; what comes from outside is escaped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.table import Table


import math
from collections.abc import Mapping
from html import escape

_LEFT = 'style="text-align: left"'  # notebooks align the cells of tables to the right


def table(caption: str, rows: Mapping[str, object]) -> str:
    """A table of two columns, a name and its value a row.

    >>> "<caption>A &lt; B</caption>" in table("A < B", {"stable_rank": 2.0})
    True

    Args:
        caption: What stands above.
        rows: Names and values; a value is shown as `str` writes it.

    Returns:
        HTML for `_repr_html_`; no markup in a name or a value survives.
    """
    body = "".join(
        f'<tr><th scope="row" {_LEFT}>{escape(name)}</th><td {_LEFT}>{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"


def size(count: float | int) -> str:
    """A number of bytes in words.

    Args:
        count: Bytes.

    Returns:
        For example "94 MB".
    """
    if math.isnan(count):
        return "unknown"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


_WIDEST = 1000  # columns of a table that is not shown on a terminal


def show(table: Table, file: TextIO) -> None:
    """Write a table: as wide as a terminal, or as wide as it is in a file or a pipe, where it has no colours either.

    Args:
        table: The table.
        file: A text stream.
    """
    from rich.console import Console

    # in a notebook rich would display the empty rest of what it hands over
    console = Console(file=file, width=None if file.isatty() else _WIDEST, force_jupyter=False)
    with console.capture() as shown:
        console.print(table)
    file.write(shown.get())  # rich itself would end the program where nobody reads


def duration(seconds: float | int) -> str:
    """A time in words.

    Args:
        seconds: The time.

    Returns:
        For example "12 s", "3 min 5 s" or "2 h 10 min"; "unknown" for NaN.
    """
    if math.isnan(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def write_path(path: Path) -> None:
    """Write a path to standard output, for whoever started the command to read.

    Args:
        path: The path.
    """
    sys.stdout.write(f"{path}\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Write one line to standard error.

    Args:
        text: Its words; line ends within become spaces.
    """
    sys.stderr.write(f"{' '.join(text.split())}\n")
