"""One loop that trains several seeds at once, watches them at chosen steps, and resumes where it was interrupted.

The modules of all seeds become one function of stacked parameters (`torch.func.stack_module_state`, `vmap`). Each seed
has its own parameters, so the gradient of the sum of the losses holds each seed's own gradient, and training the stack
is training every seed by itself. Cost: the arithmetic of all seeds, the dispatch of one.
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

from probe.boundary import at_least, filled, public
from probe.training.optimisers import Optimiser

Parameters = Mapping[str, Tensor]
Batch = tuple[Tensor, Tensor]


@runtime_checkable
class Checkpoint(Protocol):
    """Storage for the state of an interrupted training."""

    def load(self) -> dict[str, Tensor] | None:
        """Load the state that was saved last; None if none was."""

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Save this state in place of any older one."""


class Stack:
    """Several modules of one architecture as one function of stacked parameters.

    Args:
        modules: One module a seed.
        loss: Function of the outputs and targets of one seed.
        batched: False: run one seed after the other, for modules with operations that `vmap` has no rule for.
    """

    @public(modules=filled)
    def __init__(
        self, modules: Sequence[nn.Module], loss: Callable[[Tensor, Tensor], Tensor], *, batched: bool = True
    ) -> None:
        stacked, _ = stack_module_state(list(modules))
        self.start: dict[str, Tensor] = {name: value.detach() for name, value in stacked.items()}
        self._skeleton = copy.deepcopy(modules[0])
        self._loss, self._batched = loss, batched

    @public(parameters=filled)
    def losses(self, parameters: Parameters, batch: Batch) -> Float[Tensor, " seed"]:
        """Compute the loss of every seed on its own part of the batch.

        Args:
            parameters: Stacked parameters, (seed, ...).
            batch: Inputs and targets, (seed, ...).

        Returns:
            Losses, (seed,).
        """

        def loss_of(values: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            return self._loss(functional_call(self._skeleton, values, (inputs,)), targets)

        if self._batched:
            losses: Tensor = vmap(loss_of)(dict(parameters), *batch)
            return losses
        each = [
            loss_of({name: value[seed] for name, value in parameters.items()}, *(part[seed] for part in batch))
            for seed in range(len(batch[0]))
        ]
        return torch.stack(each)

    @public(parameters=filled)
    def gradients(self, parameters: Parameters, batch: Batch) -> tuple[Float[Tensor, " seed"], dict[str, Tensor]]:
        """Compute the losses of all seeds, and the gradient of each by its own parameters.

        Args:
            parameters: Stacked parameters, (seed, ...).
            batch: Inputs and targets, (seed, ...).

        Returns:
            Losses (seed,), and gradients with the parameters' names and shapes.
        """
        free = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        losses = self.losses(free, batch)
        return losses.detach(), dict(zip(free, torch.autograd.grad(losses.sum(), list(free.values())), strict=True))


@public
@dataclass(frozen=True)
class Schedule:
    """Steps of a training, its snapshots and its learning rate.

    Attributes:
        steps: Number of steps.
        snapshots: Rising steps before which the training is watched; `steps` stands for the end.
        warmup: Share of the steps over which the learning rate rises from 0; then it falls along a cosine to a tenth.
            None: a constant rate.
    """

    steps: int
    snapshots: tuple[int, ...]
    warmup: float | None = None

    @public
    def factor(self, step: int) -> float:
        """Compute the factor of the learning rate at a step.

        Args:
            step: Number of the step, from 0.

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


@public(count=at_least(2))
def snapshot_steps(steps: int, count: int = 24) -> tuple[int, ...]:
    """Choose the steps at which a training is watched: evenly spread, and some more early, where most happens.

    Args:
        steps: Number of steps.
        count: Number of evenly spread snapshots, besides step 0.

    Returns:
        Rising steps with 0 and `steps`.
    """
    even = [round(steps * part / count) for part in range(count + 1)]
    early = [even[1] // 2**power for power in range(1, 5)]
    return tuple(sorted({*even, *(step for step in early if step > 0)}))


@public
def train(
    stack: Stack,
    batch: Callable[[int], Batch],
    optimiser: Optimiser,
    schedule: Schedule,
    observe: Callable[[Parameters, Parameters], Mapping[str, Tensor]],
    *,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] = lambda steps: None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train all seeds of a stack.

    Args:
        stack: The modules.
        batch: Function of the step that gives its inputs and targets, (seed, ...), always the same ones.
        optimiser: The rule by which parameters follow gradients.
        schedule: Steps and snapshots.
        observe: Called at each snapshot with the parameters and those of the snapshot before (at the first: the same);
            returns named arrays of the same shapes each time.
        checkpoint: Storage that is resumed from, and written at every snapshot.
        progress: Called with the number of steps done since the last call.

    Returns:
        The observed arrays, each (snapshot, ...), with `train_loss` (snapshot, seed), the mean since the snapshot
        before (NaN at the first); and the parameters at the end.
    """
    parameters = {name: value.clone() for name, value in stack.start.items()}
    moments = optimiser.begin(parameters)
    observed: list[dict[str, Tensor]] = []
    saved = checkpoint.load() if checkpoint else None
    if saved is not None:
        for name in parameters:
            parameters[name].copy_(saved[f"parameter.{name}"])
        for name in moments:
            moments[name].copy_(saved[f"moment.{name}"])
        stacked = {name[9:]: value for name, value in saved.items() if name.startswith("observed.")}
        observed = [dict(zip(stacked, values, strict=True)) for values in zip(*stacked.values(), strict=True)]
    done = schedule.snapshots[len(observed) - 1] if observed else 0
    before = {name: value.clone() for name, value in parameters.items()}
    progress(done)
    for target in schedule.snapshots[len(observed) :]:
        losses = [
            _step(stack, batch(step), optimiser, parameters, moments, step, schedule) for step in range(done, target)
        ]
        mean = torch.stack(losses).mean(0) if losses else torch.full((_seeds(parameters),), torch.nan)
        observed.append({**observe(parameters, before), "train_loss": mean.float().cpu()})
        before = {name: value.clone() for name, value in parameters.items()}
        progress(target - done)
        done = target
        if checkpoint:
            checkpoint.save(_state(parameters, moments, observed))
    return _stacked(observed), parameters


def _step(
    stack: Stack,
    batch: Batch,
    optimiser: Optimiser,
    parameters: dict[str, Tensor],
    moments: dict[str, Tensor],
    step: int,
    schedule: Schedule,
) -> Float[Tensor, " seed"]:
    losses, gradients = stack.gradients(parameters, batch)
    optimiser.step(parameters, gradients, moments, step, schedule.factor(step))
    return losses


def _seeds(parameters: Parameters) -> int:
    return len(next(iter(parameters.values())))


def _stacked(observed: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([arrays[name] for arrays in observed]) for name in observed[0]}


def _state(parameters: Parameters, moments: Parameters, observed: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    state = {f"parameter.{name}": value for name, value in parameters.items()}
    state |= {f"moment.{name}": value for name, value in moments.items()}
    return state | {f"observed.{name}": value for name, value in _stacked(observed).items()}
