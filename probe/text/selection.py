"""Positions by name, in rows of tokens whose lengths may differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy.typing as npt
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from probe.boundary import public, shown
from probe.errors import InputError

Take = Literal["first", "last", "all"]
Span = tuple[int, int]


@public
@dataclass(frozen=True)
class Substring:
    """The tokens that hold a part of a prompt's text.

    A token holds it if their characters overlap; if none does (a character that the tokenizer joined or dropped), it is
    the last token that begins before.

    Attributes:
        text: The part, as it stands in the prompt.
        take: Its "last" token (default), its "first", or "all".
        occurrence: Which of several occurrences, from 0; None: there must be one only.
    """

    text: str
    take: Take = "last"
    occurrence: int | None = None

    def __post_init__(self) -> None:
        if self.take not in get_args(Take):
            raise InputError(f"take= must be one of {', '.join(get_args(Take))}, got {self.take!r}: choose one")
        if not self.text:
            raise InputError("a substring must hold at least one character, got an empty one: name some text")

    @public
    def tokens(self, text: str, spans: Sequence[Span], prompt: int) -> list[int]:
        """Find the positions of the tokens.

        Args:
            text: The prompt.
            spans: First character of each token, and one past its last.
            prompt: Index of the prompt, for messages.

        Returns:
            Positions, ascending.

        Raises:
            InputError: If the text does not hold the part, or holds it more than once and `occurrence` says not which.
        """
        starts = [start for start in range(len(text)) if text.startswith(self.text, start)]
        if not starts:
            raise InputError(
                f"a substring must stand in every prompt, and {self.text!r} is not in the text of prompt {prompt}, "
                f"{_short(text)}: write it as it stands there"
            )
        if len(starts) > 1 and self.occurrence is None:
            raise InputError(
                f"{self.text!r} must stand once in prompt {prompt}, and stands {len(starts)} times: pass occurrence=0 "
                "for the first"
            )
        chosen = self.occurrence or 0
        if not -len(starts) <= chosen < len(starts):
            raise InputError(
                f"occurrence= must be below {len(starts)}, the times that {self.text!r} stands in prompt {prompt}, got "
                f"{chosen}: choose another"
            )
        begin = starts[chosen]
        end = begin + len(self.text)
        found = [index for index, (low, high) in enumerate(spans) if low < high and low < end and begin < high]
        if not found:
            before = [index for index, (low, high) in enumerate(spans) if low < high and low < begin]
            found = before[-1:] or [0]
        return {"all": found, "first": found[:1], "last": found[-1:]}[self.take]


Which = int | str | Substring | Sequence[Any] | npt.NDArray[Any] | Tensor
"""What names positions: indices, (P,) for all rows or (W, P), negative ones counted from a row's end; "last"; "counted"
for all that enter statistics; or a `Substring`."""


class TokenRows(ABC):
    """Rows of tokens, each from one document, whose lengths may differ: what passes through a model."""

    special_ids: frozenset[int]

    if TYPE_CHECKING:

        @property
        def ids(self) -> Sequence[Int64[Tensor, " _"]]:
            """The token ids of each row."""

        @property
        def document(self) -> Int64[Tensor, " window"]:
            """Index of the document of each row."""

    @abstractmethod
    @public
    def part(self, row: int, part: Substring) -> list[int]:
        """Find the tokens of a substring in a row."""

    @property
    def lengths(self) -> Int64[Tensor, " window"]:
        """Number of tokens in each row."""
        return torch.tensor([len(row) for row in self.ids], dtype=torch.int64)

    def groups(self) -> list[tuple[Int64[Tensor, " _"], Int64[Tensor, "_ _"]]]:
        """Group the rows by their length, so that each group is a batch without padding.

        Returns:
            Indices of the rows and their tokens, a pair for each length, in the order in which lengths first come.
        """
        lengths = self.lengths
        found = []
        for length in dict.fromkeys(lengths.tolist()):
            rows = (lengths == length).nonzero()[:, 0]
            found.append((rows, torch.stack([self.ids[row] for row in rows.tolist()])))
        return found

    @public
    def positions(
        self, which: Which, *, skip_first: int = 1, argument: str = "positions"
    ) -> Int64[Tensor, "window chosen"]:
        """Find the same number of positions in each row.

        Args:
            which: Indices, (P,) for all rows or (W, P), negative ones counted from a row's end; "last"; "counted"; or
                a `Substring`.
            skip_first: Of "counted": positions at the start that do not count.
            argument: What messages call them.

        Returns:
            Positions counted from the start, (W, P).

        Raises:
            InputError: If a row has no such position, or rows have different numbers of them.
        """
        found = self._listed(which, skip_first, argument)
        numbers = [len(row) for row in found]
        if len(set(numbers)) > 1:
            raise InputError(
                f"each row must give the same number of positions, and rows give {min(numbers)} to {max(numbers)}: "
                f'take one of each, as by {argument}="last" or Substring(text, take="last")'
            )
        if not numbers[0]:
            raise InputError(f"{argument}= must name at least one position, got none: pass a list of positions")
        return torch.stack(found)

    @public
    def chosen(self, which: Which, *, skip_first: int = 1) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """Find positions, whose number may differ from row to row.

        Args:
            which: As `positions` takes it.
            skip_first: As `positions` takes it.

        Returns:
            The row and the position of each, row by row.

        Raises:
            InputError: If a row has no such position.
        """
        found = self._listed(which, skip_first)
        rows = torch.repeat_interleave(torch.arange(len(found)), torch.tensor([len(row) for row in found]))
        return rows, torch.cat(found)

    def _listed(self, which: Which, skip_first: int, argument: str = "positions") -> list[Int64[Tensor, " _"]]:
        if isinstance(which, Substring):
            return [torch.tensor(self.part(row, which), dtype=torch.int64) for row in range(len(self.ids))]
        if isinstance(which, str):
            if which == "last":
                return [torch.tensor([len(row) - 1]) for row in self.ids]
            if which == "counted":
                return [counted(row, self.special_ids, skip_first).nonzero()[:, 0] for row in self.ids]
            raise InputError(
                f'{argument}= must be indices, "last", "counted" or a Substring, got {which!r}: for the tokens of a '
                f"text pass probe.Substring({which!r})"
            )
        return list(positions_in(which, self.lengths, argument=argument))


def counted(tokens: Int64[Tensor, " position"], special: frozenset[int], skip_first: int) -> Bool[Tensor, " position"]:
    """Mark the positions of a row that enter statistics.

    Args:
        tokens: Token ids.
        special: Ids that never count.
        skip_first: Positions at the start that do not count.

    Returns:
        True where the position counts.
    """
    ids = torch.tensor(sorted(special), dtype=torch.int64)
    return ~torch.isin(tokens, ids) & (torch.arange(len(tokens)) >= skip_first)


@public
def positions_in(
    which: Any, lengths: Int64[Tensor, " window"], *, argument: str = "positions"
) -> Int64[Tensor, "window chosen"]:
    """Resolve indices of positions, counted from the start of each row.

    Args:
        which: (P,) for all rows or (W, P): a number, lists, an array or a tensor; negative ones count from a row's end.
        lengths: The length of each row.
        argument: What messages call them.

    Returns:
        Int64 (W, P).

    Raises:
        InputError: If they are no integers, there is none, their shape is another, or one lies outside its row.
    """
    indices, count = _indices(which, argument), len(lengths)
    if indices.ndim > 2 or (indices.ndim == 2 and len(indices) != count) or not indices.numel():
        raise InputError(
            f"{argument}= must be (P,) for all windows or (W, P) with W = {count}, at least one, got shape "
            f"{tuple(indices.shape)}: pass a list of positions"
        )
    every, ends = indices.expand(count, -1), lengths[:, None]
    if ((every < -ends) | (every >= ends)).any():
        shortest = int(lengths.min())
        raise InputError(
            f"{argument}= must lie in [0, {shortest}), or [-{shortest}, -1] counted from the window's end, got "
            f"{int(indices.min())} to {int(indices.max())}: choose positions inside the windows"
        )
    return every.remainder(ends)


def _indices(which: Any, argument: str) -> Tensor:
    try:
        indices = torch.as_tensor(which).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{argument}= must be integers, got {shown(which)}: pass indices") from None
    if indices.numel() and (indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool):
        raise InputError(f"{argument}= must be integers, got {shown(which)}: pass indices")
    found: Tensor = torch.atleast_1d(indices.to(torch.int64))
    return found


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
