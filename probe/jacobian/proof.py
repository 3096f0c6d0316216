"""The proof of a composed Jacobian: one product with it, against a backward pass through the block's own code."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from probe import replay
from probe.errors import InputError
from probe.jacobian import analytic
from probe.jacobian.parts import run_of
from probe.jacobian.primal import primal_point
from probe.model import HuggingFaceModel

logger = logging.getLogger("probe.jacobian")

_RELATIVE, _ABSOLUTE = 1e-4, 1e-6
"""Difference allowed, relative to the product with K and to the vector: norms compute in float32 in many models."""


@dataclass
class Proofs:
    """Findings on a model's blocks.

    Attributes:
        found: By layer, and by whether there was a past, the state of the block's modules and what is wrong, or None.
    """

    found: dict[tuple[int, bool], tuple[Hashable, str | None]] = field(default_factory=dict)


def proofs_of(model: HuggingFaceModel) -> Proofs:
    """Return the proofs of a model, which are kept on the model.

    Args:
        model: The model.

    Returns:
        The proofs.
    """
    kept: dict[str, Any] = vars(model)
    proofs: Proofs = kept.setdefault("_composed", Proofs())
    return proofs


def require_proved(recorded: replay.Context, layer: int, attention: str | None) -> None:
    """Refuse a block whose composed Jacobian is not the derivative of its own code.

    One random vector times K, at one position, is compared with a backward pass of the block with its own attention, in
    float64. It is done once a block; again if its modules or hooks changed, or if it was done without a past.

    Args:
        recorded: The context.
        layer: Index of the block, whose layout has a form.
        attention: Name of the attention function of the working copies; None: the model's own.

    Raises:
        InputError: If the two differ by more than rounding, or the block does not run so.
    """
    model = recorded.model
    assert isinstance(model, HuggingFaceModel)
    found, past = proofs_of(model).found, recorded.tokens.shape[1] > 1
    now = _state(model.blocks[layer])
    known = next((found[key] for key in ((layer, True), (layer, past)) if key in found and found[key][0] == now), None)
    if known is None:
        known = now, _flaw(recorded, layer, attention)
        found[layer, past] = known
    if known[1] is not None:
        raise InputError(known[1])


def _state(block: nn.Module) -> Hashable:
    """The modules of a block and their hooks, on which the form of its derivative depends."""
    return tuple(
        (id(module), tuple(map(id, module._forward_hooks.values())), tuple(map(id, module._forward_pre_hooks.values())))
        for module in block.modules()
    )


def _flaw(recorded: replay.Context, layer: int, attention: str | None) -> str | None:
    assert isinstance(recorded.model, HuggingFaceModel)
    model, piece = recorded.model, recorded.select(slice(0, 1), slice(-1, None)).alone_standing()
    dtype = torch.float32 if model.device.type == "mps" else torch.float64
    tolerance = 1e3 if dtype is torch.float32 else 1.0
    generator = torch.Generator().manual_seed(layer)
    vector = torch.randn(model.d_model, dtype=torch.float64, generator=generator).to(model.device, dtype)
    try:
        composed, expected = _product(piece, layer, attention, vector), _pulled(piece, layer, vector)
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        missing = _missing(model, layer)
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return (
            f"a composed Jacobian needs a block that runs cut at its matrices, and block {layer} of {model.name} does "
            f'not ({"it has no matrix " + ", ".join(missing) if missing else reason}): use method="frozen"'
        )
    difference, size = float((composed - expected).norm()), float(expected.norm())
    if difference <= tolerance * (_RELATIVE * size + _ABSOLUTE * float(vector.norm())):
        return None
    return (
        f"a composed Jacobian must be the derivative of the block, and that of block {layer} of {model.name} "
        f'({model.architecture}) is {difference / max(size, 1e-30):.1e} off: use method="frozen"'
    )


def _missing(model: HuggingFaceModel, layer: int) -> list[str]:
    """The matrices that a form needs and the block's layout does not have."""
    kind = model.at(layer)
    experts = kind.form is not None and kind.form.experts is not None
    return [name for name in ("q", "k", "v", "o", *(() if experts else ("up", "down"))) if name not in kind.projections]


def _product(piece: replay.Context, layer: int, attention: str | None, vector: Tensor) -> Tensor:
    assert isinstance(piece.model, HuggingFaceModel)
    standard = analytic.StandardBlock.of(piece.model, layer, vector.dtype, attention)
    primal = primal_point(piece, layer, standard.cuts, attention)
    return vector @ analytic.update_jacobian(standard, primal, slice(None), "block")[0]


def _pulled(piece: replay.Context, layer: int, vector: Tensor) -> Tensor:
    copy = replay.working_copy(piece.model.blocks[layer], vector.dtype)
    point = piece.state(layer).to(vector.dtype).requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        after = run_of(piece, layer, copy, None)(point)
        (row,) = torch.autograd.grad(after, point, vector.expand(after.shape))
    return row.reshape(-1) - vector
