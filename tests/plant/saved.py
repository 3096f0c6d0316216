"""A tiny model and a text on disk, for whole runs of the analyses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.plant.tiny import tiny_module, tiny_tokenizer

WORDS = (
    "river",
    "stone",
    "lamp",
    "green",
    "walks",
    "slowly",
    "under",
    "the",
    "old",
    "bridge",
    "while",
    "seven",
    "birds",
)


def write_text(path: Path, articles: int = 20, words: int = 60) -> Path:
    """Articles of random words."""
    rng = np.random.default_rng(0)
    parts = [f" = Title {n} = \n \n {' '.join(rng.choice(WORDS, words))} . \n" for n in range(articles)]
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def saved(folder: Path, architecture: str, *, silent: tuple[str, ...] = ()) -> Path:
    """The directory of a tiny model; the silent parts of its blocks write nothing."""
    path = folder / "-".join([architecture, *silent])
    if not path.exists():
        module = tiny_module(architecture)
        for part in silent:
            for layer in module.model.layers:
                torch.nn.init.zeros_(layer.get_submodule(part).weight)
        module.save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return path


def add_code(folder: Path, *, needs: str = "") -> None:
    """Turn a saved Llama into a model of a type that only the code beside it knows."""
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": code}))
    (folder / "own.py").write_text(
        (f"import {needs}\n" if needs else "")
        + "from transformers import LlamaConfig, LlamaForCausalLM\n"
        + "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        + "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
