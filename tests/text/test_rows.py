"""Tables as texts: a row is a document, from JSON, Parquet and data sets of the hub."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from huggingface_hub import constants, errors

from probe.analysis import TextConfig
from probe.model import fetching
from probe.text import corpora, load_windows
from probe.text.names import Choice
from tests.plant.hub_cache import COMMIT
from tests.plant.refusing import refused
from tests.text.test_corpora import empty_caches  # noqa: F401 - caches of each test's own, and no hub
from tests.text.test_windows import Reader, token

TEXTS = [f"w{row}a w{row}b w{row}c w{row}d" for row in range(5)]
ID = "some-one/stories"


def read(path: Path, column: str | None = None) -> list[tuple[str, str]]:
    return list(corpora.read(Choice(text=path, column=column)).documents)


def write(path: Path, rows: Sequence[Any]) -> Path:
    """Rows in the format that the ending names."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text(json.dumps(list(rows)) if path.suffix == ".json" else lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.jsonl.gz", "T.PARQUET", "t.parquet"])
def test_each_row_is_a_document_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name.lower()
    write(path, [{"n": row, "text": text} for row, text in enumerate(TEXTS)])
    path = path.rename(tmp_path / name)
    windows = load_windows(Reader(), text=path, windows=None, window_length=4)
    assert windows.titles == ("row 0", "row 1", "row 2", "row 3", "row 4")
    rows = dict(zip(windows.document.tolist(), windows.tokens.tolist(), strict=True))
    assert rows == {row: [token(word) for word in text.split()] for row, text in enumerate(TEXTS)}
    assert windows.name == name
    assert windows.sha256 == hashlib.sha256(json.dumps(TEXTS).encode()).hexdigest()


def test_titles_are_those_of_the_column_title_else_the_row(tmp_path: Path) -> None:
    rows = [{"title": "Bee", "body": "a"}, {"title": None, "body": "b"}, {"title": " ", "body": "c"}]
    assert read(write(tmp_path / "t.parquet", rows)) == [("Bee", "a"), ("row 1", "b"), ("row 2", "c")]
    numbers = [{"title": 7, "body": "a"}]
    assert read(write(tmp_path / "t.jsonl", numbers)) == [("row 0", "a")]
    alone = [{"title": "Bee", "n": 1}]
    assert read(write(tmp_path / "t.json", alone)) == [("row 0", "Bee")]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_rows_without_text_are_left_out_and_copies_count_once(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": text} for text in ("one", "", None, " \n", "two", "one", "two ", "one")]
    assert read(write(tmp_path / name, rows)) == [("row 0", "one"), ("row 4", "two"), ("row 6", "two ")]
    assert f"2 rows of {name} repeat an earlier one" in caplog.text


def test_copies_never_fall_into_two_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"text": text} for text in TEXTS * 3])
    parts = [
        load_windows(Reader(), text=path, windows=None, window_length=4, part=part).tokens.tolist()
        for part in ("fit", "validation", "scored")
    ]
    found = [tuple(row) for part in parts for row in part]
    assert len(found) == len(set(found)) == len(TEXTS)


@pytest.mark.parametrize(
    ("rows", "column", "expected"),
    [
        ([{"id": "a", "text": "b"}], None, "b"),
        ([{"id": "a", "body": "b"}], "body", "b"),
        ([{"n": 1, "body": "b"}], None, "b"),
        ([{"title": "a", "body": "b"}], None, "b"),
        ([{"title": "a", "body": "b"}], "title", "a"),
    ],
)
@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_the_column_is_the_only_one_of_text_or_text_or_named(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], column: str | None, expected: str
) -> None:
    assert [text for _, text in read(write(tmp_path / name, rows), column)] == [expected]


