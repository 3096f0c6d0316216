"""What is measured at a snapshot of a training: loss, continuity, coherence of gradients, rotation of frames.

Directions are those of the matrices as they act (gains folded in); gradients are of the parameters themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.training.loop import Batch, Parameters, Stack
from probe.training.measures import (
    LEADING,
    best_matches,
    coherence,
    continuity,
    leading_triplets,
    rotation,
    subspace_continuity,
)

WEIGHTS = ("W", "ΔW")
"""The matrices, and what training has added to them: W − W₀."""
SPACES = ("input", "output")
"""Right singular vectors v, left singular vectors u."""


@runtime_checkable
class Data(Protocol):
    """What a training reads; see `Regression` and `NextByte`."""

    def held_out(self, n: int) -> Batch:
        """Inputs and targets that no step sees."""

    def probes(self, count: int) -> list[Batch]:
        """Batches that no step sees, on which gradients are measured."""


class Watch:
    """Called at every snapshot, as `train` asks of `observe`.

    Args:
        stack: The modules.
        acting: Parameters and a matrix's name to the matrices as they act, (seed, layer, out, in).
        names: The matrices, by the names of their parameters.
        data: Held-out inputs, and batches for gradients.
        held_out: How many inputs the loss is measured on.
        probes: On how many batches the coherence of gradients is averaged.
    """

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

    def __call__(self, parameters: Parameters, before: Parameters) -> dict[str, Float[Tensor, "seed ..."]]:
        """Those of `carried` and of the gradients, (seed, matrix, ...) in float32, and `held_out_loss` (seed,)."""
        each = []
        for name in self.names:
            now, earlier = self._acting(parameters, name), self._acting(before, name)
            found = carried(now, self._start[name], earlier)
            each.append(found | {"update_coherence": coherence(now - earlier).mean(-1)})
        arrays = {key: torch.stack([one[key] for one in each], dim=1) for key in each[0]} | self._coherences(parameters)
        with torch.no_grad():
            arrays["held_out_loss"] = self._stack.losses(parameters, self._held_out)
        return {key: value.float().cpu() for key, value in arrays.items()}

    def _coherences(self, parameters: Parameters) -> dict[str, Tensor]:
        """Coherence of each batch's gradient, averaged, and of the mean gradient; (seed, matrix)."""
        gradients = [self._stack.gradients(parameters, batch)[1] for batch in self._probes]

        def of(each: Mapping[str, Tensor]) -> Float[Tensor, "seed matrix"]:
            return torch.stack([coherence(each[name]).mean(-1) for name in self.names], dim=-1)

        mean = {name: torch.stack([one[name] for one in gradients]).mean(0) for name in self.names}
        return {
            "gradient_coherence": torch.stack([of(one) for one in gradients]).mean(0),
            "mean_gradient_coherence": of(mean),
        }


def carried(
    now: Float[Tensor, "seed layer out in"],
    start: Float[Tensor, "seed layer out in"],
    before: Float[Tensor, "seed layer out in"],
) -> dict[str, Float[Tensor, "seed ..."]]:
    """How leading directions carry on from layer to layer, of W and of ΔW = W − W₀, in both spaces.

    Args:
        now: The matrices W.
        start: The matrices at step 0.
        before: The matrices at the snapshot before.

    Returns:
        `cosine` (seed, weights, space, pair): |cos| of leading vectors; `overlap` and `match` (seed, weights, space,
        k): subspaces, and best matches squared, mean over pairs; `layer_angle` (seed, weights, space): mean principal
        angle of neighbouring layers' frames; `step_angle` (seed, space): of each layer's frame and its own at the
        snapshot before; `gap` (seed, weights, layer): σ₁/σ₂. Frames have `LEADING` columns, or as many as there are.
    """
    k = min(LEADING, *now.shape[-2:])
    both = leading_triplets(torch.stack([now, now - start], dim=1), k)
    earlier = leading_triplets(before, k)
    spaces = (both.right, both.left)
    return {
        "cosine": torch.stack([continuity(one) for one in spaces], dim=2),
        "overlap": torch.stack([subspace_continuity(one).mean(-2) for one in spaces], dim=2),
        "match": torch.stack([best_matches(one).mean(-2) for one in spaces], dim=2),
        "layer_angle": torch.stack(
            [rotation(one[..., :-1, :, :], one[..., 1:, :, :]).mean(-1) for one in spaces], dim=2
        ),
        "step_angle": torch.stack(
            [rotation(one[:, 0], old).mean(-1) for one, old in zip(spaces, (earlier.right, earlier.left), strict=True)],
            dim=1,
        ),
        "gap": both.gap,
    }
