"""A fake hub cache: the files of models and of a data set as the hub's client keeps them, made without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.plant.tiny import tiny_tokenizer

COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"


def add_wikitext(cache: Path, rows: Sequence[str], split: str = "test", shards: int = 1) -> Path:
    """Put one split of `Salesforce/wikitext`, configuration wikitext-2-raw-v1, into a hub cache; gives its folder.

    `cache` is what the environment variable HF_HUB_CACHE names.
    """
    repository = cache / "datasets--Salesforce--wikitext"
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
