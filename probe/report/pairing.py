"""Two runs token by token: the same documents, windows, positions and words, and the differences there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float, Int, Num

from probe.errors import InputError
from probe.inference import Ranking, bootstrap
from probe.report.tables import variable

if TYPE_CHECKING:
    from probe.report.result import Result

Statistic: TypeAlias = Callable[[Num[np.ndarray, " token"]], Float[np.ndarray, " place"]]

DOCUMENT = "document"
PLACE = (DOCUMENT, "window", "position")
"""Labels that say where a token stands."""
WORDS = ("title", "token", "context")
"""Labels that say what stands there."""
OTHER = ", other"
CHOOSING = ("windows", "window_length", "skip_first", "seed", "positions_per_window")
"""Options that choose the tokens of a text."""
Tokens: TypeAlias = Int[np.ndarray, " token"]


def paired(
    this: Result,
    other: Result,
    name: str,
    labels: Mapping[str, Any],
    *,
    centre: str = "median",
    over: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare a variable of two runs token by token; see `Result.paired`.

    Args:
        this: A run.
        other: The run that is subtracted.
        name: The variable.
        labels: Where, along its axes.
        centre: Taken over tokens: "median" or "mean".
        over: Axes whose mean is taken after that.
        resamples: Resamples of the documents.
        seed: Seed of the resamples.

    Returns:
        One row a place, with both runs' values, their difference and its interval.

    Raises:
        InputError: If the runs cannot be paired.
    """
    if centre not in ("median", "mean"):
        raise InputError(f"centre= must be median or mean, got {centre!r}: choose one")
    axis, rows, rows_of_other = shared_tokens(this, other)
    first = _at(variable(this.data, name), labels, axis).isel({axis: rows})
    second = _at(variable(other.data, name), labels, axis).isel({axis: rows_of_other})
    rest = [str(dim) for dim in first.dims if dim != axis]
    if unknown := [dim for dim in over if dim not in rest]:
        raise InputError(
            f"over= must name axes that {name} has here ({', '.join(rest) or 'none'}), got {unknown[0]!r}: change it"
        )
    first, second = _aligned(first, second, rest, over)
    kept = [dim for dim in rest if dim not in over]
    shape = tuple(first.sizes[dim] for dim in kept)
    places = np.indices(shape).reshape(len(kept), math.prod(shape))
    columns = {dim: first[dim].values[place] for dim, place in zip(kept, places, strict=True)}
    a, b = (
        np.asarray(run.transpose(*kept, *over, axis).values, dtype=np.float64).reshape(
            math.prod(shape), math.prod(first.sizes[dim] for dim in over), len(rows)
        )
        for run in (first, second)
    )
    both: Bool[np.ndarray, "place over token"] = np.isfinite(a) & np.isfinite(b)
    measured: Bool[np.ndarray, "place token"] = np.asarray(both.any(axis=1))
    for side, values in (("this", a), ("other", b)):
        columns[side] = _centred(np.where(both, values, np.nan), centre)(np.ones(len(rows)))
    documents = this.data[DOCUMENT].values[rows]
    columns |= _intervals(np.where(both, a - b, np.nan), documents, measured, centre, resamples, seed)
    found = pd.DataFrame(columns | {"n_tokens": measured.sum(axis=1)})
    held: Bool[np.ndarray, " place"] = np.asarray(measured.any(axis=1))
    return found[held].reset_index(drop=True)


def shared_tokens(this: Result, other: Result) -> tuple[str, Tokens, Tokens]:
    """Find the tokens that two runs both measured: the same word after the same words, at one place of one text.

    Args:
        this: A run.
        other: Another.

    Returns:
        The axis of tokens, and the indices of the shared ones in each run.

    Raises:
        InputError: If they share none; the message says why, and what would make them alike.
    """
    axis = _axis(this, other)
    mine, its = _tokens(this, axis), _tokens(other, axis)
    keys = [name for name in PLACE if name in mine and name in its]
    merged = mine.merge(its, on=keys, suffixes=("", OTHER))
    words = [name for name in WORDS if name + OTHER in merged]
    alike = np.ones(len(merged), dtype=bool)
    for word in words:
        alike &= (merged[word] == merged[word + OTHER]).to_numpy()
    chosen = [run.record["config"] for run in (this, other)]
    differing = [name for name in CHOOSING if chosen[0].get(name) != chosen[1].get(name)]
    told = ", ".join(f"{name} is {chosen[0].get(name)} and {chosen[1].get(name)}" for name in differing)
    if differing and (not alike.any() or "token" not in words):
        raise InputError(
            f"runs are paired on the tokens that both measured, but {this.directory} and {other.directory} drew theirs "
            f"differently: {told}; run both with the same {' and '.join(differing)}"
        )
    if not differing and not alike.all():
        word = next(word for word in words if (merged[word] != merged[word + OTHER]).any())
        place = merged[merged[word] != merged[word + OTHER]].iloc[0]
        raise InputError(
            f"runs are paired where their models read the same tokens, but {this.directory} reads {place[word]!r} "
            f"where {other.directory} reads {place[word + OTHER]!r}: choose models with one tokenizer"
        )
    if not alike.any():
        raise InputError(
            f"runs are paired on the tokens that both measured, but {this.directory} and {other.directory} share none: "
            "run both with the same options"
        )
    rows = merged[alike]
    return axis, rows["row"].to_numpy(), rows["row" + OTHER].to_numpy()


