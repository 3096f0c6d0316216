"""The differences between architectures, as data: one row each, a `Layout`, by the `model_type` of its configuration.

`gpt.py`, `llama.py`, `experts.py`, `latent.py` and `state_space.py` hold the rows, relatives together; `layout.py`
defines what a row says. To add an architecture, write one more row (CONTRIBUTING.md, "Add an architecture"): no other
code asks for an architecture by name. Without a row a model goes through its TransformerLens adapter
(`probe.model.adapters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from probe.model.architectures import experts, gpt, latent, llama, state_space
from probe.model.architectures.checks import query_heads, require_causal_stream
from probe.model.architectures.form import Experts, Form, Latent
from probe.model.architectures.layout import (
    LATENT_READERS,
    SPREADERS,
    BlockLayout,
    Cut,
    Layout,
    Matrix,
    Pairs,
    Projection,
    SitePath,
    matrix_of,
    number_of,
)
from probe.model.architectures.norms import NormLaw, gain_of, law_of
from probe.model.architectures.stacks import ExpertStack, experts_in

__all__ = [
    "ARCHITECTURES",
    "LATENT_READERS",
    "SPREADERS",
    "BlockLayout",
    "Cut",
    "ExpertStack",
    "Experts",
    "Form",
    "Latent",
    "Layout",
    "Matrix",
    "NormLaw",
    "Pairs",
    "Projection",
    "SitePath",
    "experts_in",
    "gain_of",
    "law_of",
    "matrix_of",
    "number_of",
    "query_heads",
    "require_causal_stream",
]

ARCHITECTURES: Mapping[str, Layout] = MappingProxyType({
    **gpt.ROWS,
    **llama.ROWS,
    **experts.ROWS,
    **latent.ROWS,
    **state_space.ROWS,
})
"""The rows, by the `model_type` of their configuration."""
