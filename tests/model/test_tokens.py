"""Tokenizers are the file's: of a directory, and of a GGUF file, also after they were saved and read again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from probe.errors import InputError
from probe.model import load_model
from tests.plant import gguf_model
from tests.plant.gguf_model import made, write
from tests.plant.tiny import tiny_module

SIZES = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1}
TEXTS = ("a 123  7", "12345 he\u0301 don't  (he)\n\n x", "½ 3.14, 中文 1", "\the -- HE12he")
MERGES = (("1", "2"), ("3", "4"), ("12", "3"), ("Ġ", "Ġ"), ("h", "e"), ("Ġ", "he"), ("(", "he"), ("12", "34"))
WORDS = ("<|endoftext|>", *bytes_to_unicode().values(), *map("".join, MERGES), "he12")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))


def byte_level(*steps: Any, regex: bool = False, nfc: bool = False, whole: bool = False) -> Tokenizer:
    """A tokenizer as its maker would write it."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES), ignore_merges=whole))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        *steps,
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([WORDS[0]])
    return tokenizer


def split(*patterns: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]


def digits() -> Any:
    return pre_tokenizers.Digits(individual_digits=True)


ORIGINALS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level(regex=True),
    "olmo": lambda: byte_level(regex=True),
    "smollm": lambda: byte_level(digits(), regex=True),
    "starcoder": lambda: byte_level(digits(), regex=True),
    "command-r": lambda: byte_level(digits(), regex=True, nfc=True),
    "llama-bpe": lambda: byte_level(*split(LLAMA3), whole=True),
    "glm4": lambda: byte_level(*split(LLAMA3)),
    "qwen2": lambda: byte_level(*split(QWEN2), nfc=True),
    "deepseek-coder": lambda: byte_level(*split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"), digits()),
    "deepseek-v3": lambda: byte_level(*split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3)),
}


# Directories


@pytest.mark.guards(
    "a directory's tokenizer splits as its tokenizer.json says, whatever class is named beside it",
    when="a file is read",
    gives="the tokens of the file",
)
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "gpt-2", "qwen2"])
def test_a_directory_s_tokenizer_is_its_file(kind: str, name: str, tmp_path: Path) -> None:
    own = ORIGINALS[name]()
    folder = tmp_path / "model"
    tiny_module("llama").save_pretrained(folder)
    own.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "eos_token": WORDS[0]}))
    model = load_model(folder)
    for text in TEXTS:
        assert model.encode(text) == own.encode(text, add_special_tokens=False).ids
        assert model.tokenizer.decode(model.encode(text)) == own.decode(own.encode(text).ids)
    assert model.special_ids == {0}


