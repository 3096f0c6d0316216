"""Single heads, and the composites `ov` and `qk` in which attention acts on the residual stream.

``ov = W_O W_V`` carries what a position writes to the position that attends to it, ``qk = W_Qᵀ W_K`` scores a pair of
positions, both d × d and per head of low rank; with grouped queries a key or value head serves several query heads.
Biases, norms of queries and keys, and rotary embeddings are not in them: qk is the score at distance zero. Latent and
differential attention have no such composites: a norm stands inside, or heads act in pairs.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from probe.boundary import public
from probe.errors import InputError
from probe.model.architectures import SPREADERS
from probe.weights.reading import Heads, Matrix, Weights

COMPOSITES = ("ov", "qk")
"""`ov`: left singular vectors are written, right ones read. `qk`: left ones are the query's, right ones the key's."""


def names_of(weights: Weights, *, composites: bool = True) -> tuple[str, ...]:
    """List the names of all projections of a model.

    Args:
        weights: The model.
        composites: Include `ov` and `qk`, where the heads are known.

    Returns:
        Stored projections, then composites.
    """
    known = weights.heads is not None and all(name in weights.stored for name in "qkvo")
    return (*weights.stored, *(COMPOSITES if composites and known else ()))


def shapes_of(weights: Weights, *, composites: bool = True) -> list[tuple[str, int, int]]:
    """List the shape of every projection in the first block.

    Args:
        weights: The model.
        composites: Include `ov` and `qk`, where the heads are known.

    Returns:
        Name, rows and columns of each.
    """
    stored = [(name, *weights.matrix(0, name).shape) for name in weights.stored]
    extra = names_of(weights, composites=composites)[len(stored) :]
    return [*stored, *((name, weights.d_model, weights.d_model) for name in extra)]


@public
def matrix_of(weights: Weights, layer: int, name: str) -> Matrix:
    """Read a projection or compute a composite, summed over the heads: O(d² · heads · d_head).

    Args:
        weights: The model.
        layer: Index of the block.
        name: A stored projection, "ov" or "qk".

    Returns:
        The matrix as (out, in); of `qk` (query side, key side).
    """
    if name not in COMPOSITES:
        return weights.matrix(layer, name)
    left, right = head_factors(weights, layer, name)
    return left.transpose(0, 1).flatten(1) @ right.flatten(0, 1)


@public
def head_views(weights: Weights, layer: int, name: str) -> Float[Tensor, "head out in"]:
    """Cut a projection of attention into its heads.

    Args:
        weights: The model.
        layer: Index of the block.
        name: "q", "k", "v", of latent attention "q_b", "k_b", "v_b" (rows of each head); or "o" (columns of each head).

    Returns:
        One matrix a head; of `k` and `v` one a key head.

    Raises:
        InputError: If the projection is not one of attention's, or its heads are unknown.
    """
    heads = weights.heads
    if name not in ("q", "k", "v", "o", *SPREADERS) or heads is None:
        raise InputError(
            "the name of a projection with heads must be one of q, k, v or o of a model with attention, or of q_b, "
            "k_b or "
            f"v_b, got {name!r} of "
            f"{weights.name}: choose one of these"
        )
    matrix: Tensor = weights.matrix(layer, name)
    if name == "o":
        columns: Tensor = matrix.unflatten(1, (heads.query, -1))
        return columns.transpose(0, 1)
    rows: Tensor = matrix.unflatten(0, (heads.key if name in ("k", "v") else heads.query, -1))
    return rows


def head_factors(
    weights: Weights, layer: int, name: str
) -> tuple[Float[Tensor, "head d d_head"], Float[Tensor, "head d_head d"]]:
    """Read the two factors of each head's composite, ``composite = left @ right``.

    Args:
        weights: The model.
        layer: Index of the block.
        name: "ov" or "qk".

    Returns:
        (W_O, W_V) or (W_Qᵀ, W_K) of every query head, keys and values repeated over the heads that share them.

    Raises:
        InputError: If the name is not a composite.
    """
    if name not in COMPOSITES:
        raise InputError(f"a composite is one of {', '.join(COMPOSITES)}, got {name!r}: choose one of these")
    if name == "ov":
        return head_views(weights, layer, "o"), _repeated(head_views(weights, layer, "v"), weights.heads)
    return head_views(weights, layer, "q").mT, _repeated(head_views(weights, layer, "k"), weights.heads)


def _repeated(views: Float[Tensor, "key d_head d"], heads: Heads | None) -> Float[Tensor, "head d_head d"]:
    assert heads is not None
    return views.repeat_interleave(heads.query // heads.key, dim=0)
