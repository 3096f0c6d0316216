"""Capture against the bare forward pass and against TransformerLens's `run_with_cache`, on the default model.

Times are interleaved in one process, so that a change of the machine's load meets all of them; the clock is the CPU
time of one thread, and the smallest of the rounds counts. Peak memory is what a fresh process for each needs beyond
the loaded model.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import peak
from probe.model import LanguageModel, load_model
from probe.stream import capture

WINDOWS, POSITIONS, ROUNDS = 4, 256, 4


def tokens(windows: int = WINDOWS) -> torch.Tensor:
    return torch.randint(3, 49_000, (windows, POSITIONS), generator=torch.Generator().manual_seed(0))


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made) / "stream"


def bridge_of(model: LanguageModel) -> Any:
    """TransformerLens changes a model in place, so it gets one of its own."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module: Any = load_model(model.name).module
    return build_bridge_from_module(
        module, type(module).__name__, hf_config=module.config, dtype=torch.float32, device="cpu"
    )


def conditions(model: LanguageModel, bridge: Any) -> dict[str, Callable[[], object]]:
    stream = {f"blocks.{layer}.hook_in" for layer in range(model.n_layers)} | {f"blocks.{model.n_layers - 1}.hook_out"}

    def to_disk(windows: int) -> None:
        with folder() as out:
            capture(model, tokens(windows), batch_size=WINDOWS, out=out)

    return {
        "forward pass": lambda: model.forward(tokens()),
        "forward pass without the head": lambda: model.final_states(tokens()),
        "probe.capture": lambda: capture(model, tokens(), batch_size=WINDOWS),
        "probe.capture to disk": lambda: to_disk(WINDOWS),
        "probe.capture to disk, 4 x the windows": lambda: to_disk(4 * WINDOWS),
        "run_with_cache, the same states": lambda: bridge.run_with_cache(tokens(), names_filter=lambda n: n in stream),
        "run_with_cache, everything": lambda: bridge.run_with_cache(tokens()),
    }


def seconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    best = dict.fromkeys(calls, float("inf"))
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, call in calls.items():
                start = time.process_time()
                call()
                best[name] = min(best[name], time.process_time() - start)
    return best


def measure_peak(name: str) -> float:
    model = load_model("smollm2-135m-instruct-q4")
    bridge = bridge_of(model) if name.startswith("run_with_cache") else None
    with torch.no_grad():
        model.forward(tokens(1)[:, :8])
        return peak.measured(conditions(model, bridge)[name])


def test_capture_costs_little_more_than_the_pass() -> None:
    torch.set_num_threads(1)
    model = load_model("smollm2-135m-instruct-q4")
    calls = conditions(model, bridge_of(model))
    long = "probe.capture to disk, 4 x the windows"
    times = seconds({name: call for name, call in calls.items() if name != long})
    times[long] = float("nan")
    peaks = {name: peak.in_fresh_process(__file__, name) for name in calls}
    print(f"\n{model.name}, {WINDOWS} windows x {POSITIONS} tokens, float32, one thread")
    print(f"{'':40}{'seconds':>9}{'x forward':>11}{'peak MB':>9}")
    for name in calls:
        print(f"{name:40}{times[name]:9.2f}{times[name] / times['forward pass']:11.2f}{peaks[name]:9.0f}")
    assert peaks[long] <= 1.2 * peaks["probe.capture to disk"]


if __name__ == "__main__":
    print(json.dumps(measure_peak(sys.argv[1])))
