"""Labelled pieces: what a task measured, and how the pieces of many tasks become one Dataset.

A piece names the axes of its arrays and what stands along them. So pieces are put together by label, whichever task
measured them and in whichever order; where nothing was measured stands NaN, or what the schema says.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import safetensors.torch
import torch
import xarray as xr
from safetensors import SafetensorError, safe_open
from torch import Tensor

from probe.errors import InputError
from probe.runs.tasks import Label, Schema, Variable

Labels: TypeAlias = Label | Sequence[Label] | range
"""One label (the array has no such axis then), or one for each place along an axis."""

_HEADER = "piece"


@dataclass(frozen=True)
class Piece(Mapping[str, Tensor]):
    """Arrays by name, with the labels of their axes.

    Attributes:
        arrays: The arrays; numbers and numpy arrays become tensors.
        labels: By axis: one label where the arrays have no such axis, else one for each place along it. An axis
            without labels has the same length in all pieces.
        axes: The declared axes of each array, those at one label among them, once a schema has told them.
    """

    arrays: Mapping[str, Any]
    labels: Mapping[str, Labels] = field(default_factory=dict)
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return torch.as_tensor(self.arrays[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def inside(self, name: str) -> tuple[str, ...]:
        """Name the axes that an array has.

        Args:
            name: Of the array.

        Returns:
            The declared axes, without those at which the whole piece stands at one label.
        """
        return _inside(self.axes.get(name, ()), self.labels)

    def numpy(self, name: str) -> np.ndarray:
        """Convert an array to numpy."""
        return _numpy(self[name])


def labelled(found: Piece | Mapping[str, Any], labels: Mapping[str, Labels], schema: Schema | None) -> Piece:
    """Make a piece of a task's arrays that fits the schema.

    Args:
        found: What the task returned: a piece, or arrays by name.
        labels: Those of the task, which stand beside the piece's own.
        schema: The declared variables; without one, arrays have no axes.

    Returns:
        The piece, its arrays as tensors on the CPU.

    Raises:
        ValueError: If a variable is not declared, or its array does not have the declared axes.
    """
    piece = found if isinstance(found, Piece) else Piece(found)
    labels = {**labels, **piece.labels}
    arrays = {name: _tensor(array) for name, array in piece.arrays.items()}
    if schema is None:
        return Piece(arrays, labels)
    axes = {name: _axes(name, array, labels, schema) for name, array in arrays.items()}
    return Piece(arrays, labels, axes)


def _tensor(array: Any) -> Tensor:
    """A tensor on the CPU; what is none becomes one as numpy takes it, so that a Python float keeps all its digits."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    return torch.from_numpy(np.array(array, order="C"))


def _axes(name: str, array: Tensor, labels: Mapping[str, Labels], schema: Schema) -> tuple[str, ...]:
    """The declared axes of an array, which must be its own but for those at one label."""
    if name not in schema:
        raise ValueError(f"a task must return variables that its schema declares, got {name!r}: declare it")
    axes = _inside(schema[name].dims, labels)
    lengths = schema.lengths if schema[name].kept else {}  # what the Dataset does not hold may be of fewer places
    known = {axis: len(_many(labels[axis])) if axis in labels else lengths.get(axis) for axis in axes}
    if array.ndim != len(axes) or any(known[axis] not in (None, size) for axis, size in zip(axes, array.shape)):  # noqa: B905
        expected = ", ".join(axis if size is None else f"{axis}: {size}" for axis, size in known.items())
        raise ValueError(
            f"{name} must have the axes that its schema declares, as long as their labels or coordinates "
            f"({expected or 'none'}), got the shape {tuple(array.shape)}"
        )
    return schema[name].dims


def _inside(axes: Sequence[str], labels: Mapping[str, Labels]) -> tuple[str, ...]:
    """The axes of these that are not at one label."""
    return tuple(axis for axis in axes if axis not in labels or _is_many(labels[axis]))


def _is_many(labels: Labels) -> TypeGuard[Sequence[Label] | range]:
    return not isinstance(labels, int | str | float | np.generic)


def _many(labels: Labels) -> Sequence[Label] | range:
    return labels if _is_many(labels) else [labels]  # type: ignore[list-item]


