"""Does the linear map predict the network? A step at one position, run on, beside the product of Jacobians."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from probe import replay
from probe.analyses.dynamics import work
from probe.analyses.dynamics.config import Config
from probe.analysis.subject import model_of, spread
from probe.runs import Run
from probe.runs.engine import Unit
from probe.spectra import lapack

EPSILONS = tuple(10 ** (power / 2) for power in range(-6, 1))
"""Sizes of the step over the window's median ‖u_l‖: half a decade apart, from 1e-3 to 1."""
HORIZONS = ("1", "2", "4", "8", "all")
"""Blocks between the step and the comparison; "all": up to the final norm."""
DIRECTIONS = {
    "random": "random",
    "singular": "top right singular vector of J",
    "other": "towards another token's state",
    "principal": "first principal direction of the states",
}


@dataclass
class _Step:
    """The states after a step before block `start`, in the network and by the Jacobians."""

    start: int
    states: Float[Tensor, "1 variant 1 d"]  # the first is without a step
    predicted: Float[Tensor, "direction d"]  # of a step of length 1
    length: Float[Tensor, ""]
    error: dict[str, Tensor] = field(default_factory=dict)
    cosine: dict[str, Tensor] = field(default_factory=dict)

    def compare(self, horizon: str) -> None:
        """Records relative error and cosine of real and predicted change, (direction, epsilon)."""
        real = (self.states[0, 1:, 0] - self.states[0, :1, 0]).double().unflatten(0, (len(DIRECTIONS), -1))
        sizes = self.length * torch.tensor(EPSILONS, dtype=torch.float64)
        predicted = self.predicted[:, None] * sizes[:, None]
        self.error[horizon] = vector_norm(real - predicted, dim=-1) / vector_norm(real, dim=-1)
        self.cosine[horizon] = torch.cosine_similarity(real, predicted, dim=-1, eps=0.0)


def starts_of(config: Config) -> list[int]:
    """Blocks before which the stream is perturbed."""
    return spread(list(range(model_of(config).n_layers)), config.perturb_layers)


def perturb_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Steps at one position of a window: the network's change against the product of Jacobians.

    A step is ε times the median norm of the block's update over the window's counted positions, in each of the
    `DIRECTIONS`. Earlier positions do not feel it, and what the position itself becomes is exactly what `replay` gives.

    Args:
        config: The run's configuration.
        unit: Which window.
        run: Not used.

    Returns:
        `error`: ‖Δ − C ε δ‖ / ‖Δ‖, and `cosine`, each (start, horizon, direction, epsilon), NaN where the network ends
        before the horizon; `length` (start,): the median ‖u‖.
    """
    window = unit.arguments["window"]
    rows, windows = slice(window, window + 1), work.windows_of(config)
    context = replay.record(model_of(config), windows.tokens[rows], work.positions_of(config)[rows, :1])
    counted = windows.counted(config.skip_first)[window]
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + window)
    starts, steps = starts_of(config), list[_Step]()
    n_layers = model_of(config).n_layers
    for layer, matrices in work.jacobians(config, rows):
        J = matrices[0, 0].double()
        if layer in starts:
            steps.append(_step(context, layer, J, counted, generator))
        for step in steps:
            with torch.no_grad():
                step.states = context.replay(layer, step.states)
            step.predicted = step.predicted @ J.mT
            done = layer + 1 - step.start
            if str(done) in HORIZONS:
                step.compare(str(done))
            if layer == n_layers - 1:
                step.compare("all")
    absent = torch.full((len(DIRECTIONS), len(EPSILONS)), torch.nan, dtype=torch.float64)
    return {
        "error": torch.stack([torch.stack([step.error.get(h, absent) for h in HORIZONS]) for step in steps]),
        "cosine": torch.stack([torch.stack([step.cosine.get(h, absent) for h in HORIZONS]) for step in steps]),
        "length": torch.stack([step.length for step in steps]),
    }


def _step(
    context: replay.Context, layer: int, J: Float[Tensor, "d d"], counted: Tensor, generator: torch.Generator
) -> _Step:
    """The steps before a block, in all directions and sizes, and one of size zero."""
    before, after = (context.states[at][0].double().cpu() for at in (layer, layer + 1))
    length = vector_norm(after - before, dim=-1)[counted].median()
    position = int(context.positions[0, 0])
    directions = _directions(before, position, counted, J, generator)
    sizes = length * torch.tensor(EPSILONS, dtype=torch.float64)
    moved = before[position] + (directions[:, None] * sizes[:, None]).flatten(0, 1)
    states = torch.cat([before[position : position + 1], moved])[None, :, None]
    return _Step(layer, states.to(context.states[layer]), directions, length)


def _directions(
    states: Float[Tensor, "position d"],
    position: int,
    counted: Tensor,
    J: Float[Tensor, "d d"],
    generator: torch.Generator,
) -> Float[Tensor, "direction d"]:
    """Unit vectors in the order of `DIRECTIONS`."""
    others = counted.clone()
    others[position] = False
    places = others.nonzero()[:, 0]
    other = places[torch.randint(len(places), (), generator=generator)]
    kept = states[counted]
    _, _, principal = lapack.svd(kept - kept.mean(0))
    _, _, right = lapack.svd(J)
    random = torch.randn(states.shape[-1], generator=generator, dtype=torch.float64)
    found = torch.stack([random, right[0], states[other] - states[position], principal[0]])
    units: Tensor = found / vector_norm(found, dim=-1, keepdim=True)
    return units
