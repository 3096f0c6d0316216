"""The interactive page of a readout, token by layer: one file that needs no network.

What comes from outside, such as the texts of tokens and the names of lenses, is in the page as JSON in which no
character can close its element, and is placed by `textContent`.
"""

from __future__ import annotations

import json
import math
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import display
from probe.errors import InputError
from probe.report.page import environment, rendered, script_json

if TYPE_CHECKING:
    from probe.lens.reading import Readout

_IN_NOTEBOOK = 60_000
"""Tokens with their probabilities that a notebook shows at most: about 1 MB."""
_NAME = 60  # letters of a prompt by which it is chosen


def html_of(readout: Readout) -> str:
    """Write the page of a readout.

    Args:
        readout: The readout.

    Returns:
        HTML.
    """
    template = environment("probe.lens").get_template("readout.html")
    title = f"What {readout.name} would say, token by layer"
    content = {"title": title, "lenses": len(readout.lenses), "data": script_json(json.dumps(_data(readout)))}
    return rendered(template, content, style=_resource("readout.css"), scripts=[_resource("readout.js")])


def save(readout: Readout, path: Path | str) -> Path:
    """Write the page of a readout to a file.

    Args:
        readout: The readout.
        path: The file, .html.

    Returns:
        The path.

    Raises:
        InputError: If the ending is another, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".html", ".htm"):
        raise InputError(f"the path of a page must end in .html, got {path.name}: change the ending")
    try:
        path.write_text(html_of(readout), encoding="utf-8")
    except OSError as error:
        raise InputError(f"a page must be writable to {path}, and is not ({error.strerror}): name another") from error
    return path


def in_notebook(readout: Readout) -> str | None:
    """Write the page as a frame inside a notebook.

    Args:
        readout: The readout.

    Returns:
        HTML; None if the page is too large for one.
    """
    if readout.top.numel() > _IN_NOTEBOOK:
        return None
    height = min(max(330 + 26 * len(readout.layers), 480), 760)
    style = f"width: 100%; height: {height}px; border: 0"
    page = escape(html_of(readout))
    return f'<iframe title="Readout, token by layer" sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'


def _data(readout: Readout) -> dict[str, Any]:
    """The content of the page as plain values, by lens, layer and row."""
    prompts: dict[int, list[int]] = {}
    for row, window in enumerate(readout.window.tolist()):
        prompts.setdefault(window, []).append(row)
    first = min(prompts, default=0)
    named = [
        {"name": _short(f"{window - first + 1}: {''.join(readout.token[row] for row in rows)}"), "rows": rows}
        for window, rows in prompts.items()
    ]
    # by every lens the last layer is the output itself
    last = not bool(readout.kl[:, -1].any() or readout.rank[:, -1].any())
    return {
        "lenses": list(readout.lenses),
        "layers": list(readout.layers),
        "last": last,
        "prompts": named,
        "token": [display.word(text) for text in readout.token],
        "position": readout.position.tolist(),
        "final": readout.final.tolist(),
        "words": {str(token): display.word(text) for token, text in readout.words.items()},
        "top": readout.top.tolist(),
        "probability": _rounded(readout.probability.tolist()),
        "kl": _rounded(readout.kl.tolist()),
        "rank": readout.rank.tolist(),
    }


def _rounded(values: Any) -> Any:
    """Numbers in four digits, which is all that is shown; JSON has no NaN."""
    if isinstance(values, list):
        return [_rounded(one) for one in values]
    return float(f"{values:.4g}") if math.isfinite(values) else None


def _short(text: str) -> str:
    shown = display.word(text)
    return shown if len(shown) <= _NAME else f"{shown[: _NAME - 1]}…"


def _resource(name: str) -> str:
    return (resources.files("probe.lens") / "templates" / name).read_text(encoding="utf-8")
