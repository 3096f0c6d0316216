"""The derivative of a mixture of experts, composed of the stacked matrices of the experts that a position chose.

With x what enters the experts, E_k what the k-th chosen one gives and w_k its weight,

    ∂/∂x Σ_k w_k E_k(x) = Σ_k w_k W_down,k diag(s_k) W_in,k + Σ_k E_k ∇w_kᵀ

where the choice is constant (it is, up to a jump on a set of measure zero) and the weights are not: their gradients are
vector-Jacobian products through the router. An MLP that all positions share is added, with the derivative of its gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.errors import InputError
from probe.jacobian.between import derivative_by_column
from probe.model.architectures import ExpertStack, experts_in


@dataclass(frozen=True)
class ExpertsPrimal:
    """Small derivatives of a mixture of experts at N positions.

    Attributes:
        choice: The chosen experts.
        slopes: Derivatives of what enters an expert's `down_proj` by its pre-activations, times the expert's weight, in
            the order of the rows of its first matrix; a pair of rows for each neuron where the expert is gated.
        given: What each expert gives, E_k.
        weight_slopes: ∇w_k; None if the routing is frozen.
        scale: Derivative of what leaves the mixture by the experts' sum, elementwise.
        shared_scale: The same by what the shared MLP gives; None if there is none.
        shared_gate: Derivative of what leaves the mixture by the output of the shared MLP's gate; None if it has none.
    """

    choice: Int[Tensor, "n k"]
    slopes: Float[Tensor, "n k inner"]
    given: Float[Tensor, "n k d"]
    weight_slopes: Float[Tensor, "n k d"] | None
    scale: Float[Tensor, "n d"]
    shared_scale: Float[Tensor, "n d"] | None = None
    shared_gate: Float[Tensor, "n d 1"] | None = None


@dataclass(frozen=True)
class ExpertWeights:
    """The stacked matrices of the experts, in the dtype of the arithmetic.

    Attributes:
        module: The experts, of a working copy.
        inner: The first matrices, (expert, rows, d); with a gate the rows of gate and up.
        down: The second matrices, (expert, d, d_ff).
        gated: Whether the experts are gated.
        interleaved: Whether the rows of gate and up alternate, instead of following each other.
    """

    module: nn.Module
    inner: Float[Tensor, "expert rows d"]
    down: Float[Tensor, "expert d d_ff"]
    gated: bool
    interleaved: bool

    @classmethod
    def of(cls, module: nn.Module) -> ExpertWeights:
        """Read the matrices of a module of transformers' experts.

        Args:
            module: The experts.

        Returns:
            Their matrices.

        Raises:
            InputError: If the module holds its experts in another way.
        """
        experts: Any = module
        stack = experts_in(module)
        if stack is not None and stack.flat:
            return cls._of_flat(module.get_submodule(stack.module), stack)
        inner = getattr(experts, "gate_up_proj", getattr(experts, "up_proj", None))
        if not (isinstance(inner, Tensor) and inner.ndim == 3 and hasattr(experts, "has_gate")):
            raise InputError(
                f"experts must hold stacked matrices as transformers' experts do, and {type(module).__name__} holds "
                'them otherwise: use method="frozen"'
            )
        if experts.has_post_expert_norm:
            raise InputError('experts must not norm what each gives, and these do: use method="frozen"')
        down = experts.down_proj
        if experts.is_transposed:
            inner, down = inner.mT, down.mT
        return cls(module, inner, down, experts.has_gate, not experts.is_concatenated)

    @classmethod
    def _of_flat(cls, module: nn.Module, stack: ExpertStack) -> ExpertWeights:
        """Read matrices that share an axis with the experts: of DBRX, whose activation is a module."""

        def every(name: str) -> Tensor:
            whole: Tensor = module.get_parameter(stack.parameters[name])
            matrices = whole.reshape(stack.count, -1, whole.shape[1])
            return matrices.mT if name in stack.transposed else matrices

        return cls(module, torch.cat([every("gate"), every("up")], 1), every("down"), gated=True, interleaved=False)

    def active(self, before: Tensor) -> Tensor:
        """Apply the experts' activation and gate to pre-activations."""
        experts: Any = self.module
        if not hasattr(experts, "_apply_gate"):
            gate, up = before.chunk(2, -1)
            ungated: Tensor = experts.activation_fn(gate) * up
            return ungated
        active: Tensor = experts._apply_gate(before) if self.gated else experts.act_fn(before)
        return active

    def at(
        self, states: Float[Tensor, "n d"], choice: Int[Tensor, "n k"], weights: Float[Tensor, "n k"]
    ) -> tuple[Float[Tensor, "n k inner"], Float[Tensor, "n k d"]]:
        """Run the chosen experts.

        Args:
            states: What enters them.
            choice: The chosen experts.
            weights: Their weights.

        Returns:
            The slopes, times the weights, and what each expert gives.
        """
        experts: Any = self.module
        has_bias = getattr(experts, "has_bias", False)
        name = "gate_up_proj_bias" if self.gated else "up_proj_bias"
        before = states.new_empty((*choice.shape, self.inner.shape[1]))
        for expert in choice.unique().tolist():
            rows, places = (choice == expert).nonzero(as_tuple=True)
            bias = getattr(experts, name)[expert] if has_bias else None
            before[rows, places] = nn.functional.linear(states[rows], self.inner[expert], bias)
        with torch.enable_grad():
            point = before.flatten(0, 1).requires_grad_()
            active = self.active(point)
            (slopes,) = torch.autograd.grad(active.sum(), point)
        active = active.detach().unflatten(0, choice.shape)
        given = states.new_empty((*choice.shape, self.down.shape[1]))
        for expert in choice.unique().tolist():
            rows, places = (choice == expert).nonzero(as_tuple=True)
            bias = experts.down_proj_bias[expert] if has_bias else None
            given[rows, places] = nn.functional.linear(active[rows, places], self.down[expert], bias)
        return slopes.unflatten(0, choice.shape) * weights[..., None], given

    def derivative(self, primal: ExpertsPrimal, rows: slice) -> Float[Tensor, "n d d"]:
        """Compose the derivative of what leaves the mixture by what enters the experts, without shared parts."""
        found = []
        for n in range(*rows.indices(len(primal.choice))):
            total = None
            for k, expert in enumerate(primal.choice[n].tolist()):
                if expert >= len(self.inner):  # no expert of this place
                    continue
                neurons = self._neurons(self.inner[expert], primal.slopes[n, k])
                total = self.down[expert] @ neurons if total is None else total.addmm_(self.down[expert], neurons)
            assert total is not None
            if primal.weight_slopes is not None:
                total.addmm_(primal.given[n].T, primal.weight_slopes[n])
            found.append(total)
        return torch.stack(found) * primal.scale[rows][..., None]

    def _neurons(self, matrix: Float[Tensor, "rows d"], slopes: Float[Tensor, " rows"]) -> Float[Tensor, "d_ff d"]:
        if not self.gated:
            return matrix * slopes[:, None]
        half = len(slopes) // 2
        pieces = (slice(0, None, 2), slice(1, None, 2)) if self.interleaved else (slice(0, half), slice(half, None))
        gate, up = pieces
        return torch.mul(matrix[gate], slopes[gate, None]).addcmul_(matrix[up], slopes[up, None])


