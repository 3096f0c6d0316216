from __future__ import annotations

import html
import itertools
import json
import math
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import figure as mpl
from playwright.sync_api import Browser, Page, expect

from probe import plots
from probe.analyses.tokenwise.config import Config
from probe.analyses.tokenwise.figures import figures
from probe.claims import Claim
from probe.errors import InputError
from probe.plots.charts import hover_text
from probe.report import Figure, Result, write_comparison
from probe.report.page import interval_text, script_json
from tests.browsing import Opened, launched
from tests.plant.tokenwise import dataset

EVIL = '</script><script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">'
TOKENS = [EVIL, "<b>bold</b>", "&amp;", "\n", " 東京", "\u202egnp", "%{x}", "\u2028"]


def claim(name: str = "updates.alignment", verdict: str = "supported", **changes: object) -> Claim:
    values: dict[str, object] = {
        "id": name,
        "statement": f"A statement with {EVIL}",
        "source": "arXiv 2604.02459",
        "statistic": "a median",
        "estimate": 0.9123,
        "ci_low": 0.9,
        "ci_high": 0.925,
        "threshold": 0.9,
        "direction": ">",
        "unit": "documents",
        "n_units": 16,
        "null": {"name": "a null line", "estimate": 0.125, "ci_low": None, "ci_high": None},
        "controls": [
            {"name": f"a control {'with a long name ' * 8}", "estimate": 0.25, "role": "deciding contrast"},
            {"name": "verdicts", "role": "shown", "verdicts": {"one": "supported", "two": "mechanical"}},
        ],
        "verdict": verdict,
        "reason": "because <of> the interval",
    }
    return Claim(**(values | changes))  # type: ignore[arg-type]


CLAIMS = [
    claim(),
    claim("updates.next", "mechanical", estimate=-0.25, ci_low=-0.5, ci_high=-0.125),
    claim("updates.output", "not supported", controls=[]),
    claim("updates.universal", "inconclusive", estimate=math.nan, ci_low=math.nan, ci_high=math.nan),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return dataset(n_layers=4, queries=64, documents=12, tokens=TOKENS, titles=[EVIL, "A & B"])


@pytest.fixture(scope="module")
def result(data: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probe.plots.style.RESAMPLES", 20)
        evil = data.assign_attrs(model=f"model {EVIL}", text=EVIL)
        shown = [one for one in figures(evil, Config()) if one.name in {"error-kl", "ratio", "regimes"}]
        made = Result(evil, CLAIMS, tmp_path_factory.mktemp("run"), f"Title {EVIL}", [f"Note {EVIL}"], shown)
        made.write_report()
    return made


@pytest.fixture(scope="module")
def read(browser: Browser, result: Result) -> Iterator[Opened]:
    """The report, for tests that leave it as it is."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    opened = Opened(page)
    opened.open(result.directory / "report.html")
    yield opened
    page.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    yield Opened(page)
    page.close()


@pytest.fixture
def page(opened: Opened, result: Result) -> Page:
    return opened.open(result.directory / "report.html")


class Links(HTMLParser):
    """Addresses that a page refers to, and its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "action", "data", "srcset"}]


def test_the_page_opens_without_complaint_and_without_network(read: Opened, result: Result) -> None:
    page = read.page
    assert read.said == []
    assert [url for url in read.asked if not url.startswith("data:")] == [(result.directory / "report.html").as_uri()]
    assert page.evaluate("window.pwned") is None
    assert page.title() == f"Title {EVIL}"


def test_charts_are_drawn_with_a_point_for_each_token(read: Opened, data: xr.Dataset) -> None:
    assert read.page.locator(".chart").count() == 1
    assert read.page.locator(".chart .scatterlayer .point").count() == data.sizes["query"]


def test_the_block_is_chosen_by_keyboard(page: Page, data: xr.Dataset) -> None:
    slider = page.get_by_role("slider", name="block")
    slider.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    shown = page.evaluate("document.querySelector('.chart').data.filter(t => t.visible === true)[0]")
    expected = data["relative_error"].sel(map="local", layer=2, target="update").values
    np.testing.assert_allclose(shown["x"], expected, rtol=1e-3)
    assert shown["meta"] == "2"
    assert slider.get_attribute("aria-valuetext") == "block 2"


def test_the_class_is_chosen_from_a_list(page: Page) -> None:
    names = "document.querySelector('.chart').data.filter(t => t.visible === true).map(t => t.name)"
    assert page.evaluate(names) == ["local low-rank"]
    page.get_by_label("class").select_option("linear")
    assert page.evaluate(names) == ["linear"]
    page.get_by_label("class").select_option("all classes")
    assert len(page.evaluate(names)) == 3


