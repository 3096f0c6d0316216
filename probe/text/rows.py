"""Documents of tables: each row of one column of text is a document.

A row without text (missing, empty, blanks alone) is no document, and neither is one that repeats an earlier one: copies
are not independent, and one could fall into the text for fitting and the other into the scored one. A value that is no
text is refused. A document's title is the row's entry of the column `title`, if there is one, else its number: "row 0".
"""

from __future__ import annotations

import difflib
import gzip
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import InputError

logger = logging.getLogger("probe.text")

TITLE, TEXT = "title", "text"


@dataclass(frozen=True)
class Rows:
    """A table, read a column at a time.

    Attributes:
        name: Name of the table in messages.
        columns: Names of all columns.
        texts: Names of those that hold text.
        read: Reads a column; None where a row has nothing.
    """

    name: str
    columns: tuple[str, ...]
    texts: tuple[str, ...]
    read: Callable[[str], Iterable[object]]

    def documents(self, column: str | None) -> list[tuple[str, str]]:
        """Read the documents.

        Args:
            column: The column that holds them; by default the only one of text besides the titles, else `text`.

        Returns:
            Title and text of each, in the order of the rows.

        Raises:
            InputError: If there is no such column, none or several hold text and none is named, or a row holds
                something else.
        """
        column = self._column(column)
        titled = TITLE in self.texts and column != TITLE
        titles: dict[int, object] = dict(enumerate(self.read(TITLE))) if titled else {}
        found: dict[str, str] = {}
        copies = 0
        for number, value in enumerate(self.read(column)):
            text = self._text(value, column, number)
            if text in found:
                copies += 1
            elif text.strip():
                title = titles.get(number)
                found[text] = title if isinstance(title, str) and title.strip() else f"row {number}"
        if copies:
            logger.warning("%d rows of %s repeat an earlier one, and count once", copies, self.name)
        return [(title, text) for text, title in found.items()]

    def _column(self, wanted: str | None) -> str:
        if wanted is not None:
            if wanted in self.columns:
                return wanted
            close = difflib.get_close_matches(wanted, self.columns, n=1)
            raise InputError(
                f"column= must be one of {self.name}, which has {', '.join(self.columns)}, got {wanted!r}: "
                + (f"did you mean {close[0]}?" if close else "choose one")
            )
        others = [name for name in self.texts if name != TITLE] or list(self.texts)
        if len(others) == 1:
            return others[0]
        if TEXT in others:
            return TEXT
        held = f"{', '.join(others)} hold text" if others else f"none of {', '.join(self.columns)} holds text"
        raise InputError(
            f"the column of the documents must be named where there is no choice of one, and in {self.name} {held}: "
            "pass column="
        )

    def _text(self, value: object, column: str, number: int) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if not isinstance(value, str):
            raise InputError(
                f"a document must be text, and column {column} of {self.name} holds a {type(value).__name__} in row "
                f"{number}: pass another column="
            )
        if any("\ud800" <= character <= "\udfff" for character in set(value)):
            raise InputError(
                f"a document must be Unicode, and column {column} of {self.name} holds half of a surrogate pair in row "
                f"{number}: write the file again as UTF-8"
            )
        return value


def rows_of_parquet(name: str, files: Sequence[Path]) -> Rows:
    """Open Parquet files of one table.

    Args:
        name: Name of the table in messages.
        files: The files, in order.

    Returns:
        The rows; a column is read when it is asked for.

    Raises:
        InputError: If a file cannot be read.
    """
    # imported here because it takes half a second
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(files[0])
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(_unreadable(name, files[0], error)) from error

    def read(column: str) -> Iterable[object]:
        for file in files:
            try:
                yield from parquet.read_table(file, columns=[column]).column(0).to_pylist()
            except (OSError, pyarrow.ArrowException) as error:
                raise InputError(_unreadable(name, file, error)) from error

    texts = [field.name for field in schema if _holds_text(field.type)]
    return Rows(name, tuple(schema.names), tuple(texts), read)


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(check(kind) for check in (types.is_string, types.is_large_string, types.is_string_view))


def rows_of_json(name: str, path: Path) -> Rows:
    """Read a file of JSON objects: one on each line, or all in one list; perhaps compressed by gzip.

    Args:
        name: Name of the table in messages.
        path: The file.

    Returns:
        The rows.

    Raises:
        InputError: If it cannot be read, or holds anything else.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix.lower() == ".gz" else content).decode("utf-8-sig")
        objects = _objects(text)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(_unreadable(name, path, error)) from error
    wrong = next((number for number, value in enumerate(objects) if not isinstance(value, dict)), None)
    if wrong is not None:
        raise InputError(
            f"each row must be a JSON object, and row {wrong} of {name} is a {type(objects[wrong]).__name__}: write "
            'rows as {"text": "..."}'
        )
    columns = dict.fromkeys(key for value in objects for key in value)
    texts = [name for name in columns if any(isinstance(value.get(name), str) for value in objects)]
    return Rows(name, tuple(columns), tuple(texts), lambda column: (value.get(column) for value in objects))


def _objects(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        found: list[Any] = json.loads(text)
        return found
    objects = []
    for number, line in enumerate(text.split("\n"), start=1):  # other line breaks may stand inside a string
        if line.strip():
            try:
                objects.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg}") from None
    return objects


def rows_of_dataset(name: str, parts: Sequence[Any]) -> Rows:
    """Take the rows of data sets that `datasets` has opened.

    Args:
        name: Name of the table in messages.
        parts: Parts of one split, in order.

    Returns:
        The rows.
    """
    features = parts[0].features
    texts = [column for column, kind in features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    return Rows(name, tuple(features), tuple(texts), lambda column: (value for part in parts for value in part[column]))


def _unreadable(name: str, path: Path, error: BaseException) -> str:
    why = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"the rows of {name} must be readable, and {path} is not ({why}): write or fetch it again"
