"""What an analysis runs on: the model and the windows that a configuration names, and how a run tells of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from probe.analysis.config import ModelConfig, TextConfig
from probe.errors import InputError
from probe.model import LanguageModel, load_model
from probe.model.sources import BUNDLED
from probe.runs.engine import Plan, StagePlan, Unit
from probe.text import Part, Windows, load_windows
from probe.weights import ModuleWeights

CONTEXT_CHARACTERS = 60
LIBRARIES = 2**29  # bytes that Python and the libraries take before any work
_Config = TypeVar("_Config", bound=ModelConfig)


@lru_cache(maxsize=1)
def model_of(config: ModelConfig) -> LanguageModel:
    """The model of a configuration, loaded once in a process."""
    return load_model(
        config.model,
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        random_init=config.random_init,
        shuffled_weights=config.shuffled_weights,
    )


def variant_of(config: _Config, name: str) -> _Config:
    """The configuration under which a control's model is loaded: ``init-SEED``, ``shuffled-SEED``, or the model's own.

    Args:
        config: Names the model.
        name: Of a control; any other name stands for the model itself.

    Returns:
        The configuration.
    """
    kind, _, seed = name.partition("-")
    if kind == "init":
        return replace(config, random_init=int(seed), shuffled_weights=None)
    if kind == "shuffled":
        return replace(config, random_init=None, shuffled_weights=int(seed))
    return config


def planned(
    config: ModelConfig,
    units: Mapping[str, Sequence[Unit]],
    seconds: Mapping[str, float | int],
    memory: Mapping[str, float | int],
) -> Plan:
    """What the stages of an analysis of a model would take.

    Args:
        config: Names the model.
        units: By stage, in their order.
        seconds: Of each stage, if it has units.
        memory: Of each stage, in bytes, beyond the libraries and the weights.

    Returns:
        The plan.
    """
    weights = sum(p.numel() * p.element_size() for p in model_of(config).module.parameters())
    return Plan([
        StagePlan(stage, len(own), seconds[stage] if own else 0.0, int(LIBRARIES + weights + memory[stage]))
        for stage, own in units.items()
    ])


@lru_cache(maxsize=6)
def windows_of(config: TextConfig, windows: int, part: Part = "all", *, at_most: bool = False) -> Windows:
    """Windows of a configuration's text, drawn once in a process; `part` as in `probe.text.load_windows`."""
    return load_windows(
        model_of(config),
        dataset=None if config.text else config.dataset,
        text=config.text,
        split=config.split,
        windows=windows,
        window_length=config.window_length,
        part=part,
        seed=config.seed,
        at_most=at_most,
    )


def layers_of(config: ModelConfig) -> list[int]:
    """The layers that are analysed."""
    return config.layer_indices(model_of(config).n_layers)


def spread(layers: list[int], count: int) -> list[int]:
    """At most `count` of the layers, evenly spread, first and last among them."""
    places = torch.linspace(0, len(layers) - 1, min(count, len(layers))).round().int().tolist()
    return [layers[place] for place in dict.fromkeys(places)]


def draw_positions(
    windows: Windows, count: int, *, skip_first: int, seed: int, followed: bool = False
) -> Int[Tensor, "window chosen"]:
    """A seeded draw from each window's counted positions, sorted.

    A window's positions depend on its tokens and the seed alone, whichever windows it is drawn with: analyses that read
    the same window measure it at the same positions, and can use each other's results.

    Args:
        windows: The windows.
        count: Positions a window; fewer where a window has fewer.
        skip_first: Positions at the start that do not count.
        seed: Of the draw.
        followed: Only positions that a token of the window follows.

    Returns:
        Positions, the same number in each window.

    Raises:
        InputError: If a window has no such position.
    """
    counted = windows.counted(skip_first)
    if followed:
        counted[:, -1] = False
    drawn = torch.stack([_uniform(tokens, seed) for tokens in windows.tokens]).masked_fill(~counted, -1.0)
    chosen = min(count, int(counted.sum(1).min()))
    if chosen < 1:
        raise InputError(
            f"every window needs a position that counts, and one of {windows.window_length} tokens with the first "
            f"{skip_first} left out has none: pass a smaller --skip-first or a larger --window-length"
        )
    return drawn.topk(chosen, dim=1).indices.sort(dim=1).values