def encode(piece: Piece, seconds: float | None) -> bytes:
    """Write a piece as the bytes of a safetensors file.

    Args:
        piece: The piece; any dtype that safetensors knows.
        seconds: What its task took.

    Returns:
        The file, with axes, labels and time in its header.

    Raises:
        InputError: If an array has a complex dtype that a file cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    storages = set()
    for name, array in piece.items():
        if array.is_complex() and array.dtype is not torch.complex64:
            raise InputError(
                f"a task's complex arrays must be complex64, and {name} is {str(array.dtype).removeprefix('torch.')}: "
                "return its real and imaginary parts as two arrays"
            )
        tensor = array.resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages:  # safetensors refuses two names for one storage
            tensor = tensor.clone()
        storages.add(storage.data_ptr())
        tensors[name] = tensor
    header = {"labels": {axis: _plain(labels) for axis, labels in piece.labels.items()}, "axes": dict(piece.axes)}
    return safetensors.torch.save(
        tensors, {_HEADER: json.dumps(header)} | ({} if seconds is None else {"seconds": f"{seconds:.3f}"})
    )


def _plain(labels: Labels) -> Any:
    """Labels in the types that JSON has."""
    if isinstance(labels, range):
        return {"start": labels.start, "stop": labels.stop, "step": labels.step}
    return (
        [label.item() if isinstance(label, np.generic) else label for label in labels] if _is_many(labels) else labels
    )


@dataclass(frozen=True)
class PieceFile:
    """A piece on the disk, of which a part can be read.

    Attributes:
        path: The file.
    """

    path: Path
    labels: Mapping[str, Labels]
    axes: Mapping[str, tuple[str, ...]]
    seconds: float | None

    @classmethod
    def open(cls, path: Path) -> PieceFile:
        """Read what a file says of itself.

        Args:
            path: The file.

        Returns:
            Its header.

        Raises:
            InputError: If it is not there or is damaged.
        """
        with _opened(path) as file:
            metadata = file.metadata() or {}
        header = json.loads(metadata.get(_HEADER, '{"labels": {}, "axes": {}}'))
        labels = {
            axis: range(*own.values()) if isinstance(own, dict) else own for axis, own in header["labels"].items()
        }
        axes = {name: tuple(own) for name, own in header["axes"].items()}
        seconds = metadata.get("seconds")
        return cls(path, labels, axes, None if seconds is None else float(seconds))

    def read(self, names: Sequence[str] | None = None, **chosen: Label) -> Piece:
        """Read arrays, or what stands in them at chosen labels.

        Args:
            names: Arrays; all by default. One that the file does not hold is left out.
            **chosen: A label of some axes, which the arrays then do not have.

        Returns:
            The piece.

        Raises:
            InputError: If the file is not there or is damaged.
        """
        arrays, axes = {}, {}
        with _opened(self.path) as file:
            held = set(file.keys())
            for name in file.keys() if names is None else [name for name in names if name in held]:
                own = _inside(self.axes.get(name, ()), self.labels)
                places = [self._place(axis, chosen[axis]) if axis in chosen else slice(None) for axis in own]
                whole = all(place == slice(None) for place in places)
                arrays[name] = file.get_tensor(name) if whole else file.get_slice(name)[tuple(places)]
                axes[name] = self.axes.get(name, ())
        return Piece(arrays, {**self.labels, **chosen}, axes)

    def has(self, **chosen: Label) -> bool:
        """Tell whether the piece has something at these labels."""
        return all(label in _many(self.labels[axis]) for axis, label in chosen.items() if axis in self.labels)

    def _place(self, axis: str, label: Label) -> int:
        return list(_many(self.labels[axis])).index(label)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """`safe_open`, with what is wrong with a file in the user's words."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError(
            f"a task's file must be there when it is read, but {path} is not: run the same command again"
        ) from None
    except SafetensorError as error:
        raise InputError(
            f"a task's file must be readable, but {path} is not ({error}): delete it and run again"
        ) from error


def joined(pieces: Sequence[Piece]) -> Piece:
    """Join pieces of one stage along the axes in which they differ.

    Args:
        pieces: At least one, all with the same arrays.

    Returns:
        The piece; every place of its arrays comes from one of them.

    Raises:
        ValueError: If the pieces leave a place open.
    """
    if len(pieces) == 1:
        return pieces[0]
    names = dict.fromkeys(name for piece in pieces for name in piece)
    axes = {axis for piece in pieces for axis in piece.labels}
    labels = {axis: _united([piece.labels[axis] for piece in pieces if axis in piece.labels]) for axis in axes}
    arrays, order = {}, {}
    for name in names:
        having = [piece for piece in pieces if name in piece]
        order[name] = having[0].axes[name]
        arrays[name] = _placed(name, having, _inside(order[name], labels), labels, None)
    return Piece(arrays, labels, order)


def _differs(labels: Sequence[Labels | None]) -> bool:
    return any(one != labels[0] for one in labels)


def _united(labels: Sequence[Labels]) -> Labels:
    """All labels of an axis, each once; one label where all pieces stand at it."""
    if not _differs(labels):
        return labels[0]
    ranges = [one for one in labels if isinstance(one, range)]
    if len(ranges) == len(labels):
        ranges.sort(key=lambda one: one.start)
        if all(one.step == 1 for one in ranges) and all(
            first.stop >= second.start for first, second in itertools.pairwise(ranges)
        ):
            return range(ranges[0].start, max(one.stop for one in ranges))
    return list(dict.fromkeys(label for one in labels for label in _many(one)))


