"""Options of a block Jacobian, checked against a model, and the method that the model gets."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from probe import replay
from probe.boundary import public
from probe.errors import InputError
from probe.jacobian.parts import PartName, require_part
from probe.jacobian.proof import require_proved
from probe.model import HuggingFaceModel, LanguageModel, require_layer
from probe.model.architectures import query_heads
from probe.replay import Context

logger = logging.getLogger("probe.jacobian")

MethodName = Literal["auto", "jacrev", "frozen", "analytic"]
ContextName = Literal["sequence", "alone", "detached"]
OutputName = Literal["state", "update"]
RoutingName = Literal["live", "frozen"]

_STATES, _LEAST_ROWS = 16 * 2**20, 8
"""Bytes of the gradients of a carried state in one batch of rows, which a processor's cache holds; rows at least."""
MEMORY = 2**30
"""Bytes that a computation may use besides its result, unless the user sets them."""


@public
@dataclass(frozen=True, kw_only=True)
class JacobianOptions:
    """The options of `probe.block_jacobian`, where each is described, and one intervention.

    Attributes:
        symmetrised_ov: Each head's W_O W_V, as it acts on the position itself, is replaced by its symmetric part; the
            method is then "analytic".
    """

    context: ContextName = "sequence"
    part: PartName = "block"
    of: OutputName = "state"
    method: MethodName = "auto"
    chunk: int | None = None
    memory: int = MEMORY
    dtype: torch.dtype = torch.float32
    routing: RoutingName = "live"
    symmetrised_ov: bool = False

    def resolved(self, model: LanguageModel, layer: int | None = None) -> MethodName:
        """Check the options against a model, and choose the method.

        Args:
            model: The model.
            layer: Index of the block; None: all of them.

        Returns:
            The method to begin with.

        Raises:
            InputError: If an option is out of range, or the model does not support it.
        """
        for name, value, allowed in (
            ("context", self.context, ContextName),
            ("of", self.of, OutputName),
            ("method", self.method, MethodName),
            ("routing", self.routing, RoutingName),
        ):
            if value not in get_args(allowed):
                raise InputError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}: choose one")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"chunk must be at least 1, got {self.chunk}: leave it out for what fits the memory")
        if self.memory < 1:
            raise InputError(f"memory must be a positive number of bytes, got {self.memory}: leave it out for 1 GiB")
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"dtype must be torch.float32 or torch.float64, got {self.dtype}: choose one of them; the model's own "
                "dtype may be any"
            )
        require_part(model, self.part)
        if model.attention not in ("eager", "sdpa", "none"):
            taken = "sdpa" if getattr(model.module, "_supports_sdpa", False) else "eager"
            raise InputError(
                f"Jacobians need attention with a recorded mask, eager or sdpa, and {model.name} runs "
                f'{model.attention!r}: load it with attn_implementation="{taken}"'
            )
        if (self.method == "analytic" or self.context == "detached") and not is_standard(model, layer):
            raise InputError(
                'method="analytic" and context="detached" need standard blocks (attention, then an MLP), and those of '
                f'{model.name} ({model.architecture}) are not: use method="auto" and another context'
            )
        if self.context == "detached" and _has_experts(model, layer):
            raise InputError(
                f'context="detached" needs an MLP, and {model.name} ({model.architecture}) has a mixture of experts: '
                'use routing="frozen" to hold the weights of the experts fixed'
            )
        if self.symmetrised_ov and (self.method not in ("auto", "analytic") or not is_standard(model, layer)):
            raise InputError(
                'symmetrised_ov=True needs a standard block and method="analytic", got '
                f"{self.method!r} for {model.name} ({model.architecture}): leave it out"
            )
        if self.method != "auto":
            return self.method
        if is_standard(model, layer):
            return "analytic"
        return "frozen" if _runs_transformers(model, layer) else "jacrev"

    def bytes_a_row(self, recorded: Context, block: nn.Module) -> int:
        """Estimate the memory of one row at one position in a backward pass.

        About two gradients of every width in the block, whose widths add up to its parameters / d.

        Args:
            recorded: The context.
            block: The block that is differentiated through.

        Returns:
            Bytes.
        """
        itemsize = torch.finfo(self.dtype).bits // 8
        return 2 * itemsize * sum(parameter.numel() for parameter in block.parameters()) // recorded.model.d_model

    def rows_at_once(
        self, recorded: Context, block: nn.Module, positions: int | None = None, layer: int | None = None
    ) -> int:
        """Choose the rows of a Jacobian in one batch: the user's `chunk`, or what fits the memory.

        A row's gradient of a carried state is as large as the state, and its products are bound by memory: of these
        as many are taken as stay in the processor's cache.

        Args:
            recorded: The context.
            block: The block that is differentiated through.
            positions: Number of positions that run; None: a whole sequence, with T × T attention.
            layer: Index of the block, where it runs over what it carries.

        Returns:
            At least 1, at most d.
        """
        if self.chunk is not None:
            return self.chunk
        row = self.bytes_a_row(recorded, block)
        if positions is None:
            heads = heads_of(recorded.model)
            length = recorded.tokens.shape[1]
            row = row * length + 3 * torch.finfo(self.dtype).bits // 8 * heads * length**2
        else:
            row *= positions
        rows = min(recorded.model.d_model, max(1, self.memory // row))
        if layer is None or positions is None or not (width := recorded.carried_width(layer)):
            return rows
        return min(rows, max(_LEAST_ROWS, _STATES // (width * positions * torch.finfo(self.dtype).bits // 8)))


def heads_of(model: LanguageModel) -> int:
    """Return the number of attention heads; 1 where the model has none.

    Args:
        model: The model.

    Returns:
        The number.
    """
    return query_heads(getattr(model.module, "config", None)) or 1


def is_standard(model: LanguageModel, layer: int | None = None) -> bool:
    """Tell whether blocks have a form from which their Jacobians are composed. Whether they are is proved as they run.

    Args:
        model: The model.
        layer: Index of the block; None: all of them.

    Returns:
        False also for blocks whose modules were replaced, as a TransformerBridge does.
    """
    if not (isinstance(model, HuggingFaceModel) and _runs_transformers(model, layer)):
        return False
    return all(model.at(each).form is not None for each in (range(model.n_layers) if layer is None else (layer,)))


def _has_experts(model: LanguageModel, layer: int | None) -> bool:
    if not isinstance(model, HuggingFaceModel):
        return False
    forms = (model.at(each).form for each in (range(model.n_layers) if layer is None else (layer,)))
    return any(form is not None and form.experts is not None for form in forms)


def _runs_transformers(model: LanguageModel, layer: int | None = None) -> bool:
    blocks = model.blocks if layer is None else [model.blocks[layer]]
    packages = {type(module).__module__ for block in blocks for module in block.modules()}
    return all(package.startswith(("torch.", "transformers.", "peft.")) for package in packages)


@public
def method_of(model: LanguageModel, layer: int | None = None) -> MethodName:
    """Choose the method that `method="auto"` takes for a model.

    "analytic" where the blocks are standard (their layout has a form) and the composed Jacobian of each was found equal
    to the derivative of its code, on a few tokens; "frozen" for other blocks of transformers, state-space blocks among
    them (it falls back to "jacrev" where a block turns out not to run at single positions); "jacrev" for all other
    code. A model with blocks of several kinds has several methods.

    Args:
        model: The model.
        layer: Index of a block; None: the method that suits all of them.

    Returns:
        The method's name.
    """
    if layer is not None:
        require_layer(model, layer)
    if is_standard(model, layer) and _all_proved(model, range(model.n_layers) if layer is None else [layer]):
        return "analytic"
    return "frozen" if _runs_transformers(model, layer) else "jacrev"


def _all_proved(model: LanguageModel, layers: Iterable[int]) -> bool:
    tokens = replay.tiny_tokens(model, 1, 6)
    for layer in layers:
        recorded = replay.record(model, tokens, torch.full((1, 1), 5), layers=[layer])
        try:
            require_proved(recorded, layer, replay.LINEARISED if recorded.linear(layer) else None)
        except InputError as error:
            logger.info("%s", error)
            return False
    return True
