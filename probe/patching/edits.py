"""Edits: what takes the place of a site's tensor, at which positions and in which heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from probe.errors import InputError
from probe.model import LanguageModel, Site, site_name
from probe.text import positions_in

Key: TypeAlias = str | tuple[str, int | Sequence[int]]
"""A site, or a site and one or several of its heads."""
Value: TypeAlias = "int | float | Tensor | np.ndarray | Callable[[Tensor], Any]"
"""A number, an array that broadcasts to the site's tensor at the positions, or a function of it."""
Edits: TypeAlias = Mapping[Key, Value]


@dataclass(frozen=True)
class Edit:
    """An edit of one site: a function of its tensor.

    Attributes:
        site: The site.
        value: What takes the tensor's place: a number, an array or a function.
        positions: Indices of positions, (P,) for all windows or (W, P), negative ones from the end; None: all.
        heads: The heads; None if the tensor is replaced as a whole.
        one_head: Whether the one head has no axis in the value.
        rows: The rows of an array with a row for each prompt that belong to the windows of the pass; None: all.
        prompts: The number of prompts.
    """

    site: Site
    value: Any
    positions: Any
    heads: tuple[int, ...] | None = None
    one_head: bool = False
    rows: Int[Tensor, " window"] | None = None
    prompts: int | None = None

    def at(self, rows: Int[Tensor, " window"]) -> Edit:
        """Return the edit for a pass of some of the prompts; `positions` has a row for each of them, or is None."""
        return replace(self, rows=rows, positions=None if self.positions is None else self.positions[rows])

    def __call__(self, tensor: Shaped[Tensor, "window position ..."]) -> Shaped[Tensor, "window position ..."]:
        """Return the tensor with the edit made."""
        index = self._index(tensor)
        return tensor.index_put(index, self._new(tensor[index]))

    def _index(self, tensor: Tensor) -> tuple[Tensor, ...]:
        windows, length = tensor.shape[:2]
        device = tensor.device
        lengths = torch.full((windows,), length)
        which = torch.arange(length) if self.positions is None else self.positions
        columns = positions_in(which, lengths).to(device)
        rows = torch.arange(windows, device=device)[:, None]
        if self.heads is None:
            return rows, columns
        if tensor.ndim < 4 or max(self.heads) >= tensor.shape[2]:
            what = "has no heads" if tensor.ndim < 4 else f"has heads 0 … {tensor.shape[2] - 1}"
            raise InputError(
                f"a head must be one of its site, and {self.site.name} {what}, got {self.heads[-1]}: "
                "name a site such as attn.hook_z and a head that it has"
            )
        if self.one_head:
            return rows, columns, torch.full_like(columns, self.heads[0])
        return rows[..., None], columns[..., None], torch.tensor(self.heads, device=device)[None, None]

    def _new(self, part: Tensor) -> Tensor:
        found = self.value(part) if callable(self.value) else self.value
        try:
            new = torch.as_tensor(found).to(part.device, part.dtype)
            if not callable(self.value) and self.rows is not None and new.ndim == part.ndim and len(new) > 1:
                if len(new) != self.prompts:
                    raise RuntimeError
                new = new[self.rows.to(new.device)]
            return new.expand(part.shape)
        except (RuntimeError, TypeError, ValueError) as error:
            came = tuple(np.shape(found)) if isinstance(found, Tensor | np.ndarray) else type(found).__name__
            expected = (self.prompts, *part.shape[1:]) if self.rows is not None else tuple(part.shape)
            raise InputError(
                f"a value must broadcast to its site at the positions, {self.site.name}: (prompt, position, …) = "
                f"{expected}, got {came}: give it these axes"
            ) from error


def edits_of(model: LanguageModel, edits: Edits, positions: Any, prompts: int | None = None) -> dict[str, list[Edit]]:
    """Read a mapping from sites to values.

    Args:
        model: The model.
        edits: The value of each site, or of each (site, head) or (site, heads).
        positions: Where, as in `Edit`.
        prompts: The number of prompts, of which arrays have a row each or one for all.

    Returns:
        The edits by the name of their site, in the order given.

    Raises:
        InputError: If there is no such site, a head is negative, or nothing is to be edited.
    """
    found: dict[str, list[Edit]] = {}
    for key, value in edits.items():
        written, heads = (key, None) if isinstance(key, str) else key
        name = site_name(model, written)
        one = isinstance(heads, int | np.integer)
        listed = None if heads is None else tuple(int(head) for head in np.atleast_1d(np.asarray(heads)))
        if listed is not None and (not listed or min(listed) < 0):
            raise InputError(f"heads must be named by indices from 0, got {heads!r} at {name}: pass one or a list")
        found.setdefault(name, []).append(Edit(model.site(name), value, positions, listed, one, None, prompts))
    if not found:
        raise InputError("edits= must name at least one site, got none: pass {site: value}")
    return found


def joined(edits: Sequence[Edit]) -> Callable[[Tensor], Tensor]:
    """Join the edits of one site into one function of its tensor.

    Args:
        edits: The edits, made one after the other.

    Returns:
        The function.
    """

    def change(tensor: Tensor) -> Tensor:
        for edit in edits:
            tensor = edit(tensor)
        return tensor

    return change
