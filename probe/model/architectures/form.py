"""Norms and activation of a standard block: what its Jacobian is composed of, besides its matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Form:
    """The norms and the activation of a block, as paths inside it.

    The block is attention and an MLP, each with a norm before it, behind it, or both, and each added to the stream;
    its matrices are the layout's projections `q k v o gate up down` (without `gate` the MLP is not gated).

    Attributes:
        activation: The MLP's activation.
        attention_norm: The norm before attention.
        attention_out_norm: The norm behind attention.
        mlp_norm: The norm before the MLP.
        mlp_out_norm: The norm behind the MLP.
        query_norm: The norm of the queries, of each head or of all together, where a model has it.
        key_norm: The norm of the keys.
        gain_offset: What the norms add to their weight to get the gain.
        query_scale: Attribute that the projected queries are multiplied by before attention.
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
    """The form of a block: that of its architecture, without norms of queries and keys that this model leaves out.

    Args:
        form: That of the architecture.
        block: The block, or a working copy.

    Returns:
        The form.
    """
    paths = dict(block.named_modules())
    query, key = (path if path in paths else None for path in (form.query_norm, form.key_norm))
    return replace(form, query_norm=query, key_norm=key)


def accounts_for(form: Form, block: nn.Module, matrices: Iterable[str]) -> bool:
    """Whether a form and the matrices are all that a block computes with: no parameter is anywhere else.

    Args:
        form: The block's form.
        block: The block.
        matrices: Paths of the modules that hold its projections.

    Returns:
        False where some module of the block has a derivative that the form knows nothing of.
    """
    known = {form.activation, form.query_norm, form.key_norm, *form.stream_norms, *matrices}
    return all(name.rpartition(".")[0] in known for name, _ in block.named_parameters())
