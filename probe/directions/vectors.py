"""Directions with names and a place in the stream, and two of their sources: differences of means and the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from probe import display, replay
from probe.boundary import finite, public
from probe.errors import InputError
from probe.geometry import cosine
from probe.model import HuggingFaceModel, LanguageModel, token_of
from probe.model.architectures.norms import NormLaw, law_of

Arrays: TypeAlias = Real[Tensor, "..."] | Real[np.ndarray, "..."]
"""What holds numbers: tensors and numpy arrays."""
PARALLEL = 1 - 1e-4
"""Least cosine between what a final norm gives and what its law says, for the law to be taken."""


@public
@dataclass(frozen=True, eq=False, repr=False)
class Directions(display.Shown):
    """Vectors of the residual stream, with names.

    Attributes:
        vectors: The vectors, float64 on the CPU, (n, d).
        names: A name for each.
        depth: The depth of the stream at which they lie: l is the stream that enters block l, L the one behind the
            last. None if that is not known.
        site: The name of the tensor from which they come, as their source states it; None if it states none.
    """

    vectors: Float[Tensor, "n d"]
    names: tuple[str, ...]
    depth: int | None = None
    site: str | None = None

    def __len__(self) -> int:
        return len(self.names)


GivenDirections: TypeAlias = Directions | Arrays
"""What every function takes as directions."""


def directions_of(given: GivenDirections, width: int, *, argument: str = "directions") -> Directions:
    """Take what came as directions.

    Args:
        given: `Directions`, or vectors as a tensor or array of any real dtype, (d,) or (n, d).
        width: Width d of the stream.
        argument: Name of the argument, for messages.

    Returns:
        The directions; vectors without names are called "0", "1" and so on.

    Raises:
        InputError: If the shape is another, or a vector is zero or not finite.
    """
    named = given if isinstance(given, Directions) else None
    vectors = torch.as_tensor(named.vectors if named is not None else given).detach()
    if vectors.ndim not in (1, 2) or vectors.shape[-1] != width or not vectors.numel() or vectors.is_complex():
        raise InputError(
            f"{_named(argument)} must be real vectors of the stream, (d,) or (n, d) with d = {width}, got shape "
            f"{tuple(vectors.shape)} of {str(vectors.dtype).removeprefix('torch.')}: pass one vector a row"
        )
    vectors = vectors.reshape(-1, width).double().cpu()
    lengths = vectors.norm(dim=-1)
    if not (lengths.isfinite() & (lengths > 0)).all():
        row = int((~(lengths.isfinite() & (lengths > 0))).nonzero()[0])
        raise InputError(
            f"{_named(argument)} must be finite and not zero, and row {row} is {vectors[row, 0]:.3g}, …: leave it out"
        )
    if named is None:
        return Directions(vectors, tuple(map(str, range(len(vectors)))))
    if len(named.names) != len(vectors):
        raise InputError(
            f"{_named(argument)} must have a name each, got {len(named.names)} names for {len(vectors)}: name them all"
        )
    return Directions(vectors, named.names, named.depth, named.site)


def _named(argument: str) -> str:
    return argument if argument == "directions" else f"{argument}="


@public(one=finite, other=finite)
def difference_of_means(one: Arrays, other: Arrays) -> Float[Tensor, " d"]:
    """Subtract the mean of one set of states from that of another, ``mean(one) − mean(other)``.

    >>> difference_of_means(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([1., 2.], dtype=torch.float64)

    Args:
        one: States of the tokens that have something, (..., d).
        other: States of those that have not, (..., d).

    Returns:
        The direction from the second mean to the first, float64 on the CPU, (d,).

    Raises:
        InputError: If a set is empty, the widths differ, or a state is not finite.
    """
    sets = [torch.as_tensor(states).detach().double().cpu() for states in (one, other)]
    if any(states.ndim < 1 or not states.numel() for states in sets) or sets[0].shape[-1] != sets[1].shape[-1]:
        shapes = " and ".join(str(tuple(states.shape)) for states in sets)
        raise InputError(f"two sets of states must be (..., d) of one width, none empty, got {shapes}: pass others")
    first, second = (states.reshape(-1, states.shape[-1]).mean(0) for states in sets)
    return first - second


@public
@torch.no_grad()
def unembedding_rows(
    model: LanguageModel,
    tokens: Sequence[int | str] | Int[Tensor, " token"] | Int[np.ndarray, " token"],
    *,
    folded: bool = True,
) -> Directions:
    r"""Read the directions of the last stream that raise the logits of tokens, the final norm's gain folded in.

    With the final norm h ↦ g ⊙ (h − c(h)) / ρ(h) + b and w the token's row of the head,

    .. math:: v = P (g \odot w), \qquad \mathrm{logit}(h) = v \cdot h / \rho(h) + \mathrm{const}

    where c is the mean over coordinates of a LayerNorm and P takes the mean away; for an RMSNorm c is zero and P the
    identity. Folded in are the gain g, with whatever offset the model's code adds to it, and the centring P. Not folded
    in are the scale 1/ρ(h), which is another at each token and also falls as h grows along v, the bias b and that of
    the head, which move no logit's slope, and a factor or soft cap behind the head.

    Args:
        model: The model.
        tokens: Ids, or texts that are one token each (mind the leading space: " Paris").
        folded: False: w itself, which acts on the normed state.

    Returns:
        One direction a token, by the token's text, at depth L.

    Raises:
        InputError: If a text is not one token, an id does not exist, or the model's logits are not a matrix times a
            normed stream.
    """
    ids = [token_of(model, token) for token in (tokens if isinstance(tokens, Sequence) else tokens.tolist())]
    weight, norm = _head_of(model)
    if not ids or not all(0 <= token < len(weight) for token in ids):
        raise InputError(f"tokens must be at least one id in 0 … {len(weight) - 1}, got {ids}: choose others")
    rows = weight[torch.tensor(ids, device=weight.device)].detach().double().cpu()
    if folded and norm is not None:
        rows = rows * norm.gain.double().cpu()
        rows = rows - rows.mean(-1, keepdim=True) if norm.centred else rows
    names = [str(token) if model.tokenizer is None else str(model.tokenizer.decode([token])) for token in ids]
    return Directions(rows, tuple(names), model.n_layers, "ln_final.hook_in" if folded else "ln_final.hook_out")


def _head_of(model: LanguageModel) -> tuple[Tensor, NormLaw | None]:
    """The head's matrix, and the law of the norm before it."""
    if isinstance(model, HuggingFaceModel):
        tail = model.found.tail
        weight = getattr(model.module.get_submodule(tail.head), "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == model.d_model and len(tail.steps) < 3:
            if tail.norm is None:
                return weight, None
            norm = replay.working_copy(model.module.get_submodule(tail.norm), torch.float32)
            law = law_of(norm, model.d_model, torch.float32, model.device)
            state = torch.linspace(-1, 2, model.d_model, device=model.device).square()
            centred = state - state.mean() if law.centred else state
            if cosine(norm(state) - law.bias, law.gain * centred) > PARALLEL:
                return weight, law
    raise InputError(
        f"rows of the unembedding need logits that are a matrix times a normed stream, and those of {model.name} "
        f"({model.architecture}) are not: take probe.jacobian.site_jacobian to the logits instead"
    )
