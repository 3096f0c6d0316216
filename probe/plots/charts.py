"""Parts of all interactive charts: numbers as a screen shows them, the title, the slider over blocks, safe text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from probe.display import visible
from probe.plots.style import Floats

LAYOUT: dict[str, Any] = {"template": "plotly_white", "hoverlabel": {"align": "left"}}
TITLE: dict[str, Any] = {"font": {"size": 12}, "x": 0, "xanchor": "left"}


def rounded(values: Floats) -> list[float | None]:
    """Round values to four digits, which a screen can show in a quarter of the bytes.

    Args:
        values: Shape (point,).

    Returns:
        The rounded values; None where a value is missing, so that the line has a gap and the point is left out.
    """
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist()]


def one_shown(index: int, choices: int, traces: int) -> dict[str, list[bool]]:
    """Make the change by which a slider or a dropdown shows one of several charts.

    Args:
        index: Index of the chart.
        choices: Number of charts.
        traces: Number of traces of each.

    Returns:
        `visible`, for every trace.
    """
    return {"visible": [number // traces == index for number in range(traces * choices)]}


def title_change(title: str) -> dict[str, Any]:
    """Make the change of the layout that sets a chart's title.

    Args:
        title: The title.

    Returns:
        The change.
    """
    return {"title.text": title}


def block_slider(
    layers: Sequence[int], changes: Iterable[tuple[dict[str, Any], dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Make a slider over blocks for plotly's layout.

    Args:
        layers: Indices of the blocks.
        changes: For each block the changes of the traces, and of the layout, such as {"title.text": "block 3"}.

    Returns:
        The layout's `sliders`.
    """
    steps = [
        {"method": "update", "label": str(layer), "args": [traces, layout]}
        for layer, (traces, layout) in zip(layers, changes, strict=True)
    ]
    return [{"active": 0, "steps": steps, "currentvalue": {"prefix": "block "}, "pad": {"t": 40}}]


def hover_text(text: str, limit: int = 80) -> str:
    """Prepare user text for a plotly label: invisible characters are shown, and nothing reads as a tag.

    Args:
        text: A token, its context or a title.
        limit: Longest result in characters, before escaping; the end of the text is kept.

    Returns:
        The text with line ends as ↵, control and format characters as codes, and `&`, `<`, `>` escaped.
    """
    cut = text if len(text) <= limit else f"…{text[1 - limit :]}"
    return html.escape("".join(map(visible, cut)), quote=False)
