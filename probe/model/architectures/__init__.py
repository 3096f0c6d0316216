"""What differs between architectures, as data: one row each, rows of one kind in a file.

A row says where the blocks, the sites and the matrices of an architecture are, and of a standard block its norms and
activation. Nothing else in the library asks which architecture a model has.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from probe.model.architectures import gpt, llama, state_space
from probe.model.architectures.checks import logits_from_head, require_causal_stream
from probe.model.architectures.form import Form, accounts_for, form_of
from probe.model.architectures.layout import Layout, Matrix, Place, Projection

__all__ = [
    "ARCHITECTURES",
    "STANDARD",
    "Form",
    "Layout",
    "Matrix",
    "Place",
    "Projection",
    "accounts_for",
    "form_of",
    "logits_from_head",
    "norm_of",
    "require_causal_stream",
]

ARCHITECTURES: Mapping[str, Layout] = MappingProxyType({**gpt.ROWS, **llama.ROWS, **state_space.ROWS})
"""The tested architectures, by the `model_type` of their configuration."""

STANDARD: Mapping[str, Form] = MappingProxyType({
    name: row.form for name, row in ARCHITECTURES.items() if row.form is not None
})
"""The forms of the architectures whose block is standard."""


def norm_of(architecture: str, recurrent: bool, name: str) -> tuple[str, float] | None:
    """Where the norm between the stream and a projection is.

    Args:
        architecture: The configuration's `model_type`.
        recurrent: A block is one mixer behind one norm.
        name: A projection.

    Returns:
        Its path inside the block, and what it adds to its weight; None where there is none or it is not known.
    """
    if recurrent:
        return ("norm", 0.0) if name == "in" else None
    form = STANDARD.get(architecture)
    if form is None:
        return None
    paths = dict.fromkeys("qkv", form.attention_norm) | dict.fromkeys(("gate", "up"), form.mlp_norm)
    paths |= {"o": form.attention_out_norm, "down": form.mlp_out_norm}
    path = paths.get(name)
    return None if path is None else (path, form.gain_offset)
