"""The files of a model's folder: which of them hold its weights, under what names, and whether they are what they say.

Both readers look here first, the one that loads a whole model and the one that reads a matrix at a time. Importing this
module imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import InputError
from probe.model.refusals import readable

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the files of weights, by rank; with ".index.json" behind it, the list of the parts of such a file."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

WRAPPERS = {r"^(?:(?:_orig_mod|module)\.)+": ""}
"""What `torch.compile` and parallel training put before every name, as a `key_mapping` of transformers."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"})


@dataclass(frozen=True)
class Stored:
    """A tensor of a file, which is not read.

    Attributes:
        file: The file.
        dtype: Number format, in the words of the file's library.
    """

    file: Path
    dtype: str


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold the weights: the one that transformers would read, or those of its index.

    Args:
        folder: A model's folder.

    Returns:
        The files, those of an index also if they are not there; empty if there is neither a file nor an index.

    Raises:
        InputError: If the index cannot be read.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return sorted({folder / part for part in indexed(folder / f"{name}.index.json").values()})
    return []


def indexed(index: Path) -> Mapping[str, str]:
    """Read which file holds each tensor of a checkpoint in parts.

    Args:
        index: The file that lists them.

    Returns:
        File name by tensor.

    Raises:
        InputError: If it is no such list.
    """
    require_no_pointer(index)
    try:
        listed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(part) for tensor, part in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"an index must say which file holds each tensor, and {index} does not ({type(error).__name__}): it is "
            "truncated or corrupt; fetch it again"
        ) from error


def require_weights(folder: Path) -> list[Path]:
    """List the files that hold the weights, all of which must be there.

    Args:
        folder: A model's folder.

    Returns:
        The files.

    Raises:
        InputError: If one is missing, or is only a pointer to a file.
    """
    files = weight_files(folder)
    if not files:
        raise InputError(
            f"a checkpoint must hold model.safetensors or pytorch_model.bin, whole or with an index, and {folder} "
            "does not: fetch the files again"
        )
    if absent := [file for file in files if not file.is_file()]:
        raise InputError(
            f"a checkpoint must hold every file of its index, and {absent[0]} and {len(absent) - 1} more of "
            f"{len(files)} are missing: fetch them"
        )
    for file in files:
        require_no_pointer(file)
    return files


def file_of_each(folder: Path) -> dict[str, Path]:
    """Find the file of each tensor of a folder's weights, of parts by their index.

    Args:
        folder: A model's folder.

    Returns:
        File by the tensor's name.

    Raises:
        InputError: If a file is missing, or is only a pointer to one.
    """
    files = require_weights(folder)
    if files[0].name in WEIGHT_FILES:
        with readable(folder.name, files[0]):
            return dict.fromkeys(tensors_of(files[0]), files[0])
    index = next(folder / f"{name}.index.json" for name in WEIGHT_FILES if (folder / f"{name}.index.json").is_file())
    return {tensor: folder / part for tensor, part in indexed(index).items()}


def has_tokenizer(folder: Path) -> bool:
    """Check that a folder holds a tokenizer.

    Args:
        folder: A model's folder.

    Returns:
        True if one of the known files is there.
    """
    return any((folder / file).is_file() for file in TOKENIZER_FILES)


def require_no_pointer(file: Path) -> None:
    """Refuse what Git leaves in the place of a large file that was not fetched.

    Args:
        file: A file; one that is not there passes.

    Raises:
        InputError: If it is a pointer of Git LFS.
    """
    if not file.is_file() or file.stat().st_size > 1024:
        return
    content = file.read_bytes()
    if content.startswith(_POINTER):
        size = re.search(rb"^size (\d+)$", content, re.MULTILINE)
        of = f" to {int(size[1]):,} bytes" if size else ""
        raise InputError(
            f"a model's files must be there themselves, and {file} is a pointer of Git LFS{of}: run git lfs pull in "
            f"{file.parent}, or fetch the file from the hub"
        )


def code_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Find the code that a repository brings for its model.

    Args:
        settings: The content of its config.json.

    Returns:
        For each class of transformers' (`AutoConfig` ...) the class that stands for it, as "file.Class".
    """
    named = settings.get("auto_map")
    return {str(auto): str(own) for auto, own in named.items()} if isinstance(named, dict) else {}


def code_files(folder: Path) -> list[Path]:
    """List the files of code that a folder's config.json names.

    Args:
        folder: A model's folder.

    Returns:
        The files, also if they are not there; without those that lie in another repository.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    own = code_of(settings).values() if isinstance(settings, dict) else ()
    return sorted({folder / f"{name.rpartition('.')[0]}.py" for name in own if "--" not in name})


def tensors_of(file: Path) -> dict[str, Stored]:
    """List the tensors of a file of weights without reading them.

    Args:
        file: A safetensors or PyTorch file.

    Returns:
        The tensors by name.
    """
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return {name: Stored(file, opened.get_slice(name).get_dtype()) for name in opened.keys()}  # noqa: SIM118
    return {name: Stored(file, str(tensor.dtype).removeprefix("torch.")) for name, tensor in pickled(file).items()}


def pickled(file: Path) -> dict[str, Any]:
    """Open a PyTorch file of tensors; no other object of it is made.

    Args:
        file: The file.

    Returns:
        Its tensors, mapped into memory if the file is of the format since PyTorch 1.6; an older one is read whole.
    """
    import zipfile

    import torch

    loaded: dict[str, Any] = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}


def require_exact(name: str, tensor: str, dtype: str, *, more: str = "") -> None:
    """Refuse weights that are quantised.

    Args:
        name: The name that the user gave.
        tensor: Name of a tensor of the weights.
        dtype: Its number format.
        more: Another way out, beside other weights.

    Raises:
        InputError: If its numbers are not floating or have fewer than 16 bits: they need scales, or are packed.
    """
    if dtype not in _FLOATS:
        raise InputError(
            f"the weights of {name} must be floating numbers of 16 bits or more, and {tensor} is {dtype}: it is "
            f"quantised; name the weights that it was made of{more}"
        )


def wrapped(names: Iterable[str]) -> bool:
    """Tell whether a checkpoint was saved from inside `torch.compile` or parallel training.

    Args:
        names: Names of all its tensors.

    Returns:
        True if each of them begins with a name of `WRAPPERS`.
    """
    (pattern,) = WRAPPERS
    listed = list(names)
    return bool(listed) and all(re.match(pattern, name) for name in listed)