class TestWrongTables:
    @pytest.mark.guards(
        "the column of the documents is there, and holds text",
        when="a text is read",
        says="a document must be text, and column … of … holds a … in row …: pass another column=",
    )
    @pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
    def test_columns(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path / name, [{"body": "a", "notes": "b", "n": 3}])
        refused(lambda: read(path), f"in {name} body, notes hold text: pass column=")
        refused(lambda: read(path, "bodi"), "has body, notes, n, got 'bodi': did you mean body?")
        refused(lambda: read(path, "n"), f"column n of {name} holds a int in row 0", "pass another column=")
        refused(lambda: read(write(tmp_path / name, [{"n": 3}])), f"in {name} none of n holds text")

    def test_a_number_among_texts(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.jsonl", [{"text": "a"}, {"text": 5}])
        refused(lambda: read(path), "column text of t.jsonl holds a int in row 1")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b'{"text": "a"}\n{"text": \n', ("line 2: Expecting value",)),
            (b'{"text": "caf\xe9"}', ("can't decode byte 0xe9",)),
            (b'["a", "b"]', ("row 0 of t.jsonl is a str",)),
            (b'{"text": "a"}\n3\n', ("row 1 of t.jsonl is a int",)),
            (b'{"text": "\\ud800"}', ("half of a surrogate pair in row 0",)),
            (b"", ("t.jsonl none of  holds text",)),
        ],
    )
    def test_damaged_json(self, tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
        path = tmp_path / "t.jsonl"
        path.write_bytes(content)
        refused(lambda: read(path), *words)

    @pytest.mark.parametrize("name", ["t.jsonl.gz", "t.parquet"])
    def test_damaged_files(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path / name, [{"text": "some words " * 20}])
        path.write_bytes(path.read_bytes()[:40])
        refused(lambda: read(path), f"the rows of {name} must be readable")
        path.unlink()
        refused(lambda: read(path), "No such file", "pass another text=")

    def test_nothing_but_empty_rows(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.jsonl", [{"text": ""}])
        refused(lambda: load_windows(Reader(), text=path), "t.jsonl is empty")


def test_a_break_of_lines_inside_a_string_is_none(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\x85c\n"}, {"text": "d"}]
    assert [text for _, text in read(write(tmp_path / "t.jsonl", rows))] == ["a\u2028b\x85c\n", "d"]


# The hub


def prepare(cache: Path, configuration: str, splits: dict[str, list[dict[str, Any]]]) -> None:
    """What `datasets` leaves in its cache."""
    folder = cache / ID.replace("/", "___") / configuration / "0.0.0" / "0123abcd"
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        datasets.Dataset.from_list(rows).save_to_disk(cache / "made")
        (made,) = (cache / "made").glob("*.arrow")
        made.rename(folder / f"stories-{split}.arrow")


def download(cache: Path, files: dict[str, list[dict[str, Any]]]) -> Path:
    """What the hub's client leaves in its cache."""
    repository = cache / f"datasets--{ID.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, rows)
    return folder


ROWS = [{"id": f"{row}", "text": text} for row, text in enumerate(TEXTS)]


def test_a_data_set_of_the_hub_is_read_from_what_datasets_has_prepared(tmp_path: Path) -> None:
    prepare(tmp_path / "datasets", "default", {"train": ROWS})
    windows = load_windows(Reader(), dataset=ID, column="text", windows=None, window_length=4)
    assert (windows.name, windows.titles[4], windows.n_windows) == (f"{ID} train", "row 4", 5)
    assert windows.sha256 == hashlib.sha256(json.dumps(TEXTS).encode()).hexdigest()
    refused(lambda: load_windows(Reader(), dataset=ID, split="dev"), f"split= of {ID} must be one of train, got 'dev'")


def test_a_split_is_the_only_one_or_test_or_named(tmp_path: Path) -> None:
    prepare(tmp_path / "datasets", "a", {"train": ROWS, "test": ROWS[:2]})
    prepare(tmp_path / "datasets", "b", {"train": ROWS, "valid": ROWS[:3]})
    assert len(corpora.read(Choice(f"{ID}:a")).documents) == 2
    assert len(corpora.read(Choice(f"{ID}:a", split="train")).documents) == 5
    assert corpora.read(Choice(f"{ID}:b", split="valid")).name == f"{ID}:b valid"
    refused(lambda: corpora.read(Choice(f"{ID}:b")), "a split must be named", "has train, valid: pass split=")
    refused(lambda: corpora.read(Choice(ID)), "not in the local cache", f"it has {ID}:a, {ID}:b")


def test_without_a_network_a_download_of_the_whole_is_read(tmp_path: Path) -> None:
    names = [f"data/train-{part:05d}-of-00002.parquet" for part in range(2)]
    folder = download(tmp_path / "hub", dict(zip(names, (ROWS[:3], ROWS[3:]), strict=True)))
    assert corpora.read(Choice(ID)).documents == tuple((f"row {row}", text) for row, text in enumerate(TEXTS))
    (folder / names[1]).unlink()
    refused(lambda: corpora.read(Choice(ID)), "not in the local cache, and the hub does not answer")


def test_without_a_network_and_a_cache_it_is_refused_within_seconds() -> None:
    config = TextConfig(model="bundled/transformer", dataset=ID)
    begin = time.monotonic()
    refused(config.require_inputs, ID, "not in the local cache", 'text=FILE or dataset="sample"')
    assert time.monotonic() - begin < 5
    refused(lambda: load_windows(Reader(), dataset=ID), ID)


def test_a_file_that_is_not_there_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    config = TextConfig(model="bundled/transformer", text=tmp_path / "absent.jsonl")
    refused(config.require_inputs, "absent.jsonl is not (No such file")


class Hub:
    """A hub with one data set, as `datasets` and the hub's client see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.size = 10**6
        monkeypatch.setattr(corpora, "reachable", lambda: True)
        monkeypatch.setattr(corpora, "HfApi", lambda: self)
        monkeypatch.setattr(datasets, "load_dataset_builder", self.builder)
        monkeypatch.setattr(datasets, "load_dataset", self.load)
        self.asked: list[tuple[str, str | None]] = []

    def auth_check(self, repository: str, *, repo_type: str) -> None:
        assert repo_type == "dataset"
        if self.error is not None:
            raise self.error

    def builder(self, repository: str, configuration: str | None) -> Any:
        files = {"train": [f"hf://datasets/{repository}@{COMMIT}/data/train.parquet"]}
        return SimpleNamespace(config=SimpleNamespace(data_files=files))

    def dataset_info(self, repository: str, *, files_metadata: bool) -> Any:
        sizes = {"data/train.parquet": self.size, "train.parquet": 10**15, "README.md": 10**15}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()])

    def load(self, repository: str, configuration: str | None) -> Any:
        self.asked.append((repository, configuration))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def test_with_a_network_it_comes_through_datasets(hub: Hub) -> None:
    assert load_windows(Reader(), dataset=f"{ID}:small", windows=1, window_length=4).name == f"{ID}:small train"
    assert hub.asked == [(ID, "small")]


def test_the_disk_is_looked_at_before_anything_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.size = 30 * 10**9
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: SimpleNamespace(free=12 * 10**9))
    refused(lambda: corpora.read(Choice(ID)), ID, "30 GB", "12 GB", "HF_HOME")
    assert not hub.asked


@pytest.mark.guards(
    "the hub gives the data set: it is there and open to you",
    when="a text is read",
    says="the … … must be open to you, and the hub gates it…: ask for access at …, then give a token",
)
def test_what_the_hub_refuses_is_said_as_of_models(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    answer: Any = SimpleNamespace(status_code=401, headers={}, request=None)
    hub.error = errors.GatedRepoError("401 Client Error.", response=answer)
    page = f"https://huggingface.co/datasets/{ID}"
    refused(lambda: corpora.read(Choice(ID)), f"the data set {ID} must be open", page, "hf auth login", "HF_TOKEN")
    hub.error = errors.RepositoryNotFoundError("401 Client Error.", response=answer)
    refused(lambda: corpora.read(Choice(ID)), f"the data set {ID} must be on the hub", f"check the name at {page}")
    hub.error = ValueError("Config name is missing.\nPlease pick one among ['a', 'b']")
    refused(lambda: corpora.read(Choice(ID)), f"the data set {ID} must be readable", "Config name is missing.")
