"""Display: objects in a notebook, tables and single lines in a terminal.

Output for a notebook sets no colours, since its theme may be light or dark; text from outside is escaped.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

    from rich.table import Table

_LEFT = 'style="text-align: left"'  # notebooks align the cells of tables to the right


def table(caption: str, rows: Mapping[str, object]) -> str:
    """Render a table of two columns, with a name and its value in each row.

    >>> "<caption>A &lt; B</caption>" in table("A < B", {"stable_rank": 2.0})
    True

    Args:
        caption: The caption above the table.
        rows: Names and values; a value is shown as `str` writes it.

    Returns:
        HTML for `_repr_html_`; markup in names and values is escaped.
    """
    body = "".join(
        f'<tr><th scope="row" {_LEFT}>{escape(name)}</th><td {_LEFT}>{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"


def size(count: float | int) -> str:
    """Format a number of bytes.

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
    """Write a table: as wide as the terminal, or in full width and without colours to a file or a pipe.

    Args:
        table: The table.
        file: A text stream.
    """
    from rich.console import Console

    # in a notebook, rich would also display an empty output
    console = Console(file=file, width=None if file.isatty() else _WIDEST, force_jupyter=False)
    with console.capture() as shown:
        console.print(table)
    file.write(shown.get())  # rich itself would end the program on a closed pipe


def duration(seconds: float | int) -> str:
    """Format a time.

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
    """Write a path to standard output, for the caller of the command.

    Args:
        path: The path.
    """
    sys.stdout.write(f"{path}\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Write one line to standard error.

    Args:
        text: The text; line breaks become spaces.
    """
    sys.stderr.write(f"{' '.join(text.split())}\n")
