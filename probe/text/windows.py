"""Token windows of documents, and the positions that count.

A text is cut into *documents* (articles), because tokens and windows of one article are not independent. No window
crosses two documents; windows are spread over as many documents as there are; and fit, validation and scored windows
come from different documents. A line ` = Title = `, exactly one `=` on each side, opens a document, as in WikiText. By
that rule WikiText-2's test split has 62 documents: its 60 articles, one of which is cut twice by a line of a formula
that looks like a title. A text without such lines is cut at paragraphs into documents of at least 1,000 words;
in scripts without blanks two characters count as a word.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from probe import display
from probe.boundary import at_least, public
from probe.errors import InputError
from probe.text import corpora
from probe.text.names import Choice
from probe.text.selection import Substring, TokenRows

Part = Literal["all", "fit", "validation", "scored", "half_a", "half_b"]

_TITLE = re.compile(r"^ ?= (?![= ])(.+?)(?<![= ]) = ?$", re.MULTILINE)
_WORDS_WITHOUT_TITLES = 1000
# Thai, Lao, Tibetan, Burmese, Khmer, kana, ideographs: no blanks between words, about two characters a word.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_FIT_SHARE, _VALIDATION_SHARE = 0.6, 0.1


@runtime_checkable
class _Reader(Protocol):
    """The members of a `LanguageModel` that are used here."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def max_positions(self) -> int | None: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def bos_id(self) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True, eq=False)
class Windows(TokenRows):
    """Token windows of equal length, each from one document.

    Attributes:
        tokens: Token ids, int64, `(W, T)`.
        document: Index of the document that each window comes from, int64, `(W,)`.
        titles: Titles of all documents of the text, indexed by `document`.
        special_ids: Token ids that never count (BOS, padding ...).
        name: Name of the text, for example "wikitext-2 test".
        sha256: Hash of the whole text, line breaks as LF; of a table, of the JSON list of its documents.
    """

    tokens: Int64[Tensor, "window position"]
    document: Int64[Tensor, " window"]
    titles: tuple[str, ...]
    special_ids: frozenset[int]
    name: str
    sha256: str

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, windows={self.n_windows}, length={self.window_length}, "
            f"documents={self.n_documents})"
        )

    def _repr_html_(self) -> str:
        return display.table(
            f"Windows of {self.name}",
            {
                "windows": self.n_windows,
                "positions of each": self.window_length,
                "documents": f"{self.n_documents} of {len(self.titles)}",
            },
        )

    @property
    def ids(self) -> Sequence[Int64[Tensor, " _"]]:
        """The token ids of each window."""
        return self.tokens.unbind()

    @public
    def part(self, row: int, part: Substring) -> list[int]:
        """Refuse to look for a substring: windows are cut from a text by tokens.

        Args:
            row: Index of the window.
            part: The substring.

        Raises:
            InputError: If it is called: windows keep no text.
        """
        raise InputError(
            f"a substring is looked for in prompts, and these are windows of {self.name}: pass the text to "
            "load_prompts, or positions as indices"
        )

    @property
    def n_windows(self) -> int:
        """Number of windows, W."""
        return self.tokens.shape[0]

    @property
    def window_length(self) -> int:
        """Positions in a window, T."""
        return self.tokens.shape[1]

    @property
    def n_documents(self) -> int:
        """Number of different documents that the windows come from: the n of every interval over documents."""
        return len(set(self.document.tolist()))

    @public
    def counted(self, skip_first: int = 1) -> Bool[Tensor, "window position"]:
        """Mark the positions that enter statistics: index at least `skip_first` and not a special token.

        The first position is an attention sink whose norm is hundreds of times the others'.

        Args:
            skip_first: Positions left out at the start of each window, 1 by default.

        Returns:
            Boolean mask, `(W, T)`.

        Raises:
            InputError: If `skip_first` is negative or leaves no position.
        """
        if not 0 <= skip_first < self.window_length:
            raise InputError(
                f"skip_first= must be at least 0 and below the window length {self.window_length}, got {skip_first}: "
                "choose another"
            )
        special = torch.tensor(sorted(self.special_ids), dtype=torch.int64)
        return ~torch.isin(self.tokens, special) & (torch.arange(self.window_length) >= skip_first)


