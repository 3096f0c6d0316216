from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from types import ModuleType

import pytest

from probe.errors import InputError
from probe.model import shipped

WIKITEXT_DISTINCT_TRIGRAMS = 0.930
"""Of the first 683 words of 45 articles of WikiText-2's test split, as many as the sample holds: measured once."""


def installed(package: Path) -> ModuleType:
    """The module as it would run from this package folder."""
    (package / "model").mkdir(parents=True)
    code = package / "model" / "shipped.py"
    code.write_text(Path(shipped.__file__).read_text())
    spec = importlib.util.spec_from_file_location("installed_shipped", code)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_checkout_keeps_its_data_beside_the_package(tmp_path: Path) -> None:
    module = installed(tmp_path / "probe")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("checkout")
    assert module.path("a.txt").read_text() == "checkout"


def test_a_wheel_keeps_its_data_inside_the_package(tmp_path: Path) -> None:
    module = installed(tmp_path / "site-packages" / "probe")
    (tmp_path / "site-packages" / "probe" / "_data").mkdir()
    (tmp_path / "site-packages" / "probe" / "_data" / "a.txt").write_text("wheel")
    (tmp_path / "site-packages" / "data").mkdir()  # another package's folder
    (tmp_path / "site-packages" / "data" / "a.txt").write_text("not ours")
    assert module.path("a.txt").read_text() == "wheel"


def test_a_missing_file_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"nothing\.txt.*install the package again"):
        shipped.path("nothing.txt")


@pytest.fixture(scope="module")
def articles() -> dict[str, str]:
    parts = re.split(
        r"^ = ([^=].*[^=]) = \n", shipped.path("sample.txt").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert not parts[0].strip()
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def test_the_sample_is_large_enough(articles: dict[str, str]) -> None:
    assert shipped.path("sample.txt").stat().st_size >= 50_000
    assert len(articles) >= 16
    assert min(len(words(article)) for article in articles.values()) >= 500


def test_the_sample_is_as_varied_as_wikitext(articles: dict[str, str]) -> None:
    text = words(" ".join(articles.values()))
    trigrams = list(zip(text, text[1:], text[2:], strict=False))
    assert len(set(trigrams)) / len(trigrams) == pytest.approx(WIKITEXT_DISTINCT_TRIGRAMS, abs=0.04)


def test_no_two_articles_of_the_sample_share_a_sentence(articles: dict[str, str]) -> None:
    sentences = [set(re.split(r"(?<=[.!?])\s+", article.strip())) - {"", "="} for article in articles.values()]
    shared = [a & b for a, b in itertools.combinations(sentences, 2)]
    assert not [s for both in shared for s in both if len(s.split()) > 4]
