"""A figure of a report: its picture, interactive chart and table, made when they are shown.

The libraries that draw are imported where they are used, so that an analysis can name its figures in a file whose
`--help` answers at once.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probe import plots
from probe.boundary import public

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas as pd
    import plotly.graph_objects as go

DPI = 200


@public
@dataclass(frozen=True, repr=False)
class Figure:
    """A figure of a report.

    Attributes:
        name: File name without suffix, and anchor on the page.
        title: Heading.
        caption: Description of the content: model, text, documents, tokens, the null line.
        draw: Function that makes the matplotlib figure; called once a report, inside `plots.page_style()`.
        interactive: Function that makes the plotly figure, or None. Its sliders and dropdowns become HTML controls.
        table: Function that makes a table of the figure's numbers, or None.
        alt: Description for readers who cannot see the picture; by default the title.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], matplotlib.figure.Figure]
    interactive: Callable[[], go.Figure] | None = None
    table: Callable[[], pd.DataFrame] | None = None
    alt: str = ""

    def __repr__(self) -> str:
        return f"Figure({self.name!r}: {self.title})"

    def _repr_html_(self) -> str:
        """The picture with its caption, for Jupyter."""
        from probe.plots.canvas import NOTEBOOK_DPI

        with plots.page_style():
            source = data_uri("png", image_of(self.draw(), "png", NOTEBOOK_DPI))
        return (
            f'<figure><img src="{source}" alt="{html.escape(self.alt or self.title)}" style="max-width: 100%">'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


def data_uri(suffix: str, content: bytes) -> str:
    """Encode a picture as an address that holds it.

    Args:
        suffix: "png" or "svg".
        content: The picture's file.

    Returns:
        A data URI.
    """
    kind = {"png": "image/png", "svg": "image/svg+xml"}[suffix]
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_of(figure: matplotlib.figure.Figure, suffix: str, dpi: int = DPI) -> bytes:
    """Save a drawn figure to bytes.

    Args:
        figure: The matplotlib figure.
        suffix: "png" or "svg".
        dpi: Dots an inch.

    Returns:
        The bytes of its file; equal data give equal files, because no date is written.
    """
    file = io.BytesIO()
    figure.savefig(file, format=suffix, dpi=dpi, metadata={"Date": None} if suffix == "svg" else None)
    return file.getvalue()
