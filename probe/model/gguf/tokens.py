"""The tokenizer that a GGUF file describes.

A file names the way in which text is split before its merges apply (`tokenizer.ggml.pre`), and does not spell it out.
Transformers builds the vocabulary and knows some names; the others that are known are here. Of a name that nobody
knows, a warning says that text is split as GPT-2's is.
"""

from __future__ import annotations

import logging
from typing import Any

from probe.errors import InputError
from probe.model.gguf.container import GGUFFile

logger = logging.getLogger("probe.model")

# The regular expressions of the tokenizers that these names stand for; each cuts what the one before it left.
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NO_PUNCTUATION = r" ?[^(\s|.,!?…。，、।۔،)]+"
_SPLITS: dict[str, tuple[str, ...]] = {
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    "deepseek-v3": (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_WORDS),
    "bloom": (_NO_PUNCTUATION,),
    "viking": (_NO_PUNCTUATION, r"\p{N}"),
}
_ALIKE = {
    "hunyuan-dense": "deepseek-v3",
    "poro-chat": "bloom",
    "gpt3-finnish": "bloom",
    "stablelm2": "qwen2",
    "glm4": "llama-bpe",
    "chatglm-bpe": "llama-bpe",
}
_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Single digits first, then as GPT-2."""
_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "roberta-bpe"}
_COMPOSED = {"qwen2", "deepseek-r1-qwen", "qwen35", "command-r"}
"""Tokenizers that bring text into composed form (NFC) first."""
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
_WHOLE_WORDS |= {"jina-v5-nano", "tekken"}
"""A word of the vocabulary is one token whatever the merges say, and BOS comes first unless the file denies it."""


def tokenizer_of(file: GGUFFile) -> Any:
    """Make the tokenizer that a file describes.

    Args:
        file: The file.

    Returns:
        A tokenizer of transformers that splits text as the file says; None if the file has none.

    Raises:
        InputError: If it is of a kind that transformers does not build.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    kind = file.value("tokenizer.ggml.model")
    if kind in {None, "none", "no_vocab"}:
        return None
    architecture, described, config = get_gguf_tokenizer(str(file.paths[0]))
    if kind not in {"gpt2", "llama", "gemma4"} or ("merges" not in described and "scores" not in described):
        lacks = f"is of kind {kind!r}" if kind not in {"gpt2", "llama"} else "has neither merges nor scores"
        raise InputError(
            f"the tokenizer of a GGUF file must be a BPE with its merges or scores, and that of {file.path} {lacks}: "
            "pass a loaded model with tokenizer="
        )
    backend, _ = convert_gguf_tokenizer(architecture, described)
    add_bos = config.pop("add_bos_token", None)
    if kind == "gpt2":
        _split(file, backend)
        add_bos = described.get("pre_tokenizer_type") in _WHOLE_WORDS if add_bos is None else add_bos
    elif described.get("add_prefix_space") is False:
        _without_prefix(backend)
    _framed(backend, config.get("bos_token") if add_bos else None, config, config.pop("add_eos_token", False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **config)


def _split(file: GGUFFile, backend: Any) -> None:
    """Set what happens to text before the merges."""
    from tokenizers import Regex, normalizers, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    name = file.value("tokenizer.ggml.pre")
    alike = _ALIKE.get(name, name)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    as_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    patterns = (GGUF_PRE_TOKENIZER_SPLITS[alike],) if alike in GGUF_PRE_TOKENIZER_SPLITS else _SPLITS.get(alike, ())
    if patterns:
        steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_only])
    elif name in _DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), as_gpt2])
    elif name == "falcon":
        backend.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Punctuation(behavior="contiguous"),
            as_gpt2,
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated"),
        ])
    else:
        backend.pre_tokenizer = as_gpt2
        if name not in _GPT2:
            logger.warning(
                "%s does not say how its tokenizer splits text (tokenizer.ggml.pre = %r is not known here): it is "
                "split as GPT-2's is, and tokens may differ from the original's",
                file.path,
                name,
            )
    if name in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    if name in _WHOLE_WORDS:
        backend.model.ignore_merges = True


def _without_prefix(backend: Any) -> None:
    """Put no space in front of a text, and take none away when tokens become text."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    if backend.normalizer is not None:
        backend.normalizer = normalizers.Replace(pattern=" ", content="▁")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _framed(backend: Any, bos: str | None, config: dict[str, Any], add_eos: Any) -> None:
    """Set the special tokens around a text."""
    from tokenizers import processors

    eos = config.get("eos_token") if add_eos else None
    around = [token for token in (bos, eos) if token is not None]
    if around:
        frame = " ".join(part for part in (bos, "$A", eos) if part is not None)
        pair = " ".join(part for part in (bos, "$A", eos, bos and f"{bos}:1", "$B:1", eos and f"{eos}:1") if part)
        special = [(token, backend.token_to_id(token)) for token in dict.fromkeys(around)]
        backend.post_processor = processors.TemplateProcessing(single=frame, pair=pair, special_tokens=special)
