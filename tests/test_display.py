"""What Jupyter shows of each object that a user holds: the right numbers, and no markup from outside."""

from __future__ import annotations

import base64
import html
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import xarray as xr

from probe import display, graphs, plots, spectra, stream
from probe.claims import Claim
from probe.errors import InputError
from probe.graphs import NullComparison
from probe.inference import permutation_null
from probe.jacobian import MeanJacobian
from probe.maps import LinearMap
from probe.model import load_model
from probe.replay import record
from probe.report import Figure, Result
from probe.spectra.decomposition import SCORES
from probe.spectra.singular import leading_triplets
from probe.text import Windows
from probe.weights import weights_of
from tests.plant.tiny import LAYERS, WIDTH, tiny_model, tiny_tokenizer

EVIL = "<script>alert('&')</script>"
CLAIM = Claim(
    id="updates.alignment",
    statement=EVIL,
    source="a paper",
    statistic="median",
    estimate=0.74,
    ci_low=0.72,
    ci_high=0.76,
    threshold=0.9,
    direction=">",
    unit="documents",
    n_units=14,
    null={},
    controls=[],
    verdict="not supported",
    reason="the whole interval lies short of 0.9",
)


def row(name: str, value: object) -> str:
    return f'<tr><th scope="row" style="text-align: left">{name}</th><td style="text-align: left">{value}</td></tr>'


def test_a_table_lets_no_markup_through() -> None:
    shown = display.table(EVIL, {EVIL: EVIL})
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;") == 3


def test_a_model_says_what_it_is() -> None:
    model = tiny_model("llama")
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    shown = model._repr_html_()
    assert row("blocks", LAYERS) in shown
    assert row("width of the stream", WIDTH) in shown
    assert row("parameters", f"{parameters:,}") in shown
    assert row("architecture", "llama") in shown
    assert row("tokenizer", "none, reads token ids only") in shown
    with_tokenizer = load_model(model.module, tokenizer=tiny_tokenizer())
    assert row("tokenizer", "259 tokens") in with_tokenizer._repr_html_()


def test_a_stream_says_its_sites_and_shape_and_prints_no_states(tmp_path: Path) -> None:
    model, tokens = tiny_model("llama"), torch.arange(12).reshape(2, 6)
    held, kept = stream.capture(model, tokens), stream.capture(model, tokens, out=tmp_path / "kept")
    memory = f"{(LAYERS + 1) * 2 * 6 * WIDTH * 4 / 1000:.3g} kB"
    disk = f"{sum(file.stat().st_size for file in (tmp_path / 'kept').glob('*.safetensors')) / 1000:.3g} kB"
    for one, where in ((held, f"{memory} in memory"), (kept, f"{disk} on disk, in {tmp_path / 'kept'}")):
        shown = one._repr_html_()
        assert f"2 × 6 × {WIDTH}" in shown
        assert row(f"{LAYERS + 1} sites", "blocks.0.hook_resid_pre, …, blocks.3.hook_resid_post") in shown
        assert row("kept", f"{where}") in shown
        assert repr(one) == f"ResidualStream(sites={LAYERS + 1}, shape=(2, 6, {WIDTH}), torch.float32)"


def test_a_spectrum_says_what_is_computed_and_what_can_be_asked_for() -> None:
    spectrum = spectra.decompose(torch.stack([torch.eye(2), 3 * torch.eye(2), 5 * torch.eye(2)]))
    assert repr(spectrum) == "Spectrum(shape=(3, 2, 2), no score computed yet)"
    assert row("computed when asked for", ", ".join(SCORES)) in spectrum._repr_html_()
    assert set(vars(spectrum)) == {"matrices", "_origin", "_schur"}  # showing it has computed nothing
    assert spectrum.spectral_radius.tolist() == [1.0, 3.0, 5.0]
    assert repr(spectrum) == "Spectrum(shape=(3, 2, 2), spectral_radius=3)"
    shown = spectrum._repr_html_()
    assert "<caption>Spectrum of (3, 2, 2): medians of what is computed</caption>" + row("spectral_radius", 3) in shown
    waiting = [name for name in SCORES if name != "spectral_radius"]
    assert row("computed when asked for", ", ".join(waiting)) in shown
    assert {"frobenius_norm", "henrici_departure", "kreiss_constant"} < set(waiting)


def test_sizes_are_in_the_unit_that_leaves_three_digits() -> None:
    sizes = {0: "0 B", 999: "999 B", 1536: "1.54 kB", 94_000_000: "94 MB", 7.5e9: "7.5 GB", float("nan"): "unknown"}
    assert {count: display.size(count) for count in sizes} == sizes


def test_windows_say_how_many_documents_they_are_from() -> None:
    tokens, document = torch.zeros(3, 8, dtype=torch.int64), torch.tensor([0, 2, 2])
    windows = Windows(tokens, document, ("a", "b", "c"), frozenset(), EVIL, "")
    assert row("documents", "2 of 3") in windows._repr_html_()
    assert "<script" not in windows._repr_html_()
    assert repr(windows) == f"Windows({EVIL!r}, windows=3, length=8, documents=2)"


