"""Five seeds trained at once against a loop over seeds with `torch.optim.AdamW`, on a toy MLP and a small transformer.

Both do the same steps on the same data, in turns, on one thread; the weights at the end have to agree. The clock is the
CPU time of that thread, so that other programs on the machine count for less.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from probe.training import (
    NextByte,
    Optimiser,
    Regression,
    Schedule,
    Shape,
    Size,
    SmallTransformer,
    Stack,
    ToyMLP,
    next_byte_loss,
    train,
)
from probe.training.data import generator
from probe.training.transformer import ARM_OF

SEEDS = (0, 1, 2, 3, 4)
SHAPE, SIZE = Shape(), Size(width=64, blocks=4, heads=4)
ROUNDS = 3


def toys(seeds: tuple[int, ...]) -> list[nn.Module]:
    options = {"form": "stream", "residual": True, "activation": "gelu", "scale": 0.5, "shape": SHAPE}
    return [ToyMLP(seed=seed, **options) for seed in seeds]  # type: ignore[arg-type]


def transformers(seeds: tuple[int, ...]) -> list[nn.Module]:
    return [SmallTransformer(ARM_OF["full"], seed=seed, size=SIZE) for seed in seeds]


def looped(
    modules: dict[int, nn.Module], batches: list[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Trains the modules one after the other, each on its own part of the data."""
    for place, module in modules.items():
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
        for x, y in batches:
            optimiser.zero_grad()
            loss(module(x[place]), y[place]).backward()
            optimiser.step()


def compare(
    name: str,
    make: Callable[[tuple[int, ...]], list[nn.Module]],
    data: Regression | NextByte,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
) -> None:
    optimiser, schedule = Optimiser("adamw", 0.0, hidden=(), decayed=()), Schedule(steps, (steps,))
    times: dict[str, list[float]] = {"one seed": [], "five in a loop": [], "five together": []}
    batches = [data.batch(step) for step in range(steps)]  # drawn beforehand: a loop would draw them five times
    looped({0: make(SEEDS)[0]}, batches[:2], loss)
    for _ in range(ROUNDS):
        modules, stack = dict(enumerate(make(SEEDS))), Stack(make(SEEDS), loss)
        start = time.process_time()
        looped({0: modules[0]}, batches, loss)
        one = time.process_time()
        looped({place: modules[place] for place in range(1, len(SEEDS))}, batches, loss)
        rest = time.process_time()
        _, found = train(stack, batches.__getitem__, optimiser, schedule, lambda now, before: {})
        end = time.process_time()
        for row, seconds in zip(times, (one - start, rest - start, end - rest), strict=True):
            times[row].append(seconds / steps)
        for place, module in modules.items():
            for key, value in module.named_parameters():
                difference = (found[key][place] - value).norm() / value.norm()
                assert difference < 1e-2, (key, difference)
    best = {row: min(seconds) for row, seconds in times.items()}
    print(f"\n{name:32}{'ms a step':>12}{'x together':>12}")
    for row, seconds in best.items():
        print(f"{row:32}{1000 * seconds:12.2f}{seconds / best['five together']:12.2f}")
    assert best["five together"] < best["five in a loop"]


def test_five_toys() -> None:
    torch.set_num_threads(1)
    compare("toy MLP, d = 64, batch 128", toys, Regression(SEEDS, "nonlinear"), functional.mse_loss, 120)
    compare("toy MLP, d = 64, batch 16", toys, Regression(SEEDS, "nonlinear", batch=16), functional.mse_loss, 120)


def test_five_transformers() -> None:
    torch.set_num_threads(1)
    windows = torch.randint(256, (64, 65), generator=generator(0))
    data = NextByte(SEEDS, windows, windows, batch=4)
    compare("transformer, d = 64, 256 bytes", transformers, data, next_byte_loss, 8)