def _axis(this: Result, other: Result) -> str:
    """The axis of tokens of two runs of one analysis on one text."""
    kinds = [run.data.attrs.get("analysis") for run in (this, other)]
    if kinds[0] != kinds[1]:
        raise InputError(f"runs of one analysis are paired, got {kinds[0]} and {kinds[1]}: choose two of one")
    for run in (this, other):
        if DOCUMENT not in run.data.coords:
            raise InputError(
                f"runs are paired by the documents of their tokens, but {run.directory} has none: subtract the tables "
                "of its variables instead"
            )
    texts = [run.record.get("fingerprint", {}).get("text") for run in (this, other)]
    if None not in texts and texts[0] != texts[1]:
        names = [run.data.attrs.get("text", "a text") for run in (this, other)]
        raise InputError(
            f"runs are paired on one text, but by their hashes {this.directory} ({names[0]}) and {other.directory} "
            f"({names[1]}) read two: run both with the same text= or dataset= and split="
        )
    return str(this.data[DOCUMENT].dims[0])


def _tokens(run: Result, axis: str) -> pd.DataFrame:
    """The labels of a run's tokens, and their places along the axis."""
    names = [name for name in (*PLACE, *WORDS) if name in run.data.coords and run.data[name].dims == (axis,)]
    found = pd.DataFrame({name: run.data[name].values for name in names} | {"row": np.arange(run.data.sizes[axis])})
    keys = [name for name in names if name in PLACE]
    if found.duplicated(keys).any():
        raise InputError(
            f"tokens are paired by {', '.join(keys)}, but in {run.directory} several have the same: subtract the "
            "tables of its variables instead"
        )
    return found


def _at(array: xr.DataArray, labels: Mapping[str, Any], axis: str) -> xr.DataArray:
    """A variable of tokens at labels of its other axes."""
    if axis not in array.dims:
        raise InputError(
            f"what is measured at tokens is paired, but {array.name} has the axes "
            f"{', '.join(map(str, array.dims)) or 'none'}: subtract the runs' tables of it instead"
        )
    for dim, label in labels.items():
        known = array[dim].values.tolist() if dim in array.dims and dim != axis else None
        if known is None:
            raise InputError(f"labels must be along axes that {array.name} has, got {dim}={label!r}: leave it out")
        if label not in known:
            raise InputError(f"{dim}= must be one of {', '.join(map(str, known))}, got {label!r}: choose one")
    return array.sel(labels)


def _aligned(
    first: xr.DataArray, second: xr.DataArray, rest: Sequence[str], over: Sequence[str]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Both at the labels that they share."""
    for dim in rest:
        mine, its = (run[dim].values.tolist() for run in (first, second))
        common = [label for label in mine if label in its]
        if not common or (dim in over and mine != its):
            raise InputError(
                f"runs are {'averaged over' if common else 'paired along'} {dim} where both have the same labels, but "
                f"these have {_listed(mine)} and {_listed(its)}: choose {dim}= here, or run both with the same options"
            )
        first, second = first.sel({dim: common}), second.sel({dim: common})
    return first, second


def _listed(labels: Sequence[Any]) -> str:
    shown = [str(label) for label in labels]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", shown[-1]])


def _centred(values: Float[np.ndarray, "place over token"], centre: str) -> Statistic:
    """A statistic of weights of the tokens: centre over tokens, then mean over the second axis."""
    finite = np.isfinite(values)
    ranking, filled = Ranking(values), np.where(finite, values, 0.0)

    def statistic(weights: Num[np.ndarray, " token"]) -> Float[np.ndarray, " place"]:
        if centre == "median":
            found = ranking.median(weights)
            present = np.isfinite(found)
        else:
            counts = finite @ weights
            present = counts > 0
            found = filled @ weights / np.where(present, counts, 1)
        total, n = np.where(present, found, 0).sum(axis=1), present.sum(axis=1)
        return np.where(n > 0, total / np.maximum(n, 1), np.nan)

    return statistic


def _intervals(
    values: Float[np.ndarray, "place over token"],
    documents: Num[np.ndarray, " token"],
    measured: Bool[np.ndarray, "place token"],
    centre: str,
    resamples: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Intervals of all places; those that rest on the same documents share their resamples."""
    _, label = np.unique(documents, return_inverse=True)
    held = np.stack([np.bincount(label[row], minlength=label.max() + 1) > 0 for row in measured])
    found = {name: np.full(len(values), np.nan) for name in ("difference", "ci_low", "ci_high")}
    for pattern in np.unique(held[held.any(axis=1)], axis=0):
        places = np.flatnonzero((held == pattern).all(axis=1))
        tokens = np.flatnonzero(pattern[label])
        statistic = _centred(values[places][..., tokens], centre)

        def resampled(index: Int[np.ndarray, " row"], statistic: Statistic = statistic, n: int = len(tokens)) -> Any:
            return statistic(np.bincount(index, minlength=n))

        interval = bootstrap(resampled, documents[tokens], resamples=resamples, seed=seed)
        for name, ends in zip(found, (interval.estimate, interval.low, interval.high), strict=True):
            found[name][places] = ends
    return found | {"n_documents": held.sum(axis=1)}