def test_a_claim_says_its_verdict_and_why() -> None:
    shown = CLAIM._repr_html_()
    assert "— ✗ not supported</caption>" in shown
    assert repr(CLAIM) == "Claim('updates.alignment', not supported: 0.74 [0.72, 0.76], threshold > 0.9)"
    signs = {"supported": "✓", "mechanical": "=", "not supported": "✗", "inconclusive": "?"}
    for verdict, sign in signs.items():
        assert f"— {sign} {verdict}</caption>" in replace(CLAIM, verdict=verdict)._repr_html_()
    assert row("estimate [95 % interval]", "0.74 [0.72, 0.76]") in shown
    assert row("documents", "14") in shown
    assert row("reason", "the whole interval lies short of 0.9") in shown
    assert "<script" not in shown


def test_a_run_colours_its_verdicts_by_a_mixture_with_the_notebooks_own_ink(tmp_path: Path) -> None:
    shown = Result(xr.Dataset(), [CLAIM], tmp_path, "t")._repr_html_()
    (color,) = re.findall(r"[^-]color: ([^;\"]+)", shown)
    assert color == "color-mix(in srgb, currentColor 60%, #d55e00)"
    assert "✗ not supported</td>" in shown


def test_a_plain_figure_is_a_picture_on_every_backend(tmp_path: Path) -> None:
    drawn, axes = plots.new_figure()
    axes[0, 0].plot([0, 1], [0, 1])
    (tmp_path / "drawn.png").write_bytes(drawn._repr_png_())
    picture = matplotlib.image.imread(tmp_path / "drawn.png")
    assert picture.shape[1] == 7 * plots.canvas.NOTEBOOK_DPI
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


def test_rich_objects_say_their_facts_on_a_line_and_in_a_table() -> None:
    graph = graphs.from_matrix(np.kron(np.eye(2), np.ones((4, 4))))
    assert repr(graph).startswith("Graph(nodes=8, edges=12, density=0.4286, kind=")
    assert row("edges", 12) in graph._repr_html_()
    found = graphs.communities(graph)
    assert repr(found).startswith("Communities(nodes=8, communities=2, sizes=[4, 4], quality=")
    null = NullComparison(0.5, np.array([0.1, 0.3]), 1.0, np.zeros(2))
    assert repr(null).startswith("NullComparison(p_value=0.3333, draws=2, quality=0.5, null_quality='0.2 ± 0.1'")
    triplets = leading_triplets(torch.diag(torch.arange(9.0)), k=2)
    assert repr(triplets).startswith("Triplets(matrix=(9, 9), k=2, singular=[8, 7], gap=1.143, norm=")
    product = spectra.cumulative_spectra(torch.eye(4).expand(2, 3, 4, 4))
    assert repr(product) == (
        "CumulativeSpectra(layers=3, width=4, batch=(2), ranks=(1, 4), participation_ratio=[4, 4, 4])"
    )
    mean = MeanJacobian((1, 2), torch.eye(3).expand(2, 3, 3), torch.zeros(2, 3, 3), 7)
    assert repr(mean) == "MeanJacobian(layers=(1, 2), width=3, tokens=7, spread=[0, 0])"
    assert repr(permutation_null(lambda order: float(order[0]), 3, permutations=9)).startswith(
        "PermutationNull(observed=0, p_value=1, null='"
    )
    for one in (graph, found, null, triplets, product, mean):
        assert len(repr(one)) < 300
        assert "tensor(" not in repr(one) + one._repr_html_()
        assert f"<caption>{type(one).__name__}</caption>" in one._repr_html_()


def test_text_from_outside_is_escaped_in_what_objects_show() -> None:
    graph = graphs.Graph(2, np.array([[0, 1]]), np.ones(1), kind=EVIL)
    assert "<script" not in graph._repr_html_()
    assert row("kind", html.escape(EVIL)) in graph._repr_html_()


def test_a_map_says_whether_it_is_fitted() -> None:
    fresh = LinearMap(ridge=0.5)
    assert repr(fresh) == "LinearMap(ridge=0.5)"
    assert row("fitted", "not yet: call fit(x, y)") in fresh._repr_html_()
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    shown = fresh.fit(x, x)._repr_html_()
    assert row("fitted", "3 → 3 coordinates") in shown
    assert row("weight ", "float64 (3, 3)") in shown


def test_a_recorded_context_and_a_models_support_are_short() -> None:
    model = tiny_model("llama")
    context = record(model, torch.arange(12).reshape(2, 6), torch.tensor([[3, 5], [3, 5]]), layers=[1, 2])
    assert repr(context) == (
        f"Context(model={model.name!r}, windows=2, window_length=6, chosen=2, blocks=[1, 2], sites=[], one_token=False)"
    )
    assert re.fullmatch(r"Support\('llama', blocks 0 … 3: \w+, left out: \d+\)", repr(model.support))
    assert repr(weights_of(model)).startswith("ModuleWeights(name=") or len(repr(weights_of(model))) < 300


def test_values_are_brief() -> None:
    values = {
        0.123456: "0.1235",
        123456: "123,456",
        1989: "1989",
        True: "True",
        "a": "'a'",
        None: "None",
        tuple(range(30)): "(0, 1, …, 29)",
    }
    assert {value: display.brief(value) for value in values} == values
    assert display.brief(torch.zeros(3, 64, dtype=torch.float32)) == "float32 (3, 64)"
    assert display.brief(np.float64(0.25)) == "0.25"
    assert display.brief({"a": np.zeros(2, dtype=np.int64)}) == "{'a': int64 (2,)}"
