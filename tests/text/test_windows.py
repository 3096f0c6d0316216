from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.errors import InputError
from probe.model import load_model
from probe.text import load_windows
from probe.text import windows as text
from tests.plant.tiny import tiny_module, tiny_tokenizer

BOS = 1


@dataclass
class Reader:
    """A model as far as this room knows one: a word is a token, its id a hash of the word."""

    tokenizer: Any = "words"
    max_positions: int | None = None
    special_ids: frozenset[int] = frozenset({BOS})
    bos_id: int | None = None
    encoded: list[str] = field(default_factory=list)

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        return [token(word) for word in text.split()]


def token(word: str) -> int:
    return 2 + zlib.crc32(word.encode())


def collection(lengths: list[int]) -> str:
    """Documents of so many words each, the title's five included; each word tells its document and place."""
    return "".join(
        f" = Title {d} = \n \n {' '.join(f'd{d}w{w}' for w in range(length - 4))} \n \n"
        for d, length in enumerate(lengths)
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(collection([40, 25, 9, 60]), encoding="utf-8")
    return path


def words_of(document: int, length: int) -> list[int]:
    words = ["=", "Title", str(document), "=", *(f"d{document}w{w}" for w in range(length - 4))]
    return [token(word) for word in words]


def test_windows_are_consecutive_pieces_of_one_document_that_never_overlap(file: Path) -> None:
    windows = load_windows(Reader(), text=file, windows=None, window_length=10)
    assert windows.tokens.dtype == torch.int64
    expected = {
        (document, tuple(words_of(document, length)[start : start + 10]))
        for document, length in enumerate([40, 25, 9, 60])
        for start in range(0, length - 9, 10)
    }
    drawn = list(zip(windows.document.tolist(), map(tuple, windows.tokens.tolist()), strict=True))
    assert len(drawn) == len(expected) == 4 + 2 + 0 + 6
    assert set(drawn) == expected


def test_every_document_gives_one_window_before_any_gives_a_second(file: Path) -> None:
    rounds = load_windows(Reader(), text=file, windows=None, window_length=10).document.tolist()
    order = rounds[:3]
    assert sorted(order) == [0, 1, 3]
    assert rounds[3:6] == order
    assert rounds[6:] == [d for d in order if d != 1] * 2 + [3, 3]


def test_a_smaller_draw_is_the_beginning_of_a_larger_one(file: Path) -> None:
    everything = load_windows(Reader(), text=file, windows=None, window_length=10)
    reader = Reader()
    few = load_windows(reader, text=file, windows=2, window_length=10)
    assert torch.equal(few.tokens, everything.tokens[:2])
    assert len(reader.encoded) <= 3, "documents are encoded only as far as they are needed"


def test_each_document_is_encoded_once(file: Path) -> None:
    reader = Reader()
    load_windows(reader, text=file, windows=None, window_length=10)
    assert Counter(reader.encoded).most_common(1)[0][1] == 1


def test_the_seed_decides_the_order(file: Path) -> None:
    draws = [load_windows(Reader(), text=file, windows=None, window_length=5, seed=seed).tokens for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert sorted(draws[0].tolist()) == sorted(draws[2].tolist())


@pytest.mark.guards(
    "a window begins as the tokenizer begins a text",
    when="a text is read",
    gives="with its first token, where it puts one",
)
def test_windows_begin_with_bos_where_the_tokenizer_puts_one(file: Path) -> None:
    windows = load_windows(Reader(bos_id=BOS), text=file, windows=None, window_length=10)
    assert windows.tokens.shape == (4 + 2 + 1 + 6, 10)  # nine words each, so the document of nine words gives one
    assert (windows.tokens[:, 0] == BOS).all()
    assert windows.tokens[windows.document == 2].tolist() == [[BOS, *words_of(2, 9)]]
    assert not (windows.tokens[:, 1:] == BOS).any()


@pytest.mark.parametrize("add_bos", [False, True])
def test_a_real_tokenizer_gives_windows_that_decode_to_the_text(tmp_path: Path, add_bos: bool) -> None:
    model = load_model(tiny_module("llama"), tokenizer=tiny_tokenizer(add_bos=add_bos))
    (tmp_path / "t.txt").write_text(collection([40, 30]), encoding="utf-8")
    windows = load_windows(model, text=tmp_path / "t.txt", windows=4, window_length=16)
    assert windows.counted(0).sum(1).tolist() == [16 - add_bos] * 4
    for tokens in windows.tokens:
        decoded = model.tokenizer.decode(tokens)
        assert decoded.startswith("<bos>") == add_bos
        assert decoded.removeprefix("<bos>") in collection([40, 30])


def test_counted_leaves_out_the_first_positions_and_special_tokens(file: Path) -> None:
    windows = load_windows(Reader(bos_id=BOS), text=file, windows=3, window_length=10)
    assert windows.counted().tolist() == [[False] + [True] * 9] * 3
    assert windows.counted(0).tolist() == [[False] + [True] * 9] * 3  # BOS does not count
    assert windows.counted(4).tolist() == [[False] * 4 + [True] * 6] * 3
    special = int(windows.tokens[0, 5])
    windows = load_windows(Reader(special_ids=frozenset({special})), text=file, windows=3, window_length=10)
    assert torch.equal(windows.counted(0), windows.tokens != special)


@pytest.mark.parametrize("skip_first", [-1, 10, 11])
def test_counted_must_leave_positions(file: Path, skip_first: int) -> None:
    windows = load_windows(Reader(), text=file, windows=3, window_length=10)
    with pytest.raises(InputError, match="below the window length 10"):
        windows.counted(skip_first)


def test_windows_tell_where_they_come_from(file: Path) -> None:
    windows = load_windows(Reader(), text=file, windows=4, window_length=10)
    assert windows.name == "text.txt"
    assert windows.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert windows.titles == ("Title 0", "Title 1", "Title 2", "Title 3")
    assert (windows.n_windows, windows.window_length, windows.n_documents) == (4, 10, 3)


def test_headings_and_formulas_open_no_document(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    body = "a b c d e f \n"
    path.write_text(
        f" = One = \r\n{body} = = Part = = \n{body} = = = Deep = = = \n{body}x = y = z \n = Two ( 2 = 2 ) = \n{body}"
    )
    windows = load_windows(Reader(), text=path, windows=None, window_length=5)
    assert windows.titles == ("One", "Two ( 2 = 2 )")


def test_what_stands_before_the_first_title_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("an introduction of six words \n = Title = \n body body body")
    assert load_windows(Reader(), text=path, windows=None, window_length=5).titles == ("", "Title")


@pytest.mark.parametrize("end", ["\n\n", "\n"], ids=["empty lines", "lines only"])
def test_a_text_without_titles_is_cut_at_paragraphs(tmp_path: Path, end: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(end.join(" ".join(f"p{p}w{w}" for w in range(400)) for p in range(10)))
    windows = load_windows(Reader(), text=path, windows=None, window_length=50)
    # 3 x 400 words are the first to reach 1,000; the tenth paragraph alone is too short and joins the run before it
    assert windows.titles == ("paragraphs 1 to 3", "paragraphs 4 to 6", "paragraphs 7 to 10")
    assert windows.n_windows == 24 + 24 + 32


@pytest.mark.guards(
    "fitted and scored windows are of different documents",
    when="a text is read",
    gives="no document in two parts",
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lengths=st.lists(st.integers(8, 40), min_size=3, max_size=40), seed=st.integers(0, 9))
def test_parts_share_no_document_and_cover_all(tmp_path: Path, lengths: list[int], seed: int) -> None:
    path = tmp_path / "t.txt"
    path.write_text(collection(lengths))
    parts = [
        set(load_windows(Reader(), text=path, windows=None, window_length=8, part=part, seed=seed).document.tolist())
        for part in ("fit", "validation", "scored")
    ]
    n = len(lengths)
    assert sum(map(len, parts)) == n
    assert set.union(*parts) == set(range(n))
    assert all(parts)
    for found, share in zip(parts, (0.6, 0.1, 0.3), strict=True):
        assert abs(len(found) - share * n) <= 1


def test_two_halves_share_no_document_and_cover_all(file: Path) -> None:
    halves = [
        set(load_windows(Reader(), text=file, part=part, windows=None, window_length=8).document.tolist())
        for part in ("half_a", "half_b")
    ]
    every = set(load_windows(Reader(), text=file, windows=None, window_length=8).document.tolist())
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == every
    assert abs(len(halves[0]) - len(halves[1])) <= 1


def test_the_part_of_a_document_does_not_depend_on_seed_or_window_length(file: Path) -> None:
    drawn = [
        set(
            load_windows(
                Reader(), text=file, windows=None, window_length=length, part="fit", seed=seed
            ).document.tolist()
        )
        for length, seed in [(5, 0), (9, 1), (9, 2)]
    ]
    assert drawn[0] == drawn[1] == drawn[2]


def test_the_shipped_sample_is_a_data_set() -> None:
    windows = load_windows(Reader(), dataset="sample", windows=45, window_length=128)
    assert windows.name == "sample"
    assert windows.n_documents == 45
    assert "Lighthouse" in windows.titles


class TestWrongInput:
    def test_neither_or_both_texts(self, file: Path) -> None:
        with pytest.raises(InputError, match="one of a data set and a text file must be named"):
            load_windows(Reader())
        with pytest.raises(InputError, match=r"only one text can be read, got data set sample and file .*text\.txt"):
            load_windows(Reader(), dataset="sample", text=file)

    def test_unknown_data_set(self) -> None:
        with pytest.raises(
            InputError, match=r"dataset= must be wikitext-2, wikitext-103, sample or an id .*, got 'pile': .* text=FILE"
        ):
            load_windows(Reader(), dataset="pile")

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"missing\.txt is not \(No such file"):
            load_windows(Reader(), text=tmp_path / "missing.txt")

    @pytest.mark.parametrize("content", ["", " \n\n \t\n"])
    def test_empty(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "t.txt").write_text(content)
        with pytest.raises(InputError, match=r"t\.txt is empty"):
            load_windows(Reader(), text=tmp_path / "t.txt")

    @pytest.mark.guards(
        "the file is UTF-8",
        when="a text is read",
        says="a text must be UTF-8, but … is not (byte …): convert it first",
    )
    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_bytes(b"caf\xe9 au lait")
        with pytest.raises(InputError, match=r"must be UTF-8, but .*t\.txt is not \(byte 3\)"):
            load_windows(Reader(), text=tmp_path / "t.txt")

    def test_no_document_as_long_as_a_window(self, file: Path) -> None:
        with pytest.raises(InputError, match=r"text\.txt has none of 61 tokens"):
            load_windows(Reader(), text=file, window_length=61)

    def test_window_longer_than_the_context(self, file: Path) -> None:
        with pytest.raises(InputError, match="context of 64 tokens, got window_length=65: pass window_length=64"):
            load_windows(Reader(max_positions=64), text=file, window_length=65)

    def test_fewer_windows_than_asked_for(self, file: Path) -> None:
        with pytest.raises(InputError, match="has 12 of 10 tokens, not 13: ask for 12 or fewer"):
            load_windows(Reader(), text=file, windows=13, window_length=10)
        assert load_windows(Reader(), text=file, windows=13, at_most=True, window_length=10).n_windows == 12

    def test_too_few_documents_for_parts(self, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text(collection([20, 20]))
        with pytest.raises(InputError, match=r"at least 3 documents .* has 2"):
            load_windows(Reader(), text=tmp_path / "t.txt", part="scored", window_length=5)

    def test_no_such_part(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
        with pytest.raises(InputError, match=r"one of 'all', 'fit', .*got 'test'"):
            load_windows(Reader(), text=file, window_length=5, part="test")  # type: ignore[arg-type]

    def test_no_tokenizer(self, file: Path) -> None:
        with pytest.raises(InputError, match="has none: pass tokenizer="):
            load_windows(Reader(tokenizer=None), text=file)

    @pytest.mark.parametrize(("windows", "length"), [(0, 10), (-1, 10), (3, 1)])
    def test_sizes(self, file: Path, windows: int, length: int) -> None:
        with pytest.raises(InputError, match="must"):
            load_windows(Reader(), text=file, windows=windows, window_length=length)


def test_every_message_is_one_line(file: Path) -> None:
    with pytest.raises(InputError) as error:
        text.load_windows(Reader(), text=file, window_length=61)
    assert "\n" not in str(error.value)


SENTENCES = {
    "Chinese": "残差流穿过每一层，每一层都向它加上一个更新，最后的范数和头把它变成下一个词的概率。",
    "Japanese": "残差ストリームはすべての層を通り、各層はそれに更新を加え、最後に次の語の確率になる。",
    "Thai": "กระแสส่วนที่เหลือไหลผ่านทุกชั้นและแต่ละชั้นเพิ่มการปรับปรุงลงไปจนกลายเป็นความน่าจะเป็น",
    "Khmer": "ចរន្តសំណល់ឆ្លងកាត់គ្រប់ស្រទាប់ហើយស្រទាប់នីមួយៗបន្ថែមការកែប្រែ",
}


@pytest.mark.guards(
    "a text without blanks (Chinese, Japanese, Thai, Khmer) has documents",
    when="a text is read",
    gives="several, of about the same length",
)
@pytest.mark.parametrize("language", SENTENCES)
def test_a_text_without_blanks_has_several_documents(language: str, tmp_path: Path) -> None:
    paragraph = SENTENCES[language] * 5
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join([paragraph] * 60), encoding="utf-8")
    windows = load_windows(
        load_model(tiny_module("llama"), tokenizer=tiny_tokenizer()), text=path, windows=6, window_length=16
    )
    assert 4 <= len(windows.titles) <= 20
    assert windows.n_documents >= 4


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", 0),
        ("one two  three\nfour", 4),
        ("naïve façade — Ἀθῆναι Москва", 5),
        ("한국어는 띄어쓰기를 한다", 3),
        ("残差流", 2),
        ("GPT 残差流的 model", 4),
    ],
)
def test_words_of_a_text(written: str, words: int) -> None:
    assert text._words(written) == words
