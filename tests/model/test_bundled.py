"""The models that ship: small, as their cards say, trained, and loadable by name; their twins by seed."""

from __future__ import annotations

import hashlib
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch

import probe
from probe import InputError
from probe.model import shipped, sources
from probe.model.loading import seeded
from probe.training import next_byte_loss

NAMES = sources.bundled()


@cache
def card(name: str) -> dict[str, str]:
    text = (folder(name) / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| ([\w ]+) \| `?(.*?)`? \|$", text, re.MULTILINE))


def folder(name: str) -> Path:
    return shipped.path("models") / name.removeprefix(sources.BUNDLED)


def test_a_transformer_and_a_state_space_model_ship():
    assert [probe.load_model(name).recurrent for name in ("bundled/transformer", "bundled/mamba")] == [False, True]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_is_there(name: str):
    weights = folder(name) / "model.safetensors"
    assert weights.stat().st_size < 4e6
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card(name)["weights sha256"]
    model = probe.load_model(name)
    assert sum(value.numel() for value in model.module.parameters()) == int(card(name)["parameters"].replace(",", ""))
    assert int(card(name)["bytes learned"].replace(",", "")) >= 1_000_000
    assert float(card(name)["held out bits per byte"]) <= float(card(name)["trigram bits per byte"]) - 0.3
    assert card(name)["command"].startswith("python -m probe.training --architecture")


@pytest.mark.parametrize("name", NAMES)
def test_it_has_learned_and_its_twin_has_not(name: str):
    model, twin = probe.load_model(name), probe.load_model(name, random_init=0)
    windows = probe.load_windows(model, dataset="sample", windows=12, window_length=129)
    bits = [_bits(each, windows.tokens) for each in (model, twin)]
    assert bits[0] < float(card(name)["trigram bits per byte"])  # of a text that it has never seen
    assert bits[1] > 7.9  # no better than an even guess
    again = probe.load_model(name, random_init=0)
    for one, other in zip(twin.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_the_start_of_its_training_is_the_twin(name: str):
    from probe.training.bundled import fresh

    architecture = name.removeprefix(sources.BUNDLED)
    with seeded(7):  # whatever the global generator does
        start = fresh(architecture, int(card(name)["seed"]))
    twin = probe.load_model(name, random_init=int(card(name)["seed"])).module
    for one, other in zip(start.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_that_does_not_ship_is_refused():
    with pytest.raises(InputError, match=r"bundled/transformer.*'bundled/gpt' is none of them"):
        probe.load_model("bundled/gpt")
    with pytest.raises(InputError, match="only models on the hub have revisions"):
        probe.load_model("bundled/transformer", revision="main")


def _bits(model: probe.LanguageModel, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model.module(input_ids=tokens[:, :-1], use_cache=False).logits
    return float(next_byte_loss(logits, tokens[:, 1:])) / math.log(2)
