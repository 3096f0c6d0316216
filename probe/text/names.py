"""Choice of a text: a data set by its name, or a file; nothing is read, for options and their help.

Two kinds of text are told apart. Running text (WikiText, the sample, a file) is cut into documents at its titles. Of a
table (any other data set of the hub, a Parquet or JSON file) each row is a document.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from probe.errors import InputError

SPLITS = ("train", "validation", "test")
DATASETS = {
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
"""Repository and configuration on the hub, by the data set's name."""
SAMPLE = "sample"
"""The text that ships."""
DEFAULT_DATASET = "wikitext-2"
TABLES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
"""Endings of files whose rows are documents."""
_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(:(?P<configuration>[\w.-]+))?", re.ASCII)


@dataclass(frozen=True)
class Choice:
    """One text, by the options that name it.

    Attributes:
        dataset: "wikitext-2", "wikitext-103", "sample", or of the hub "OWNER/NAME" or "OWNER/NAME:CONFIGURATION".
        text: A file instead.
        split: Split of a data set: "test" of WikiText by default; of another of the hub the only one, else "test".
        column: Column of the documents in a table: by default the only one of text, else "text".

    Raises:
        InputError: If not exactly one text is named, the data set or its split is unknown, or a column is named where
            there are no rows.
    """

    dataset: str | None = None
    text: Path | None = None
    split: str | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        if self.dataset is not None and self.text is not None:
            raise InputError(
                f"only one text can be read, got data set {self.dataset} and file {self.text}: leave one of them out"
            )
        if self.dataset is None and self.text is None:
            raise InputError("one of a data set and a text file must be named, got none: pass either dataset= or text=")
        for name, identity in DATASETS.items():
            if self.hub == identity:
                object.__setattr__(self, "dataset", name)
        if self.hub is None and self.split is None:
            object.__setattr__(self, "split", "test")
        self._require_known()
        if self.column is not None and not self.is_table:
            raise InputError(
                "column= names a column of a table, a data set of the hub or a .parquet or .jsonl file, got "
                f"{self.column!r} and {self.dataset or self.text}: leave it out"
            )

    @property
    def hub(self) -> tuple[str, str | None] | None:
        """Repository and configuration of a data set that has no name here; None for all else."""
        found = None if self.dataset is None else _ID.fullmatch(self.dataset)
        return None if found is None else (found["repository"], found["configuration"])

    @property
    def is_table(self) -> bool:
        """True if the documents are rows."""
        return self.hub is not None or (self.text is not None and self.text.name.lower().endswith(TABLES))

    @property
    def name(self) -> str:
        """The text in words, as far as the options tell."""
        if self.text is not None:
            return self.text.name
        assert self.dataset is not None
        return self.dataset if self.dataset == SAMPLE or self.split is None else f"{self.dataset} {self.split}"

    def _require_known(self) -> None:
        if self.dataset in DATASETS and self.split not in SPLITS:
            raise InputError(
                f"split= of {self.dataset} must be one of {', '.join(SPLITS)}, got {self.split!r}: choose one"
            )
        known = [*DATASETS, SAMPLE]
        if self.dataset is None or self.dataset in known or self.hub is not None:
            return
        close = difflib.get_close_matches(self.dataset, known, n=1, cutoff=0.7)
        cure = f"did you mean {close[0]}?" if close else "choose one, or pass text=FILE"
        raise InputError(
            f"dataset= must be {', '.join(known)} or an id of the hub as in NeelNanda/pile-10k, got {self.dataset!r}: "
            f"{cure}"
        )
