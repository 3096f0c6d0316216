"""Display: objects in a notebook, tables and single lines in a terminal.

Output for a notebook sets no colours, since its theme may be light or dark; text from outside is escaped.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import unicodedata
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def visible(character: str) -> str:
    """Show a character that would not be seen: a line end as ↵, control and format characters as their codes.

    Args:
        character: One character.

    Returns:
        The character, or what stands for it.
    """
    if character == "\n":
        return "↵"
    invisible = unicodedata.category(character) in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
    return f"\\u{ord(character):04x}" if invisible else character


def word(text: str) -> str:
    """Show a word from outside, such as a token: spaces at its ends as ␣, what would not be seen as it is written.

    >>> word(" Paris")
    '␣Paris'

    Args:
        text: The word.

    Returns:
        The word as it can be read.
    """
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    return "␣" * before + "".join(map(visible, inner)) + "␣" * (len(text) - len(inner) - before)


class Shown:
    """An object that shows itself: its facts on one line, and as a table in a notebook.

    A class gives its own facts by `_facts`. Without, they are the fields of a dataclass, arrays by dtype and shape.
    """

    def _facts(self) -> Mapping[str, object]:
        """Names and values of what is shown; computed already, or quickly."""
        every: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self)  # type: ignore[arg-type]
        return {one.name: getattr(self, one.name, None) for one in every if one.repr}

    def __repr__(self) -> str:
        facts = (f"{name.replace(' ', '_')}={brief(value)}" for name, value in self._facts().items())
        return f"{type(self).__name__}({', '.join(facts)})"

    def _repr_html_(self) -> str:
        rows = {
            name.replace("_", " "): value if isinstance(value, str) else brief(value)
            for name, value in self._facts().items()
        }
        return table(type(self).__name__, rows)


def brief(value: object) -> str:
    """Write a value on part of a line: numbers in four digits, arrays by dtype and shape, the ends of long sequences.

    Args:
        value: Any value.

    Returns:
        For example "0.1235", "float32 (3, 64, 64)" or "[0, 1, …, 29]".
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10_000 else f"{value:,}"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        if not len(shape):
            return brief(value.item())  # type: ignore[attr-defined]
        return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"
    if isinstance(value, list | tuple):
        shown = [brief(one) for one in value]
        left, right = "()" if isinstance(value, tuple) else "[]"
        return f"{left}{', '.join(shown if len(shown) <= 6 else [*shown[:2], '…', shown[-1]])}{right}"
    if isinstance(value, Mapping):
        items = [f"{brief(name)}: {brief(value[name])}" for name in value]
        return f"{{{', '.join(items if len(items) <= 6 else [*items[:5], f'… {len(items)} in all'])}}}"
    return repr(value)


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
