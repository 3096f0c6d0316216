"""Directions followed through depth, beside random directions, with intervals over documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from torch.linalg import vector_norm

from probe import display, geometry
from probe.boundary import public
from probe.directions import drawing
from probe.directions.carrying import (
    Query,
    carried,
    coordinates,
    described,
    require_context,
    require_depths,
)
from probe.directions.vectors import Arrays, GivenDirections, directions_of
from probe.errors import InputError
from probe.inference import Ranking, bootstrap
from probe.jacobian import JacobianOptions
from probe.jacobian.options import ContextName
from probe.model import LanguageModel
from probe.text import Given, Which

MEASURES = {
    "gain": "‖C v‖ / ‖v‖",
    "cosine_self": "cosine of C v and v",
    "cosine_state": "cosine of C v and the state there",
    "cosine_update": "cosine of C v and the update of the block before",
}
"""What is measured at each depth, C being the product of all blocks before."""
NULLS = ("isotropic", "covariance")
DRAWS = 20


@dataclass(frozen=True, eq=False, repr=False)
class DirectionPath:
    """Directions through depth, as measured by `path`.

    Attributes:
        data: Each measure over (direction, depth, query), and under the name `null_…` over (null, draw, depth, query)
            for the random directions; with units, long names, and the document of each query.
    """

    data: xr.Dataset

    def __repr__(self) -> str:
        data = self.data
        return (
            f"{type(self).__name__}({data.attrs['model']}, directions={data.sizes['direction']}, depths "
            f"{int(data['depth'][0])} to {int(data['depth'][-1])}, queries={data.sizes['query']})"
        )

    def _repr_html_(self) -> str:
        data = self.data
        return display.table(
            "Directions through depth",
            {
                "model": data.attrs["model"],
                "text": data.attrs["text"],
                "directions": ", ".join(map(str, data["direction"].values)),
                "depths": f"{int(data['depth'][0])} to {int(data['depth'][-1])}",
                "queries": f"{data.sizes['query']} of {len(np.unique(data['document']))} documents",
                "random directions": f"{data.sizes['draw']} of each kind",
            },
        )

    @cached_property
    def summary(self) -> xr.Dataset:
        """Medians over queries by measure, direction and depth, with 95 % intervals over documents.

        `median` (`median_low`, `median_high`) of each direction; `null_median`, the mean over draws of each random
        direction's own median, and `null_low` and `null_high`, the middle 95 % of the draws; `contrast`, the direction
        less the null median, of gains the ratio to it, with an interval from the same resamples; `percentile`, the
        share of draws with a smaller median, ties half. Gains are averaged and resampled by their logarithms.
        """
        return _summarised(self.data)

    def table(self) -> pd.DataFrame:
        """Return the summary as a tidy table, one row a measure, direction, depth and null."""
        return self.summary.to_dataframe(dim_order=["direction", "depth", "measure", "null"]).reset_index()

    @public
    def plot(self, directions: Sequence[str] | None = None) -> Figure:
        """Draw the four measures by depth, with the bands of the random directions.

        Args:
            directions: Names of those to draw; by default all, up to six.

        Returns:
            The figure.
        """
        return drawing.path_figure(self.summary, directions)


@public
def path(
    model: LanguageModel,
    tokens: Given,
    directions: GivenDirections,
    from_layer: int | None = None,
    to_layer: int | None = None,
    *,
    positions: Which,
    states: Arrays | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    context: ContextName = "sequence",
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
) -> DirectionPath:
    r"""Follow directions from one depth to another, at chosen positions, beside random directions.

    At depth l the direction has become C v with C = J_{l−1}(t) ⋯ J_a(t), exact to first order in its length. Measured
    are its gain ‖C v‖/‖v‖ and its cosines with v, with the state h_l(t), and with the update h_l(t) − h_{l−1}(t) that
    the block before has written. Each random direction is one vector for all positions and depths, as v is, and does
    not depend on v:

    - "isotropic": uniform on the sphere
    - "covariance": normal, with the covariance of the states at depth a

    A measure is compared with both. That a direction grows more than isotropic ones says little where states do, too.

    Args:
        model: The model.
        tokens: As in `probe.block_jacobian`: windows of `probe.load_windows`, which know their documents; or prompts,
            strings or ids, each then a document of its own. Lengths may differ.
        directions: (d,) or (n, d), or `Directions`; of any length.
        from_layer: a, the depth at which they lie; None: the depth that the directions state.
        to_layer: The depth of the end; None: L, behind the last block.
        positions: As in `probe.block_jacobian`.
        states: States at depth a whose covariance the random directions have, (..., d); by default those of all counted
            tokens: no special ones, and none at the start of a window.
        draws: Random directions of each kind, at least 2.
        seed: Seed of the draws.
        context: "sequence", the real context, or "detached", as in `probe.block_jacobian`.
        batch_size: Windows in a forward pass.
        dtype: The dtype of the arithmetic, `torch.float32` or `torch.float64`.

    Returns:
        The path.

    Raises:
        InputError: If the directions do not fit, an option, depth or position does not exist, or there are fewer than
            two draws or two states.

    Cost: of n + 2 · draws directions, that of `gain_and_turn`.
    """
    given = directions_of(directions, model.d_model)
    require_context(context)
    first, last = require_depths(model, from_layer, to_layer, given)
    if draws < 2:
        raise InputError(f"a null needs at least two draws, got draws={draws}: leave it out for {DRAWS}")
    options, query = JacobianOptions(context=context, dtype=dtype), Query.of(model, tokens, positions)
    reference = _states_of(model, query, first, batch_size) if states is None else torch.as_tensor(states)
    random = _drawn(reference, model.d_model, draws, seed)
    every = torch.cat([given.vectors, random])
    shape = (len(every), last - first + 1, *query.positions.shape)
    found = {name: np.full(shape, np.nan) for name in MEASURES}
    for batch, recorded in query.recorded(model, range(first, last), batch_size):
        for depth, vectors in carried(recorded, first, last, every, options):
            before = recorded.state(depth - 1) if depth > first else None
            for name, found_there in _measured(vectors, every, recorded.state(depth), before):
                found[name][:, depth - first, batch] = found_there.numpy()
    n, count = len(given), query.positions.numel()
    data = xr.Dataset(
        coords=coordinates(given, range(first, last + 1)) | query.coordinates | {"null": list(NULLS)},
        attrs=described(model, query, given) | {"context": context, "seed": seed},
    )
    for name, meaning in MEASURES.items():
        attributes = {"units": "1", "long_name": meaning}
        measured = found[name].reshape(len(every), -1, count)
        data[name] = (("direction", "depth", "query"), measured[:n], attributes)
        nulls = measured[n:].reshape(len(NULLS), draws, -1, count)
        data[f"null_{name}"] = (("null", "draw", "depth", "query"), nulls, attributes)
    return DirectionPath(data)


def _measured(
    vectors: Float[Tensor, "n window chosen d"],
    origin: Float[Tensor, "n d"],
    state: Float[Tensor, "window chosen d"],
    before: Float[Tensor, "window chosen d"] | None,
) -> Iterator[tuple[str, Float[Tensor, "n window chosen"]]]:
    moved, state = vectors.double().cpu(), state.double().cpu()
    start = origin[:, None, None].expand_as(moved)
    yield "cosine_state", geometry.cosine(moved, state.expand_as(moved))
    if before is None:  # exactly 1, so that ties are ties
        yield "gain", torch.ones(moved.shape[:-1], dtype=torch.float64)
        yield "cosine_self", torch.ones(moved.shape[:-1], dtype=torch.float64)
        return
    yield "gain", vector_norm(moved, dim=-1) / vector_norm(start, dim=-1)
    yield "cosine_self", geometry.cosine(moved, start)
    yield "cosine_update", geometry.cosine(moved, (state - before.double().cpu()).expand_as(moved))


def _states_of(model: LanguageModel, query: Query, depth: int, batch_size: int) -> Float[Tensor, "token d"]:
    """The states of the counted tokens at a depth, from passes that end there."""
    rows, positions = query.rows.chosen("counted")
    found = []
    for batch, one in query.recorded(model, [depth], batch_size):
        found += [one.states[depth][place, positions[rows == row]].cpu() for place, row in enumerate(batch.tolist())]
    return torch.cat(found)


def _drawn(states: Tensor, width: int, draws: int, seed: int) -> Float[Tensor, "many d"]:
    """Random directions of length 1: isotropic ones, then those with the covariance of the states."""
    if states.ndim < 2 or states.shape[-1] != width or len(states.reshape(-1, width)) < 2:
        raise InputError(
            f"the covariance of states needs two or more of them, (..., d) with d = {width}, got shape "
            f"{tuple(states.shape)}: pass more windows, longer ones, or states="
        )
    covariance = states.detach().reshape(-1, width).double().cpu().mT.cov()
    lengths, generator = torch.ones(draws, dtype=torch.float64), torch.Generator().manual_seed(seed)
    isotropic = geometry.random_directions(lengths, width, generator)[0]
    return torch.cat([isotropic, geometry.covariance_matched(covariance, lengths, generator)[0]])


def _summarised(data: xr.Dataset) -> xr.Dataset:
    names, count, n, draws = list(MEASURES), *(data.sizes[dim] for dim in ("query", "direction", "draw"))
    series = [_of_one_measure(name, data) for name in names]
    ranking = Ranking(np.stack(series))  # (measure, series, depth, query), the directions first

    def medians(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take those of the directions, and of the draws: (measure, direction, depth), (measure, null, draw, depth)."""
        found = ranking.median(weights)
        return found[:, :n], found[:, n:].reshape(len(names), len(NULLS), draws, -1)

    def statistic(rows: np.ndarray) -> np.ndarray:
        own, null = medians(np.bincount(rows, minlength=count))
        contrast = own[:, None] - null.mean(axis=2)[:, :, None]  # (measure, null, direction, depth)
        return np.concatenate([own[:, None], contrast], axis=1)

    interval = bootstrap(statistic, data["document"].values)
    own, null = medians(np.ones(count))
    low, high = np.quantile(null, [0.025, 0.975], axis=2)
    below = share_below(own[:, None, :, None], null[:, :, None], axis=3)
    ends = {"": interval.estimate, "_low": interval.low, "_high": interval.high}
    own_dims, null_dims = ("measure", "direction", "depth"), ("measure", "null", "depth")
    both = ("measure", "null", "direction", "depth")
    values: dict[str, tuple[tuple[str, ...], np.ndarray, str]]
    values = {f"median{end}": (own_dims, np.asarray(array)[:, 0], "median over queries") for end, array in ends.items()}
    values |= {
        "null_median": (null_dims, null.mean(axis=2), "mean over draws of their medians"),
        "null_low": (null_dims, low, "lower end of the middle 95 % of the draws"),
        "null_high": (null_dims, high, "upper end of the middle 95 % of the draws"),
    }
    values |= {
        f"contrast{end}": (both, np.asarray(array)[:, 1:], "direction less null median; of gains the ratio")
        for end, array in ends.items()
    }
    for _, array, _ in values.values():
        array[names.index("gain")] = np.exp(array[names.index("gain")])
    values["percentile"] = (both, below, "share of draws with a smaller median")
    return xr.Dataset(
        {name: (dims, array, {"units": "1", "long_name": words}) for name, (dims, array, words) in values.items()},
        {"measure": names, "null": data["null"], "direction": data["direction"], "depth": data["depth"]},
        data.attrs | {"documents": interval.n_units, "interval": interval.method, "queries": count, "draws": draws},
    )


def share_below(value: np.ndarray, draws: np.ndarray, *, axis: int) -> np.ndarray:
    """Compute the share of draws below a value, ties half: uniform for a value of the draws' own law.

    Args:
        value: Values, of length 1 along the axis.
        draws: Draws, of shapes that broadcast with the values.
        axis: The axis of the draws.

    Returns:
        Shares without the axis; NaN where the value is.
    """
    share: np.ndarray = ((draws < value) + 0.5 * (draws == value)).mean(axis=axis)
    return np.where(np.isnan(value).any(axis=axis), np.nan, share)


def _of_one_measure(name: str, data: xr.Dataset) -> np.ndarray:
    """The directions, then all draws, (series, depth, query); gains by their logarithms, which are compared."""
    null = data[f"null_{name}"].values
    values = np.concatenate([data[name].values, null.reshape(-1, *null.shape[2:])])
    return np.log(np.maximum(values, np.finfo(np.float64).tiny)) if name == "gain" else values
