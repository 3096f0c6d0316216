"""Norms and activation of a standard block: with its matrices, all that its Jacobian is composed of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Form:
    """Paths of the norms and of the activation inside a standard block.

    A standard block is attention and an MLP, each with a norm before it, after it, or both, and each added to the
    stream. Its matrices are the layout's projections `q k v o gate up down` (an MLP without `gate` is not gated).

    Attributes:
        activation: The MLP's activation.
        attention_norm: The norm before attention.
        attention_out_norm: The norm after attention.
        mlp_norm: The norm before the MLP.
        mlp_out_norm: The norm after the MLP.
        query_norm: The norm of the queries, of each head or of all together, in models that have it.
        key_norm: The norm of the keys.
        gain_offset: Number that the norms add to their weight to get the gain.
        query_scale: Path of the attribute that multiplies the projected queries before attention.
    """

    activation: str
    attention_norm: str | None = None
    attention_out_norm: str | None = None
    mlp_norm: str | None = None
    mlp_out_norm: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    gain_offset: float = 0.0
    query_scale: str | None = None

    @property
    def stream_norms(self) -> tuple[str, ...]:
        """Paths of the norms around attention and MLP, each once."""
        paths = (self.attention_norm, self.attention_out_norm, self.mlp_norm, self.mlp_out_norm)
        return tuple(dict.fromkeys(path for path in paths if path is not None))


def form_of(form: Form, block: nn.Module) -> Form:
    """Restrict an architecture's form to a block: norms of queries and keys that this model lacks are left out.

    Args:
        form: The architecture's form.
        block: The block, or a working copy.

    Returns:
        The block's form.
    """
    paths = dict(block.named_modules())
    query, key = (path if path in paths else None for path in (form.query_norm, form.key_norm))
    return replace(form, query_norm=query, key_norm=key)


def accounts_for(form: Form, block: nn.Module, matrices: Iterable[str]) -> bool:
    """Check that a block computes with nothing but its form and its matrices: no other module has a parameter.

    Args:
        form: The block's form.
        block: The block.
        matrices: Paths of the modules that hold its projections.

    Returns:
        False if some other module of the block has parameters, so that the form would miss its derivative.
    """
    known = {form.activation, form.query_norm, form.key_norm, *form.stream_norms, *matrices}
    return all(name.rpartition(".")[0] in known for name, _ in block.named_parameters())
