"""How objects show themselves in a notebook: small tables of HTML, everything that comes from outside escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def table(caption: str, rows: Mapping[str, object]) -> str:
    """A table of two columns, a name and its value a row.

    >>> table("Spectrum", {"stable_rank": 2.0})
    '<table><caption>Spectrum</caption><tr><td>stable_rank</td><td>2.0</td></tr></table>'

    Args:
        caption: What stands above.
        rows: Names and values; a value is shown as `str` writes it.

    Returns:
        HTML for `_repr_html_`; no markup in a name or a value survives.
    """
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"
