"""Measurements at a snapshot of a training: loss, continuity, coherence of gradients, rotation of frames.

Directions are those of the matrices as they act (gains folded in); gradients are of the parameters themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.boundary import at_least, filled, public
from probe.training.loop import Batch, Parameters, Stack
from probe.training.measures import (
    LEADING,
    batched_triplets,
    best_squared_cosines,
    coherence,
    continuity,
    rotation,
    subspace_continuity,
)

WEIGHTS = ("W", "ΔW")
"""The matrices W, and the change by training, W − W₀."""
SPACES = ("input", "output")
"""Space of the right singular vectors v, space of the left singular vectors u."""


@runtime_checkable
class Data(Protocol):
    """Data for a watch; see `Regression` and `NextByte`."""

    def held_out(self, n: int) -> Batch:
        """Return inputs and targets that no step sees."""

    def probes(self, count: int) -> list[Batch]:
        """Return batches that no step sees, on which gradients are measured."""


class Watch:
    """A function for `train` to call at every snapshot, as its `observe`.

    Args:
        stack: The modules.
        acting: Function of the parameters and a matrix's name that gives the matrices as they act, (seed, layer, out,
            in).
        names: Names of the parameters that are the matrices.
        data: Source of held-out inputs, and of batches for gradients.
        held_out: Number of inputs on which the loss is measured.
        probes: Number of batches over which the coherence of gradients is averaged.
    """

    @public(held_out=at_least(1), probes=at_least(1))
    def __init__(
        self,
        stack: Stack,
        acting: Callable[[Parameters, str], Tensor],
        names: tuple[str, ...],
        data: Data,
        *,
        held_out: int,
        probes: int,
    ) -> None:
        self._stack, self._acting, self.names = stack, acting, names
        self._start = {name: acting(stack.start, name) for name in names}
        self._held_out, self._probes = data.held_out(held_out), data.probes(probes)

    @public(parameters=filled, before=filled)
    def __call__(self, parameters: Parameters, before: Parameters) -> dict[str, Float[Tensor, "seed ..."]]:
        """Measure `carried` and the gradients, (seed, matrix, ...), and `held_out_loss` (seed,), in float32."""
        by_matrix = []
        for name in self.names:
            now, earlier = self._acting(parameters, name), self._acting(before, name)
            measured = carried(now, self._start[name], earlier)
            measured["update_coherence"] = coherence(now - earlier).mean(-1)
            by_matrix.append(measured)
        arrays = {key: torch.stack([measured[key] for measured in by_matrix], dim=1) for key in by_matrix[0]}
        arrays |= self._coherences(parameters)
        with torch.no_grad():
            arrays["held_out_loss"] = self._stack.losses(parameters, self._held_out)
        return {key: value.float().cpu() for key, value in arrays.items()}

    def _coherences(self, parameters: Parameters) -> dict[str, Tensor]:
        """Coherence of each batch's gradient, averaged, and of the mean gradient; (seed, matrix)."""
        by_batch = [self._stack.gradients(parameters, batch)[1] for batch in self._probes]

        def coherences(gradients: Mapping[str, Tensor]) -> Float[Tensor, "seed matrix"]:
            return torch.stack([coherence(gradients[name]).mean(-1) for name in self.names], dim=-1)

        mean = {name: torch.stack([gradients[name] for gradients in by_batch]).mean(0) for name in self.names}
        return {
            "gradient_coherence": torch.stack([coherences(gradients) for gradients in by_batch]).mean(0),
            "mean_gradient_coherence": coherences(mean),
        }


def carried(
    now: Float[Tensor, "seed layer out in"],
    start: Float[Tensor, "seed layer out in"],
    before: Float[Tensor, "seed layer out in"],
) -> dict[str, Float[Tensor, "seed ..."]]:
    """Measure how leading directions carry on from layer to layer, of W and of ΔW = W − W₀, in both spaces.

    Args:
        now: The matrices W.
        start: The matrices at step 0.
        before: The matrices at the snapshot before.

    Returns:
        `cosine` (seed, weights, space, pair): |cos| of leading vectors; `overlap` and `match` (seed, weights, space,
        k): subspaces, and best squared cosines, mean over pairs; `layer_angle` (seed, weights, space): mean principal
        angle of neighbouring layers' frames; `step_angle` (seed, space): the same of each layer's frame and its own at
        the snapshot before; `gap` (seed, weights, layer): σ₁/σ₂. Frames have `LEADING` columns, or fewer if the
        matrices have no more.
    """
    k = min(LEADING, *now.shape[-2:])
    both = batched_triplets(torch.stack([now, now - start], dim=1), k)
    earlier = batched_triplets(before, k)
    spaces = (both.right, both.left)
    return {
        "cosine": torch.stack([continuity(vectors) for vectors in spaces], dim=2),
        "overlap": torch.stack([subspace_continuity(vectors).mean(-2) for vectors in spaces], dim=2),
        "match": torch.stack([best_squared_cosines(vectors).mean(-2) for vectors in spaces], dim=2),
        "layer_angle": torch.stack(
            [rotation(vectors[..., :-1, :, :], vectors[..., 1:, :, :]).mean(-1) for vectors in spaces], dim=2
        ),
        "step_angle": torch.stack(
            [
                rotation(vectors[:, 0], old).mean(-1)
                for vectors, old in zip(spaces, (earlier.right, earlier.left), strict=True)
            ],
            dim=1,
        ),
        "gap": both.gap,
    }
