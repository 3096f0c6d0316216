from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probe import weights
from probe.geometry import haar_frame
from probe.graphs import from_matrix, rewired
from probe.model import load_model
from probe.model.loading import fresh, seeded
from probe.training.bundled import fresh as bundled_fresh
from tests.plant.tiny import tiny_model, tiny_module

DRAWS: dict[str, Callable[[], Tensor]] = {
    "rand": lambda: torch.rand(5),
    "randn": lambda: torch.randn(5, dtype=torch.float64),
    "randint": lambda: torch.randint(3, 100, (5,)),
    "randint from zero": lambda: torch.randint(100, (5,)),
    "randperm": lambda: torch.randperm(9),
    "rand_like": lambda: torch.rand_like(torch.ones(4)),
    "randn_like": lambda: torch.randn_like(torch.ones(4)),
    "normal": lambda: torch.normal(torch.zeros(4), torch.ones(4)),
    "normal of a size": lambda: torch.normal(0.0, 1.0, (4,)),
    "normal_": lambda: torch.empty(5).normal_(),
    "uniform_": lambda: torch.empty(5).uniform_(),
    "exponential_": lambda: torch.empty(5).exponential_(),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 4),
    "trunc_normal_": lambda: nn.init.trunc_normal_(torch.empty(7)),
    "orthogonal_": lambda: nn.init.orthogonal_(torch.empty(3, 3)),
    "a module": lambda: nn.Linear(3, 4).weight.detach(),
}


@pytest.mark.guards(
    "a seed means the numbers of `torch.manual_seed`",
    when="a control is drawn",
    gives="equal, and the global generator is left alone",
)
@pytest.mark.parametrize("draw", DRAWS)
def test_a_seed_gives_the_numbers_of_torch_and_leaves_torchs_generator_alone(draw: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = DRAWS[draw]()
    before = torch.get_rng_state()
    with seeded(11):
        found = DRAWS[draw]()
        following = DRAWS[draw]()
    assert torch.equal(found, expected)
    assert not torch.equal(following, found)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_of_ones_own_is_used_inside() -> None:
    own = torch.Generator().manual_seed(3)
    with seeded(11):
        found = torch.rand(4, generator=own)
    assert torch.equal(found, torch.rand(4, generator=torch.Generator().manual_seed(3)))


def flat(module: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in module.state_dict().values()])


LLAMA, GPT2 = tiny_model("llama"), tiny_module("gpt2")
SYMMETRIC = torch.rand(24, 24, generator=torch.Generator().manual_seed(1)).numpy()
SYMMETRIC = np.triu(SYMMETRIC, 1) * (np.triu(SYMMETRIC, 1) > 0.6)
SYMMETRIC = SYMMETRIC + SYMMETRIC.T
CONTROLS: dict[str, Callable[[int], Tensor]] = {
    "fresh": lambda seed: flat(fresh(LLAMA.module, seed)),
    "random_init": lambda seed: flat(load_model(GPT2, random_init=seed).module),
    "shuffled_weights": lambda seed: flat(load_model(GPT2, shuffled_weights=seed).module),
    "fresh_twin": lambda seed: weights.fresh_twin(weights.weights_of(LLAMA), seed).matrix(1, "up").double(),
    "shuffled_twin": lambda seed: weights.shuffled_twin(weights.weights_of(LLAMA), seed).matrix(1, "up").double(),
    "bundled": lambda seed: flat(bundled_fresh("transformer", seed)),
    "haar_frame": lambda seed: haar_frame(8, 3, torch.Generator().manual_seed(seed)),
    "rewired": lambda seed: torch.from_numpy(rewired(from_matrix(SYMMETRIC), seed).edges.astype(float)),
}


def interfering(until: threading.Event) -> None:
    """Draw from every global generator, as a program does that has another thread."""
    while not until.is_set():
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        random.random()


@pytest.mark.guards("several threads draw at once", when="a control is drawn", gives="the numbers of one thread")
@pytest.mark.parametrize("control", CONTROLS)
def test_controls_of_several_threads_are_those_of_one(control: str) -> None:
    draw, seeds = CONTROLS[control], [0, 1, 2, 0, 1, 2]
    alone = [draw(seed) for seed in seeds[:3]]
    assert not torch.equal(alone[0], alone[1])
    done = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        other = pool.submit(interfering, done)
        try:
            together = list(pool.map(draw, seeds))
        finally:
            done.set()
        other.result()
    for seed, found in zip(seeds, together, strict=True):
        assert torch.equal(found, alone[seed])


@pytest.mark.guards(
    "generators of torch and numpy are the caller's",
    when="a control is drawn",
    gives="their states unchanged",
)
@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_leaves_the_global_generators_alone(control: str) -> None:
    CONTROLS[control](0)  # what is imported on first use may draw
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    CONTROLS[control](5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    after: Any = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(one, other) for one, other in zip(after, numpy_state, strict=True))


@pytest.mark.guards(
    "transformers exchanges functions of torch while it initialises",
    when="a control is drawn",
    gives="one model at a time",
)
def test_two_threads_that_initialise_leave_torchs_functions_as_they_were() -> None:
    own = {name: getattr(nn.init, name) for name in ("normal_", "uniform_", "zeros_", "ones_", "trunc_normal_")}
    module = tiny_module("llama")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: fresh(module, seed), range(6)))
    assert {name: getattr(nn.init, name) for name in own} == own
