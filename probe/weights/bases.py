"""Leading singular vectors of a projection through all blocks, and the Dataset of their continuity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from probe import display
from probe.boundary import filled, public
from probe.errors import InputError
from probe.model import LanguageModel
from probe.model.architectures import SPREADERS
from probe.spectra.singular import Method, Triplets, leading_triplets
from probe.weights.checkpoint import weights_of
from probe.weights.curves import (
    adjacent_cosines,
    adjacent_overlaps,
    cosine_matrix,
    lag_curve,
    trajectory,
    vector_participation,
)
from probe.weights.heads import COMPOSITES, matrix_of, names_of
from probe.weights.nulls import haar_cosine
from probe.weights.reading import READERS, WRITERS, Matrix, Weights, role_of

SUBSPACES = (1, 2, 4, 8)
SIDES = {"input": "right", "output": "left"}
"""Side of a matrix's singular vectors, by the space in which they lie."""


@dataclass(frozen=True, repr=False)
class Bases(display.Shown):
    """The leading singular triplets of one projection, block by block.

    Attributes:
        left: (L, out, k).
        singular: (L, k).
        right: (L, in, k).
        norm: Frobenius norms, (L,).
        error: Residual errors over σ₁, (L,).
    """

    left: Float[Tensor, "block out k"]
    singular: Float[Tensor, "block k"]
    right: Float[Tensor, "block width k"]
    norm: Float[Tensor, " block"]
    error: Float[Tensor, " block"]

    @classmethod
    def of(cls, triplets: Iterable[Triplets]) -> Bases:
        """Stack the triplets of successive blocks.

        Args:
            triplets: One a block, all of one shape.

        Returns:
            The bases, vectors in float32.
        """
        blocks = list(triplets)
        return cls(
            torch.stack([block.left.float() for block in blocks]).cpu(),
            torch.stack([block.singular for block in blocks]).cpu(),
            torch.stack([block.right.float() for block in blocks]).cpu(),
            torch.tensor([block.norm for block in blocks], dtype=torch.float64),
            torch.tensor([block.error for block in blocks], dtype=torch.float64),
        )

    def side(self, side: str) -> Float[Tensor, "block n k"]:
        """Select the vectors of the "input" space (right) or of the "output" space (left)."""
        vectors: Tensor = getattr(self, SIDES[side])
        return vectors

    @property
    def gap(self) -> Float[Tensor, " block"]:
        """σ₁/σ₂ of each block; NaN where only one triplet is known."""
        if self.singular.shape[1] < 2:
            return torch.full_like(self.norm, torch.nan)
        return self.singular[:, 0] / self.singular[:, 1]


def prepared(weights: Weights, layer: int, name: str, *, folded: bool = False) -> Matrix | None:
    """Prepare a projection or composite, as it is or with the gains of the norms around it folded in.

    Folded, a matrix that reads the stream or a latent is ``W diag(γ)`` with the γ of the norm before it, because it
    acts on γ ⊙ x̂; a matrix whose output passes a norm is ``diag(γ) W``.

    Args:
        weights: The model.
        layer: Index of the block.
        name: A projection or composite.
        folded: Whether to fold the gains in.

    Returns:
        The matrix; None if the gains are asked for and no norm is known.
    """
    if not folded:
        return matrix_of(weights, layer, name)
    columns = {"ov": "v", "qk": "k"}.get(name, name if role_of(name) in (*READERS, *SPREADERS) else None)
    rows = {"ov": "o", "qk": "q"}.get(name, name if role_of(name) in WRITERS else None)
    before = None if columns is None else weights.gain(layer, columns)
    after = None if rows is None else weights.gain(layer, rows)
    if before is None and after is None:
        return None
    matrix = matrix_of(weights, layer, name)
    if before is not None:
        matrix = matrix * before.to(matrix)
    return matrix if after is None else after.to(matrix)[:, None] * matrix


def stream_sides(name: str) -> tuple[str, ...]:
    """List the sides of a projection on which the residual stream lies: "input" of readers, "output" of writers.

    Args:
        name: A projection or composite.

    Returns:
        The sides; none for a projection inside a mixer.
    """
    if name in COMPOSITES:
        return ("input", "output")
    role = role_of(name)
    return (("input",) if role in READERS else ()) + (("output",) if role in WRITERS else ())


