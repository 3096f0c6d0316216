"""Texts as documents: files, and data sets from a local cache or the hub.

A data set is looked for in what `datasets` has prepared, then in the hub's cache, then on the hub; before anything is
fetched the hub must answer, and the disk must have room for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from probe.errors import InputError
from probe.model import shipped
from probe.model.fetching import require_room
from probe.model.hub import reachable
from probe.model.refusals import readable
from probe.text.names import DATASETS, SAMPLE, Choice
from probe.text.rows import Rows, rows_of_dataset, rows_of_json, rows_of_parquet

FORMER = {"Salesforce/wikitext": "wikitext"}
"""Name of a repository before it moved to its owner's: caches of that time keep the same text under it."""
_TABULAR = (".parquet", ".jsonl", ".json", ".csv", ".txt", ".arrow", ".gz", ".zst")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_UNNAMED = "default"
"""Configuration of a data set that has no names for them."""
_OTHERWISE = 'pass text=FILE or dataset="sample", or run once on a machine with a network'


@dataclass(frozen=True)
class Corpus:
    """A whole text.

    Attributes:
        name: The text in words, for example "wikitext-2 test".
        content: Running text, not yet cut; None for a table.
        documents: Title and text of each row of a table.
        sha256: Hash of the text, line breaks as LF; of a table, of the JSON list of its documents' texts.
    """

    name: str
    content: str | None
    documents: tuple[tuple[str, str], ...]
    sha256: str


def read(choice: Choice) -> Corpus:
    """Read a text.

    Args:
        choice: The text.

    Returns:
        The whole of it.

    Raises:
        InputError: If it cannot be read, is not UTF-8 or is neither here nor to be fetched.
    """
    if not choice.is_table:
        content = _running(choice)
        return Corpus(choice.name, content, (), hashlib.sha256(content.encode()).hexdigest())
    split, rows = choice.split, None
    if choice.hub is not None:
        split, rows = _of_the_hub(choice, *choice.hub)
    name = choice.name if choice.hub is None else f"{choice.dataset} {split}"
    documents = (rows or _of_a_file(choice)).documents(choice.column)
    digest = hashlib.sha256(json.dumps([text for _, text in documents]).encode()).hexdigest()
    return Corpus(name, None, tuple(documents), digest)


def require(choice: Choice) -> None:
    """Refuse a text that is neither here nor to be fetched, within seconds.

    Args:
        choice: The text.

    Raises:
        InputError: If it is not.
    """
    if choice.text is not None:
        _require_file(choice.text)
    elif choice.hub is not None:
        _located(choice, *choice.hub)
    elif choice.dataset in DATASETS:
        assert choice.split is not None
        require_dataset(choice.dataset, choice.split)


def _running(choice: Choice) -> str:
    if choice.text is not None:
        return _read_file(choice.text)
    if choice.dataset == SAMPLE:
        return _read_file(shipped.path("sample.txt"))
    assert choice.dataset is not None
    assert choice.split is not None
    return dataset_text(choice.dataset, choice.split)


def _require_file(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(
            f"the text file must be readable, but {path} is not ({error.strerror}): pass another text="
        ) from None


def _read_file(path: Path) -> str:
    """The file's text, line breaks as LF."""
    _require_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"a text must be UTF-8, but {path} is not (byte {error.start}): convert it first") from None


def _of_a_file(choice: Choice) -> Rows:
    assert choice.text is not None
    _require_file(choice.text)
    if choice.text.suffix.lower() == ".parquet":
        return rows_of_parquet(choice.text.name, [choice.text])
    return rows_of_json(choice.text.name, choice.text)


# Data sets of the hub by their id


