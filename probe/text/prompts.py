"""Prompts: strings, token lists, chats and files of them, as rows of tokens without padding."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm.auto import tqdm

from probe import display
from probe.boundary import public, shown
from probe.errors import InputError
from probe.model import LanguageModel, require_windows
from probe.text.selection import Span, Substring, TokenRows

_COLUMNS = ("messages", "prompt", "text")
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Prompts(TokenRows):
    """Prompts as rows of tokens; each is a document of its own, so that intervals resample prompts.

    Attributes:
        ids: Token ids of each prompt, int64 (T,), special tokens included.
        texts: The text of each prompt, without a token that the tokenizer puts before it; None where tokens came.
        spans: First character of each token in its text and one past its last, (0, 0) for a token that is not in it;
            None where they are not known.
        document: Index of the document of each prompt, int64 (W,).
        generated: Number of tokens at the end of each prompt that the model has written, int64 (W,).
        special_ids: Token ids that never count.
        name: What they are called in reports.
    """

    ids: tuple[Int64[Tensor, " _"], ...]
    texts: tuple[str | None, ...]
    spans: tuple[tuple[Span, ...] | None, ...]
    document: Int64[Tensor, " window"]
    generated: Int64[Tensor, " window"]
    special_ids: frozenset[int]
    name: str = "prompts"

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        lengths = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        return f"{type(self).__name__}({len(self)} of {lengths} tokens)"

    def _repr_html_(self) -> str:
        rows = {
            str(index): f"{len(ids)} tokens: {ids.tolist() if text is None else text}"
            for index, (ids, text) in enumerate(zip(self.ids[:_SHOWN], self.texts, strict=False))
        }
        more = {"…": f"{len(self) - _SHOWN} more"} if len(self) > _SHOWN else {}
        return display.table(repr(self), rows | more)

    @property
    def n_windows(self) -> int:
        """Number of prompts, W."""
        return len(self.ids)

    @property
    def tokens(self) -> Int64[Tensor, "window position"]:
        """Token ids of prompts of one length, (W, T)."""
        groups = self.groups()
        if len(groups) > 1:
            raise InputError(
                f"tokens (W, T) need prompts of one length, and these have {int(self.lengths.min())} to "
                f"{int(self.lengths.max())} tokens: use ids, or groups(), which has one (w, T) for each length"
            )
        return groups[0][1]

    @property
    def titles(self) -> tuple[str, ...]:
        """The beginning of each prompt."""
        return tuple(
            f"prompt {index}" if text is None else (text if len(text) <= 60 else f"{text[:59]}…")
            for index, text in enumerate(self.texts)
        )

    @property
    def sha256(self) -> str:
        """Hash of all token ids."""
        return hashlib.sha256(json.dumps([row.tolist() for row in self.ids]).encode()).hexdigest()

    @public
    def part(self, row: int, part: Substring) -> list[int]:
        """Find the tokens of a substring in a prompt.

        Args:
            row: Index of the prompt.
            part: The substring.

        Returns:
            Positions, ascending.

        Raises:
            InputError: If the prompt's text or the characters of its tokens are not known, or the text does not hold
                the substring once.
        """
        if not -len(self.texts) <= row < len(self.texts):
            raise InputError(f"row= must be one of {len(self.texts)} prompts, got {row}: choose another")
        text, spans = self.texts[row], self.spans[row]
        if text is None or spans is None:
            why = "came as tokens" if text is None else "was read by a tokenizer that does not say which characters"
            raise InputError(
                f"a substring needs the characters of each token, and prompt {row} {why}: pass the text to "
                "load_prompts, or positions as indices"
            )
        return part.tokens(text, spans, row)


@runtime_checkable
class HasTokens(Protocol):
    """An object that holds windows of tokens."""

    @property
    def tokens(self) -> Tensor:
        """Token ids, int64 (W, T)."""


Given = TokenRows | HasTokens | str | Path | Sequence[Any] | Mapping[str, Any] | npt.NDArray[Any] | Tensor
"""What passes through a model: the windows of `load_windows`, the prompts of `load_prompts`, or what that takes."""


@public
def load_prompts(
    model: LanguageModel,
    prompts: str | Path | Sequence[Any] | Mapping[str, Any] | npt.NDArray[Any] | Tensor,
    *,
    column: str | None = None,
    bos: bool | None = None,
    reply: bool = True,
    generate: int = 0,
    quiet: bool = True,
) -> Prompts:
    """Turn prompts into rows of tokens, each of its own length: no padding, so that no position is moved or masked.

    Args:
        model: A `LanguageModel`; tokens need no tokenizer.
        prompts: A string, or a list of strings; a list of token ids, or a list of such lists, or integers (T,) or
            (W, T) as a tensor or an array; a chat, that is a list of messages `{"role": ..., "content": ...}`, or a
            list of chats; or the path of a `.jsonl` file, as `Path` or as a string that ends so, whose lines are
            strings or objects with such values.
        column: The key of a file's objects to read; by default `messages`, `prompt` or `text`, the first that is there.
        bos: Whether the token that begins a text is put before each string; by default it is where the model's
            tokenizer does so. Token lists are taken as they are, and a chat's template decides for itself.
        reply: Whether a chat ends with what opens the assistant's reply.
        generate: Number of tokens that the model appends to each prompt, the most probable one at each step; it ends
            earlier behind a token that ends a text.
        quiet: Show no progress bar while tokens are generated.

    Returns:
        The prompts, in their order.

    Raises:
        InputError: If there is no prompt; one is empty, longer than the model's context, or begins with padding; ids
            are no integers of the vocabulary; text comes without a tokenizer, or a chat without a template; or the
            file is not there, not UTF-8, or not of such lines.
    """
    if generate < 0:
        raise InputError(f"generate= must be at least 0 tokens, got {generate}: leave it out for none")
    return _loaded(model, prompts, column, bos, reply, generate, quiet)


def _loaded(
    model: LanguageModel,
    prompts: Any,
    column: str | None = None,
    bos: bool | None = None,
    reply: bool = True,
    generate: int = 0,
    quiet: bool = True,
    argument: str = "prompts",
) -> Prompts:
    """The prompts; messages call them by the name of the argument that they came as."""
    name = "prompts"
    if isinstance(prompts, Path) or (isinstance(prompts, str) and prompts.endswith(".jsonl")):
        name, prompts = Path(prompts).name, _lines(Path(prompts), column)
    rows = [_row(model, given, bos, reply, argument) for given in _each(prompts, argument)]
    if not rows:
        raise InputError(f"{argument}= must hold at least one prompt, got none: pass a string or a list of strings")
    for index, (ids, _, _) in enumerate(rows):
        if not len(ids):
            raise InputError(
                f"a prompt of {argument}= must hold at least one token, and prompt {index} holds none: leave it out"
            )
    found = Prompts(
        ids=tuple(ids for ids, _, _ in rows),
        texts=tuple(text for _, text, _ in rows),
        spans=tuple(spans for _, _, spans in rows),
        document=torch.arange(len(rows)),
        generated=torch.zeros(len(rows), dtype=torch.int64),
        special_ids=model.special_ids,
        name=name,
    )
    _require_fit(model, found, generate)
    return _continued(model, found, generate, quiet) if generate else found


@public
def as_rows(model: LanguageModel, given: Given, *, argument: str = "prompts") -> TokenRows:
    """Take anything that can pass through a model as rows of its tokens.

    Args:
        model: The model.
        given: Windows of `load_windows`, prompts of `load_prompts`, or what that takes.
        argument: What messages call them.

    Returns:
        The rows; their ids are the model's.

    Raises:
        InputError: If `load_prompts` would raise it.
    """
    if isinstance(given, TokenRows):
        _require_fit(model, given)
        return given
    if isinstance(given, HasTokens) and not isinstance(given, Tensor):
        given = given.tokens
    return _loaded(model, given, argument=argument)


def _require_fit(model: LanguageModel, rows: TokenRows, more: int = 0) -> None:
    for _, tokens in rows.groups():
        require_windows(model, tokens)
    longest = int(rows.lengths.max()) + more
    if model.max_positions is not None and longest > model.max_positions:
        raise InputError(
            f"a window must fit the model's {model.max_positions} positions, got {longest}: pass shorter ones"
            + (f", or generate= fewer tokens than {more}" if more else "")
        )


def _each(prompts: Any, argument: str) -> list[Any]:
    """The single prompts: a string, a mapping list or integers each."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, np.ndarray) and prompts.dtype.kind in "OU":  # texts, as pandas holds them
        prompts = prompts.tolist()
    if isinstance(prompts, Tensor | np.ndarray):
        tensor = torch.as_tensor(prompts).cpu()
        return [tensor] if tensor.ndim == 1 else list(tensor) if tensor.ndim == 2 else [_refused(prompts, argument)]
    if not isinstance(prompts, Sequence):
        return [_refused(prompts, argument)]
    first = prompts[0] if len(prompts) else None
    whole = isinstance(first, Mapping | int | np.integer) and not isinstance(first, bool)
    return [prompts] if whole else list(prompts)


