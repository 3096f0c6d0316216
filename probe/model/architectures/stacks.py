"""The experts of a block, whose matrices are stacked in few parameters.

The modules of transformers hold `gate_up_proj` (or `up_proj` alone) and `down_proj`, with an axis of experts in front,
as (expert, out, in) or transposed; rows of gate and up follow each other or alternate. JetMoE's are the weights of two
sub-modules; DBRX's are `w1`, `v1` and `w2`, with the rows of one expert behind those of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Arrangement = Literal["following", "alternating"]


@dataclass(frozen=True)
class ExpertStack:
    """The experts of a block, and how their matrices are stored.

    Attributes:
        module: Path of the module that holds them, inside the block.
        count: Number of experts.
        parameters: Path of the parameter that holds each projection inside that module: of `gate` (where there is
            one), `up` and `down`.
        transposed: The projections that are stored as (in, out).
        rows: Order of the rows of gate and up, where one parameter holds both.
        flat: Whether the experts share an axis with the rows of their matrices, instead of having their own.
    """

    module: str
    count: int
    parameters: Mapping[str, str]
    transposed: tuple[str, ...] = ()
    rows: Arrangement = "following"
    flat: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The projections of one expert."""
        return tuple(self.parameters)

    def piece(self, expert: int, rows: int) -> slice:
        """Find an expert's entries along the first axis of a parameter.

        Args:
            expert: Its index.
            rows: Length of that axis.

        Returns:
            The slice; it keeps the axis.
        """
        size = rows // self.count if self.flat else 1
        return slice(expert * size, (expert + 1) * size)

    def cut(self, name: str, stored: Tensor) -> Tensor:
        """Cut one projection of an expert out of that expert's entries of a parameter.

        Args:
            name: "gate", "up" or "down".
            stored: The entries: a matrix, or one with an axis of length 1 before it.

        Returns:
            The projection, (out, in).
        """
        matrix = stored[0] if stored.ndim == 3 else stored
        if name in self.transposed:
            matrix = matrix.mT
        if name == "down" or self.parameters.get("gate") != self.parameters["up"]:
            return matrix
        first = name == "gate"
        if self.rows == "alternating":
            return matrix[0 if first else 1 :: 2]
        half = len(matrix) // 2
        return matrix[:half] if first else matrix[half:]


def experts_in(block: nn.Module) -> ExpertStack | None:
    """Find the experts of a block by the parameters that its modules hold.

    Args:
        block: The block; it may have no values (on the meta device).

    Returns:
        The experts; None if there are none, or they are stored in another way.
    """
    return next((stack for path, module in block.named_modules() for stack in _stacks(path, module)), None)


def _stacks(path: str, module: Any) -> Iterator[ExpertStack]:
    for first, second in (("gate_up_proj", "down_proj"), ("up_proj", "down_proj"), _SUB_MODULES):
        inner, down = _parameter(module, first), _parameter(module, second)
        apart = _parameter(module, "gate_proj") is not None
        if inner is None or down is None or inner.ndim != 3 or down.ndim != 3 or apart:
            continue
        joint, count = first != "up_proj", min(len(inner), len(down))
        turned = getattr(module, "is_transposed", joint and inner.shape[1] == down.shape[2])
        wide = inner.shape[2 if turned else 1] == 2 * down.shape[1 if turned else 2]
        if count < 2 or joint != wide:
            continue
        names = ("gate", "up") if joint else ("up",)
        parameters = dict.fromkeys(names, first) | {"down": second}
        alternating = joint and not getattr(module, "is_concatenated", True)
        yield ExpertStack(
            path, count, parameters, tuple(parameters) if turned else (), "alternating" if alternating else "following"
        )
    flat = [_parameter(module, name) for name in _FLAT.values()]
    count = getattr(module, "moe_num_experts", 0)
    if count > 1 and all(one is not None and one.ndim == 2 and not len(one) % count for one in flat):
        yield ExpertStack(path, count, dict(_FLAT), ("down",), flat=True)


_SUB_MODULES = ("input_linear.weight", "output_linear.weight")
_FLAT = {"gate": "w1", "up": "v1", "down": "w2"}


def _parameter(module: nn.Module, path: str) -> Tensor | None:
    try:
        return module.get_parameter(path)
    except AttributeError:
        return None
