"""The tokenizer of a directory or of a model of the hub, as its tokenizer.json says.

Transformers 5 rebuilds the tokenizer of a known class by its own rules and takes only the vocabulary from the file. So
what it made is compared with the file, and where they differ the file is loaded as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_OPTIONS = ("ignore_merges", "byte_fallback", "fuse_unk", "unk_token", "dropout")


def tokenizer_at(location: Path | str, **options: Any) -> Any:
    """Load a tokenizer.

    Args:
        location: Folder, or id on the hub.
        **options: Revision, and whether to run the repository's code.

    Returns:
        The tokenizer of transformers; it splits, joins and frames text as tokenizer.json says, if there is one.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import cached_file

    tokenizer = AutoTokenizer.from_pretrained(location, **options)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not type(tokenizer).__module__.startswith("transformers."):
        return tokenizer
    found = cached_file(
        str(location),
        "tokenizer.json",
        revision=options.get("revision"),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return tokenizer
    own = Tokenizer.from_file(found)
    if _rules(backend) == _rules(own) and _frame(tokenizer, backend) == _frame(tokenizer, own):
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(location, **options)


def _rules(backend: Any) -> tuple[Any, ...]:
    """Everything of a tokenizer but its vocabulary and the special tokens around a text."""
    steps = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    model = tuple(getattr(backend.model, option, None) for option in _OPTIONS)
    return (*(None if step is None else step.__getstate__() for step in steps), type(backend.model), *model)


def _frame(tokenizer: Any, backend: Any) -> Any:
    """The special tokens around a text, unless the configuration beside the file decides them."""
    stated = {"add_bos_token", "add_eos_token"} & set(tokenizer.init_kwargs)
    return None if stated else backend.encode("").ids
