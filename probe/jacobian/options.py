"""How a block Jacobian is computed: the options, checked once, and the method that a model gets."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from probe.errors import InputError
from probe.jacobian.parts import require_part
from probe.model import HuggingFaceModel, LanguageModel
from probe.model.architectures import STANDARD, accounts_for, form_of
from probe.replay import Context

logger = logging.getLogger("probe.jacobian")

Method = Literal["auto", "jacrev", "frozen", "analytic"]
Kind = Literal["sequence", "alone", "detached"]
Of = Literal["state", "update"]

MEMORY = 2**30
"""Bytes that a computation may use besides its result, unless the user sets them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `probe.block_jacobian`, where each is described, and one intervention.

    Attributes:
        symmetrised_ov: Every head's W_O W_V, as it acts on the position itself, replaced by its symmetric part; the
            method is then "analytic".
    """

    context: str = "sequence"
    part: str = "block"
    of: str = "state"
    method: str = "auto"
    chunk: int | None = None
    memory: int = MEMORY
    dtype: torch.dtype = torch.float32
    symmetrised_ov: bool = False

    def resolved(self, model: LanguageModel) -> str:
        """Check the options against a model.

        Args:
            model: The model.

        Returns:
            The method that runs.

        Raises:
            InputError: If an option out of its range, or one that the model does not have.
        """
        for name, value, allowed in (
            ("context", self.context, Kind),
            ("of", self.of, Of),
            ("method", self.method, Method),
        ):
            if value not in get_args(allowed):
                raise InputError(f"{name} must be one of {', '.join(get_args(allowed))}; got {value!r}")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"chunk must be at least 1, got {self.chunk}; leave it out for what fits the memory")
        if self.memory < 1:
            raise InputError(f"memory must be a number of bytes above zero, got {self.memory}")
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError(f"dtype must be torch.float32 or torch.float64, got {self.dtype}; load the model in any")
        require_part(model, self.part)
        if model.attention not in ("eager", "sdpa", "none"):
            raise InputError(
                f"Jacobians need attention with a recorded mask, eager or sdpa, and {model.name} runs "
                f'{model.attention!r}; load it with attn_implementation="sdpa"'
            )
        if (self.method == "analytic" or self.context == "detached") and not is_standard(model):
            raise InputError(
                f'method="analytic" and context="detached" need a standard block of {", ".join(STANDARD)}; '
                f'{model.name} is {model.architecture}: use method="auto" and another context'
            )
        if self.symmetrised_ov and (self.method not in ("auto", "analytic") or not is_standard(model)):
            raise InputError(
                'symmetrised_ov needs a standard block that is composed of its matrices, method="analytic": got '
                f"{self.method!r} for {model.name} ({model.architecture}); leave it out"
            )
        if self.method != "auto":
            return self.method
        method = method_of(model)
        logger.info("block Jacobians of %s (%s) by method %s", model.name, model.architecture, method)
        return method

    def bytes_a_row(self, recorded: Context, block: nn.Module) -> int:
        """What one row takes at one position in a backward pass: about two gradients of every width in the block."""
        itemsize = torch.finfo(self.dtype).bits // 8
        # The widths of a block add up to its parameters / d.
        return 2 * itemsize * sum(parameter.numel() for parameter in block.parameters()) // recorded.model.d_model

    def rows_at_once(self, recorded: Context, block: nn.Module, positions: int | None = None) -> int:
        """Rows of a Jacobian in one batch: the user's `chunk`, or what fits the memory.

        Args:
            recorded: The context.
            block: The block that is differentiated through.
            positions: How many positions run; None: a whole sequence, its attention T × T.

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
        return min(recorded.model.d_model, max(1, self.memory // row))


def heads_of(model: LanguageModel) -> int:
    """The number of attention heads; 1 where the model has none.

    Args:
        model: The model.

    Returns:
        The number.
    """
    return int(getattr(getattr(model.module, "config", None), "num_attention_heads", 1))


def is_standard(model: LanguageModel) -> bool:
    """Whether a model's block is one whose Jacobian is composed of its matrices: a row of `STANDARD`, its own modules.

    Args:
        model: The model.

    Returns:
        False also for blocks whose parts were replaced, as a TransformerBridge does, or that have a part which the row
        does not name.
    """
    if not (isinstance(model, HuggingFaceModel) and model.architecture in STANDARD and _runs_transformers(model)):
        return False
    matrices = [projection.module for projection in model.layout.projections.values()]
    return all(accounts_for(form_of(STANDARD[model.architecture], block), block, matrices) for block in model.blocks)


def _runs_transformers(model: LanguageModel) -> bool:
    parts = {type(module).__module__ for block in model.blocks for module in block.modules()}
    return all(part.startswith(("torch.", "transformers.")) for part in parts)


def method_of(model: LanguageModel) -> str:
    """The method that `method="auto"` takes for a model.

    "analytic" where the block is standard (`probe.model.architectures.STANDARD`); "frozen" where it is another one of
    transformers' own, state-space blocks among them (with a fall back to "jacrev" where its attention turns out not to
    be exchangeable); "jacrev" for all other code.

    Args:
        model: The model.

    Returns:
        The method's name.
    """
    if is_standard(model):
        return "analytic"
    return "frozen" if _runs_transformers(model) else "jacrev"
