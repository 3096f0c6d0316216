"""What Jupyter shows of each object that a user holds: the right numbers, and no markup from outside."""

from __future__ import annotations

import base64
from pathlib import Path

import matplotlib.image
import pytest
import torch
import xarray as xr

from probe import display, plots, stream
from probe.claims import Claim
from probe.errors import InputError
from probe.report import Figure, Result
from probe.text import Windows
from tests.tiny import LAYERS, WIDTH, tiny_model

EVIL = "<script>alert('&')</script>"


def test_a_table_lets_no_markup_through() -> None:
    shown = display.table(EVIL, {EVIL: EVIL})
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;") == 3


def test_a_model_says_what_it_is() -> None:
    model = tiny_model("llama")
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    shown = model._repr_html_()
    assert f"<td>blocks</td><td>{LAYERS}</td>" in shown
    assert f"<td>width of the stream</td><td>{WIDTH}</td>" in shown
    assert f"<td>parameters</td><td>{parameters:,}</td>" in shown
    assert "<td>architecture</td><td>llama</td>" in shown


def test_a_stream_says_its_sites_and_shape_and_prints_no_states(tmp_path: Path) -> None:
    model, tokens = tiny_model("llama"), torch.arange(12).reshape(2, 6)
    held, kept = stream.capture(model, tokens), stream.capture(model, tokens, out=tmp_path / "kept")
    for one, where in ((held, "in memory"), (kept, f"on disk, in {tmp_path / 'kept'}")):
        shown = one._repr_html_()
        assert f"2 × 6 × {WIDTH}" in shown
        assert f"<td>{LAYERS + 1} sites</td><td>blocks.0.hook_resid_pre, …, blocks.3.hook_resid_post</td>" in shown
        assert f"<td>kept</td><td>{where}</td>" in shown
        assert repr(one) == f"ResidualStream(sites={LAYERS + 1}, shape=(2, 6, {WIDTH}), torch.float32)"


def test_windows_say_how_many_documents_they_are_from() -> None:
    tokens, document = torch.zeros(3, 8, dtype=torch.int64), torch.tensor([0, 2, 2])
    windows = Windows(tokens, document, ("a", "b", "c"), frozenset(), EVIL, "")
    assert "<td>documents</td><td>2 of 3</td>" in windows._repr_html_()
    assert "<script" not in windows._repr_html_()
    assert repr(windows) == f"Windows({EVIL!r}, windows=3, length=8, documents=2)"


def test_a_claim_says_its_verdict_and_why() -> None:
    claim = Claim(
        id="updates.alignment",
        statement=EVIL,
        source="a paper",
        statistic="median",
        estimate=0.74,
        ci_low=0.72,
        ci_high=0.76,
        threshold=0.9,
        unit="documents",
        n_units=14,
        null={},
        controls=[],
        verdict="not supported",
        reason="the whole interval lies short of 0.9",
    )
    shown = claim._repr_html_()
    assert "— not supported</caption>" in shown
    assert "<td>0.74 [0.72, 0.76]</td>" in shown
    assert "<td>documents</td><td>14</td>" in shown
    assert "<td>reason</td><td>the whole interval lies short of 0.9</td>" in shown
    assert "<script" not in shown


def test_a_plain_figure_is_a_picture_on_every_backend(tmp_path: Path) -> None:
    drawn, axes = plots.new_figure()
    axes[0, 0].plot([0, 1], [0, 1])
    (tmp_path / "drawn.png").write_bytes(drawn._repr_png_())
    picture = matplotlib.image.imread(tmp_path / "drawn.png")
    assert picture.shape[1] == 7 * plots.NOTEBOOK_DPI
    assert picture.std() > 0


@pytest.fixture
def figure() -> Figure:
    def draw():
        drawn, axes = plots.new_figure()
        axes[0, 0].plot([0, 1], [0, 1])
        return drawn

    return Figure("dots", "Dots", f"caption {EVIL}", draw, alt='a "line"')


def test_a_figure_shows_its_picture_and_its_caption(figure: Figure, tmp_path: Path) -> None:
    shown = figure._repr_html_()
    source = shown.split('src="data:image/png;base64,')[1].split('"')[0]
    (tmp_path / "shown.png").write_bytes(base64.b64decode(source))
    picture = matplotlib.image.imread(tmp_path / "shown.png")
    assert picture.std() > 0
    assert 'alt="a &quot;line&quot;"' in shown
    assert "<figcaption>caption &lt;script&gt;" in shown


def test_a_figure_is_found_by_its_name(figure: Figure, tmp_path: Path) -> None:
    result = Result(xr.Dataset(), [], tmp_path, "t", figures=[figure])
    assert result.figure("dots") is figure
    with pytest.raises(InputError, match=r"one of the run's \(dots\), got 'lines'"):
        result.figure("lines")