def _located(choice: Choice, repository: str, configuration: str | None) -> dict[str, list[Path]] | Path | None:
    """Files that `datasets` prepared, by split; else None if the hub answers; else the folder of a whole download."""
    prepared = _splits_prepared(repository, configuration or _UNNAMED)
    if prepared or reachable():
        return prepared or None
    folder = _snapshot(repository)
    if folder is None:
        cached = _configurations(repository) if configuration is None else []
        named = f" (it has {', '.join(f'{repository}:{name}' for name in cached)})" if cached else ""
        raise InputError(
            f"data set {choice.dataset} is not in the local cache{named}, and the hub does not answer: {_OTHERWISE}"
        )
    return folder


def _of_the_hub(choice: Choice, repository: str, configuration: str | None) -> tuple[str, Rows]:
    """The split, and its rows."""
    # imported here because it takes seconds
    import datasets

    found, name = _located(choice, repository, configuration), str(choice.dataset)
    if isinstance(found, dict):
        split = _split(choice, list(found))
        return split, rows_of_dataset(name, [datasets.Dataset.from_file(str(file)) for file in found[split]])
    if found is None:
        loaded = _fetched(name, repository, configuration)
    else:
        with readable(name, found, what="data set"):
            loaded = datasets.load_dataset(str(found), configuration)
    split = _split(choice, [str(one) for one in loaded])
    return split, rows_of_dataset(name, [loaded[split]])


def _fetched(name: str, repository: str, configuration: str | None, **options: Any) -> Any:
    """A data set of the hub by `datasets`, if it is open to the user and the disk has room for it."""
    import datasets

    with readable(name, repository, what="data set"):
        hub = HfApi()
        hub.auth_check(repository, repo_type="dataset")  # `datasets` would drop the reason
        builder = datasets.load_dataset_builder(repository, configuration)
        listed = hub.dataset_info(repository, files_metadata=True).siblings or []
        paths = [str(path) for files in (builder.config.data_files or {}).values() for path in files]
        wanted = {path.partition("@")[2].partition("/")[2] for path in paths}  # hf://datasets/OWNER/NAME@COMMIT/PATH
        require_room(name, sum(file.size or 0 for file in listed if file.rfilename in wanted))
        return datasets.load_dataset(repository, configuration, **options)


def _split(choice: Choice, there: Sequence[str]) -> str:
    if choice.split in there:
        return str(choice.split)
    if choice.split is not None:
        raise InputError(
            f"split= of {choice.dataset} must be one of {', '.join(there)}, got {choice.split!r}: choose one"
        )
    if len(there) == 1 or "test" in there:
        return there[0] if len(there) == 1 else "test"
    raise InputError(
        f"a split must be named where there are several, and {choice.dataset} has {', '.join(there)}: pass split="
    )


