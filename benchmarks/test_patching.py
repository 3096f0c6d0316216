"""Activation patching against one hooked pass for each layer and position.

The clock is the CPU time of one thread, so that other programs on the machine count for less. The plain way takes the
same time for every patch: a sample of its passes is timed behind each map, and scaled to all layers and positions. It
is timed with the logits of all positions, as a pass gives them, and with those of the last position alone.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from probe.model import LanguageModel, load_model
from probe.patching import activation_patching
from probe.stream import capture

LENGTH, SAMPLE = 60, 8


def pair(model: LanguageModel, differing: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts of one length that differ from one position on."""
    clean, other = torch.randint(3, model.n_vocab - 3, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[differing] = other[differing]
    return clean, corrupted


def plain(
    model: LanguageModel, tokens: torch.Tensor, layer: int, position: int, state: torch.Tensor, keep: int
) -> torch.Tensor:
    """Logits at the last position with the stream that enters a block replaced at one position, by a plain hook.

    The head runs on the last `keep` positions, on all if it is 0.
    """

    def overwrite(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[0, position] = state
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handle = model.blocks[layer].register_forward_pre_hook(overwrite, with_kwargs=True)
    with torch.no_grad():
        logits = model.module(input_ids=tokens[None], use_cache=False, logits_to_keep=keep).logits[0, -1]
    handle.remove()
    return logits


def test_a_map_of_all_layers_and_positions() -> None:
    torch.set_num_threads(1)
    model = load_model("smollm2-135m-instruct-q4")
    named = (100, 200)
    print(f"\n{model.name}, {model.n_layers} layers x {LENGTH} positions; plain passes: {SAMPLE} timed and scaled")
    print(
        f"{'first token that differs':26}{'map, s':>8}{'plain, s':>10}{'x':>6}{'one head, s':>13}{'x':>6}{'error':>10}"
    )
    activation_patching(model, torch.arange(10, 18), torch.arange(11, 19), tokens=named)  # what a model needs once
    for differing in (1, LENGTH // 2):
        clean, corrupted = pair(model, differing)
        states = capture(model, clean[None])
        start = time.process_time()
        found = activation_patching(model, clean, corrupted, tokens=named)
        seconds = time.process_time() - start
        places = [(i * 7 % model.n_layers, differing + i * 11 % (LENGTH - differing)) for i in range(SAMPLE)]
        every, worst = [], 0.0
        for keep in (0, 1):
            start = time.process_time()
            for layer, position in places:
                state = states[f"blocks.{layer}.hook_resid_pre"][0, position]
                logits = plain(model, corrupted, layer, position, state, keep)
                error = float(logits[named[0]] - logits[named[1]]) - float(found.effect[0, layer, position])
                worst = max(worst, abs(error) / float(logits.abs().max()))
            every.append((time.process_time() - start) / SAMPLE * model.n_layers * LENGTH)
        ratios = "".join(f"{one:{width}.0f}{one / seconds:6.1f}" for one, width in zip(every, (10, 13), strict=True))
        print(f"{differing:<26}{seconds:8.0f}{ratios}{worst:10.0e}", flush=True)
        assert worst < 1e-5
