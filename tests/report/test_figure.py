"""A figure of a report is named without the libraries that draw it, and draws when it is shown."""

from __future__ import annotations

import subprocess
import sys

import pytest
from matplotlib.figure import Figure as Drawn

from probe import report
from probe.report import Figure
from probe.report.page import environment

LARGE = "{'torch', 'xarray', 'matplotlib', 'plotly'}"


@pytest.mark.parametrize("module", ["probe.report", "probe.report.figure", "probe.report.result"])
def test_naming_a_figure_imports_nothing_that_draws(module: str) -> None:
    code = (
        f"import sys\nfrom {module} import Figure\n"
        "Figure('a', 'A', 'A caption', draw=lambda: None)\n"
        f"sys.exit(bool({LARGE} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_there_is_one_figure() -> None:
    from probe.report import figure, result

    assert report.Figure is result.Figure is figure.Figure


def test_a_figure_is_drawn_when_it_is_shown_and_not_before() -> None:
    drawn = []

    def draw() -> Drawn:
        drawn.append(1)
        return Drawn(figsize=(1, 1))

    figure = Figure("dots", "Dots", "<A caption>", draw)
    assert repr(figure) == "Figure('dots': Dots)"
    assert not drawn
    text = figure._repr_html_()
    assert len(drawn) == 1
    assert text.startswith('<figure><img src="data:image/png;base64,')
    assert "&lt;A caption&gt;" in text
    assert 'alt="Dots"' in text


def test_templates_are_loaded_anew() -> None:
    assert environment() is not environment()
