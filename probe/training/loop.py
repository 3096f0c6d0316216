"""One loop that trains several seeds at once, watched at chosen steps, and that goes on where it was cut off.

The modules of all seeds become one function of stacked parameters (`torch.func.stack_module_state`, `vmap`). Each seed
has its own parameters, so the gradient of the sum of the losses holds each seed's own gradient, and training the stack
is training every seed by itself. Cost: the arithmetic of all seeds, but the dispatch of one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from probe.training.optimisers import Optimiser

Parameters = Mapping[str, Tensor]
Batch = tuple[Tensor, Tensor]


@runtime_checkable
class Checkpoint(Protocol):
    """Where a cut-off training is kept."""

    def load(self) -> dict[str, Tensor] | None:
        """What was saved last; None if nothing was."""

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Keep this state, and no older one."""


class Stack:
    """Several modules of one architecture as one function of stacked parameters.

    Args:
        modules: One a seed.
        loss: Outputs and targets of one seed to a number.
        batched: False: one seed after the other, for modules with operations that `vmap` has no rule for.
    """

    def __init__(
        self, modules: Sequence[nn.Module], loss: Callable[[Tensor, Tensor], Tensor], *, batched: bool = True
    ) -> None:
        stacked, _ = stack_module_state(list(modules))
        self.start: dict[str, Tensor] = {name: value.detach() for name, value in stacked.items()}
        self._skeleton = copy.deepcopy(modules[0])
        self._loss, self._batched = loss, batched

    def losses(self, parameters: Parameters, batch: Batch) -> Float[Tensor, " seed"]:
        """The loss of every seed on its own part of the batch.

        Args:
            parameters: Stacked parameters, (seed, ...).
            batch: Inputs and targets, (seed, ...).

        Returns:
            Losses, (seed,).
        """

        def one(values: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            return self._loss(functional_call(self._skeleton, values, (inputs,)), targets)

        if self._batched:
            losses: Tensor = vmap(one)(dict(parameters), *batch)
            return losses
        seeds = range(len(batch[0]))
        each = [
            one({name: value[i] for name, value in parameters.items()}, *(part[i] for part in batch)) for i in seeds
        ]
        return torch.stack(each)

    def gradients(self, parameters: Parameters, batch: Batch) -> tuple[Float[Tensor, " seed"], dict[str, Tensor]]:
        """The losses of all seeds and the gradient of each by its own parameters.

        Args:
            parameters: Stacked parameters, (seed, ...).
            batch: Inputs and targets, (seed, ...).

        Returns:
            Losses (seed,), and gradients of the parameters' names and shapes.
        """
        free = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        losses = self.losses(free, batch)
        return losses.detach(), dict(zip(free, torch.autograd.grad(losses.sum(), list(free.values())), strict=True))


@dataclass(frozen=True)
class Plan:
    """How long, and when it is watched.

    Attributes:
        steps: Number of steps.
        snapshots: Steps before which it is watched, rising, `steps` for the end.
        warmup: Share of the steps over which the learning rate rises from 0; then it falls along a cosine to a tenth.
            None: a constant rate.
    """

    steps: int
    snapshots: tuple[int, ...]
    warmup: float | None = None

    def factor(self, step: int) -> float:
        """Of the learning rate at a step.

        Args:
            step: From 0.

        Returns:
            A factor in (0, 1].
        """
        if self.warmup is None:
            return 1.0
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def snapshot_steps(steps: int, count: int = 24) -> tuple[int, ...]:
    """Steps at which a training is watched: evenly spread, and some more early, where most happens.

    Args:
        steps: Number of steps.
        count: Evenly spread ones, besides step 0.

    Returns:
        Rising steps with 0 and `steps`.
    """
    even = [round(steps * part / count) for part in range(count + 1)]
    early = [even[1] // 2**power for power in range(1, 5)]
    return tuple(sorted({*even, *(step for step in early if step > 0)}))


def train(
    stack: Stack,
    batch: Callable[[int], Batch],
    optimiser: Optimiser,
    plan: Plan,
    observe: Callable[[Parameters, Parameters], Mapping[str, Tensor]],
    *,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] = lambda steps: None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trains all seeds of a stack.

    Args:
        stack: The modules.
        batch: Step to its inputs and targets, (seed, ...); the same for the same step.
        optimiser: How parameters follow gradients.
        plan: Steps and snapshots.
        observe: Called at each snapshot with the parameters and those of the snapshot before (at the first: the same);
            returns named arrays of the same shapes each time.
        checkpoint: Where to go on from, and what to leave at every snapshot.
        progress: Called with the number of steps done since the last call.

    Returns:
        What was observed, each (snapshot, ...), with `train_loss` (snapshot, seed), the mean since the snapshot before
        (NaN at the first); and the parameters at the end.
    """
    parameters = {name: value.clone() for name, value in stack.start.items()}
    moments = optimiser.begin(parameters)
    seen: list[dict[str, Tensor]] = []
    saved = checkpoint.load() if checkpoint else None
    if saved is not None:
        for name in parameters:
            parameters[name].copy_(saved[f"parameter.{name}"])
        for name in moments:
            moments[name].copy_(saved[f"moment.{name}"])
        stacked = {name[9:]: value for name, value in saved.items() if name.startswith("observed.")}
        seen = [dict(zip(stacked, values, strict=True)) for values in zip(*stacked.values(), strict=True)]
    done = plan.snapshots[len(seen) - 1] if seen else 0
    before = {name: value.clone() for name, value in parameters.items()}
    progress(done)
    for target in plan.snapshots[len(seen) :]:
        losses = [_step(stack, batch(step), optimiser, parameters, moments, step, plan) for step in range(done, target)]
        mean = torch.stack(losses).mean(0) if losses else torch.full((_seeds(parameters),), torch.nan)
        seen.append({**observe(parameters, before), "train_loss": mean.float().cpu()})
        before = {name: value.clone() for name, value in parameters.items()}
        progress(target - done)
        done = target
        if checkpoint:
            checkpoint.save(_state(parameters, moments, seen))
    return {name: torch.stack([one[name] for one in seen]) for name in seen[0]}, parameters


def _step(
    stack: Stack,
    batch: Batch,
    optimiser: Optimiser,
    parameters: dict[str, Tensor],
    moments: dict[str, Tensor],
    step: int,
    plan: Plan,
) -> Float[Tensor, " seed"]:
    losses, gradients = stack.gradients(parameters, batch)
    optimiser.step(parameters, gradients, moments, step, plan.factor(step))
    return losses


def _seeds(parameters: Parameters) -> int:
    return len(next(iter(parameters.values())))


def _state(parameters: Parameters, moments: Parameters, seen: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    state = {f"parameter.{name}": value for name, value in parameters.items()}
    state |= {f"moment.{name}": value for name, value in moments.items()}
    return state | {f"observed.{name}": torch.stack([one[name] for one in seen]) for name in seen[0]}
