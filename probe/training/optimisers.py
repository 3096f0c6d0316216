"""SGD, AdamW and Muon on stacked parameters: every operation acts on each seed's entries or matrices separately.

So one step of the stack is one step of each seed trained by itself. Weight decay is decoupled in all three,
``p ← (1 − lr λ) p`` (Loshchilov & Hutter, arXiv 1711.05101), and acts on matrices, not on gains and biases.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from probe.boundary import public
from probe.errors import InputError

LEARNING_RATES = MappingProxyType({"adamw": 1e-3, "sgd": 0.05, "muon": 0.02})
"""Default learning rate of each optimiser."""
MOMENTUM = MappingProxyType({"sgd": 0.9, "muon": 0.95})
BETAS, EPSILON = (0.9, 0.999), 1e-8
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Float[Tensor, "*batch out in"], steps: int = 5) -> Float[Tensor, "*batch out in"]:
    """Approximate ``U Vᵀ`` quickly, as Muon does, by a quintic Newton–Schulz iteration.

    ``X ← aX + (bXXᵀ + c(XXᵀ)²)X`` from ``X/‖X‖_F`` moves all singular values that are not tiny to between about 0.7 and
    1.2 and leaves the singular vectors; it does not converge to 1, which Muon does not need.

    Args:
        matrices: (..., out, in).
        steps: Iterations.

    Returns:
        Matrices of the same shape; 0 for 0.

    Source: Jordan et al. (2024), *Muon: An optimizer for hidden layers in neural networks*.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-12)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    level: Tensor = x if wide else x.mT
    return level


@public
@dataclass(frozen=True)
class Optimiser:
    """The rule by which parameters follow their gradients.

    Attributes:
        kind: "sgd" (momentum 0.9), "adamw" (0.9, 0.999) or "muon" (for the hidden matrices; AdamW at its own rate moves
            the rest).
        weight_decay: λ.
        hidden: Names of the hidden matrices, (seed, layer, out, in).
        decayed: Names of the parameters that decay.
        learning_rate: Default `LEARNING_RATES[kind]`.

    Raises:
        InputError: If there is no such optimiser.
    """

    kind: str
    weight_decay: float
    hidden: Collection[str]
    decayed: Collection[str]
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in LEARNING_RATES:
            raise InputError(
                f"the kind of an optimiser must be one of {', '.join(LEARNING_RATES)}, got {self.kind!r}: choose one"
            )

    @public
    def begin(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make the moments before the first step, which are zero.

        Args:
            parameters: Stacked parameters by name.

        Returns:
            `first.NAME` of all parameters, `second.NAME` of those that AdamW moves.
        """
        moments = {f"first.{name}": torch.zeros_like(value) for name, value in parameters.items()}
        adam = [name for name in parameters if self._rule(name) == "adamw"]
        return moments | {f"second.{name}": torch.zeros_like(parameters[name]) for name in adam}

    @public
    @torch.no_grad()
    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        step: int,
        factor: float = 1.0,
    ) -> None:
        """Move parameters and moments in place.

        Args:
            parameters: Stacked parameters by name.
            gradients: Gradients by the same names.
            moments: Moments from `begin`, as earlier steps left them.
            step: Number of the step, from 0.
            factor: Factor of the learning rate, from a schedule.

        Raises:
            InputError: If a parameter has no gradient or no moments.
        """
        if missing := [name for name in parameters if name not in gradients or f"first.{name}" not in moments]:
            raise InputError(
                f"gradients= and moments= must have all of parameters=, got a dict without {missing[0]!r}: pass "
                "gradients of the same parameters, and moments of begin"
            )
        for name, value in parameters.items():
            rule = self._rule(name)
            named = self.learning_rate if rule == self.kind else None
            rate = factor * (LEARNING_RATES[rule] if named is None else named)
            if name in self.decayed:
                value.mul_(1 - rate * self.weight_decay)
            value.sub_(self._direction(rule, name, gradients[name], moments, step), alpha=rate)

    def _rule(self, name: str) -> str:
        return "adamw" if self.kind == "muon" and name not in self.hidden else self.kind

    def _direction(self, rule: str, name: str, gradient: Tensor, moments: Mapping[str, Tensor], step: int) -> Tensor:
        first = moments[f"first.{name}"]
        if rule == "adamw":
            second = moments[f"second.{name}"]
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            root = (second / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(EPSILON)
            moved: Tensor = first / (1 - BETAS[0] ** (step + 1)) / root
            return moved
        first.mul_(MOMENTUM[rule]).add_(gradient)
        if rule == "sgd":
            return first
        ahead = gradient.add(first, alpha=MOMENTUM["muon"])  # Nesterov
        out, fan_in = gradient.shape[-2:]
        turned: Tensor = orthogonalise(ahead) * max(1.0, out / fan_in) ** 0.5
        return turned
