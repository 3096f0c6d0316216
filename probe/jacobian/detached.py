"""Working copies whose norms, attention probabilities and gates are held fixed (Golden 2025, arXiv 2505.24293).

Without biases such a block is linear in the whole sequence: h_{l+1}(s) = Σ_t J(s, t) h_l(t), with the Jacobians of the
detached block. The detached Jacobian is not the block's own, which includes the derivatives of all of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probe.boundary import public
from probe.errors import InputError
from probe.jacobian.norms import DetachedNorm
from probe.model import HuggingFaceModel
from probe.model.architectures import Experts, Form, Matrix, Projection
from probe.replay import working_copy


def detached_ratio(active: Tensor, before: Tensor) -> Tensor:
    """Divide φ(x) by x; zero where x is zero.

    Args:
        active: φ(x).
        before: x.

    Returns:
        The ratio.
    """
    return torch.where(before == 0, torch.zeros_like(before), active / torch.where(before == 0, 1.0, before))


def detach(copy: nn.Module, form: Form, projections: Mapping[str, Matrix], heads: int) -> nn.Module:
    """Hold norms, and the gate or the activation, of a working copy of a standard block fixed.

    Args:
        copy: The working copy, changed in place; its attention was chosen when it was made.
        form: Paths of its norms.
        projections: Its matrices.
        heads: Number of attention heads.

    Returns:
        The copy.
    """
    for path in form.norms:
        copy.set_submodule(path, DetachedNorm(copy.get_submodule(path)))
    part = projections.get("gate", projections["up"])
    assert isinstance(part, Projection)
    linear, rows = copy.get_submodule(part.module), part.rows(copy, heads)
    if "gate" in projections:
        linear.register_forward_hook(_fixed(rows))
        return copy
    seen = list[Tensor]()
    linear.register_forward_hook(lambda _, __, output: seen.append(output))

    def fix(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        before = seen.pop()
        return (detached_ratio(args[0].detach(), before.detach()) * before, *args[1:])

    end = projections["down"].module if form.mlp_inner_norm is None else form.mlp_inner_norm
    copy.get_submodule(end).register_forward_pre_hook(fix)
    return copy


@public
def detached_tail(model: HuggingFaceModel, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Make what follows the last block, with the final norm's statistics held fixed and without a soft cap.

    Args:
        model: The model.
        dtype: A floating dtype, of the arithmetic.

    Returns:
        The function from states (..., d) to logits (..., n_vocab); its value is the model's own before a soft cap.

    Raises:
        InputError: If more than a norm and a head follow the last block.
    """
    tail = model.found.tail.within(dtype)
    if len(tail.steps) > 2:
        raise InputError(
            f"logits must come of a norm and a head, and between them {model.name} ({model.architecture}) has "
            f"{', '.join(step.path for step in tail.steps[1:-1])}: use another model"
        )
    copy = working_copy(model.module, dtype, without=model.module.get_submodule(model.layout.blocks))
    if tail.norm is not None:
        copy.set_submodule(tail.norm, DetachedNorm(copy.get_submodule(tail.norm)))
    plain = replace(tail, cap=None)
    return lambda states: plain.logits(copy, plain.normed(copy, states))


def _fixed(rows: Tensor | None) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Make a hook that holds some columns of a module's output fixed."""

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        if rows is None:
            return output.detach()
        fixed = torch.zeros(output.shape[-1], dtype=torch.bool, device=output.device)
        fixed[rows.to(output.device)] = True
        return torch.where(fixed, output.detach(), output)

    return hook


def freeze_routing(copy: nn.Module, experts: Experts) -> nn.Module:
    """Hold the weights of the chosen experts of a working copy fixed.

    Args:
        copy: The working copy, changed in place.
        experts: Its experts.

    Returns:
        The copy.
    """

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0], *(argument.detach() for argument in args[1:]))

    copy.get_submodule(experts.module).register_forward_pre_hook(hook)
    return copy
