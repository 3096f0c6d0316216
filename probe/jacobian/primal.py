"""The primal point of a block: what its derivative needs besides its matrices, taken from one run.

The run is cut behind each matrix that reads the stream (`q k v`, `gate up`) or a latent of it, and before each that
writes to it (`o`, `down`). What lies between is small: its derivative is made of vector-Jacobian products with as many
cotangents as a head is wide, whatever happens there (rotations, norms and clips of heads, soft caps, gates). No formula
of an architecture is needed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from probe import replay
from probe.errors import InputError
from probe.jacobian.between import derivative_by_column, derivative_by_head
from probe.jacobian.detached import detached_ratio
from probe.jacobian.experts import ExpertsPrimal, ExpertWeights, experts_primal
from probe.jacobian.norms import NormDerivative, norm_derivative
from probe.jacobian.parts import Run, run_of
from probe.model import first_tensor
from probe.model.architectures import Experts, Form, Projection
from probe.replay import Context

ATTENDING = ("q", "k", "v", "attention_gate")
READING = (*ATTENDING, "kv_a", "k_rot", "gate", "up", "shared.gate", "shared.up")
"""Names of the matrices of which attention is made head by head, and of all behind which a run is cut."""


@dataclass(frozen=True)
class Primal:
    """Small derivatives at N positions, windows first.

    Attributes:
        norms: Derivatives of the norms, by path.
        cores: Derivatives of the input of `o`, head by head, by the outputs of the matrices that attention reads with:
            (head, N, width of a value, rows of a head). Query heads that share a key head follow each other.
        across: Of queries and keys whose norm acts on all heads together, what goes from head to head: matrices V,
            (N, head · out, rank), and U, (N, rows, rank), of the term −V Uᵀ W.
        rotary: Derivative of the input of `o` by the rotary part of the keys that all heads share, where there is one.
        slopes: Derivatives of the input of `down` by the outputs of `gate` and `up`, elementwise.
        shared: The same of the MLP that a mixture of experts adds to them.
        experts: The mixture's own, where there is one.
    """

    norms: Mapping[str, NormDerivative]
    cores: Mapping[str, Float[Tensor, "head n out _"]]
    across: Mapping[str, tuple[Float[Tensor, "n o _"], Float[Tensor, "n _ _"]]]
    rotary: Float[Tensor, "n o _"] | None
    slopes: Mapping[str, Float[Tensor, "n _"]]
    shared: Mapping[str, Float[Tensor, "n _"]] = field(default_factory=dict)
    experts: ExpertsPrimal | None = None

    def norm(self, path: str | None, rows: slice) -> NormDerivative | None:
        """Select the derivative of a norm at some of the positions.

        Args:
            path: The norm's path; None: there is no norm.
            rows: The positions.

        Returns:
            The derivative, or None.
        """
        return None if path is None else self.norms[path].at(rows)


@dataclass
class Cuts:
    """Hooks on a working copy that cut its graph, and what they saw.

    Attributes:
        block: The working copy.
        form: Its form.
        projections: Its matrices; those of an MLP that is added to experts as "shared.up" and so on, and those that
            read a latent as "q", "k" and "v".
        heads: Number of its attention heads.
        leaves: Outputs of the matrices that read the stream or a latent, as leaves of a graph, by name.
        ends: Inputs of the matrices that write to it (of the norms before them, where there are any), with their graph:
            of "o" and "down".
        points: Inputs of the norms, by path.
        called: What the experts were called with.
    """

    block: nn.Module
    form: Form
    projections: Mapping[str, Projection]
    heads: int
    leaves: dict[str, Tensor] = field(default_factory=dict)
    ends: dict[str, Tensor] = field(default_factory=dict)
    points: dict[str, Tensor] = field(default_factory=dict)
    called: tuple[Tensor, ...] = ()

    def install(self, stack: ExitStack) -> None:
        """Put the hooks on; the stack takes them off again."""
        form = self.form
        wide = {"q": form.query_norm, "k": form.key_norm}
        reading: dict[str, list[str]] = {}
        for name in READING:
            if name in self.projections:
                reading.setdefault(self.projections[name].module, []).append(name)
        for path, names in reading.items():
            self._after(stack, path, self._cut(names))
        for path in (*form.stream_norms, *form.latent_norms):
            self._before(stack, path, self._keep(path))
        for name, norm_path in wide.items():
            if norm_path is not None:
                self._before(stack, norm_path, self._keep(norm_path))
                self._after(stack, norm_path, self._cut([name], whole=True))
        for name, norm in (("o", form.attention_inner_norm), ("down", form.mlp_inner_norm), ("shared.down", None)):
            if name in self.projections:
                self._before(stack, norm or self.projections[name].module, self._end(name, norm))
        if form.experts is not None:
            self._around(stack, form.experts)

    def _around(self, stack: ExitStack, experts: Experts) -> None:
        """Cut around the experts: what enters the mixture, their call, what they and the shared MLP give."""
        mixture = experts.module.rpartition(".")[0]

        def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            self.leaves["entering"] = args[0].detach().requires_grad_()
            return (self.leaves["entering"], *args[1:])

        def call(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.called = args[:3]

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            self.ends["mixture"] = first_tensor(output)

        self._before(stack, mixture, enter)
        self._before(stack, experts.module, call)
        self._after(stack, experts.module, self._cut(["experts"], whole=True))
        if experts.shared:
            self._after(stack, experts.shared["down"].module, self._cut(["shared"], whole=True))
        if experts.shared_gate is not None:
            self._after(stack, experts.shared_gate, self._cut(["shared_gate"], whole=True))
        norm = self.form.mlp_out_norm
        if norm is not None and norm.startswith(f"{mixture}."):  # the mixture norms its sum itself
            self._before(stack, norm, lambda part, args: leave(part, None, args))
        else:
            self._after(stack, mixture, leave)

    def _before(self, stack: ExitStack, path: str, hook: Any) -> None:
        stack.callback(self.block.get_submodule(path).register_forward_pre_hook(hook).remove)

    def _after(self, stack: ExitStack, path: str, hook: Any) -> None:
        stack.callback(self.block.get_submodule(path).register_forward_hook(hook).remove)

    def _keep(self, path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.points[path] = args[0].detach()

        return hook

    def _end(self, name: str, norm: str | None) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            self.ends[name] = args[0]
            if norm is not None:
                self.points[norm] = args[0].detach()
            return (args[0].detach(), *args[1:])

        return hook

    def _cut(self, names: Sequence[str], *, whole: bool = False) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            if len(names) == 1 and (whole or self.projections[names[0]].cut is None):
                self.leaves[names[0]] = output.detach().requires_grad_()
                return self.leaves[names[0]].clone()  # a block may clip in place, which a leaf does not allow
            orders = []
            for name in names:
                rows = self.projections[name].rows(self.block, self.heads)
                assert rows is not None
                orders.append(rows.to(output.device))
                self.leaves[name] = output.detach()[..., orders[-1]].requires_grad_()
            order = torch.cat(orders)
            if len(order) != output.shape[-1]:
                raise InputError(
                    f"the parts of a joint matrix must have all its {output.shape[-1]} rows, and {', '.join(names)} "
                    f'have {len(order)}: use method="frozen"'
                )
            joint = torch.cat([self.leaves[name] for name in names], -1)
            return joint if torch.equal(order.sort()[0], order) else joint.index_select(-1, order.argsort())

        return hook


def primal_point(context: Context, layer: int, cuts: Cuts, attention: str | None, *, live: bool = True) -> Primal:
    """Run the block once at the chosen positions, cut, and differentiate what lies between the cuts.

    Args:
        context: The recorded context.
        layer: Index of the block.
        cuts: The cuts of its working copy.
        attention: Name of the copy's attention function; None: its own. With `DETACHED`, the norms' variances and the
            gates are held fixed like the attention probabilities.
        live: Whether the weights of chosen experts are differentiated.

    Returns:
        The primal point of its W · P positions.
    """
    detached = attention == replay.DETACHED
    mlp = mlp_point(cuts, context.state(layer), run_of(context, layer, cuts.block, attention), detached, live=live)
    count, norms = context.positions.numel(), mlp.norms
    reading = {name: leaf for name, leaf in cuts.leaves.items() if name in ATTENDING}
    cores = derivative_by_head(cuts.ends["o"], reading, count, cuts.heads)
    across = {
        name: _spread(cores, name, norms[path])
        for name, path in (("q", cuts.form.query_norm), ("k", cuts.form.key_norm))
        if path is not None and name in cores
    }
    rotary = derivative_by_column(cuts.ends["o"], cuts.leaves["k_rot"], count) if "k_rot" in cuts.leaves else None
    return replace(mlp, cores=cores, across=across, rotary=rotary)


def mlp_point(
    cuts: Cuts, states: Float[Tensor, "window chosen d_model"], run: Run, detached: bool = False, *, live: bool = True
) -> Primal:
    """Run the block once, cut, and differentiate what lies between the cuts of its MLP or experts alone.

    Args:
        cuts: The cuts of its working copy.
        states: The streams that enter the block.
        run: The copy's run on them.
        detached: Whether the norms' variances and the gates are held fixed.
        live: Whether the weights of chosen experts are differentiated.

    Returns:
        The primal point without anything of attention.
    """
    dtype, count = next(cuts.block.parameters()).dtype, states[..., 0].numel()
    with ExitStack() as stack, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        cuts.install(stack)
        run(states.to(dtype))
    norms = {
        path: norm_derivative(cuts.block.get_submodule(path), point.reshape(count, -1), detached=detached)
        for path, point in cuts.points.items()
    }
    experts = None
    if cuts.form.experts is not None:
        called, leaves, ends = cuts.called, cuts.leaves, cuts.ends
        module = cuts.block.get_submodule(cuts.form.experts.module)
        experts = experts_primal(
            ExpertWeights.of(module), leaves["entering"], called, leaves, ends["mixture"], live=live
        )
    own, shared = (_slopes(cuts, count, prefix, detached=detached) for prefix in ("", "shared."))
    return Primal(norms, {}, {}, None, own, shared, experts)


def _spread(cores: dict[str, Tensor], name: str, norm: NormDerivative) -> tuple[Tensor, Tensor]:
    """Multiply a core by the derivative of a norm of all heads together; what goes from head to head is returned."""
    heads, count, out, inner = cores[name].shape
    size = norm.scale.shape[-1] // inner

    def by_head(rows: Tensor) -> Tensor:  # (n, size · inner, rank) → (head, n, inner, rank)
        return rows.reshape(count, size, inner, -1).movedim(1, 0).repeat_interleave(heads // size, 0)

    cores[name] = cores[name] * by_head(norm.scale)[..., 0][:, :, None]
    spread = cores[name] @ by_head(norm.directions)  # (head, n, out, rank)
    return spread.movedim(0, 1).reshape(count, heads * out, -1), norm.directions


def _slopes(cuts: Cuts, count: int, prefix: str, *, detached: bool) -> dict[str, Tensor]:
    leaves = {name: cuts.leaves[prefix + name] for name in ("gate", "up") if prefix + name in cuts.leaves}
    if not leaves:
        return {}
    end = cuts.ends[prefix + "down"]
    if detached and "gate" not in leaves:
        return {"up": detached_ratio(end, leaves["up"].reshape(end.shape)).detach().reshape(count, -1)}
    names = [name for name in leaves if not (detached and name == "gate")]
    slopes = torch.autograd.grad(end.sum(), [leaves[name] for name in names])
    return {name: slope.reshape(count, -1) for name, slope in zip(names, slopes, strict=True)}