@pytest.mark.parametrize("place", range(len(TOKENS)))
def test_hovering_shows_the_token_as_it_is(read: Opened, place: int) -> None:
    """The labels that plotly draws hold the token's characters, however it reads tags and templates."""
    page = read.page
    page.evaluate(f"Plotly.Fx.hover(document.querySelector('.chart'), [{{curveNumber: 0, pointNumber: {place}}}])")
    visible = {"\n": "↵", "\u202egnp": "\\u202egnp", "\u2028": "\\u2028", EVIL: f"…{EVIL[-33:]}"}
    label = page.locator(".chart .hoverlayer")
    expect(label).to_contain_text(f"{visible.get(TOKENS[place], TOKENS[place])}after")
    expect(label).to_contain_text("block 0, local low-rank")
    assert page.evaluate("window.pwned") is None


def test_the_claims_table_says_all(read: Opened) -> None:
    page = read.page
    rows = page.locator("table.claims > tbody > tr.has-details")
    assert rows.count() == len(CLAIMS)
    for number, one in enumerate(CLAIMS):
        text = rows.nth(number).inner_text()
        for part in (one.statement, one.id, one.source, one.verdict, "0.9", "documents, 16"):
            assert part in text
    assert "0.912 [0.900, 0.925]" in rows.nth(0).inner_text()
    assert "−0.25 [−0.50, −0.12]" in rows.nth(1).inner_text()
    assert "nan" not in rows.nth(3).inner_text()
    assert page.locator("tr.details").first.inner_text().startswith("because <of> the interval")


def test_how_a_claim_was_computed_opens_by_keyboard(page: Page) -> None:
    details = page.locator("tr.details details").first
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    text = details.inner_text()
    for part in ("a median", "a null line: 0.125", "a control", "deciding contrast", "one: supported; two: mechanical"):
        assert part in text


def test_pictures_are_there_and_described(read: Opened) -> None:
    images = read.page.locator("figure img")
    assert images.count() == 3
    assert images.evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 300 && i.alt.length > 20)")


def test_the_regimes_are_a_table_too(page: Page) -> None:
    page.get_by_text("The numbers: Low, middle and high error").click()
    table = page.get_by_role("region", name="Numbers of Low, middle and high error").locator("table")
    assert table.locator("th").all_inner_texts()[:3] == ["thirds of", "error", "class"]
    assert table.locator("tbody tr").count() == 2 * 3 * 4  # cuts, thirds, classes


def test_configuration_versions_and_command_are_there(page: Page) -> None:
    text = page.locator("main").inner_text()
    assert "python -m probe.analyses.tokenwise --model planted-6x64" in text
    assert "thresholds.threshold_alignment" in text
    page.get_by_text("Versions", exact=True).click()
    assert np.__version__ in page.locator("main").inner_text()


def test_a_demonstration_says_so(read: Opened, data: xr.Dataset, tmp_path: Path) -> None:
    assert read.page.get_by_role("note").inner_text().startswith("Demonstration.")
    serious = Result(data.assign_attrs(demonstration=0), CLAIMS, tmp_path, "t").write_report()
    assert "Demonstration." not in serious.read_text()


