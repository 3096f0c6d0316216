"""The folder of a model's files, which are fetched from the hub if they are not in its local cache.

Before anything is fetched, the sizes that the hub states are compared with the room on the disk. Of the weights one
format is fetched, safetensors if there is a choice; of the code nothing that is not to run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache

from probe import display
from probe.errors import InputError
from probe.model import hub
from probe.model.files import WEIGHT_FILES, has_tokenizer, indexed
from probe.model.refusals import readable
from probe.model.sources import Source, close_to, require

logger = logging.getLogger("probe.model")

_BESIDE = (".json", ".model", ".txt", ".jinja", ".tiktoken")
"""Endings of the files of configuration and tokenizer."""


def fetched(source: Source, *, weights: bool = True, tokenizer: bool = True, code: bool = False) -> Path:
    """Find the folder of a model's files, and fetch those that are missing.

    Args:
        source: A hub id or a directory.
        weights: False if the weights are not needed.
        tokenizer: False if the tokenizer is not needed.
        code: Fetch the repository's own code, too.

    Returns:
        The folder. It lacks a tokenizer if the model has none, or if it is not cached and the hub does not answer.

    Raises:
        InputError: If the files are not here and the hub does not give them, or the disk has no room for them.
    """
    if source.kind != "hub":
        return Path(source.location)
    folder = require(source, weights=weights, code=code)
    if folder is None:
        return _from_hub(source, weights=weights, code=code)
    if not tokenizer or has_tokenizer(folder):
        return folder
    if hub.reachable():
        try:
            return _from_hub(source, weights=weights, code=code)
        except InputError as error:
            logger.info("%s", error)
    logger.warning("%s has no tokenizer in the local hub cache: it reads token ids alone", source.name)
    return folder


def _from_hub(source: Source, *, weights: bool, code: bool) -> Path:
    with readable(f"{source.name}{close_to(source.name)}", source.location):
        listed = HfApi().model_info(source.location, revision=source.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in listed.siblings or []}
        wanted = _wanted(source, sizes, weights=weights, code=code)
        missing = [name for name in wanted if not _is_cached(source, name, listed.sha)]
        require_room(source.name, sum(sizes.get(name, 0) for name in missing))
        return Path(snapshot_download(source.location, revision=source.revision, allow_patterns=wanted))


def _is_cached(source: Source, file: str, commit: str | None) -> bool:
    return isinstance(try_to_load_from_cache(source.location, file, revision=commit), str)


def _wanted(source: Source, sizes: Mapping[str, int], *, weights: bool, code: bool) -> list[str]:
    """The files that loading reads, of all that a repository holds; those in folders are of other formats."""
    top = [name for name in sizes if "/" not in name]
    if "config.json" not in top:
        stored = [name for name in sizes if name.endswith(".gguf")]
        raise InputError(
            f"a model on the hub must hold config.json, and {source.location} does not: "
            + (f"fetch {stored[0]} and pass its path" if stored else "name another")
        )
    wanted = [name for name in top if name.endswith(_BESIDE) and not name.endswith(".index.json")]
    if weights:
        wanted += _weights(source, sizes)
    if code:  # it may lie in folders, where files import each other
        wanted += [name for name in sizes if name.endswith(".py")]
    return sorted(set(wanted))


def _weights(source: Source, names: Collection[str]) -> list[str]:
    for file in WEIGHT_FILES:
        if file in names:
            return [file]
        if (index := f"{file}.index.json") in names:
            listed = indexed(Path(hf_hub_download(source.location, index, revision=source.revision)))
            return [index, *filter(names.__contains__, listed.values())]
    raise InputError(
        f"a model on the hub must hold model.safetensors or pytorch_model.bin, whole or with an index, and "
        f"{source.location} does not: name another"
    )


def require_room(name: str, size: int) -> None:
    """Refuse a download that the disk of the hub cache has no room for.

    Args:
        name: The name that the user gave.
        size: Bytes that are to be fetched.

    Raises:
        InputError: If the disk has less.
    """
    cache = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if size > free:
        raise InputError(
            f"the disk of the hub cache must have room for {name}, and {display.size(size)} are to be fetched "
            f"where {cache} has {display.size(free)}: make room, or set HF_HOME to a folder on another disk"
        )