def comparable(weights: Weights, *, composites: bool = True) -> tuple[str, ...]:
    """List the projections of which neighbouring blocks can be compared.

    Args:
        weights: The model.
        composites: Include `ov` and `qk`, where the heads are known.

    Returns:
        Their names, composites last.

    Raises:
        InputError: If there is none.
    """
    names = names_of(weights, composites=composites)
    if not names:
        raise InputError(
            f"continuity compares a projection that every block has, of one shape, and {weights.name} "
            f"({weights.architecture}) has none: its blocks are of several kinds, or their matrices are unknown; name "
            "another model"
        )
    return names


@public(projections=filled)
def continuity(
    model: str | Path | LanguageModel | Weights,
    *,
    projections: Sequence[str] | None = None,
    subspaces: Sequence[int] = SUBSPACES,
    composites: bool = True,
    folded: bool = False,
    method: Method = "auto",
    seed: int = 0,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> xr.Dataset:
    """Measure how far the leading singular vectors of each projection carry on from block to block.

    ``input_continuity(l) = |v₁(l) · v₁(l+1)|`` and ``output_continuity(l) = |u₁(l) · u₁(l+1)|`` of ``W = U Σ Vᵀ``, W as
    (out, in): v₁ of `q k v gate up in` and u₁ of `o down out` lie in the residual stream. A value is meaningful only
    where the gap σ₁/σ₂ is well above 1.

    Args:
        model: A loaded model, or a name, directory or .gguf file, which is read one matrix at a time and never loaded.
        projections: Names; all that the model has by default, without those of experts ("experts.3.up"), which
            `expert_continuity` compares.
        subspaces: Dimensions k of the subspaces that are compared.
        composites: Include `ov` and `qk`, summed over heads.
        folded: Fold the gains of the norms in; projections without a known norm are left out.
        method: Method of `leading_triplets`.
        seed: Seed of a randomised method.
        progress: Wraps the names of the projections, for example `tqdm.auto.tqdm`.

    Returns:
        Over (projection, layer), where layer l stands for the pair (l, l+1): `input_continuity`, `output_continuity`,
        `gap` (the smaller of the two blocks'); also over k: `input_subspace`, `output_subspace`. Over (projection,
        block): `block_gap`, participations, errors, singular values, and the L × L matrices `input_cosine`,
        `output_cosine`. Over `lag`: the lag curves. By projection: the widths and the means of random directions.

    Raises:
        InputError: If the model has fewer than two blocks, lacks a projection, or has none that can be compared.
    """
    weights = weights_of(model)
    if weights.n_layers < 2:
        raise InputError(
            f"continuity compares neighbouring blocks and needs at least 2, got {weights.n_layers} of {weights.name}: "
            "choose a deeper model"
        )
    names = comparable(weights, composites=composites) if projections is None else tuple(projections)
    largest = max((2, *subspaces))
    bases: dict[str, Bases] = {}
    for name in progress(names):
        triplets = []
        for layer in range(weights.n_layers):
            matrix = prepared(weights, layer, name, folded=folded)
            if matrix is not None:
                rank = min(largest, *matrix.shape)
                triplets.append(leading_triplets(matrix, rank, method=method, seed=seed))
        if triplets:
            bases[name] = Bases.of(triplets)
    if not bases:
        raise InputError(
            f"folded=True needs known norms, and those of {weights.name} ({weights.architecture}) are not: leave it out"
        )
    data = described(bases, subspaces)
    data.attrs |= {"model": weights.name, "description": weights.description, "architecture": weights.architecture}
    data.attrs |= {"d_model": weights.d_model, "folded": int(folded)}
    return data


def described(by_projection: Mapping[str, Bases], subspaces: Sequence[int], first: int = 0) -> xr.Dataset:
    """Build the Dataset of `continuity` from bases that are computed already.

    Args:
        by_projection: Bases by projection, of the same blocks.
        subspaces: Dimensions k; values are NaN where a projection has fewer vectors.
        first: Index of the first block.

    Returns:
        The Dataset, see `continuity`.
    """
    every = list(by_projection.values())
    blocks = len(every[0].norm)
    ranks = max(bases.singular.shape[1] for bases in every)
    depth = np.arange(first, first + blocks)
    data = xr.Dataset(
        coords={"projection": list(by_projection), "layer": depth[:-1], "block": depth, "other_block": depth}
        | {"lag": np.arange(1, blocks), "k": list(subspaces), "rank": np.arange(1, ranks + 1), "axis": [1, 2, 3]}
    )
    gap = torch.stack([bases.gap for bases in every])
    _put(data, "gap", ("projection", "layer"), torch.minimum(gap[:, :-1], gap[:, 1:]), "σ₁/σ₂, the smaller of the pair")
    _put(data, "block_gap", ("projection", "block"), gap, "σ₁/σ₂")
    singular = torch.full((len(every), ranks, blocks), torch.nan, dtype=torch.float64)
    for row, bases in enumerate(every):
        singular[row, : bases.singular.shape[1]] = bases.singular.mT
    _put(data, "singular_value", ("projection", "rank", "block"), singular, "leading singular values of W")
    stable = torch.stack([(bases.norm / bases.singular[:, 0]).square() for bases in every])
    _put(data, "stable_rank", ("projection", "block"), stable, "‖W‖_F² / σ₁²")
    error = torch.stack([bases.error for bases in every])
    _put(data, "svd_error", ("projection", "block"), error, "residual of the triplets over σ₁")
    for side, vector in (("input", "v₁"), ("output", "u₁")):
        _add_side(data, side, vector, [bases.side(side) for bases in every], subspaces)
    return data


def _add_side(
    data: xr.Dataset, side: str, vector: str, bases: Sequence[Float[Tensor, "block _ _"]], subspaces: Sequence[int]
) -> None:
    """Add the variables of one space, by projection."""
    leading = [vectors[..., 0].double() for vectors in bases]
    cosines = torch.stack([cosine_matrix(vectors) for vectors in leading])
    overlaps = torch.full((len(subspaces), *cosines.shape[:1], cosines.shape[1] - 1), torch.nan, dtype=torch.float64)
    for row, k in enumerate(subspaces):
        for column, vectors in enumerate(bases):
            if k <= vectors.shape[-1]:
                overlaps[row, column] = adjacent_overlaps(vectors.double(), k)
    pair = ("projection", "layer")
    block = ("projection", "block")
    continuous = torch.stack([adjacent_cosines(vectors) for vectors in leading])
    _put(data, f"{side}_continuity", pair, continuous, f"|{vector}(l) · {vector}(l+1)|")
    _put(data, f"{side}_subspace", ("k", *pair), overlaps, "mean squared cosine of the principal angles, k leading")
    _put(data, f"{side}_cosine", (*block, "other_block"), cosines, f"|{vector}(l) · {vector}(m)|")
    _put(data, f"{side}_lag", ("projection", "lag"), lag_curve(cosines), f"mean |{vector}(l) · {vector}(l+m)| over l")
    participation = torch.stack([vector_participation(vectors) for vectors in leading])
    _put(data, f"{side}_participation", block, participation, f"participation ratio of {vector}")
    axes = min(3, cosines.shape[-1])
    path = torch.full((*cosines.shape[:2], 3), torch.nan, dtype=torch.float64)
    share = torch.full((len(bases), 3), torch.nan, dtype=torch.float64)
    for row, vectors in enumerate(leading):
        coordinates, shares = trajectory(vectors, axes)
        path[row, :, : coordinates.shape[1]], share[row, : len(shares)] = coordinates, shares
    _put(data, f"{side}_trajectory", (*block, "axis"), path, f"principal components of {vector}, signs along depth")
    _put(data, f"{side}_trajectory_share", ("projection", "axis"), share, "share of the variance of an axis")
    widths = [vectors.shape[1] for vectors in bases]
    data[f"{side}_width"] = ("projection", widths, {"units": "1", "long_name": f"dimension of the {side} space"})
    random = torch.tensor([haar_cosine(width) for width in widths], dtype=torch.float64)
    _put(data, f"{side}_haar", ("projection",), random, "mean |cosine| of random directions")


def _put(data: xr.Dataset, name: str, dims: tuple[str, ...], values: Tensor, long_name: str) -> None:
    data[name] = (dims, values.numpy(), {"units": "1", "long_name": long_name})
