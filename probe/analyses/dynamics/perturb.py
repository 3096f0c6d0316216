"""Does the linear map predict the network? A step at one position, run on, beside the product of Jacobians."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from probe import replay
from probe.analyses.dynamics.schema import DIRECTIONS, EPSILONS, HORIZONS
from probe.analyses.dynamics.subject import DynamicsSubject
from probe.analysis import Task
from probe.runs import Piece, Run
from probe.spectra import lapack


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
        """Record relative error and cosine of real and predicted change, (direction, epsilon).

        Args:
            horizon: One of `HORIZONS`.
        """
        real = (self.states[0, 1:, 0] - self.states[0, :1, 0]).double().unflatten(0, (len(DIRECTIONS), -1))
        sizes = self.length * torch.tensor(EPSILONS, dtype=torch.float64)
        predicted = self.predicted[:, None] * sizes[:, None]
        self.error[horizon] = vector_norm(real - predicted, dim=-1) / vector_norm(real, dim=-1)
        self.cosine[horizon] = torch.cosine_similarity(real, predicted, dim=-1, eps=0.0)


def perturb(subject: DynamicsSubject, task: Task, run: Run) -> Piece:
    """Step away from the state at the first position of a window: the network's change beside the Jacobians'.

    A step is ε times the median norm of the block's update over the window's counted positions, in each of the
    `DIRECTIONS`. Earlier positions do not feel it, and what the position itself becomes is exactly what `replay` gives.

    Args:
        subject: Models and text.
        task: Its window.
        run: Not used.

    Returns:
        `perturb_error` and `perturb_cosine`, NaN where the network ends before the horizon, and `step_length`.
    """
    window, config, windows = task["window"], subject.config, subject.windows()
    rows = slice(window, window + 1)
    context = replay.record(subject.model, windows.tokens[rows], subject.positions[rows, :1])
    counted = windows.counted(config.skip_first)[window]
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + window)
    steps: list[_Step] = []
    for layer, matrices in subject.jacobians(rows):
        J = matrices[0, 0].double()
        if layer in subject.starts:
            steps.append(_step(context, layer, J, counted, generator))
        for step in steps:
            with torch.no_grad():
                step.states = context.replay(layer, step.states)
            step.predicted = step.predicted @ J.mT
            done = layer + 1 - step.start
            if str(done) in HORIZONS:
                step.compare(str(done))
            if layer == subject.depth - 1:
                step.compare("all")
    absent = torch.full((len(DIRECTIONS), len(EPSILONS)), torch.nan, dtype=torch.float64)

    def gathered(found: list[dict[str, Tensor]]) -> Float[Tensor, "direction horizon epsilon start"]:
        return torch.stack([torch.stack([one.get(h, absent) for h in HORIZONS], dim=1) for one in found], dim=-1)

    arrays = {
        "perturb_error": gathered([step.error for step in steps]),
        "perturb_cosine": gathered([step.cosine for step in steps]),
        "step_length": torch.stack([step.length for step in steps]),
    }
    return Piece(
        arrays,
        {
            "direction": DIRECTIONS,
            "horizon": HORIZONS,
            "epsilon": EPSILONS,
            "start": subject.starts,
            "query": subject.queries(rows)[0],
        },
    )


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


def epsilon_at(
    error: Float[np.ndarray, "direction horizon epsilon start query"],
    epsilons: Float[np.ndarray, " epsilon"],
    level: float,
) -> Float[np.ndarray, "direction horizon start query"]:
    """Find where the error passes a level: above the largest ε whose error is below it, on logarithmic scales.

    At the smallest ε float32 rounding can lift the error again; looking from above passes over that.

    Args:
        error: Relative errors.
        epsilons: Sizes of the step, rising.
        level: Of the error.

    Returns:
        ε; an end of the grid where all errors lie on one side, NaN where errors are missing.
    """
    logs = np.log(np.moveaxis(np.maximum(error, 1e-300), 2, -1)) - np.log(level)
    log_epsilon = np.log(epsilons)
    below = logs <= 0
    last = len(epsilons) - 1 - np.argmax(below[..., ::-1], axis=-1)
    upper = np.minimum(last + 1, len(epsilons) - 1)
    low, high = (np.take_along_axis(logs, place[..., None], axis=-1)[..., 0] for place in (last, upper))
    gap = np.where(high > low, high - low, 1.0)
    step = np.where(high > low, -low / gap, 0.0) * (log_epsilon[upper] - log_epsilon[last])
    crossing = np.where(below.any(axis=-1), log_epsilon[last] + step, log_epsilon[0])
    return np.asarray(np.where(np.isnan(logs).any(axis=-1), np.nan, np.exp(crossing)))
