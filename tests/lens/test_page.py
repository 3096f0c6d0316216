"""The page of a readout in a real browser, and its picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from probe.errors import InputError
from probe.lens import Readout
from tests.browsing import Opened, launched

EVIL = '</script><script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">'
WORDS = (" Paris", EVIL, "\u202egnp", "\n", "<b>bold</b>", "\u2028", "&amp;", "東京", "%{x}", "plain")
LENSES, LAYERS, K = (f"mean {EVIL}", "logit"), (0, 2, 3), 3
SHOWN = ("␣Paris", EVIL, "\\u202egnp", "↵", "<b>bold</b>", "\\u2028", "&amp;", "東京", "%{x}", "plain")


def planted(columns: int = 4, layers: tuple[int, ...] = LAYERS) -> Readout:
    """Two prompts, of `columns` and of two tokens; the last layer is the output."""
    rows, generator = columns + 2, torch.Generator().manual_seed(0)
    shape = (len(LENSES), len(layers), rows)
    scores = torch.rand(*shape, len(WORDS), generator=generator).mul(4).softmax(-1)
    scores[:, -1] = scores[0, -1]
    best = scores.topk(K, dim=-1)
    final = scores[0, -1].argmax(-1)
    at_final = scores.gather(-1, final.expand(*shape)[..., None])
    output = scores[0, -1]
    return Readout(
        name=f"model {EVIL}",
        lenses=LENSES,
        layers=layers,
        window=torch.tensor([0] * columns + [1, 1]),
        position=torch.tensor([*range(columns), 5, 6]),
        token=tuple(WORDS[row % len(WORDS)] for row in range(rows)),
        top=best.indices,
        words=dict(enumerate(WORDS)),
        probability=best.values,
        kl=(output * (output.log() - scores.log())).sum(-1),
        rank=(scores > at_final).sum(-1),
        final=final,
        n_vocab=len(WORDS),
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def readout() -> Readout:
    return planted()


@pytest.fixture
def opened(browser: Browser, readout: Readout, tmp_path: Path) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    found = Opened(page)
    found.open(readout.save_page(tmp_path / "page.html"))
    yield found
    page.close()


@pytest.fixture
def page(opened: Opened) -> Page:
    return opened.page


def cell(page: Page, layer: int, row: int) -> str:
    """The selector of a cell, by the index of its layer and its column."""
    return f"td[data-layer='{layer}'][data-row='{row}']"


def test_the_page_opens_without_complaint_and_without_network(opened: Opened) -> None:
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in opened.asked if url.startswith("file:")]) == 1
    assert opened.page.evaluate("window.pwned") is None
    assert opened.page.title() == f"What model {EVIL} would say, token by layer"
    assert opened.page.locator("b, img").count() == 0


def test_each_cell_shows_what_the_lens_reads_there(page: Page, readout: Readout) -> None:
    for lens in range(len(LENSES)):
        page.get_by_role("radio").nth(lens).check()
        for layer in range(len(LAYERS)):
            for row in range(4):
                found = page.locator(cell(page, layer, row))
                expect(found).to_have_text(SHOWN[int(readout.top[lens, layer, row, 0])])
                agrees = int(readout.rank[lens, layer, row]) == 0
                assert ("agrees" in (found.get_attribute("class") or "")) == agrees
                said = found.get_attribute("aria-label") or ""
                assert ("agrees with the output" in said) == agrees
                shade = float(found.evaluate("one => one.style.getPropertyValue('--p')"))
                assert shade == pytest.approx(float(readout.probability[lens, layer, row, 0]), rel=1e-3)
    assert page.locator("#box tbody th").all_inner_texts() == ["output", "2", "0"]
    assert page.locator("#box thead th").all_inner_texts()[1:] == [f"{at}\n{SHOWN[at]}" for at in range(4)]


def test_a_stronger_colour_is_more_probable(page: Page, readout: Readout) -> None:
    flat = readout.probability[0, :, :4, 0]
    most, least = ((int(at) // 4, int(at) % 4) for at in (flat.argmax(), flat.argmin()))
    colors = [
        page.locator(cell(page, *at)).evaluate("one => getComputedStyle(one).backgroundColor") for at in (most, least)
    ]
    red = [float(color.split("srgb ")[1].split()[0]) for color in colors]
    assert red[0] < red[1] < 1


def test_arrow_keys_move_and_numbers_change_the_lens(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.layer + document.activeElement.dataset.row") == "20"
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.layer + document.activeElement.dataset.row") == "01"
    assert page.locator("td[tabindex='0']").count() == page.locator("td[aria-selected=true]").count() == 1
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.row") == "3"
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.dataset.row") == "0"
    for key, lens in (("2", 1), ("1", 0), ("l", 1), ("L", 0), ("7", 0)):
        page.keyboard.press(key)
        assert page.locator("input[name=lens]").nth(lens).is_checked()


def test_the_detail_tells_all_lenses_of_a_cell(page: Page, readout: Readout) -> None:
    page.locator(cell(page, 1, 2)).hover()
    detail = page.get_by_role("region", name="The chosen cell")
    expect(detail.locator("h2")).to_have_text(f"Layer 2, position 2: {SHOWN[2]}")
    expect(detail).to_contain_text(f"The model puts first: {SHOWN[int(readout.final[2])]}")
    for lens, name in enumerate(LENSES):
        table = detail.locator("table").nth(lens)
        expect(table.locator("caption")).to_have_text(name)
        words = table.locator("td:first-child").all_text_contents()
        assert words == [SHOWN[int(one)] for one in readout.top[lens, 1, 2]]
        numbers = [float(one.removesuffix(" %")) for one in table.locator("td + td").all_inner_texts()]
        assert numbers == pytest.approx((100 * readout.probability[lens, 1, 2]).tolist(), abs=0.5)
        said = detail.locator("p.soft").nth(lens).inner_text()
        assert f"KL to the output {float(readout.kl[lens, 1, 2]):#.3g} nat" in said
        rank = int(readout.rank[lens, 1, 2])
        assert (f"{rank} token" if rank else "comes first") in said
    page.mouse.move(5, 5)
    expect(detail.locator("h2")).to_have_text(f"Layer output, position 0: {SHOWN[0]}")


def test_another_prompt_is_chosen(page: Page, readout: Readout) -> None:
    page.get_by_label("Prompt").select_option("1")
    assert page.locator("#box tbody tr").first.locator("td").count() == 2
    assert [text.split("\n")[0] for text in page.locator("#box thead th").all_inner_texts()[1:]] == ["5", "6"]
    expect(page.locator(cell(page, 0, 1))).to_have_text(SHOWN[int(readout.top[0, 0, 5, 0])])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (400, "light")])
def test_a_large_table_scrolls_in_its_own_box(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    path = planted(60, tuple(range(34))).save_page(tmp_path / "large.html")
    page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)  # type: ignore[arg-type]
    Opened(page).open(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("box.scrollWidth > box.clientWidth && box.scrollHeight > box.clientHeight")
    page.locator(cell(page, 12, 30)).focus()
    page.keyboard.press("End")
    for _ in range(12):
        page.keyboard.press("ArrowDown")
    inside = """() => { const [a, b] = [document.activeElement, box].map(one => one.getBoundingClientRect());
        return a.right <= b.right + 1 && a.bottom <= b.bottom + 1 && a.left >= b.left && a.top >= b.top }"""
    assert page.evaluate(inside)
    page.keyboard.press("Home")
    head = page.locator("#box tbody th").first.bounding_box()
    first = page.locator("td:focus").bounding_box()
    assert head is not None
    assert first is not None
    assert first["x"] >= head["x"] + head["width"] - 1
    paper, ink = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    light = [int(color.split("(")[1].split(",")[0]) for color in (paper, ink)]
    assert (light[0] > 200 > 60 > light[1]) == (scheme == "light")
    page.emulate_media(media="print")
    assert page.evaluate("box.scrollWidth <= box.clientWidth + 1 && box.scrollHeight <= box.clientHeight + 1")
    page.close()


def test_a_notebook_shows_the_page_in_a_frame(browser: Browser, readout: Readout) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 700})
    opened = Opened(page)
    page.set_content(f"<!doctype html><p>before</p>{readout._repr_html_()}")
    frame = page.frame_locator("iframe")
    frame.locator("html[data-drawn=yes]").wait_for(state="attached")
    expect(frame.locator("td").first).to_have_text(SHOWN[int(readout.top[0, -1, 0, 0])])
    assert page.evaluate("window.pwned") is None
    assert opened.said == []
    page.close()
    large = planted(4000)._repr_html_()
    assert "<iframe" not in large
    assert "save_page" in large


def test_files_that_cannot_be_written_are_refused(readout: Readout, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"end in \.html"):
        readout.save_page(tmp_path / "page.pdf")
    with pytest.raises(InputError, match="must be writable"):
        readout.save_page(tmp_path / "absent" / "page.html")


def test_the_picture_has_the_tokens_and_the_values(readout: Readout, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = readout.plot("logit", prompt=1, of="kl")
    image = picture.ax.images[0]
    np.testing.assert_allclose(image.get_array(), readout.kl[1][:, 4:], rtol=1e-6)
    words = [text.get_text() for text in picture.ax.texts]
    assert len(words) == 3 * 2
    expected = SHOWN[int(readout.top[1, 0, 4, 0])]
    assert words[0] == (expected if len(expected) <= 10 else f"{expected[:9]}…")
    first = readout.plot().ax.images[0]
    np.testing.assert_allclose(first.get_array(), readout.probability[0, :, :4, 0], rtol=1e-6)
    with pytest.raises(InputError, match="prompt= must be one that was read"):
        readout.plot(prompt=2)
    with pytest.raises(InputError, match="lens= must be one of"):
        readout.plot("own")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no such check
    with pytest.raises(InputError, match="of= must be one of 'probability', 'kl', 'rank'"):
        readout.plot(of="loss")  # type: ignore[arg-type]