def _refused(given: Any, argument: str) -> Any:
    raise InputError(
        f"{argument}= must be strings, chats, integer tokens (T,) or (W, T), or lists of them, got {shown(given)}: "
        "pass "
        "a string, or tokens of two axes"
    )


def _row(
    model: LanguageModel, given: Any, bos: bool | None, reply: bool, argument: str
) -> tuple[Tensor, str | None, Any]:
    """Tokens, text and spans of one prompt."""
    if isinstance(given, str):
        first = [model.bos_id] if model.bos_id is not None and bos is not False else []
        if bos and not first:
            raise InputError(f"bos=True needs a token that begins a text, and {model.name} has none: leave it out")
        return _encoded(model, given, first)
    if isinstance(given, Mapping) and given:
        given = [given]
    if isinstance(given, Sequence) and len(given) and all(isinstance(message, Mapping) for message in given):
        return _encoded(model, _chat(model, list(given), reply), [])
    if isinstance(given, Sequence | Tensor | np.ndarray):
        ids = _integers(given, argument)
        if ids is not None:
            return ids, None, None
    return cast("tuple[Tensor, str | None, Any]", _refused(given, argument))


def _integers(given: Any, argument: str) -> Tensor | None:
    try:
        ids = torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    if ids.ndim != 1:
        return None
    if (ids.is_floating_point() and ids.numel()) or ids.is_complex() or ids.dtype is torch.bool:
        raise InputError(
            f"{argument}= must be integers where it is tokens, got {str(ids.dtype).removeprefix('torch.')}: pass the "
            "ids that model.encode or load_windows gives"
        )
    return ids.to(torch.int64)