def experts_primal(
    weights_of: ExpertWeights,
    entering: Float[Tensor, "*batch d"],
    called: Sequence[Tensor],
    leaves: Mapping[str, Tensor],
    leaving: Float[Tensor, "*batch d"],
    *,
    live: bool,
) -> ExpertsPrimal:
    """Differentiate a mixture that was run cut around its experts.

    Args:
        weights_of: The experts' matrices.
        entering: What enters the mixture, a leaf.
        called: States, choice and weights that the experts were called with, with their graph.
        leaves: The experts' output "experts", and, where they are, the shared MLP's "shared" and its gate's
            "shared_gate".
        leaving: What leaves the mixture, with its graph.
        live: Whether the weights of the chosen experts are differentiated.

    Returns:
        The primal point.
    """
    states, choice, weights = called
    d, dtype = entering.shape[-1], entering.dtype
    slopes, given = weights_of.at(states.detach().reshape(-1, d), choice, weights.detach().to(dtype))
    weight_slopes = None
    if live and weights.requires_grad:
        gradients = [
            torch.autograd.grad(weights[:, k].sum(), entering, retain_graph=True)[0] for k in range(weights.shape[1])
        ]
        weight_slopes = torch.stack([gradient.reshape(-1, d) for gradient in gradients], 1)
    scales = {
        name: torch.autograd.grad(leaving.sum(), leaves[name], retain_graph=True)[0].reshape(-1, d)
        for name in ("experts", "shared")
        if name in leaves
    }
    gate = None
    if "shared_gate" in leaves:
        gate = derivative_by_column(leaving, leaves["shared_gate"], leaving.numel() // d)
    return ExpertsPrimal(choice, slopes, given, weight_slopes, scales["experts"], scales.get("shared"), gate)