def _placed(
    name: str,
    pieces: Sequence[Piece],
    axes: Sequence[str],
    labels: Mapping[str, Labels],
    variable: Variable | None,
    sizes: Mapping[str, int] | None = None,
) -> Tensor:
    """An array with what the pieces hold at their labels."""
    first = pieces[0]
    shape = [
        len(_many(labels[axis]))
        if axis in labels and _is_many(labels[axis])
        else (sizes or {}).get(axis) or first[name].shape[first.inside(name).index(axis)]
        for axis in axes
    ]
    dtype = functools.reduce(torch.promote_types, [piece[name].dtype for piece in pieces])
    whole = torch.zeros(shape, dtype=dtype)
    filled = torch.zeros(shape, dtype=torch.bool)
    places = {
        axis: {label: place for place, label in enumerate(_many(own))}
        for axis, own in labels.items()
        if axis in axes and _is_many(own) and not isinstance(own, range)
    }
    for piece in pieces:
        values = piece[name]
        for axis in reversed(axes):  # an axis at one label has the length 1
            if axis not in piece.inside(name):
                values = values[None]
        now = [*(axis for axis in axes if axis not in piece.inside(name)), *piece.inside(name)]
        values = values.permute([now.index(axis) for axis in axes])
        index = [_index(axis, piece, labels, places, values.shape[place]) for place, axis in enumerate(axes)]
        whole[_mesh(index)] = values.to(dtype)
        filled[_mesh(index)] = True
    if not bool(filled.all()):
        if variable is None:
            raise ValueError(f"the pieces of {name} must fill all of it, but leave {int((~filled).sum())} places open")
        if not dtype.is_floating_point and variable.fill != variable.fill:
            whole, dtype = whole.double(), torch.float64
        whole[~filled] = variable.fill
    return whole


def _index(
    axis: str, piece: Piece, labels: Mapping[str, Labels], places: Mapping[str, Mapping[Label, int]], length: int
) -> slice | list[int]:
    """Place of a piece along an axis."""
    own = piece.labels.get(axis)
    if own is None:
        return slice(0, length)
    every = labels[axis]
    if isinstance(own, range) and isinstance(every, range) and own.step == every.step == 1:
        return slice(own.start - every.start, own.stop - every.start)
    if isinstance(every, range):
        return [every.index(int(label)) for label in _many(own)]
    return [places[axis][label] for label in _many(own)]


def _mesh(index: Sequence[slice | list[int]]) -> tuple[Any, ...]:
    """The index of a block: lists cross each other as slices do."""
    plain = [slice(one[0], one[0] + 1) if isinstance(one, list) and len(one) == 1 else one for one in index]
    if sum(isinstance(one, list) for one in plain) <= 1:
        return tuple(plain)
    crossed = []
    for place, one in enumerate(plain):
        indices = torch.tensor(one) if isinstance(one, list) else torch.arange(one.start, one.stop)
        crossed.append(indices.reshape([-1 if axis == place else 1 for axis in range(len(plain))]))
    return tuple(crossed)


def combined(files: Sequence[PieceFile], schema: Schema, coordinates: Mapping[str, Any]) -> xr.Dataset:
    """Combine the pieces of a run into its Dataset.

    Args:
        files: Pieces of all stages.
        schema: The variables; those that are `kept` enter, in the schema's order, where some piece holds them.
        coordinates: Of the Dataset, as `xarray.Dataset` takes them: they order the labels and give each axis its
            length. An axis that has none is as long as the labels of all pieces, and gets them as its coordinate
            unless they are a range.

    Returns:
        The Dataset, each variable with its unit and meaning.
    """
    data = xr.Dataset(coords=dict(coordinates))
    for name, variable in schema.items():
        holding = [file for file in files if name in file.axes] if variable.kept else []
        if not holding:
            continue
        labels = {axis: _all_labels(axis, data, holding) for axis in variable.dims}
        known = {axis: own for axis, own in labels.items() if own is not None}
        pieces = [file.read([name]) for file in holding]
        whole = _placed(
            name, pieces, variable.dims, known, variable, {str(axis): size for axis, size in data.sizes.items()}
        )
        for axis, own in known.items():
            if axis not in data.coords and not isinstance(own, range):
                data.coords[axis] = list(_many(own))
        data[name] = schema.entry(name, _numpy(whole))
    return data


def _all_labels(axis: str, data: xr.Dataset, files: Sequence[PieceFile]) -> Labels | None:
    """The labels of an axis: those of the Dataset, or what the pieces have."""
    if axis in data.coords and data.coords[axis].dims == (axis,):
        found: list[Label] = data.coords[axis].values.tolist()
        return found
    if axis in data.sizes:
        return range(data.sizes[axis])
    own = [file.labels[axis] for file in files if axis in file.labels]
    united = _united(own) if own else None
    return None if united is None else _many(united)


def _numpy(tensor: Tensor) -> np.ndarray:
    """The tensor as numpy has it: bfloat16, which it does not know, as float32."""
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
