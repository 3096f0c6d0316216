"""How a block Jacobian is computed: the options, checked once, and the method that a model gets."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from probe.errors import InputError
from probe.huggingface import HuggingFaceModel
from probe.jacobian.forms import FORMS
from probe.jacobian.parts import require_part
from probe.model import LanguageModel

logger = logging.getLogger("probe.jacobian")

Method = Literal["auto", "jacrev", "frozen", "analytic"]
Kind = Literal["sequence", "alone", "detached"]
Of = Literal["state", "update"]

MEMORY = 2**30
"""Bytes that a computation may use besides its result, unless the user sets them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `probe.block_jacobian`, where each is described."""

    context: str = "sequence"
    part: str = "block"
    of: str = "state"
    method: str = "auto"
    chunk: int | None = None
    memory: int = MEMORY
    dtype: torch.dtype = torch.float32

    def resolved(self, model: LanguageModel) -> str:
        """Check the options against a model.

        Args:
            model: the model.

        Returns:
            The method that runs.

        Raises:
            InputError: an option out of its range, or one that the model does not have.
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
                f'method="analytic" and context="detached" need a standard block of {", ".join(FORMS)}; {model.name} '
                f'is {model.architecture}: use method="auto" and another context'
            )
        if self.method != "auto":
            return self.method
        method = method_of(model)
        logger.info("block Jacobians of %s (%s) by method %s", model.name, model.architecture, method)
        return method


def is_standard(model: LanguageModel) -> bool:
    """Whether a model's block is one whose Jacobian is composed of its matrices: a row of `FORMS`, its own modules.

    Args:
        model: the model.

    Returns:
        False also for blocks whose parts were replaced, as a TransformerBridge does.
    """
    if not isinstance(model, HuggingFaceModel) or model.architecture not in FORMS:
        return False
    return all(type(module).__module__.startswith(("torch.", "transformers.")) for module in model.blocks[0].modules())


def method_of(model: LanguageModel) -> str:
    """The method that `method="auto"` takes for a model.

    "analytic" where the block is standard (`probe.jacobian.forms.FORMS`); else "frozen", which falls back to "jacrev"
    where the attention of an architecture without a row of its own cannot be exchanged.

    Args:
        model: the model.

    Returns:
        The method's name.
    """
    return "analytic" if is_standard(model) else "frozen"
