"""Continuity of the experts of successive mixtures: matched by the best assignment, or averaged over all pairs.

Experts have no order, so expert 3 of one block is not the expert 3 of the next one. `expert_continuity` compares all
pairs of experts of neighbouring mixtures, and assigns them to each other so that the sum of |cos| is largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from probe.boundary import filled, public
from probe.errors import InputError
from probe.model import LanguageModel
from probe.spectra.singular import Method, leading_triplets
from probe.weights.bases import prepared, stream_sides
from probe.weights.checkpoint import weights_of
from probe.weights.curves import assigned
from probe.weights.nulls import haar_cosine, haar_matched
from probe.weights.reading import ModuleWeights, Weights

DRAWS = 20


@public(projections=filled)
def expert_continuity(
    model: str | Path | LanguageModel | Weights,
    *,
    projections: Sequence[str] | None = None,
    together: bool = False,
    folded: bool = False,
    method: Method = "auto",
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> xr.Dataset:
    """Measure how far the leading singular vectors of experts carry on from one mixture to the next.

    ``cosine(l, e, f) = |v(l, e) · v(l′, f)|`` for experts e of block l and f of block l′, the next one that has as many
    experts, where v is the leading singular vector on the side of the residual stream: the right one of `gate` and
    `up`, the left one of `down`. Matching E experts makes the mean larger even where there is nothing to match;
    `matched_haar` is what it gives on random directions.

    Args:
        model: A loaded model, or a name or directory, from which one expert is read at a time.
        projections: Of `gate`, `up`, `down`; all that the experts have by default.
        together: Assign experts once for all projections, by the sum of their |cos|; otherwise for each projection.
        folded: Fold the gains of the norms in; projections without a known norm are left out.
        method: Method of `probe.weights.leading_triplets`.
        seed: Seed of a randomised method and of the random directions.
        progress: Wraps the indices of the blocks, for example `tqdm.auto.tqdm`.

    Returns:
        Over (projection, layer, expert): `matched`, the |cos| with the expert's partner, and `partner`, its index. Over
        (projection, layer, expert, other_expert): `cosine`. Over (projection, layer): `average`, its mean over all
        pairs, and `matched_average`. Over (projection, block, expert): `gap`, σ₁/σ₂, and `singular_value`, σ₁. By
        projection: `haar` and `matched_haar`, the means of both for random directions. `next_layer` is the block that
        `layer` is compared with. E · blocks · projections decompositions, in memory one matrix at a time.

    Raises:
        InputError: If fewer than two blocks have experts, or they lack a projection.
    """
    weights = weights_of(model)
    blocks, count, names = _experts_of(weights)
    chosen = names if projections is None else tuple(projections)
    if missing := [name for name in chosen if name not in names]:
        raise InputError(
            f"projections of this {weights.architecture}'s experts must be of {', '.join(names)}, got {missing[0]!r}: "
            "choose among them"
        )
    if folded:
        gains = {name: weights.gain(blocks[0], f"experts.0.{name}") for name in chosen}
        chosen = tuple(name for name, gain in gains.items() if gain is not None)
        if not chosen:
            raise InputError(
                f"folded=True needs known norms, and those of {weights.name} ({weights.architecture}) are not: leave "
                "it out"
            )
    vectors = {name: list[Tensor]() for name in chosen}
    values = np.full((len(chosen), len(blocks), count, 2), np.nan)
    for row, layer in enumerate(progress(blocks)):
        for column, name in enumerate(chosen):
            leading = []
            for expert in range(count):
                matrix = prepared(weights, layer, f"experts.{expert}.{name}", folded=folded)
                assert matrix is not None
                triplets = leading_triplets(matrix, min(2, *matrix.shape), method=method, seed=seed)
                side = triplets.right if stream_sides(name) == ("input",) else triplets.left
                leading.append(side[:, 0].double().cpu())
                values[column, row, expert, : len(triplets.singular)] = triplets.singular.cpu()
            vectors[name].append(torch.stack(leading))
    cosines = np.stack([
        np.stack([(one @ other.mT).abs().clamp(max=1).numpy() for one, other in pairwise(of_name)])
        for of_name in vectors.values()
    ])
    data = _described(chosen, blocks, cosines, values, together=together)
    widths = [vectors[name][0].shape[-1] for name in chosen]
    for variable, numbers, meaning in (
        ("haar", [haar_cosine(width) for width in widths], "mean |cosine| of random directions"),
        (
            "matched_haar",
            [haar_matched(width, count, draws=DRAWS, seed=seed) for width in widths],
            "mean |cosine| of random directions after the best assignment",
        ),
    ):
        data[variable] = ("projection", numbers, {"units": "1", "long_name": meaning})
    data.attrs |= {"model": weights.name, "description": weights.description, "architecture": weights.architecture}
    data.attrs |= {"d_model": weights.d_model, "folded": int(folded), "together": int(together)}
    return data


def _experts_of(weights: Weights) -> tuple[list[int], int, tuple[str, ...]]:
    """The blocks with experts, the number of these and their projections."""
    stacks = {}
    if isinstance(weights, ModuleWeights):
        stacks = {layer: stack for layer in range(weights.n_layers) if (stack := weights.experts(layer)) is not None}
    alike = {(stack.count, stack.names) for stack in stacks.values()}
    if len(stacks) < 2 or len(alike) > 1:
        found = "experts of several kinds" if len(alike) > 1 else f"{len(stacks) or 'no'} such blocks"
        raise InputError(
            f"continuity of experts compares blocks with as many experts and needs at least 2, and {weights.name} "
            f"({weights.architecture}) has {found}: use probe.weights.continuity for its other matrices"
        )
    ((count, names),) = alike
    return list(stacks), count, names


def _described(
    names: Sequence[str],
    blocks: Sequence[int],
    cosines: Float[np.ndarray, "projection layer expert other"],
    values: Float[np.ndarray, "projection block expert rank"],
    *,
    together: bool,
) -> xr.Dataset:
    experts = np.arange(cosines.shape[-1])
    coords = {"projection": list(names), "layer": list(blocks[:-1]), "block": list(blocks)}
    data = xr.Dataset(coords={**coords, "expert": experts, "other_expert": experts})
    data = data.assign_coords(next_layer=("layer", list(blocks[1:])))
    partners = np.zeros(cosines.shape[:-1], dtype=np.int64)
    for pair in range(cosines.shape[1]):
        for row in range(len(names)):
            partners[row, pair] = assigned(cosines[:, pair].sum(0) if together else cosines[row, pair])[1]
    paired = np.take_along_axis(cosines, partners[..., None], -1)[..., 0]
    axes = ("projection", "layer", "expert")
    for name, dims, numbers, meaning in (
        ("cosine", (*axes, "other_expert"), cosines, "|cos| of the leading vectors of two experts"),
        ("matched", axes, paired, "|cos| of an expert and its partner in the next mixture"),
        ("partner", axes, partners, "index of the partner in the next mixture"),
        ("average", axes[:2], cosines.mean((-2, -1)), "mean |cos| over all pairs of experts"),
        ("matched_average", axes[:2], paired.mean(-1), "mean |cos| over the assigned pairs"),
        ("gap", ("projection", "block", "expert"), values[..., 0] / values[..., 1], "σ₁/σ₂"),
        ("singular_value", ("projection", "block", "expert"), values[..., 0], "σ₁"),
    ):
        data[name] = (dims, numbers, {"units": "1", "long_name": meaning})
    return data
