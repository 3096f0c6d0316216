"""The command that trains the models that ship: what it writes, loads and judges; resume."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import probe
from probe import InputError
from probe.training import bundled, next_byte_loss
from probe.training.bundled import Config, byte_tokenizer, fit, fresh, trigram_bits
from probe.training.data import generator

TINY = {
    "transformer": ("LlamaConfig", {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                                    "num_attention_heads": 2, "max_position_embeddings": 64}),
    "mamba": ("MambaConfig", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "expand": 2}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "SIZES", TINY)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundled") / "text.txt"
    articles = [f" = Article {n} = \n\n" + f"number {n} and {n * n} of them. " * 20 + "\n\n" for n in range(10)]
    path.write_text("".join(articles), encoding="utf-8")
    return path


def config(text: Path, out: Path, architecture: str = "transformer") -> Config:
    return Config(architecture=architecture, out=out, text=text, steps=20, batch=4, window_length=16, held_out=6)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["transformer", "mamba"])
def test_what_is_written_is_loaded_judged_and_has_a_twin(architecture: str, text: Path, tmp_path: Path):
    options = config(text, tmp_path / "model", architecture)
    model = probe.load_model(fit(options, quiet=True))
    assert {path.name for path in options.out.iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    assert not (options.out / bundled.CHECKPOINT).exists()

    card = (options.out / "README.md").read_text(encoding="utf-8")
    numbers = dict(re.findall(r"\| (held out|trigram) bits per byte \| ([\d.]+) \|", card))
    learned, held_out = bundled.texts(options)
    rows = held_out.tokens
    assert len(rows) == 6
    loss = next_byte_loss(model.module(input_ids=rows[:, :-1]).logits, rows[:, 1:]).item()
    assert float(numbers["held out"]) == pytest.approx(loss / math.log(2), abs=2e-3)
    assert float(numbers["trigram"]) == pytest.approx(trigram_bits(learned.tokens, rows), abs=1e-3)
    assert not set(learned.document.tolist()) & set(held_out.document.tolist())
    assert learned.n_documents + held_out.n_documents == len(learned.titles)
    assert loss < math.log(256) - 0.1
    assert "python -m probe.training --architecture" in card

    twin = probe.load_model(options.out, random_init=0)
    for (name, value), other in zip(fresh(architecture, 0).named_parameters(), twin.module.parameters(), strict=True):
        assert torch.equal(value, other), name
    assert probe.load_windows(model, text=text, windows=1, window_length=16).tokens.max() < 256


def test_a_token_is_a_byte():
    tokenizer = byte_tokenizer()
    words = " naïve  “quotes”\n\n = 日本 = \t<s>"
    assert tokenizer.encode(words) == list(words.encode())
    assert tokenizer.decode(list(words.encode())) == words


def test_a_cut_off_training_goes_on(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = fit(config(text, tmp_path / "model"), quiet=True)
    cut, saved = config(text, tmp_path / "cut" / "model"), []
    save = bundled._File.save

    def interrupted(self: bundled._File, state: dict[str, torch.Tensor]) -> None:
        save(self, state)
        saved.append(1)
        if len(saved) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(bundled._File, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(cut, quiet=True)
    with pytest.raises(InputError, match="belongs to other options"):
        fit(replace(cut, batch=5), quiet=True)
    again = fit(cut, quiet=True)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (again / "README.md").read_text() == (whole / "README.md").read_text()
    with pytest.raises(InputError, match="a directory of its own"):
        fit(cut, quiet=True)


def test_trigrams_against_the_definition():
    learned = torch.randint(97, 101, (6, 30), generator=generator(0))
    held_out = torch.randint(97, 102, (3, 12), generator=generator(1))
    seen: dict[bytes, Counter[int]] = defaultdict(Counter)
    for row in learned.tolist():
        for order in range(3):
            for place in range(len(row) - order):
                seen[bytes(row[place : place + order])][row[place + order]] += 1

    def probability(context: bytes, byte: int) -> float:
        shorter = probability(context[1:], byte) if context else 1 / 256
        found = seen.get(context)
        return shorter if not found else (found[byte] + len(found) * shorter) / (found.total() + len(found))

    bits = [
        -math.log2(probability(bytes(row[place - 2 : place]), row[place]))
        for row in held_out.tolist()
        for place in range(2, len(row))
    ]
    assert trigram_bits(learned, held_out) == pytest.approx(sum(bits) / len(bits))


@pytest.mark.parametrize(
    ("typed", "begin", "end"),
    [
        (["--text", "no/such"], "the text file must be readable, but no/such is not", ": pass another --text"),
        ([], "one of a data set and a text file must be named", ": pass either --dataset or --text"),
        (["--dataset", "no"], "--dataset must be wikitext-2", ": choose one, or pass --text FILE"),
    ],
)
def test_the_command_refuses_in_one_line_of_its_own_words(tmp_path: Path, typed: list[str], begin: str, end: str):
    command = [sys.executable, "-m", "probe.training", "--architecture", "transformer", "--out", str(tmp_path / "m")]
    done = subprocess.run([*command, *typed], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {begin}")
    assert done.stderr.endswith(f"{end}\n")
    assert done.stderr.count("\n") == 1


def test_what_ships_is_small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    for architecture in bundled.SIZES:
        with torch.device("meta"):
            module = fresh(architecture, 0)
        assert 5e5 < sum(value.numel() for value in module.parameters()) < 1.95e6  # two bytes each, under 4 MB
