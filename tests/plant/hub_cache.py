"""A fake hub and its cache: files of models and of a data set as the hub's client keeps them, without a network."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from probe.model import fetching, hub
from tests.plant.tiny import tiny_tokenizer

COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"


def add_wikitext(
    cache: Path, rows: Sequence[str], split: str = "test", shards: int = 1, name: str = "Salesforce/wikitext"
) -> Path:
    """Put one split of `Salesforce/wikitext`, configuration wikitext-2-raw-v1, into a hub cache; gives its folder.

    `cache` is what the environment variable HF_HUB_CACHE names.
    """
    repository = cache / f"datasets--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT / "wikitext-2-raw-v1"
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for shard in range(shards):
        table = pa.table({"text": list(rows[shard * size : (shard + 1) * size])})
        pa.parquet.write_table(table, folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet")
    return folder


def add_model(cache: Path, repository: str, revisions: dict[str, tuple[str, Any]]) -> None:
    """What the hub's client leaves in its cache: `revisions` gives commit and model by branch."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    for branch, (commit, module) in revisions.items():
        (folder / "refs" / branch).write_text(commit)
        module.save_pretrained(folder / "snapshots" / commit)
        tiny_tokenizer().save_pretrained(folder / "snapshots" / commit)


class FakeHub:
    """A hub with one repository, the files of a folder, which it puts into a cache where it is asked to.

    `fetched` lists the files that were asked for; `sizes` states other sizes than the files have; `error` is raised
    instead of any answer.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, files: Path) -> None:
        self.cache, self.files = cache, files
        self.fetched: list[str] = []
        self.sizes: dict[str, int] = {}
        self.error: Exception | None = None
        monkeypatch.setattr(hub, "reachable", lambda: True)
        monkeypatch.setattr(fetching, "HfApi", lambda: self)
        for name in ("hf_hub_download", "snapshot_download"):
            monkeypatch.setattr(fetching, name, getattr(self, name))

    def model_info(self, repository: str, *, revision: str | None, files_metadata: bool) -> Any:
        if self.error is not None:
            raise self.error
        names = [file.relative_to(self.files) for file in self.files.rglob("*") if file.is_file()]
        sizes = {str(name): (self.files / name).stat().st_size for name in names} | self.sizes
        assert files_metadata
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in sorted(sizes.items())]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def hf_hub_download(self, repository: str, file: str, *, revision: str | None) -> str:
        return str(Path(self.snapshot_download(repository, revision=revision, allow_patterns=[file])) / file)

    def snapshot_download(self, repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        folder = self.cache / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / (revision or "main")).write_text(COMMIT)
        for file in self.files.rglob("*"):
            name = str(file.relative_to(self.files))
            if file.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                place = folder / "snapshots" / COMMIT / name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place)
                self.fetched.append(name)
        return str(folder / "snapshots" / COMMIT)