def _snapshot(repository: str) -> Path | None:
    """The hub's cache of a whole repository; None if a file is missing."""
    try:
        folder = Path(
            snapshot_download(repository, repo_type="dataset", local_files_only=True, cache_dir=constants.HF_HUB_CACHE)
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    files = [file for file in folder.rglob("*") if file.suffix in _TABULAR]
    shards: dict[tuple[Path, str, str], list[Path]] = {}
    for file in files:
        if match := _SHARD.search(file.name):
            shards.setdefault((file.parent, file.name[: match.start()], match[2]), []).append(file)
    whole = all(len(parts) == int(count) for (_, _, count), parts in shards.items())
    return folder if files and whole else None


def _cache() -> Path:
    return Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets")).expanduser()


def _configurations(repository: str) -> list[str]:
    """The configurations that `datasets` has prepared."""
    return sorted(folder.name for folder in (_cache() / repository.replace("/", "___")).glob("*/") if folder.is_dir())


def _splits_prepared(repository: str, configuration: str) -> dict[str, list[Path]]:
    """Arrow files of each split of the newest preparation."""
    stem = re.compile(rf"{re.escape(repository.rpartition('/')[2])}-(\w+(?:\.\w+)*?)(?:-\d+-of-\d+)?\.arrow")
    for folder in _preparations(repository, configuration):
        names = sorted(file.name for file in folder.glob("*.arrow"))
        splits = dict.fromkeys(match[1] for name in names if (match := stem.fullmatch(name)))
        found = {split: _shards(folder, f"{repository.rpartition('/')[2]}-{split}", ".arrow") for split in splits}
        if found and all(found.values()):
            return found
    return {}


# WikiText, a running text in rows


def require_dataset(name: str, split: str) -> tuple[list[Path], list[Path]]:
    """Make sure that a data set can be read: it is in a local cache, or the hub answers.

    Args:
        name: One of `DATASETS`.
        split: "train", "validation" or "test".

    Returns:
        The files that `datasets` prepared earlier, and the downloaded files of the hub's cache; both may be empty.

    Raises:
        InputError: If the text is not cached and the hub does not answer.
    """
    repository, configuration = DATASETS[name]
    names = [repository, *([FORMER[repository]] if repository in FORMER else [])]
    prepared = next((files for one in names if (files := _prepared(one, configuration, split))), [])
    downloaded = next((files for one in names if (files := _downloaded(one, configuration, split))), [])
    if not (prepared or downloaded or reachable()):
        raise InputError(
            f"data set {name} ({repository}) is not in the local cache, and the hub does not answer: {_OTHERWISE}"
        )
    return prepared, downloaded


def dataset_text(name: str, split: str) -> str:
    """Read the whole text of one split: its rows of column `text`, one after another.

    Searched in this order: data sets that `datasets` has prepared, files in the hub's cache, the hub itself.

    Args:
        name: One of `DATASETS`.
        split: "train", "validation" or "test".

    Returns:
        The text; every row that is not empty ends with a line break.

    Raises:
        InputError: If the text is not cached and the hub does not answer or lacks it.
    """
    prepared, downloaded = require_dataset(name, split)
    repository, configuration = DATASETS[name]
    # imported here because they take seconds
    import datasets
    import pandas as pd

    if prepared:
        return _join(row for file in prepared for row in datasets.Dataset.from_file(str(file))["text"])
    if downloaded:
        return _join(row for file in downloaded for row in pd.read_parquet(file, columns=["text"])["text"])
    return _join(_fetched(name, repository, configuration, split=split)["text"])


def _preparations(repository: str, configuration: str) -> list[Path]:
    """Folders of what `datasets` made in earlier runs, the newest first."""
    folders = _cache().glob(f"{repository.replace('/', '___')}/{configuration}/*/*/")
    whole = [folder for folder in folders if folder.suffix != ".incomplete"]
    return sorted(whole, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _prepared(repository: str, configuration: str, split: str) -> list[Path]:
    """Arrow files that `datasets` made in an earlier run; the newest preparation counts."""
    stem = f"{repository.rpartition('/')[2]}-{split}"
    folders = _preparations(repository, configuration)
    return next((files for folder in folders if (files := _shards(folder, stem, ".arrow"))), [])


def _downloaded(repository: str, configuration: str, split: str) -> list[Path]:
    """Parquet files of the repository's current revision in the hub's cache."""
    try:
        snapshot = snapshot_download(
            repository,
            repo_type="dataset",
            local_files_only=True,
            allow_patterns=f"{configuration}/{split}*",  # the others need not be here
            cache_dir=constants.HF_HUB_CACHE,
        )
    except LocalEntryNotFoundError:
        return []
    return _shards(Path(snapshot) / configuration, split, ".parquet")


def _shards(folder: Path, stem: str, suffix: str) -> list[Path]:
    """`stem.suffix` or all of `stem-00000-of-00002.suffix` ..., in order; empty if any is missing."""
    name = re.compile(rf"{re.escape(stem)}(-\d+-of-(\d+))?{re.escape(suffix)}")
    found = sorted((match[0], int(match[2] or 1)) for file in folder.glob("*") if (match := name.fullmatch(file.name)))
    return [folder / file for file, _ in found] if found and len(found) == found[0][1] else []


def _join(rows: Iterable[str]) -> str:
    return "".join(row if not row or row.endswith("\n") else row + "\n" for row in rows)
