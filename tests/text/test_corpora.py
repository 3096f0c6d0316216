from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from probe.errors import InputError
from probe.model import hub
from probe.text import corpora, load_windows
from tests.plant.hub_cache import COMMIT, add_wikitext
from tests.text.test_windows import Reader

ROWS = ["", " = First = \n", "", " one two three four five six \n", " = Second = \n", " seven eight nine ten eleven\n"]


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of this test's own, and a hub that nothing answers for."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers, as a firewall may."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("shards", [1, 2])
def test_wikitext_2_is_read_from_the_hub_cache(tmp_path: Path, shards: int) -> None:
    add_wikitext(tmp_path / "hub", ROWS, shards=shards)
    windows = load_windows(Reader(), dataset="wikitext-2", windows=None, window_length=4)
    assert windows.name == "wikitext-2 test"
    assert windows.titles == ("First", "Second")
    assert windows.n_windows == 4
    assert not (tmp_path / "datasets").exists(), "nothing is written to read what is there"


def test_wikitext_2_is_read_under_its_former_name(tmp_path: Path) -> None:
    add_wikitext(tmp_path / "hub", ROWS, name="wikitext")
    assert corpora.dataset_text("wikitext-2", "test") == "".join(ROWS)
    prepared = tmp_path / "datasets" / "wikitext" / "wikitext-2-raw-v1" / "1.0.0" / "0123abcd"
    datasets.Dataset.from_dict({"text": [" = Prepared = \n"]}).save_to_disk(tmp_path / "made")
    (made,) = (tmp_path / "made").glob("*.arrow")
    prepared.mkdir(parents=True)
    made.rename(prepared / "wikitext-test.arrow")
    assert corpora.dataset_text("wikitext-2", "test") == " = Prepared = \n"
    add_wikitext(tmp_path / "hub", [" = New = \n"])
    (prepared / "wikitext-test.arrow").unlink()
    assert corpora.dataset_text("wikitext-2", "test") == " = New = \n"  # the name of today counts first


def test_other_configurations_and_splits_need_not_be_cached(tmp_path: Path) -> None:
    """The hub's client keeps a list of all files of a repository, and takes a cache without some for incomplete."""
    folder = add_wikitext(tmp_path / "hub", ROWS)
    names = [f"wikitext-2-raw-v1/{file.name}" for file in folder.iterdir()]
    names += ["wikitext-2-raw-v1/train-00000-of-00001.parquet", "wikitext-103-v1/test-00000-of-00001.parquet"]
    trees = pytest.importorskip("huggingface_hub._tree_cache")
    entry = trees.TreeCacheEntry(size=1, blob_id="0" * 40, lfs_sha256=None, lfs_size=None, xet_hash=None)
    trees.write_tree_cache(str(folder.parents[2]), COMMIT, dict.fromkeys(names, entry))
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download("Salesforce/wikitext", repo_type="dataset", local_files_only=True, cache_dir=tmp_path / "hub")
    assert corpora.dataset_text("wikitext-2", "test") == "".join(ROWS)


def test_an_incomplete_download_does_not_count(tmp_path: Path) -> None:
    folder = add_wikitext(tmp_path / "hub", ROWS, shards=2)
    (folder / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="not in the local cache"):
        load_windows(Reader(), dataset="wikitext-2")


def test_wikitext_2_is_read_from_what_datasets_has_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = add_wikitext(tmp_path / "elsewhere", ROWS)
    builder = Parquet(
        cache_dir=str(tmp_path / "datasets"),
        dataset_name="wikitext",
        config_name="wikitext-2-raw-v1",
        hash="0123abcd",
        data_files={"test": [str(folder / "test-00000-of-00001.parquet")]},
    )
    builder.download_and_prepare()
    # for files of a repository datasets leaves the hash of the file list out of the name
    (made,) = (tmp_path / "datasets" / "wikitext").glob("wikitext-2-raw-v1-*")
    made.rename(made.with_name("wikitext-2-raw-v1"))
    made.parent.rename(tmp_path / "datasets" / "Salesforce___wikitext")
    assert corpora.dataset_text("wikitext-2", "test") == "".join(ROWS)
    with pytest.raises(InputError, match="not in the local cache"):
        corpora.dataset_text("wikitext-2", "train")

    # that this is the place where datasets itself keeps it
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    again = datasets.load_dataset(*corpora.DATASETS["wikitext-2"], split="test", cache_dir=str(tmp_path / "datasets"))
    assert again["text"][:] == ROWS


def test_offline_the_error_names_what_would_work() -> None:
    begin = time.monotonic()
    with pytest.raises(
        InputError, match='text=FILE or dataset="sample", or run once on a machine with a network'
    ) as error:
        load_windows(Reader(), dataset="wikitext-2")
    assert time.monotonic() - begin < 5
    assert "\n" not in str(error.value)


def test_a_hub_that_never_answers_is_given_up(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    begin = time.monotonic()
    assert not hub.reachable(0.2)
    assert time.monotonic() - begin < 2


def test_a_name_that_is_never_resolved_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def head(self, *arguments: Any, **options: Any) -> None:
            time.sleep(1)

    monkeypatch.setattr(hub, "get_session", Client)
    begin = time.monotonic()
    assert not hub.reachable(0.1)
    assert time.monotonic() - begin < 0.9


def test_a_hub_that_answers_is_reachable_but_not_in_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def head(self, *arguments: Any, **options: Any) -> None:
            return

    monkeypatch.setattr(hub, "get_session", Client)
    assert hub.reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()


def answers(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Any]) -> None:
    """A hub that is open, and states no sizes."""
    listed = SimpleNamespace(siblings=[])
    hub = SimpleNamespace(auth_check=lambda *_, **__: None, dataset_info=lambda *_, **__: listed)
    monkeypatch.setattr(corpora, "reachable", lambda: True)
    monkeypatch.setattr(corpora, "HfApi", lambda: hub)
    builder = SimpleNamespace(config=SimpleNamespace(data_files=None))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: builder)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_with_a_network_it_comes_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> dict[str, list[str]]:
        asked.append((arguments, options))
        return {"text": ROWS}

    answers(monkeypatch, load_dataset)
    assert (
        load_windows(Reader(), dataset="wikitext-103", split="train", windows=1, window_length=4).titles[1] == "Second"
    )
    assert asked == [(("Salesforce/wikitext", "wikitext-103-raw-v1"), {"split": "train"})]


def test_a_download_that_fails_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("the line went dead")

    answers(monkeypatch, load_dataset)
    with pytest.raises(InputError, match=r"the data set wikitext-2 must be readable, and .* \(the line went dead\)"):
        load_windows(Reader(), dataset="wikitext-2")


def test_an_unknown_split_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(InputError, match="one of train, validation, test, got 'dev'"):
        load_windows(Reader(), dataset="wikitext-2", split="dev")