def _uniform(tokens: Int64[Tensor, " position"], seed: int) -> Float[Tensor, " position"]:
    """Uniform numbers drawn from a window's tokens and a seed."""
    digest = hashlib.sha256(seed.to_bytes(8, "big", signed=True) + tokens.numpy().tobytes()).digest()
    return torch.rand(len(tokens), generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def fingerprint(model: LanguageModel, windows: Windows) -> dict[str, str]:
    """What a run's results depend on besides its configuration, as `probe.runs.open_run` records it."""
    return {"weights": model.weight_hash, "text": windows.sha256, "attention": model.attention}


def notes(config: TextConfig) -> list[str]:
    """What a report says at its head about a text that is only a demonstration."""
    if config.dataset != "sample":
        return []
    return [
        "The text is 45 short articles that ship with probe. For numbers to quote, run it on WikiText "
        "(--dataset wikitext-2) or on a text of your own (--text FILE)."
    ]


def token_coordinates(
    model: LanguageModel, windows: Windows, positions: Int[Tensor, "window chosen"]
) -> dict[str, object]:
    """Coordinates of the scored tokens along `query`: window, position, document, title, token and its context.

    Args:
        model: Its tokenizer shows the tokens.
        windows: The scored windows.
        positions: The scored positions of each.

    Returns:
        Coordinates by name, as an `xarray.Dataset` takes them.
    """
    n_windows, chosen = positions.shape
    window = torch.arange(n_windows).repeat_interleave(chosen)
    position = positions.flatten()
    document = windows.document[window]
    decode = model.tokenizer.decode
    tokens, contexts = [], []
    for w, p in zip(window.tolist(), position.tolist(), strict=True):
        tokens.append(decode([int(windows.tokens[w, p])]))
        contexts.append(decode(windows.tokens[w, max(0, p - CONTEXT_CHARACTERS) : p].tolist())[-CONTEXT_CHARACTERS:])
    return {
        "window": ("query", window.numpy()),
        "position": ("query", position.numpy()),
        "document": ("query", document.numpy()),
        "title": ("query", [windows.titles[d] for d in document.tolist()]),
        "token": ("query", tokens),
        "context": ("query", contexts),
    }


def variable(
    dims: str | Sequence[str], values: np.ndarray, long_name: str, units: str | None = "1"
) -> tuple[str | Sequence[str], np.ndarray, dict[str, str]]:
    """A variable of a Dataset as `xarray.Dataset` takes it.

    Args:
        dims: Names of its axes.
        values: Numbers, or labels.
        long_name: What it is.
        units: Its unit, "1" for a plain number; None for labels.

    Returns:
        Dimensions, values and attributes.
    """
    return dims, values, ({} if units is None else {"units": units}) | {"long_name": long_name}


def subject_attributes(config: ModelConfig, model: LanguageModel | ModuleWeights) -> dict[str, Any]:
    """What every analysis of a model, or of its weights alone, writes into its Dataset's attributes."""
    return {
        "model": model.name,
        "revision": config.revision or "",
        "description": model.description,
        "architecture": model.architecture,
        "kind": kind_of(config, recurrent=model.recurrent),
        "d_model": model.d_model,
    }


def attributes(config: TextConfig, scored: Windows) -> dict[str, Any]:
    """What every analysis of a model on a text writes into its Dataset's attributes."""
    return subject_attributes(config, model_of(config)) | {
        "text": scored.name,
        "demonstration": int(config.text is None and config.dataset == "sample"),
        "n_scored_windows": scored.n_windows,
        "n_documents_scored": scored.n_documents,
        "window_length": scored.window_length,
    }


def kind_of(config: ModelConfig, *, recurrent: bool) -> str:
    """What a claim across architectures counts a model as; controls and our own small models decide nothing there.

    Args:
        config: Names the model.
        recurrent: Whether it is a state-space model.

    Returns:
        "transformer", "state-space" or "control".
    """
    fresh = config.random_init is not None or config.shuffled_weights is not None
    if fresh or config.model.startswith(BUNDLED):
        return "control"
    return "state-space" if recurrent else "transformer"
