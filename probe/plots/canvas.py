"""Figures in the style of the page whoever draws on them: they show themselves in a notebook, and are saved for print.

Nothing here touches matplotlib's global state, needs a display, or has `pyplot` know of a figure: a notebook shows one
once, as the last expression of its cell.
"""

from __future__ import annotations

import difflib
import functools
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import font_family_aliases, fontManager

from probe.boundary import at_least, public
from probe.errors import InputError
from probe.plots.style import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY

WIDTH = 7.0  # inches: the text width of a page
FONT_SIZE = 9.0  # points
NOTEBOOK_DPI, PRINT_DPI = 110, 300
COLORS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK)
"""The colours of curves in their order."""


class Page(TypedDict, total=False):
    """The size and the type of a new figure, as every drawing function takes them.

    Attributes:
        width: Width of the figure in inches; 7, the text width of a page, by default. 3.3 is a column of a paper.
        height: Height of a row of panels in inches.
        font: Family of the type, such as "Helvetica"; DejaVu Sans, which has every sign of ours, by default.
        font_size: Size of the type in points; 9 by default.
    """

    width: float | int
    height: float | int
    font: str | None
    font_size: float | int


def look_of(font: str | None = None, font_size: float | int = FONT_SIZE) -> dict[Any, Any]:
    """State matplotlib's settings for the look of a page: what they are when something is drawn.

    Args:
        font: Family of the type; None keeps matplotlib's.
        font_size: Points, of all words.

    Returns:
        Settings for `matplotlib.rc_context`.

    Raises:
        InputError: If the font is not installed.
    """
    sizes = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")
    words: dict[Any, Any] = dict.fromkeys((*sizes, "figure.titlesize", "legend.title_fontsize"), font_size)
    if font is not None:
        if font not in {*font_family_aliases, *fontManager.get_font_names()}:
            close = difflib.get_close_matches(font, fontManager.get_font_names(), n=3)
            raise InputError(
                f"font must be installed on this machine, got {font!r}: choose "
                f"{' or '.join(map(repr, close)) or 'one of matplotlib.font_manager.get_font_names()'}"
            )
        words["font.family"] = [font, "DejaVu Sans"]  # signs that a font lacks come from the other
    return words | {
        "legend.frameon": False,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "savefig.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": False,
        "axes.prop_cycle": cycler(color=COLORS),
        "lines.linewidth": 1.2,
        "lines.markersize": 3.5,
    }


@public
@contextmanager
def page_style(font: str | None = None, font_size: float | int = FONT_SIZE) -> Iterator[None]:
    """Apply the style of a printed page in a context, and restore matplotlib's settings after it.

    Args:
        font: Family of the type; None keeps matplotlib's.
        font_size: Points, of all words.
    """
    files = {"svg.fonttype": "path", "svg.hashsalt": "probe"}  # equal data, equal file
    with matplotlib.rc_context(look_of(font, font_size) | files):
        yield


class PageFigure(Figure):
    """A figure that is drawn in the style of the page, and shows itself in a notebook, whichever backend is set there.

    Args:
        *args: As for `matplotlib.figure.Figure`.
        font: Family of the type; None keeps matplotlib's.
        font_size: Points, of all words.
        **kwargs: As for `matplotlib.figure.Figure`.
    """

    def __init__(self, *args: Any, font: str | None = None, font_size: float | int = FONT_SIZE, **kwargs: Any) -> None:
        self.look = look_of(font, font_size)
        with matplotlib.rc_context(self.look):
            super().__init__(*args, **kwargs)

    def save(self, path: str | Path, *, dpi: int = PRINT_DPI) -> Path:
        """Save the figure for a paper: words stay words in SVG and PDF, so that they can be searched and edited.

        Args:
            path: A file whose name ends in .png, .svg or .pdf, in a folder that exists.
            dpi: Dots per inch, of PNG and of clouds of points inside the others.

        Returns:
            The path.

        Raises:
            InputError: If the name ends otherwise, or the folder does not exist.
        """
        return save_figure(self, path, dpi=dpi)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=NOTEBOOK_DPI)
        return file.getvalue()


class PageAxes(Axes):
    """The Axes of a `PageFigure`; in a notebook they show their figure."""

    def _repr_png_(self) -> bytes | None:
        figure = self.get_figure(root=True)
        return figure._repr_png_() if isinstance(figure, PageFigure) else None


def _in_style(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method during which matplotlib's settings are those of the figure: many are read when something is drawn."""

    @functools.wraps(method)
    def styled(self: PageFigure | PageAxes, *args: Any, **kwargs: Any) -> Any:
        figure = self.get_figure(root=True)
        with matplotlib.rc_context(figure.look if isinstance(figure, PageFigure) else {}):
            return method(self, *args, **kwargs)

    return styled


_STYLED = {
    PageFigure: ("add_subplot", "colorbar", "draw", "legend", "subplots", "suptitle", "text"),
    PageAxes: ("annotate", "axhline", "axvline", "errorbar", "legend", "plot", "scatter", "set_title", "text"),
}
for _class, _names in _STYLED.items():
    for _name in _names:
        setattr(_class, _name, _in_style(getattr(_class, _name)))


@dataclass(frozen=True, repr=False)
class Picture:
    """The result of a drawing function: a figure that a notebook shows once, and that can be saved.

    Attributes:
        figure: The matplotlib figure.
        axes: The panels on it that were drawn.
        new: Whether the figure was made for this picture. If not, it is shown by whoever made it, and not again.
    """

    figure: Figure
    axes: tuple[Axes, ...]
    new: bool = True

    @property
    def ax(self) -> Axes:
        """The first panel, to change what is drawn there."""
        return self.axes[0]

    @public(dpi=at_least(1))
    def save(self, path: str | Path, *, dpi: int = PRINT_DPI) -> Path:
        """Save the figure for a paper: words stay words in SVG and PDF, so that they can be searched and edited.

        Args:
            path: A file whose name ends in .png, .svg or .pdf, in a folder that exists.
            dpi: Dots per inch, of PNG and of clouds of points inside the others.

        Returns:
            The path.

        Raises:
            InputError: If the name ends otherwise, or the folder does not exist.
        """
        return save_figure(self.figure, path, dpi=dpi)

    def __repr__(self) -> str:
        width, height = self.figure.get_size_inches()
        count = len(self.axes)
        panels = f"{count} panel" if count == 1 else f"{count} panels"
        return f"Picture({panels}, {width:.3g} × {height:.3g} in)"

    def _repr_png_(self) -> bytes | None:
        shown = self.new and isinstance(self.figure, PageFigure)
        return self.figure._repr_png_() if shown and isinstance(self.figure, PageFigure) else None


def save_figure(figure: Figure, path: str | Path, *, dpi: int = PRINT_DPI) -> Path:
    """Save a figure; see `Picture.save`."""
    path = Path(path)
    undated = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    kind = path.suffix.lower()
    if kind not in undated:
        raise InputError(
            f"a figure is saved at a path that ends in .png, .svg or .pdf, got {path.name!r}: end its name in one of "
            "these"
        )
    if not path.parent.is_dir():
        raise InputError(f"a figure is saved into a folder that exists, and {path.parent} does not: make it first")
    words: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "probe"}
    with matplotlib.rc_context(words):
        figure.savefig(path, format=kind[1:], dpi=dpi, metadata=undated[kind])
    return path
