"""What all interactive charts share: numbers as a screen shows them, their title, the slider over blocks."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from probe.plots.style import Floats

LAYOUT: dict[str, Any] = {"template": "plotly_white", "hoverlabel": {"align": "left"}}
TITLE: dict[str, Any] = {"font": {"size": 12}, "x": 0, "xanchor": "left"}


def rounded(values: Floats) -> list[float | None]:
    """Four digits: what a screen can show, and a quarter of the bytes.

    Args:
        values: Shape (point,).

    Returns:
        None where there is no value: a line breaks off there, a point is left out.
    """
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist()]


def one_shown(place: int, choices: int, traces: int) -> dict[str, list[bool]]:
    """What a slider or a dropdown changes that shows one of several charts.

    Args:
        place: Which.
        choices: How many there are.
        traces: Traces of each.

    Returns:
        `visible`, for every trace.
    """
    return {"visible": [number // traces == place for number in range(traces * choices)]}


def block_slider(layers: Sequence[int], changes: Iterable[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
    """A slider over blocks, as plotly's layout takes it.

    Args:
        layers: The blocks.
        changes: For each block what changes in the traces, and the title.

    Returns:
        The layout's `sliders`.
    """
    steps = [
        {"method": "update", "label": str(layer), "args": [traces, {"title.text": title}]}
        for layer, (traces, title) in zip(layers, changes, strict=True)
    ]
    return [{"active": 0, "steps": steps, "currentvalue": {"prefix": "block "}, "pad": {"t": 40}}]


def hover_text(text: str, limit: int = 80) -> str:
    """User text for a plotly label: shows invisible characters, and holds nothing that plotly reads as a tag.

    Args:
        text: A token, its context or a title.
        limit: Longest result in characters, before escaping; the end of the text is kept.

    Returns:
        The text with line ends as ↵, control and format characters as codes, and `&`, `<`, `>` escaped.
    """
    cut = text if len(text) <= limit else f"…{text[1 - limit :]}"
    return html.escape("".join(map(_visible, cut)), quote=False)


def _visible(character: str) -> str:
    if character == "\n":
        return "↵"
    invisible = unicodedata.category(character) in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
    return f"\\u{ord(character):04x}" if invisible else character