@public(seed=at_least(0))
def load_windows(
    model: _Reader,
    *,
    dataset: str | None = None,
    text: Path | str | None = None,
    split: str | None = None,
    column: str | None = None,
    windows: int | None = 32,
    at_most: bool = False,
    window_length: int = 256,
    part: Part = "all",
    seed: int = 0,
) -> Windows:
    """Draw token windows from a data set or a file.

    Each document is encoded once, without special tokens, and cut into consecutive windows that do not overlap; the
    remainder at its end is dropped. Windows are drawn round-robin: every document gives one window before any gives a
    second; the order of documents, and of the windows within one, is random under `seed`. If the model's tokenizer puts
    a token (BOS) before a text, every window begins with it. Only as many documents are encoded as windows are needed.

    Args:
        model: A `LanguageModel` with a tokenizer.
        dataset: "wikitext-2", "wikitext-103" (by `datasets`, local cache first), "sample" (ships with probe), or any
            data set of the hub, "OWNER/NAME" or "OWNER/NAME:CONFIGURATION", whose rows are the documents.
        text: A UTF-8 file, instead of `dataset`. Of a .parquet, .jsonl or .json file (.gz, too) the rows are the
            documents; rows without text, and copies of earlier ones, are left out.
        split: Split of the data set: "test" of WikiText by default; of another one of the hub its only one, or "test".
            A file and the sample have none.
        column: Column of the documents, where these are rows: by default the only one that holds text besides `title`,
            or `text`. Titles are those of the column `title`, if there is one, else "row 0" ….
        windows: Number of windows, 32 by default; None for all there are.
        at_most: If the text has fewer windows, take them all; by default that is an error.
        window_length: Tokens in a window, BOS included; 256 by default.
        part: "all" (default), or one of three parts that share no document: "fit" (60 %), "validation" (10 %) and
            "scored" (30 %); or one of the two halves "half_a" and "half_b". Documents are ranked by the SHA-256 of
            their text, so that the part of a document depends neither on the seed nor on the window length.
        seed: Seed of the drawing, 0 by default.

    Returns:
        The windows, in the order in which they were drawn.

    Raises:
        InputError: If there is no tokenizer; the text is unknown, unreachable, empty, not UTF-8 or not text; a window
            is longer than the model's context or than every document; there are fewer windows than asked for; there is
            no such part; or a text of fewer than three documents is to be divided into parts.
    """
    if model.tokenizer is None:
        raise InputError("windows of text need the model's tokenizer, but it has none: pass tokenizer= to load_model")
    if windows is not None and windows < 1:
        raise InputError(f"windows= must be at least 1, or None for all there are, got {windows}: give a larger number")
    _check_length(window_length, model.max_positions)
    corpus = corpora.read(Choice(dataset, None if text is None else Path(text), split, column))
    name = corpus.name
    documents = list(corpus.documents) if corpus.content is None else _split(corpus.content)
    if not documents:
        raise InputError(f"the text must hold words, but {name} is empty: pass another text= or dataset=")
    first = [] if model.bos_id is None else [model.bos_id]
    drawn: list[tuple[int, list[int]]] = []
    for index, body in _draw(model, documents, _members(documents, part, name), window_length - len(first), seed):
        drawn.append((index, first + body))
        if len(drawn) == windows:
            break
    _check_drawn(len(drawn), None if at_most else windows, window_length, name, part)
    return Windows(
        tokens=torch.tensor([tokens for _, tokens in drawn], dtype=torch.int64),
        document=torch.tensor([index for index, _ in drawn], dtype=torch.int64),
        titles=tuple(title for title, _ in documents),
        special_ids=model.special_ids,
        name=name,
        sha256=corpus.sha256,
    )


def _check_length(window_length: int, max_positions: int | None) -> None:
    if window_length < 2:
        raise InputError(
            f"a window must hold at least 2 tokens, got window_length={window_length}: give a larger number"
        )
    if max_positions is not None and window_length > max_positions:
        raise InputError(
            f"a window must fit into the model's context of {max_positions} tokens, got window_length={window_length}: "
            f"pass window_length={max_positions} or less"
        )