def test_the_policy_stops_network_and_foreign_scripts(page: Page) -> None:
    assert page.evaluate("fetch('https://example.com').then(() => 'sent', () => 'stopped')") == "stopped"
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.pwned = 3';
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.pwned = 4">');
    }""")
    page.wait_for_timeout(100)
    assert page.evaluate("window.pwned") is None


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_the_screen(opened: Opened, result: Result, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 800})
    page = opened.open(result.directory / "report.html")
    page.locator("tr.details summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cells = page.locator("table.claims > tbody > tr > *")
    assert cells.evaluate_all("all => all.every(cell => cell.scrollWidth <= cell.clientWidth + 1)")


def test_printing_opens_what_is_folded(page: Page) -> None:
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")


def test_headings_and_regions_are_in_order(read: Opened) -> None:
    page = read.page
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.get_by_role("main").count() == 1
    ids = page.locator("[id]").evaluate_all("all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_the_page_is_one_file_with_plotly_once(result: Result) -> None:
    text = (result.directory / "report.html").read_text(encoding="utf-8")
    assert all(address.startswith(("data:", "#")) for address in Links(text).addresses)
    assert text.count("plotly.js v") == 1
    assert len(text.encode()) < 12e6


def test_a_tall_chart_covers_nothing_that_follows(opened: Opened, tmp_path: Path) -> None:
    def chart() -> go.Figure:
        return go.Figure(go.Scatter(x=[1, 2], y=[1, 2]), layout={"height": 640})

    shown = [Figure(name, name, "caption", lambda: plots.new_figure()[0], chart) for name in ("first", "second")]
    page = opened.open(Result(xr.Dataset(), [], tmp_path, "t", figures=shown).write_report())
    chart_box = page.locator(".chart .main-svg").first.bounding_box()
    heading = page.locator("#figure-second").bounding_box()
    assert chart_box is not None
    assert heading is not None
    assert chart_box["height"] == 640
    assert chart_box["y"] + chart_box["height"] <= heading["y"]


def test_a_report_without_charts_holds_no_plotly(data: xr.Dataset, tmp_path: Path) -> None:
    path = Result(data, CLAIMS, tmp_path, "t").write_report()
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 100_000


def test_figures_are_files_too_and_equal_data_give_equal_files(data: xr.Dataset, tmp_path: Path) -> None:
    figure = Figure("dots", "Dots", "A caption", _dots, table=lambda: pd.DataFrame({"<x>": [0.12345, math.nan]}))
    made = [Result(data, [], tmp_path / name, "t", figures=[figure]) for name in ("a", "b")]
    for one in made:
        one.write_report()
    for suffix, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        first, second = ((one.directory / "figures" / f"dots.{suffix}").read_bytes() for one in made)
        assert first.startswith(magic)
        assert first == second
    text = (tmp_path / "a" / "report.html").read_text()
    assert "&lt;x&gt;" in text
    assert ">0.123</td>" in text


def test_a_folder_that_cannot_be_written_is_named(data: xr.Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="file"):
        Result(data, CLAIMS, tmp_path / "file" / "run", "t").write_report()


def test_a_result_without_a_record_is_still_a_report(data: xr.Dataset, tmp_path: Path) -> None:
    bare = data.copy()
    bare.attrs = {}
    assert "no record of its configuration" in Result(bare, [], tmp_path, "t").write_report().read_text()


def test_the_notebook_summary_is_short_and_escaped(result: Result) -> None:
    text = result._repr_html_()
    tags = Links(text).tags
    assert "script" not in tags
    assert "img" not in tags
    assert f"Title {EVIL}" in html.unescape(text)
    for one in CLAIMS:
        assert one.verdict in text
    assert len(text) < 20_000


def test_runs_are_compared_side_by_side(result: Result, data: xr.Dataset, tmp_path: Path, opened: Opened) -> None:
    other = Result(data.assign_attrs(model="other"), CLAIMS[:1], tmp_path / "o #1", "Other")
    other.write_report()
    across = claim("updates.universal", "inconclusive", statement="Alike")
    path = write_comparison([result, other], tmp_path / "pages" / "comparison.html", across=[across])
    page = opened.open(path)
    assert opened.said == []
    assert page.evaluate("window.pwned") is None
    table = page.locator("table.comparison")
    heads = table.locator("thead th").all_inner_texts()
    assert heads == ["Claim", f"model {EVIL}", "other"]
    assert table.locator("tbody tr").count() == len(CLAIMS)
    first, second = (table.locator("tbody tr").nth(n).locator("td").all_inner_texts() for n in (0, 1))
    assert "supported" in first[0]
    assert "supported" in first[1]
    assert "mechanical" in second[0]
    assert second[1] == "–"
    assert page.get_by_text("Alike").count() == 1
    table.locator("thead a").nth(1).click()
    page.wait_for_selector("h1")
    assert page.locator("h1").inner_text() == "Other"


@given(st.text())
def test_json_in_a_script_element_stays_json(text: str) -> None:
    safe = str(script_json(json.dumps(text, ensure_ascii=False)))
    assert json.loads(safe) == text
    assert not set(safe) & set("<>&\u2028\u2029")


@given(st.text())
def test_hover_text_holds_no_tag_and_loses_no_letter(text: str) -> None:
    shown = hover_text(text, limit=10_000)
    assert not set(shown) & {"<", ">"}
    assert not any(unicodedata.category(character) in {"Cc", "Cf"} for character in shown)
    plain = text.translate({ord(c): None for c in text if unicodedata.category(c)[0] == "C"})
    if plain == text:
        assert html.unescape(shown) == text


def test_hover_text_keeps_the_end_of_a_long_text() -> None:
    assert hover_text("a" * 50 + "the end", limit=8) == "…the end"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.5, 0.4, 0.6), "0.50 [0.40, 0.60]"),
        ((12.3, 2.0, 22.0), "12 [2, 22]"),
        ((-0.0123, -0.013, -0.011), "−0.0123 [−0.0130, −0.0110]"),
        ((0.25, math.nan, math.nan), "0.25"),
        ((math.nan, math.nan, math.nan), "–"),
    ],
)
def test_intervals_show_as_many_digits_as_they_hold(values: tuple[float, float, float], text: str) -> None:
    assert interval_text(*values) == text


def _dots() -> mpl.Figure:
    figure = mpl.Figure(figsize=(7, 2))
    figure.subplots().plot([1, 2], [3, 4], "o")
    return figure
