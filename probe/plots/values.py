"""What the drawing functions take: numbers of any library as arrays, and words from outside as safe labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Num
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

from probe.boundary import shown
from probe.display import word
from probe.errors import InputError

Numbers: TypeAlias = Num[Tensor, "..."] | Num[np.ndarray, "..."] | Sequence[Any]
"""A tensor on any device, an array, or nested lists."""
UNDRAWABLE = "▯"


def array_of(values: Any, name: str, axes: Sequence[int] | None = None) -> np.ndarray:
    """Take numbers of any library as an array, in float64 or complex128.

    Args:
        values: A tensor, an array, a DataArray or nested lists.
        name: What it is, for the message.
        axes: Numbers of axes that are allowed; None allows any.

    Returns:
        The array.

    Raises:
        InputError: If these are no numbers, none at all, or have another number of axes.
    """
    if isinstance(values, Tensor) and not values.is_meta:
        values = values.detach().cpu().resolve_conj()
        values = (values.to(torch.complex128) if values.is_complex() else values.double()).numpy()
    try:
        found = np.asarray(values)
    except (ValueError, TypeError):  # lists of unequal lengths, tensors without numbers
        found = np.asarray(None)
    if found.dtype.kind not in "biufc" or not found.size:
        raise InputError(f"{name} must be numbers, got {shown(values)}: pass a tensor or an array that has some")
    if axes is not None and found.ndim not in axes:
        raise InputError(
            f"{name} must have {' or '.join(map(str, axes))} axes, got {shown(values)}: choose a part of it"
        )
    return found.astype(np.complex128 if found.dtype.kind == "c" else np.float64)


def labels_of(labels: Sequence[object] | None, count: int, name: str) -> list[str]:
    """Take labels of the rows or columns of a picture, in letters that can be drawn.

    Args:
        labels: One for each; None numbers them.
        count: How many there must be.
        name: What they label, for the message.

    Returns:
        The labels.

    Raises:
        InputError: If there are more or fewer.
    """
    found = [drawable(str(label)) for label in (range(count) if labels is None else labels)]
    if len(found) != count:
        raise InputError(f"{name} must label each of {count}, got {len(found)} in {shown(labels)}: pass one for each")
    return found


def drawable(text: str) -> str:
    """Prepare a word from outside, such as a token, to be drawn: spaces at its ends and control characters are shown.

    Args:
        text: The word.

    Returns:
        The word; a sign that the current font lacks becomes ▯. Draw it with `parse_math=False`.
    """
    shown = word(text)
    if shown.isascii():
        return shown
    fonts = [
        get_font(findfont(FontProperties(family=[family])))
        for family in {*FontProperties().get_family(), "DejaVu Sans"}
    ]
    return "".join(sign if any(font.get_char_index(ord(sign)) for font in fonts) else UNDRAWABLE for sign in shown)