def _check_drawn(drawn: int, wanted: int | None, window_length: int, name: str, part: Part) -> None:
    where = name if part == "all" else f"the {part} part of {name}"
    if drawn == 0:
        raise InputError(
            f"at least one document must be as long as a window, but {where} has none of {window_length} tokens: "
            "pass a longer text or a smaller window_length="
        )
    if wanted is not None and drawn < wanted:
        raise InputError(
            f"{where} must hold the windows asked for, but has {drawn} of {window_length} tokens, not {wanted}: "
            f"ask for {drawn} or fewer, or pass a longer text or a smaller window_length="
        )


def _split(content: str) -> list[tuple[str, str]]:
    """(title, text) of each document, in the order of the text; the title's line belongs to the text."""
    titles = list(_TITLE.finditer(content))
    if not titles:
        return _split_paragraphs(content)
    starts = [match.start() for match in titles]
    pieces = [("", content[: starts[0]])]  # the text before the first title
    pieces += [
        (match[1], content[start:end])
        for match, start, end in zip(titles, starts, [*starts[1:], len(content)], strict=True)
    ]
    return [(title, piece) for title, piece in pieces if piece.strip()]


def _split_paragraphs(content: str) -> list[tuple[str, str]]:
    """Runs of whole paragraphs of at least 1,000 words; a shorter last run joins the one before it."""
    paragraphs = re.findall(r"\S.*?(?:\n\s*\n|\Z)", content, re.DOTALL)
    if len(paragraphs) == 1:  # no empty lines: each line is a paragraph
        paragraphs = [line for line in content.splitlines(keepends=True) if line.strip()]
    runs: list[list[int]] = []  # indices of each run's paragraphs
    words = _WORDS_WITHOUT_TITLES
    for number, paragraph in enumerate(paragraphs):
        if words >= _WORDS_WITHOUT_TITLES:
            runs.append([])
            words = 0
        runs[-1].append(number)
        words += _words(paragraph)
    if len(runs) > 1 and words < _WORDS_WITHOUT_TITLES:
        last = runs.pop()
        runs[-1] += last
    return [
        (f"paragraphs {run[0] + 1} to {run[-1] + 1}", "".join(paragraphs[number] for number in run)) for run in runs
    ]


def _words(text: str) -> int:
    """Number of words: what stands between blanks, and two characters each in scripts without them."""
    rest, unspaced = _UNSPACED.subn(" ", text)
    return len(rest.split()) + (unspaced + 1) // 2


def _members(documents: list[tuple[str, str]], part: Part, name: str) -> list[int]:
    """Indices of the documents in one part, ascending."""
    n = len(documents)
    if part not in get_args(Part):
        raise InputError(f"part= must be one of {', '.join(get_args(Part))}, got {part!r}: choose one")
    if part == "all":
        return list(range(n))
    if n < 3:
        raise InputError(
            f"a text must have at least 3 documents to be divided into parts, but {name} has {n}: "
            "open each document with a line ' = Title = '"
        )
    ranked = sorted(range(n), key=lambda index: (hashlib.sha256(documents[index][1].encode()).digest(), index))
    validation = max(1, round(_VALIDATION_SHARE * n))
    fit = min(max(1, round(_FIT_SHARE * n)), n - validation - 1)
    bounds = {
        "fit": (0, fit),
        "validation": (fit, fit + validation),
        "scored": (fit + validation, n),
        "half_a": (0, (n + 1) // 2),
        "half_b": ((n + 1) // 2, n),
    }[part]
    return sorted(ranked[slice(*bounds)])


def _draw(
    model: _Reader, documents: list[tuple[str, str]], members: list[int], length: int, seed: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (document, `length` tokens), the first window of every document before the second of any."""
    order = np.random.default_rng(seed).permutation(members).tolist()
    waiting: list[tuple[int, list[list[int]]]] = []
    for index in order:
        tokens = model.encode(documents[index][1])
        cut = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
        cut = [cut[i] for i in np.random.default_rng([seed, index]).permutation(len(cut))]
        if cut:
            yield index, cut[0]
            waiting.append((index, cut[1:]))
    while waiting := [(index, cut) for index, cut in waiting if cut]:
        for index, cut in waiting:
            yield index, cut.pop(0)
