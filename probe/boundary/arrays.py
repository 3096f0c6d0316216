"""Arrays as arguments: their class, dtype and axes, as jaxtyping's annotations state them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.boundary.kinds import Refused, Sizes, shown

_WORDS = {
    "Float": "floats",
    "Int": "integers",
    "Int64": "integers",
    "Bool": "truth values",
    "Complex": "complex numbers",
    "Inexact": "floats or complex numbers",
    "Num": "numbers",
    "Real": "real numbers",
    "Shaped": "entries",
}
_CASTS = {  # by the name of the dtypes: of tensors, of numpy arrays
    "Float": ("float()", "astype(float)"),
    "Int": ("long()", "astype(int)"),
    "Int64": ("long()", "astype(int)"),
    "Bool": ("bool()", "astype(bool)"),
    "Complex": ("to(torch.complex64)", "astype(complex)"),
}


class Array:
    """A tensor or a numpy array of some dtypes and axes; each is converted to the other, and numbers to both.

    Axes of one name have one size in all arguments of a call, but for those with `#`, which broadcast.
    """

    def __init__(self, hint: Any) -> None:
        self._class = hint.array_type
        self._tensor = hint.array_type is Tensor
        name = hint.dtype.__name__
        self._dtypes = frozenset(hint.dtypes) if isinstance(hint.dtypes, tuple | list) else None  # by name
        self._wide = isinstance(hint.dtypes, tuple | list) and tuple(hint.dtypes) == ("int64",)
        self._holds = _WORDS.get(name, name.lower())
        self._cast = _CASTS.get(name, (None, None))[0 if self._tensor else 1]
        self._axes = [_Axis(word) for word in hint.dim_str.split()]
        self._variadic = next((index for index, axis in enumerate(self._axes) if axis.variadic), None)
        self._shape = f"({', '.join(axis.spelled for axis in self._axes)}{',' * (len(self._axes) == 1)})"
        self.words = f"{'a tensor' if self._tensor else 'an array'} of {self._holds}, {self._shape}"

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take the array, or convert what says the same."""
        given = value
        if not isinstance(value, self._class):
            converted = self._converted(value) if convert else None
            if converted is None:
                return Refused(f"be {self.words}", shown(given), "pass one")
            value = converted
        if self._dtypes is not None and str(value.dtype).removeprefix("torch.") not in self._dtypes:
            if convert and self._wide and str(value.dtype).removeprefix("torch.") in _INTEGERS:
                value = value.to(torch.int64) if self._tensor else value.astype(np.int64)
            else:
                repair = f"pass {name}.{self._cast}" if self._cast and given is value else f"pass {self._holds}"
                if "complex" in str(value.dtype):  # a cast would drop what is imaginary
                    repair = f"pass {name}.real if its imaginary part is zero"
                return Refused(f"hold {self._holds}", shown(given), repair)
        if self._tensor and value.is_meta:
            return Refused("hold numbers", f"{shown(given)}, where there are none", "move it there with its numbers")
        if (agreed := self._fitting(tuple(value.shape), sizes, name)) is None:
            known = [
                f"{axis.name} = {sizes[axis.name][0]} as in {sizes[axis.name][1]}="
                for axis in self._axes
                if axis.name in sizes
            ]
            must = f"have the shape {self._shape}" + (f" with {', '.join(known)}" if known else "")
            return Refused(must, shown(given), self._repair(tuple(value.shape), name))
        sizes.update(agreed)
        return value

    def _repair(self, shape: tuple[int, ...], name: str) -> str:
        least = len(self._axes) - (self._variadic is not None)
        if len(shape) == least - 1 and shape:
            return f"pass {name}[None] for one"
        if len(shape) < least or (self._variadic is None and len(shape) > least):
            return f"give it {least} {'axis' if least == 1 else 'axes'}"
        return "bring it to this shape"

    def _converted(self, value: Any) -> Any:
        """The same numbers as an array of this class, or None."""
        if isinstance(value, Tensor):
            if value.device.type == "meta" or value.layout is not torch.strided:
                return None
            plain = value.detach().cpu().resolve_conj().resolve_neg()
            return (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()
        counted = isinstance(value, list | tuple | int | float) and not isinstance(value, bool)
        if not counted and not hasattr(type(value), "__array__"):
            return None
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):  # rows of unequal lengths, or of what is no number
            return None
        if array.dtype.kind not in "biufc" or not hasattr(torch, array.dtype.name):
            return None
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if counted and array.dtype.kind in "iuf" and self._holds == "floats":
            array = array.astype(np.float64)
        if counted and not array.size and self._holds == "integers":
            array = array.astype(np.int64)
        if not self._tensor:
            return array
        if not array.flags.writeable or min(array.strides, default=0) < 0:
            array = array.copy()  # torch refuses both
        tensor = torch.from_numpy(array)
        return tensor.to(torch.get_default_dtype()) if counted and tensor.is_floating_point() else tensor

    def _fitting(self, shape: tuple[int, ...], sizes: Sizes, name: str) -> Sizes | None:
        """The sizes of named axes that this shape adds, or None if it does not fit."""
        axes, variadic = self._axes, self._variadic
        agreed: Sizes = {}
        if variadic is None:
            if len(shape) != len(axes):
                return None
            pairs: Iterable[tuple[_Axis, Any]] = zip(axes, shape, strict=True)
        else:
            behind = len(axes) - variadic - 1
            if len(shape) < len(axes) - 1:
                return None
            end = len(shape) - behind
            pairs = zip(axes, (*shape[:variadic], shape[variadic:end], *shape[end:]), strict=True)
        for axis, size in pairs:
            label = axis.name
            if label:
                known = sizes.get(label) or agreed.get(label)
                if known is None:
                    agreed[label] = (size, name)
                elif known[0] != size:
                    if not axis.broadcast or (both := _broadcast(known[0], size)) is None:
                        return None
                    agreed[label] = (both, known[1])
            elif axis.size is not None and size != axis.size:
                return None
        return agreed


_INTEGERS = frozenset({"int8", "int16", "int32", "uint8", "uint16", "uint32"})


def _broadcast(one: Any, other: Any) -> Any:
    if isinstance(one, int):
        return max(one, other) if 1 in (one, other) else None
    try:
        return tuple(torch.broadcast_shapes(one, other))
    except RuntimeError:
        return None


class _Axis:
    """One axis of an annotation: a name, a number, `_`, or any number of axes (`*name`, `...`)."""

    def __init__(self, word: str) -> None:
        marks, name = re.fullmatch(r"([*#?]*)(.*)", word).groups()  # type: ignore[union-attr]
        self.variadic = "*" in marks or name == "..."
        self.broadcast = "#" in marks
        self.size = int(name) if name.isdecimal() else None
        self.name = "" if name == "..." or name.startswith("_") or self.size is not None else name
        self.spelled = "…" if self.variadic else name


class AnyTensor:
    """A tensor of any dtype and shape; numpy arrays and numbers are converted."""

    words = "a tensor"

    def take(self, value: Any, sizes: Sizes, name: str, convert: bool = True) -> Any:
        """Take the tensor."""
        if isinstance(value, Tensor):
            if value.device.type == "meta":
                return Refused("hold numbers", shown(value), "move it there with its numbers")
            return value
        if convert and (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
            return torch.tensor(value)
        return Refused("be a tensor", shown(value), "pass one")
