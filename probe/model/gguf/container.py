"""A GGUF file with all of its parts: what its keys say, and its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe.errors import InputError
from probe.model.sources import require_gguf

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GGUFFile:
    """A whole GGUF file.

    Attributes:
        path: The file that was named.
        paths: All of its parts, in order.
        fields: Its keys as gguf's reader holds them, by name.
        tensors: Its tensors by name, mapped into memory.
    """

    path: Path
    paths: Sequence[Path]
    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def value(self, key: str, default: Any = None) -> Any:
        """Return what a key says.

        Args:
            key: Its full name.
            default: What stands for an absent key.

        Returns:
            The value: a number, a truth value, a text or a list.
        """
        return self.fields[key].contents() if key in self.fields else default

    @property
    def architecture(self) -> str:
        """The architecture under whose name the file keeps its sizes.

        Raises:
            InputError: If the file names none.
        """
        architecture = self.value("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise InputError(
                f"a GGUF file must name its architecture, and {self.path} has no general.architecture: fetch it again"
            )
        return architecture

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Args:
            name: Its name in the file.

        Returns:
            The shape in torch's order: a matrix as (out, in).
        """
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """Dequantise a tensor.

        Args:
            name: Its name in the file.

        Returns:
            The values in float32.

        Raises:
            InputError: If gguf does not read its type.
        """
        import gguf

        tensor = self.tensors[name]
        try:
            values: np.ndarray = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"a tensor must have a type that gguf can dequantise, and {name} of {self.path} is "
                f"{tensor.tensor_type.name}: take the file in another quantisation"
            ) from error
        return values.astype(np.float32, copy=False)


def parts_of(path: Path) -> list[Path]:
    """Find the parts of a file that are on this machine, by their names.

    Args:
        path: The file: whole, or one of NAME-00001-of-0000N.gguf.

    Returns:
        The parts in order; the file alone if its name is not that of a part.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    named = [path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    return [part for part in named if part.is_file()] if path in named else [path]


def open_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file, all parts of it.

    Args:
        path: The file, or any of its parts.

    Returns:
        The file; no tensor has been read.

    Raises:
        InputError: If it is not GGUF, is damaged, or parts are missing.
    """
    opened = _opened(path)
    count = int(_stated(opened, "split.count", 1))
    if count <= 1:
        return GGUFFile(path, (path,), opened.fields, {tensor.name: tensor for tensor in opened.tensors})
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise InputError(
            f"one of {count} parts of a GGUF file must be named like NAME-00001-of-{count:05d}.gguf, so that the "
            f"others are found, and got {path}: give the parts their names back"
        )
    paths = parts_of(path)
    if len(paths) != count:
        names = [f"{match[1]}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
        absent = [name for name in names if not path.with_name(name).is_file()]
        raise InputError(
            f"a GGUF file must be whole, and {path} is one of {count} parts of which {absent[0]}"
            f"{' and others are' if len(absent) > 1 else ' is'} not beside it: fetch {', '.join(absent[:3])}"
        )
    return _joined(path, paths)


def _joined(path: Path, paths: Sequence[Path]) -> GGUFFile:
    fields: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for number, part in enumerate(paths):
        opened = _opened(part)
        if _stated(opened, "split.no", -1) != number or _stated(opened, "split.count", -1) != len(paths):
            raise InputError(
                f"part {number + 1} of {len(paths)} of a GGUF file must say so, and {part} says "
                f"{_stated(opened, 'split.no', -1) + 1} of {_stated(opened, 'split.count', -1)}: fetch the parts again"
            )
        fields = {**opened.fields, **fields}
        for tensor in opened.tensors:
            if tensor.name in tensors:
                raise InputError(
                    f"the parts of a GGUF file must share no tensor, and {part} holds {tensor.name} again: fetch the "
                    "parts again"
                )
            tensors[tensor.name] = tensor
    total = fields["split.tensors.count"].contents() if "split.tensors.count" in fields else len(tensors)
    if total != len(tensors):
        raise InputError(
            f"the parts of a GGUF file must hold the {total} tensors that it counts, and those of {path} hold "
            f"{len(tensors)}: fetch the parts again"
        )
    return GGUFFile(path, tuple(paths), fields, tensors)


def _stated(opened: Any, key: str, default: int) -> int:
    return int(opened.fields[key].contents()) if key in opened.fields else default


def _opened(path: Path) -> Any:
    import gguf

    require_gguf(path)
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # gguf lets out whatever numpy and struct raise on bytes that are not there
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"a GGUF file must be whole, and {path} is truncated or corrupt ({first}): fetch it again"
        ) from error