def _encoded(model: LanguageModel, text: str, first: list[int]) -> tuple[Tensor, str, tuple[Span, ...] | None]:
    """Tokens of a text behind others, and the characters of each."""
    ids = model.encode(text)
    spans: tuple[Span, ...] | None = None
    if getattr(model.tokenizer, "is_fast", False):
        encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if list(encoded["input_ids"]) == ids:
            spans = (*((0, 0) for _ in first), *(tuple(span) for span in encoded["offset_mapping"]))
    return torch.tensor(first + ids, dtype=torch.int64), text, spans


def _chat(model: LanguageModel, messages: list[Mapping[str, Any]], reply: bool) -> str:
    tokenizer = model.tokenizer
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            f"a chat needs the template of the model's tokenizer, and {model.name} has none: pass the text as a string"
        )
    opened = reply and messages[-1].get("role") != "assistant"
    try:
        text = tokenizer.apply_chat_template([*map(dict, messages)], tokenize=False, add_generation_prompt=opened)
    except Exception as error:  # templates raise errors of their own
        raise InputError(
            f"a chat must be messages that the template of {model.name} takes, each with role and content, and it "
            f"says: {' '.join(str(error).split())}"
        ) from error
    return str(text)


def _lines(path: Path, column: str | None) -> list[Any]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"the file of prompts must be readable, and {path} is not ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"prompts must be UTF-8, and {path} is not (byte {error.start}): convert it first") from None
    return [_value(path, number, line, column) for number, line in enumerate(lines, 1) if line.strip()]


def _value(path: Path, number: int, line: str, column: str | None) -> Any:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"each line of {path} must be JSON, and line {number} is not ({error.msg}): mend that line"
        ) from None
    if not isinstance(value, dict):
        return value
    key = column if column is not None else next((name for name in _COLUMNS if name in value), None)
    if key not in value:
        wanted = repr(column) if column is not None else " or ".join(_COLUMNS)
        raise InputError(
            f"each line of {path} must have {wanted}, and line {number} has {', '.join(value) or 'nothing'}: "
            "pass column="
        )
    return value[key]


@torch.no_grad()
def _continued(model: LanguageModel, prompts: Prompts, count: int, quiet: bool) -> Prompts:
    """Prompts with the most probable next token appended, again and again, by whole passes: no cache, no sampling."""
    ids = [row.clone() for row in prompts.ids]
    ends = _ends(model)
    active = set(range(len(ids)))
    for _ in tqdm(range(count), desc="generate", unit="token", disable=quiet):
        for rows, tokens in replace(prompts, ids=tuple(ids)).groups():
            going = [index for index, row in enumerate(rows.tolist()) if row in active]
            if not going:
                continue
            logits = model.forward(tokens[going])[:, -1]
            for index, token in zip(going, logits.argmax(-1).tolist(), strict=True):
                row = int(rows[index])
                ids[row] = torch.cat([ids[row], torch.tensor([token])])
                if token in ends:
                    active.discard(row)
    generated = torch.tensor([len(new) - len(old) for new, old in zip(ids, prompts.ids, strict=True)])
    texts, spans = zip(
        *(
            _written(model, text, span, new[len(old) :].tolist())
            for text, span, new, old in zip(prompts.texts, prompts.spans, ids, prompts.ids, strict=True)
        ),
        strict=True,
    )
    return replace(prompts, ids=tuple(ids), texts=texts, spans=spans, generated=generated)


def _written(
    model: LanguageModel, text: str | None, spans: tuple[Span, ...] | None, new: list[int]
) -> tuple[str | None, tuple[Span, ...] | None]:
    """The text and the spans with those of the tokens that the model has written."""
    if text is None:
        return None, None
    written = [model.tokenizer.decode(new[:count]) for count in range(len(new) + 1)]
    if spans is None:
        return text + written[-1], None
    ends = [len(text) + min(len(part), len(written[-1])) for part in written]
    return text + written[-1], (*spans, *itertools.pairwise(ends))


def _ends(model: LanguageModel) -> set[int]:
    """Tokens that end a text, by the tokenizer and by the module's configuration of generation."""
    stated = [getattr(model.tokenizer, "eos_token_id", None)]
    stated.append(getattr(getattr(model.module, "generation_config", None), "eos_token_id", None))
    found: set[int] = set()
    for one in stated:
        found |= set(one) if isinstance(one, list | tuple) else {one} if isinstance(one, int) else set()
    return found
