"""What of a block lies around its matrices: with them, all that its Jacobian is composed of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from probe.model.architectures.layout import Projection


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of an MLP.

    Attributes:
        module: Path of the experts; their `forward` takes states, choices and weights, and they hold the stacked
            matrices `gate_up_proj` (or `up_proj`) and `down_proj`.
        shared: The matrices `gate up down` of an MLP that is added to the experts' sum.
        shared_gate: Path of the linear module whose one output gates that MLP.
    """

    module: str
    shared: Mapping[str, Projection] = field(default_factory=dict)
    shared_gate: str | None = None


@dataclass(frozen=True)
class Latent:
    """A latent between the stream and the heads: a matrix reads the stream, a norm follows, a matrix spreads it.

    Attributes:
        reader: The projection that makes the latent of the stream.
        norm: Path of the norm of the latent.
        spreader: The projection that makes queries, keys or values of the normed latent.
    """

    reader: str
    norm: str
    spreader: str


@dataclass(frozen=True)
class Form:
    """Paths of the norms inside a standard block, and of its experts.

    A standard block is attention and an MLP, each with a norm before it, after it, or both, and each added to the
    stream. Its matrices are the layout's projections `q k v o gate up down` (an MLP without `gate` is not gated). What
    lies between a matrix and the attention function, or between the matrices of an MLP, needs no path: it is
    differentiated as it runs.

    Attributes:
        attention_norm: The norm before attention.
        attention_out_norm: The norm after attention.
        mlp_norm: The norm before the MLP.
        mlp_out_norm: The norm after the MLP.
        query_norm: The norm of the queries of all heads together. (A norm of each head needs no path.)
        key_norm: The norm of the keys of all heads together.
        latents: The latents of which queries, keys and values are made, by "q", "k" and "v".
        paired_heads: Whether heads h and h + H/2 write together (differential attention).
        head_norm: The norm of what each head writes, or each pair of heads.
        attention_gate: The matrix of a gate between attention and the matrix `o`, which reads what attention reads.
        attention_inner_norm: The norm of what enters the matrix `o`.
        mlp_inner_norm: The norm of what enters the matrix `down`.
        normed_residual: The name of the configuration's field that says whether the norms before attention and MLP act
            on the stream itself (Bloom).
        experts: The mixture of experts, if there is one in the place of the MLP.
    """

    attention_norm: str | None = None
    attention_out_norm: str | None = None
    mlp_norm: str | None = None
    mlp_out_norm: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    latents: Mapping[str, Latent] = field(default_factory=dict)
    paired_heads: bool = False
    head_norm: str | None = None
    attention_gate: Projection | None = None
    attention_inner_norm: str | None = None
    mlp_inner_norm: str | None = None
    normed_residual: str | None = None
    experts: Experts | None = None

    @property
    def stream_norms(self) -> tuple[str, ...]:
        """Paths of the norms around attention and MLP, each once."""
        paths = (self.attention_norm, self.attention_out_norm, self.mlp_norm, self.mlp_out_norm)
        return tuple(dict.fromkeys(path for path in paths if path is not None))

    @property
    def norms(self) -> tuple[str, ...]:
        """Paths of the norms that stay where attention probabilities are fixed, each once."""
        inner = (self.attention_inner_norm, self.mlp_inner_norm, self.head_norm)
        return (*self.stream_norms, *self.latent_norms, *(path for path in inner if path is not None))

    @property
    def latent_norms(self) -> tuple[str, ...]:
        """Paths of the norms of latents, each once."""
        return tuple(dict.fromkeys(latent.norm for latent in self.latents.values()))


_INNER = ("query_norm", "key_norm", "head_norm", "attention_inner_norm", "mlp_inner_norm")


def form_of(form: Form, block: nn.Module) -> Form:
    """Restrict an architecture's form to a block: norms inside the sub-layers that it lacks are left out.

    Args:
        form: The architecture's form.
        block: The block, or a working copy.

    Returns:
        The block's form.
    """
    paths = dict(block.named_modules())
    missing: dict[str, Any] = {name: None for name in _INNER if getattr(form, name) not in paths}
    experts = form.experts
    if experts is not None:
        shared = {name: matrix for name, matrix in experts.shared.items() if matrix.module in paths}
        experts = replace(experts, shared=shared)
    return replace(form, experts=experts, **missing)