def test_a_directory_s_frame_is_its_file_s(tmp_path: Path) -> None:
    own, folder = ORIGINALS["gpt-2"](), tmp_path / "model"
    own.post_processor = processors.TemplateProcessing(single=f"{WORDS[0]} $A", special_tokens=[(WORDS[0], 0)])
    tiny_module("gpt_neox").save_pretrained(folder)
    own.save(str(folder / "tokenizer.json"))
    stated = {"tokenizer_class": "GPTNeoXTokenizer", "bos_token": WORDS[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    assert load_model(folder).bos_id == 0


# GGUF


def loaded_with(
    path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Callable[[gguf.GGUFWriter], object], kind: type
) -> Any:
    monkeypatch.setattr(gguf_model, "add_byte_tokenizer", lambda writer, _: tokenizer(writer))
    write(path, made(kind, **SIZES))
    return load_model(path)


def described(pre: str | None, **flags: bool) -> Callable[[gguf.GGUFWriter], None]:
    def add(writer: gguf.GGUFWriter) -> None:
        words = [*WORDS, *(f"[PAD{index}]" for index in range(len(WORDS), 300))]
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(words)
        writer.add_token_merges([" ".join(merge) for merge in MERGES])
        writer.add_token_types([3] + [1] * 299)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        for name, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)

    return add


@pytest.mark.guards(
    "a GGUF file's tokenizer splits as the pre-tokenizer that it names",
    when="a file is read",
    gives="the tokens of the original",
)
@pytest.mark.parametrize("kind", [LlamaForCausalLM, Qwen2ForCausalLM])
@pytest.mark.parametrize("pre", ORIGINALS)
def test_a_gguf_file_splits_text_as_the_tokenizer_that_it_names(
    pre: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = ORIGINALS[pre]()
    first = loaded_with(tmp_path / "model.gguf", monkeypatch, described(pre), kind)
    first.tokenizer.save_pretrained(tmp_path / "saved")
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    second = load_model(tmp_path / "model.gguf")
    for text in TEXTS:
        expected = own.encode(text, add_special_tokens=False).ids
        assert first.encode(text) == expected, text
        assert second.encode(text) == expected
        assert again.encode(text, add_special_tokens=False) == expected
    assert "does not say" not in caplog.text


def test_falcon_joins_three_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded_with(tmp_path / "model.gguf", monkeypatch, described("falcon"), LlamaForCausalLM)
    assert [model.tokenizer.decode(token) for token in model.encode("12345(he)")] == ["123", "4", "5", "(", "he", ")"]


@pytest.mark.guards(
    "the pre-tokenizer that a GGUF file names is known",
    when="a file is read",
    gives="that of GPT-2, with a warning that names it",
)
@pytest.mark.parametrize("pre", [None, "default", "made-up"])
def test_what_is_not_known_is_said(
    pre: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "probe.model")
    model = loaded_with(tmp_path / "model.gguf", monkeypatch, described(pre), LlamaForCausalLM)
    assert model.encode(TEXTS[0]) == ORIGINALS["gpt-2"]().encode(TEXTS[0]).ids
    assert f"tokenizer.ggml.pre = {pre!r} is not known" in caplog.text


@pytest.mark.guards(
    "a token begins a text where a GGUF file says so",
    when="a file is read",
    gives="windows begin with it",
)
@pytest.mark.parametrize(
    ("pre", "flags", "bos"),
    [
        ("llama-bpe", {}, 0),
        ("llama-bpe", {"add_bos_token": False}, None),
        ("smollm", {}, None),
        ("smollm", {"add_bos_token": True}, 0),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, 0),
    ],
)
def test_bos_is_put_where_the_file_says(
    pre: str, flags: dict[str, bool], bos: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    first = loaded_with(path, monkeypatch, described(pre, **flags), LlamaForCausalLM)
    for model in (first, load_model(path)):
        assert model.bos_id == bos
        a = WORDS.index("a")
        end = [0] if flags.get("add_eos_token") else []
        assert model.tokenizer("a").input_ids == [*([] if bos is None else [bos]), a, *end]


PIECES = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "e", "he", "▁he", "a")


def pieces(words: Sequence[str] = PIECES, **flags: bool) -> Callable[[gguf.GGUFWriter], None]:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([*words, *(f"[PAD{index}]" for index in range(len(words), 300))])
        writer.add_token_scores([float(-index) for index in range(300)])
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (300 - 259))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        for name, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)

    return add


@pytest.mark.guards(
    "a blank stands before the first word where a GGUF file says so",
    when="a file is read",
    gives="the tokens of the original",
)
@pytest.mark.parametrize(
    ("flags", "tokens", "bos"),
    [
        ({}, ["▁he", "▁he"], 1),
        ({"add_space_prefix": True}, ["▁he", "▁he"], 1),
        ({"add_space_prefix": False}, ["he", "▁he"], 1),
        ({"add_space_prefix": False, "add_bos_token": False}, ["he", "▁he"], None),
    ],
)
def test_a_prefix_is_put_where_the_file_says(
    flags: dict[str, bool], tokens: list[str], bos: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    first = loaded_with(path, monkeypatch, pieces(**flags), LlamaForCausalLM)
    for model in (first, load_model(path)):
        assert model.tokenizer.convert_ids_to_tokens(model.encode("he he")) == tokens
        assert model.tokenizer.decode(model.encode("he he")) == "he he"
        assert model.bos_id == bos


@pytest.mark.guards(
    "the tokenizer of a GGUF file can be built",
    when="a file is read",
    says=(
        "the tokenizer of a GGUF file must be a BPE with its merges or scores, and that of … …: "
        "pass a loaded model with tokenizer="
    ),
)
def test_a_tokenizer_that_cannot_be_built_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def words_only(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"w{index}" for index in range(300)])

    for tokenizer, said in (
        (words_only, "neither merges nor scores"),
        (lambda w: w.add_tokenizer_model("bert"), "bert"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            loaded_with(tmp_path / "model.gguf", monkeypatch, tokenizer, LlamaForCausalLM)
        assert "\n" not in str(caught.value)
        assert "truncated" not in str(caught.value)


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded_with(tmp_path / "model.gguf", monkeypatch, lambda _: None, LlamaForCausalLM)
    assert model.tokenizer is None
