"""Options of a block Jacobian, checked against a model, and the method that the model gets."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from probe.errors import InputError
from probe.jacobian.parts import PartName, require_part
from probe.model import HuggingFaceModel, LanguageModel
from probe.model.architectures import STANDARD, accounts_for, form_of
from probe.replay import Context

logger = logging.getLogger("probe.jacobian")

MethodName = Literal["auto", "jacrev", "frozen", "analytic"]
ContextName = Literal["sequence", "alone", "detached"]
OutputName = Literal["state", "update"]

MEMORY = 2**30
"""Bytes that a computation may use besides its result, unless the user sets them."""


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
    symmetrised_ov: bool = False

    def resolved(self, model: LanguageModel) -> MethodName:
        """Check the options against a model, and choose the method.

        Args:
            model: The model.

        Returns:
            The method that runs.

        Raises:
            InputError: If an option is out of range, or the model does not support it.
        """
        for name, value, allowed in (
            ("context", self.context, ContextName),
            ("of", self.of, OutputName),
            ("method", self.method, MethodName),
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
            raise InputError(
                f"Jacobians need attention with a recorded mask, eager or sdpa, and {model.name} runs "
                f'{model.attention!r}: load it with attn_implementation="sdpa"'
            )
        if (self.method == "analytic" or self.context == "detached") and not is_standard(model):
            raise InputError(
                f'method="analytic" and context="detached" need a standard block of {", ".join(STANDARD)}, and '
                f'{model.name} is {model.architecture}: use method="auto" and another context'
            )
        if self.symmetrised_ov and (self.method not in ("auto", "analytic") or not is_standard(model)):
            raise InputError(
                'symmetrised_ov=True needs a standard block and method="analytic", got '
                f"{self.method!r} for {model.name} ({model.architecture}): leave it out"
            )
        if self.method != "auto":
            return self.method
        method = method_of(model)
        logger.info("block Jacobians of %s (%s) by method %s", model.name, model.architecture, method)
        return method

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

    def rows_at_once(self, recorded: Context, block: nn.Module, positions: int | None = None) -> int:
        """Choose the rows of a Jacobian in one batch: the user's `chunk`, or what fits the memory.

        Args:
            recorded: The context.
            block: The block that is differentiated through.
            positions: Number of positions that run; None: a whole sequence, with T × T attention.

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
    """Return the number of attention heads; 1 where the model has none.

    Args:
        model: The model.

    Returns:
        The number.
    """
    return int(getattr(getattr(model.module, "config", None), "num_attention_heads", 1))


def is_standard(model: LanguageModel) -> bool:
    """Tell whether a model's block has a Jacobian composed of its matrices: a row of `STANDARD`, unchanged modules.

    Args:
        model: The model.

    Returns:
        False also for blocks whose modules were replaced, as a TransformerBridge does, or that have a module which the
        row does not name.
    """
    if not (isinstance(model, HuggingFaceModel) and model.architecture in STANDARD and _runs_transformers(model)):
        return False
    matrices = [projection.module for projection in model.layout.projections.values()]
    return all(accounts_for(form_of(STANDARD[model.architecture], block), block, matrices) for block in model.blocks)


def _runs_transformers(model: LanguageModel) -> bool:
    packages = {type(module).__module__ for block in model.blocks for module in block.modules()}
    return all(package.startswith(("torch.", "transformers.")) for package in packages)


def method_of(model: LanguageModel) -> MethodName:
    """Choose the method that `method="auto"` takes for a model.

    "analytic" where the block is standard (`probe.model.architectures.STANDARD`); "frozen" for other blocks of
    transformers, state-space blocks among them (it falls back to "jacrev" where blocks turn out not to run at
    single positions); "jacrev" for all other code.

    Args:
        model: The model.

    Returns:
        The method's name.
    """
    if is_standard(model):
        return "analytic"
    return "frozen" if _runs_transformers(model) else "jacrev"
