"""How objects show themselves in a notebook: small tables of HTML, everything that comes from outside escaped.

Nothing here has a colour of its own: a notebook may be light or dark.
"""

from __future__ import annotations

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
