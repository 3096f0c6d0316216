"""The axes of recorded arguments: which one counts windows, and which ones count positions.

They are found by comparing the same argument in passes of another number of windows and another length, never by a
length that happens to fit. Then an argument is cut to some windows and to some of their positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.errors import InputError
from probe.replay.calls import Path, rebuilt


class Uncuttable(InputError):
    """The refusal of an argument that cannot be cut to windows or positions."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"a block's arguments must be told apart by window and position to run it again, and {why}: use a model of "
            "another family"
        )


@dataclass(frozen=True)
class Axes:
    """The axes of one argument.

    Attributes:
        window: The axis of the windows; None if all windows share the argument.
        each: Entries on that axis that belong to one window (the heads of a bias).
        positions: The axes of the positions, queries before keys.
        own: Whether windows of other tokens have other contents: the argument is computed from tokens or from states.
        rank: Number of axes.
        spread: Whether the axis before the positions has one entry.
    """

    window: int | None = None
    each: int = 1
    positions: tuple[int, ...] = ()
    own: bool = False
    rank: int = 0
    spread: bool = False

    @property
    def of_keys(self) -> bool:
        """True if the one axis of positions counts keys: of keys and values themselves, or of a bias on scores."""
        if len(self.positions) != 1:
            return False
        (axis,) = self.positions
        if self.own:
            return axis > 1 and self.window != axis - 1
        return self.spread and axis == self.rank - 1


def compare(few: Tensor, many: Tensor, sizes: tuple[int, int], others: tuple[int, int]) -> Axes | None:
    """Find the axes of an argument from two passes.

    Args:
        few: The argument in one pass.
        many: The argument in another pass, with another number of windows and another length.
        sizes: Number of windows and length of the one pass.
        others: Number of windows and length of the other.

    Returns:
        The axes; None if an axis grows with neither number alone.
    """
    if few.ndim != many.ndim:
        return None
    window, each, positions = None, 1, []
    for axis, (one, other) in enumerate(zip(few.shape, many.shape, strict=True)):
        if one == other:
            continue
        if (one, other) == (sizes[1], others[1]):
            positions.append(axis)
        elif window is None and one % sizes[0] == 0 and one // sizes[0] * others[0] == other:
            window, each = axis, one // sizes[0]
        else:
            return None
    if len(positions) > 2:
        return None
    own = False
    if window is not None:
        first = few.narrow(window, 0, each)
        own = any(not torch.equal(first, few.narrow(window, row * each, each)) for row in range(1, sizes[0]))
    counted = few.dtype in (torch.int32, torch.int64)  # numbers of positions are no bias on scores
    spread = bool(positions) and positions[-1] > 0 and few.shape[positions[-1] - 1] == 1 and not counted
    return Axes(window, each, tuple(positions), own, few.ndim, spread)


def of_windows(tensor: Tensor, axes: Axes, windows: Int[Tensor, " row"]) -> Tensor:
    """Take the rows of some windows; an argument that all windows share stays as it is."""
    if axes.window is None:
        return tensor
    parts = tensor.unflatten(axes.window, (-1, axes.each))
    rows: Tensor = parts.index_select(axes.window, windows.to(tensor.device))
    return rows.flatten(axes.window, axes.window + 1)


def of_stretch(tensor: Tensor, axes: Axes, first: int, last: int, keys: int) -> Tensor:
    """Take the queries' positions `first` … `last` − 1, and of keys the last `keys` up to them."""
    for index, axis in enumerate(axes.positions):
        if axes.of_keys or index == 1:
            tensor = tensor.narrow(axis, last - keys, keys)
        else:
            tensor = tensor.narrow(axis, first, last - first)
    return tensor


def of_positions(
    tensor: Tensor, axes: Axes, positions: Int[Tensor, "row n"], *, joined: bool, dtype: torch.dtype
) -> Tensor:
    """Take n positions of each row; `tensor` has a row for each row of `positions`, or one for all.

    Args:
        tensor: The argument.
        axes: Its axes.
        positions: The positions.
        joined: Put what belongs to the live positions behind all recorded ones, where the argument is of keys.
        dtype: Dtype of an additive mask.

    Returns:
        The cut argument. A mask hides what lies at or behind the position among the recorded keys, and shows of the
        live ones the position itself.

    Raises:
        Uncuttable: If rows share the argument, but not their positions.
    """
    if not axes.positions:
        return tensor
    if len(axes.positions) == 2:
        return _mask(tensor, axes, positions, dtype)
    chosen = _gathered(tensor, axes, positions)
    if not (joined and axes.of_keys):
        return chosen
    (axis,) = axes.positions
    whole = tensor.expand(*chosen.shape[:axis], *tensor.shape[axis:]) if axis else tensor
    return torch.cat([whole, chosen], dim=axis)


