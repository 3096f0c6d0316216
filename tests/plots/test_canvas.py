"""Figures in the page's style whoever draws on them, shown once, saved for print, and no global state."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import probe
from probe import plots
from probe.errors import InputError
from probe.plots.canvas import NOTEBOOK_DPI, PageAxes, PageFigure

MATRIX = np.arange(12.0).reshape(3, 4)


def test_what_a_user_draws_has_the_style_and_the_settings_are_as_before() -> None:
    before = dict(matplotlib.rcParams)
    figure, axes = plots.new_figure(font="DejaVu Serif", font_size=7)
    ax = axes[0, 0]
    lines = [ax.plot([0, 1], [0, number], label=str(number))[0] for number in range(2)]
    legend, title = ax.legend(), ax.set_title("title")
    figure.draw_without_rendering()
    assert [line.get_color() for line in lines] == ["#0072B2", "#E69F00"]
    assert {line.get_linewidth() for line in lines} == {1.2}
    assert not ax.spines["top"].get_visible()
    assert not legend.get_frame_on()
    words = [title, ax.xaxis.label, *ax.get_xticklabels(), *legend.get_texts()]
    assert {word.get_fontsize() for word in words} == {7}
    assert {word.get_fontfamily()[0] for word in words} == {"DejaVu Serif"}
    assert dict(matplotlib.rcParams) == before


def test_a_picture_is_shown_once_by_whoever_made_its_figure() -> None:
    new = plots.heat_map(MATRIX)
    assert new._repr_png_().startswith(b"\x89PNG")
    figure, axes = plots.new_figure(1, 2)
    placed = plots.heat_map(MATRIX, ax=axes[0, 1])
    assert placed.figure is figure
    assert placed._repr_png_() is None
    assert axes[0, 0]._repr_png_().startswith(b"\x89PNG")  # a panel of an analysis, as the last line of a cell
    own = Figure().subplots()  # as pyplot would make it, which shows it itself
    assert plots.heat_map(MATRIX, ax=own)._repr_png_() is None
    assert repr(new) == "Picture(1 panel, 4.2 × 3.22 in)"


def test_no_file_of_the_library_reaches_for_pyplot() -> None:
    for path in Path(probe.__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) .*pyplot", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_saved_words_stay_words(tmp_path: Path) -> None:
    picture = plots.heat_map(MATRIX, title="a title", width=3.3, height=2.0)
    svg = picture.save(tmp_path / "a.svg").read_text(encoding="utf-8")
    assert re.search(r"<text[^>]*>a title</text>", svg)
    pdf = picture.save(str(tmp_path / "a.pdf")).read_bytes()
    assert b"/Subtype /Type0" in pdf  # TrueType, what journals ask for, not Type 3
    assert b"/Type3" not in pdf
    png = matplotlib.image.imread(picture.save(tmp_path / "a.png", dpi=100))
    assert png.shape[:2] == (200, 330)
    again = plots.heat_map(MATRIX, title="a title", width=3.3, height=2.0)
    assert again.save(tmp_path / "b.svg").read_text(encoding="utf-8") == svg


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    figure, axes = plots.new_figure()
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf, got 'a\.eps'"):
        figure.save(tmp_path / "a.eps")
    with pytest.raises(InputError, match=r"a folder that exists, and .*none does not"):
        figure.save(tmp_path / "none" / "a.png")
    with pytest.raises(InputError, match="got 'DejaVu Sanss': choose 'DejaVu Sans'"):
        plots.new_figure(font="DejaVu Sanss")
    with pytest.raises(InputError, match="width, font_size are of a new figure, got ax as well"):
        plots.heat_map(MATRIX, ax=axes[0, 0], width=3, font_size=8)


def test_panels_in_space_are_not_of_the_page() -> None:
    figure, axes = plots.new_figure(projection="3d")
    assert isinstance(figure, PageFigure)
    assert not isinstance(axes[0, 0], PageAxes)


def test_a_legend_is_no_wider_than_its_figure() -> None:
    for width in (3.3, 7.0):
        figure, axes = plots.new_figure(width=width)
        for number in range(6):
            axes[0, 0].plot([0, 1], [number, number], label=f"a curve with a long name {number}")
        plots.shared_legend(figure, 6)
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert len(figure.legends) == 1
        if width == 7.0:
            assert box.height < 6 * 9 * figure.dpi / 72  # several columns


def test_a_notebook_shows_the_width_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(plots.heat_map(MATRIX, width=5)._repr_png_())
    assert matplotlib.image.imread(tmp_path / "a.png").shape[1] == 5 * NOTEBOOK_DPI
