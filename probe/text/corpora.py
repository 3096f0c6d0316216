"""The data sets that have a name, read from a local cache or the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from probe.errors import InputError
from probe.model.hub import reachable

SPLITS = ("train", "validation", "test")

DATASETS = {
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
"""Repository and configuration on the hub, by the data set's name."""
FORMER = {"Salesforce/wikitext": "wikitext"}
"""Name of a repository before it moved to its owner's: caches of that time keep the same text under it."""


def require_dataset(name: str, split: str) -> tuple[list[Path], list[Path]]:
    """Make sure that a data set can be read: it is in a local cache, or the hub answers.

    Args:
        name: One of `DATASETS`.
        split: "train", "validation" or "test".

    Returns:
        The files that `datasets` prepared earlier, and the downloaded files of the hub's cache; both may be empty.

    Raises:
        InputError: If there is no such split, or the text is not cached and the hub does not answer.
    """
    if split not in SPLITS:
        raise InputError(f"split= of {name} must be one of {', '.join(SPLITS)}, got {split!r}: choose one")
    repository, configuration = DATASETS[name]
    names = [repository, *([FORMER[repository]] if repository in FORMER else [])]
    prepared = next((files for one in names if (files := _prepared(one, configuration, split))), [])
    downloaded = next((files for one in names if (files := _downloaded(one, configuration, split))), [])
    if not (prepared or downloaded or reachable()):
        raise InputError(
            f"data set {name} ({repository}) is not in the local cache, and the hub does not answer: "
            'pass text=FILE or dataset="sample", or run once on a machine with a network'
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
        InputError: If there is no such split, or the text is not cached and the hub does not answer or lacks it.
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
    try:
        return _join(datasets.load_dataset(repository, configuration, split=split)["text"])
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"data set {name} must come from the hub ({repository}), but the download failed: {error}; "
            'pass text=FILE or dataset="sample"'
        ) from error


def _prepared(repository: str, configuration: str, split: str) -> list[Path]:
    """Arrow files that `datasets` made in an earlier run; the newest preparation counts."""
    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets")).expanduser()
    dataset = repository.rpartition("/")[2]
    folders = sorted(
        (
            folder
            for folder in cache.glob(f"{repository.replace('/', '___')}/{configuration}/*/*/")
            if folder.suffix != ".incomplete"
        ),
        key=lambda folder: folder.stat().st_mtime,
        reverse=True,
    )
    return next((files for folder in folders if (files := _shards(folder, f"{dataset}-{split}", ".arrow"))), [])


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