def _gathered(tensor: Tensor, axes: Axes, positions: Int[Tensor, "row n"]) -> Tensor:
    (axis,) = axes.positions
    if bool((positions == positions[:1]).all()):
        return tensor.index_select(axis, positions[0].to(tensor.device))
    window = axes.window
    if window is None and axis > 0 and len(tensor) == 1:
        tensor, window = tensor.expand(len(positions), *tensor.shape[1:]), 0
    if window is None:
        raise Uncuttable("rows with positions of their own share an argument")
    parts, axis = tensor.unflatten(window, (-1, axes.each)), axis + (axis > window)
    rows = torch.arange(len(positions), device=tensor.device)[:, None]
    chosen = parts.movedim((window, axis), (0, 1))[rows, positions.to(tensor.device)]
    back: Tensor = chosen.movedim((0, 1), (window, axis)).flatten(window, window + 1)
    return back


def _mask(
    tensor: Tensor, axes: Axes, positions: Int[Tensor, "row n"], dtype: torch.dtype
) -> Float[Tensor, "row *head n key"] | Bool[Tensor, "row *head n key"]:
    rows, chosen = positions.shape
    whole = axes.positions == (axes.rank - 2, axes.rank - 1) and axes.rank > 2
    if not whole or axes.window not in (None, 0) or axes.each != 1 or (axes.window is None and len(tensor) != 1):
        raise Uncuttable("a mask has axes in another order")
    length = tensor.shape[-1]
    tensor = tensor.expand(rows, *tensor.shape[1:]).flatten(1, -3) if axes.rank > 3 else tensor[:, None]
    heads = tensor.shape[1]
    tensor = tensor.expand(rows, heads, length, length)
    if tensor.is_floating_point():
        tensor, hidden = tensor.to(dtype), torch.finfo(dtype).min
    else:
        tensor, hidden = tensor.bool(), False
    seen = tensor.gather(2, positions[:, None, :, None].expand(-1, heads, -1, length))
    own = seen.gather(3, positions[:, None, :, None].expand(-1, heads, -1, 1))
    before = torch.arange(length, device=positions.device) < positions[..., None]
    seen = seen.masked_fill(~before[:, None], hidden)
    itself = torch.eye(chosen, dtype=torch.bool, device=positions.device)
    live = torch.where(itself, own, torch.full_like(own, hidden))
    mask = torch.cat([seen, live], dim=-1)
    return mask if axes.rank > 3 else mask[:, 0]


def causal_mask(positions: Int[Tensor, "row n"], length: int, dtype: torch.dtype) -> Float[Tensor, "row 1 n key"]:
    """Make the additive mask of positions over recorded and live keys, where the recorded pass had none."""
    before = torch.arange(length, device=positions.device) < positions[..., None]
    itself = torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device).expand(len(positions), -1, -1)
    seen = torch.cat([before, itself], dim=-1)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=positions.device).masked_fill_(~seen, torch.finfo(dtype).min)


def causal_stretch(first: int, last: int, keys: int, like: Tensor) -> Float[Tensor, "1 1 n key"]:
    """Make the additive mask of positions `first` … `last` − 1 over the last `keys` up to them.

    Args:
        first: The first position.
        last: One past the last.
        keys: Number of keys.
        like: A tensor of the mask's dtype and device.

    Returns:
        The mask, for calls that were recorded without one.
    """
    seen = torch.ones(last - first, keys, dtype=torch.bool, device=like.device).tril(first - last + keys)
    return like.new_zeros(1, 1, *seen.shape).masked_fill_(~seen, torch.finfo(like.dtype).min)


Known = Mapping[Path, Axes | None]
"""The axes of a call's arguments by path."""


def changed(arguments: Mapping[str, Any], known: Known, change: Any) -> dict[str, Any]:
    """Rebuild a call's arguments with each tensor cut.

    Args:
        arguments: The arguments.
        known: Their axes.
        change: Called with a tensor and its axes.

    Returns:
        The new arguments.

    Raises:
        Uncuttable: If an argument's axes are not known.
    """

    def cut(path: Path, tensor: Tensor) -> Tensor:
        axes = known.get(path)
        if axes is None:
            raise Uncuttable(f"the axes of {'.'.join(path)} {tuple(tensor.shape)} are not known")
        part: Tensor = change(tensor, axes)
        return part

    twin: dict[str, Any] = rebuilt(dict(arguments), cut)
    return twin
