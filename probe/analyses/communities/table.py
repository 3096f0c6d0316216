"""A communities run as its claims read it: the coupling of a view, pooled over the layers that have communities.

The coupling of a layer is a partial Spearman correlation over nodes; documents of the half that the graphs have not
seen are resampled, the partition fixed. Pooled over the layers that have stable communities (where these are too few
for a verdict, over all layers),

    A = mean over layers of ρ² − the same with places permuted within degree deciles,

the share of the ranks' variance that a node's place explains beyond its degree.

Where a single community holds all nodes, every node has the same place, and nothing can follow from it: ρ is 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from probe.analyses.communities.config import Thresholds
from probe.claims import Condition
from probe.claims.evidence import AbsentError, Floats, Table, Weights, crossed
from probe.inference import (
    Interval,
    Ranking,
    benjamini_hochberg,
    bootstrap,
    fisher_mean,
    partial_spearman,
    permutation_p_value,
)
from probe.plots import style

Runs: TypeAlias = Table[Thresholds]
Layers: TypeAlias = Bool[np.ndarray, " layer"]
COUPLING_P = 0.01


class Coupling:
    """The coupling of a view by layer, of a resample of its tokens given by weights.

    Args:
        data: The Dataset.
        view: Which view.
        layers: Which rows of `layer`.
    """

    def __init__(self, data: xr.Dataset, view: str, layers: Layers) -> None:
        if view not in data["view"].values:
            raise AbsentError(f"this run holds no view {view}")
        own = data.sel(view=view).isel(layer=np.flatnonzero(layers))
        self._place = Ranking(own["participation"].values.astype(np.float64))
        given = np.moveaxis(own["covariate"].values, 1, 0)  # (covariate, layer, node)
        self._given = [Ranking(one) for one in given]
        self._square = own["square_gain"].values.astype(np.float64)
        self._measured = np.isfinite(self._square).any(axis=(0, 1))
        self._square[..., ~self._measured] = 0.0
        self.permuted = np.nan_to_num(own["permuted_rho"].values)  # (layer, permutation)

    def __call__(self, weights: Weights) -> Float[np.ndarray, " layer"]:
        """Partial Spearman correlation of place and root-mean-square gain, by layer; 0 where all places are one."""
        # the square root and the common denominator change no rank
        gain = self._square @ (weights * self._measured)
        return np.asarray(np.nan_to_num(partial_spearman(self._place, gain, self._given)))

    def strength(self, weights: Weights) -> float:
        """Compute A: mean ρ² less its mean under permuted places."""
        return float(np.square(self(weights)).mean() - np.square(self.permuted).mean())

    def beyond(self, weights: Weights, quantile: float) -> float:
        """Compute mean ρ² less a quantile of it under permuted places."""
        return float(np.square(self(weights)).mean() - np.quantile(np.square(self.permuted).mean(axis=0), quantile))


def stable_layers(data: xr.Dataset, least: float) -> Layers:
    """Choose the layers that have communities: stable beyond their null by more than the least excess."""
    return np.asarray(data["excess"].values > least)


def adjusted_p(data: xr.Dataset) -> Float[np.ndarray, " layer"]:
    """Compute the two-sided permutation p of each layer's coupling, adjusted over layers (Benjamini and Hochberg)."""
    every = np.ones(data.sizes["layer"], dtype=bool)
    coupling = Coupling(data, "model", every)
    rho = coupling(np.ones(data.sizes["query"]))
    by_layer = zip(rho, coupling.permuted, strict=True)
    return benjamini_hochberg(np.array([permutation_p_value(*one, alternative="two-sided") for one in by_layer]))


def pooled_layers(table: Runs) -> tuple[Layers, Condition]:
    """Choose the layers with stable communities, if there are enough of them, or else all layers.

    Args:
        table: The run.

    Returns:
        Which layers are pooled, and the condition for a verdict.
    """
    stable = stable_layers(table.data, table.thresholds.threshold_excess)
    found, needed = int(stable.sum()), table.thresholds.threshold_layers
    enough = Condition(
        found >= needed, f"{found} of {len(stable)} layers have stable communities: {needed} are needed for a verdict"
    )
    return (stable if enough.holds else np.ones_like(stable)), enough


def pooled(table: Runs, layers: Layers, views: Sequence[str]) -> dict[str, Interval]:
    """Pool the coupling of some views, their mean, at the tokens where they were measured.

    Args:
        table: The run.
        layers: Which rows of `layer` are pooled.
        views: One view, or all seeds or draws of a control.

    Returns:
        `A`; `√A` with A's sign; `mean ρ` on Fisher's scale; `Δ`, the model's A less theirs. Documents are resampled,
        and seeds or draws where there are several.
    """
    measured = table.measured(
        np.asarray(table.data["square_gain"].sel(view=views[0]).values).reshape(-1, len(table.documents))
    )
    own, *others = (Coupling(measured.data, view, layers) for view in ("model", *views))

    def statistic(weights: Weights) -> dict[str, Floats | float]:
        values = np.array([other.strength(weights) for other in others])
        return {
            "A": values,
            "√A": signed_root(values),
            "mean ρ": np.array([float(fisher_mean(other(weights))) for other in others]),
            "Δ": own.strength(weights) - values,
        }

    return crossed(measured, statistic)


def agreement(data: xr.Dataset) -> xr.DataArray:
    """Compare each choice with the default's sign and significance, (half, edges, neighbours, method, factor)."""
    rho, null = data["grid_rho"].fillna(0.0), data["grid_permuted_rho"].fillna(0.0)
    squares, permuted_squares = (rho**2).mean("ablated"), (null**2).mean("ablated")
    p = (1 + (permuted_squares >= squares).sum("grid_permutation")) / (1 + data.sizes["grid_permutation"])
    layers = np.isin(data["layer"].values, data["ablated"].values)
    own = Coupling(data, "model", layers)
    everywhere = np.ones(data.sizes["query"])
    observed, permuted = own(everywhere), np.square(own.permuted).mean(axis=0)
    default_p = permutation_p_value(float(np.square(observed).mean()), permuted)
    mean = xr.DataArray(fisher_mean(rho.values, axis=0), squares.coords, squares.dims)
    same_sign = np.sign(mean) == np.sign(fisher_mean(observed))
    agreed: xr.DataArray = same_sign & ((p < COUPLING_P) == (default_p < COUPLING_P))
    return agreed


def signed_root(values: Floats | float) -> Floats:
    """Take the square root of the size, with the sign: √A of an A that may lie below zero."""
    return np.asarray(np.sign(values) * np.sqrt(np.abs(values)))


def summarised(data: xr.Dataset, thresholds: Thresholds, *, resamples: int = style.RESAMPLES) -> xr.Dataset:
    """Add to the Dataset the coupling of every view and layer, and what the claims make of it.

    Args:
        data: The Dataset of the analysis.
        thresholds: Of the claims.
        resamples: Resamples of the documents, for the intervals.

    Returns:
        The Dataset with `rho` (view, layer); `rho_bounds` (bound, layer) of the model, documents resampled;
        `adjusted_p` and `stable` (layer,); and, of a run with other choices, `agrees` over them.

    Cost: seconds for 30 layers of 576 coordinates.
    """
    every = np.ones(data.sizes["layer"], dtype=bool)
    ones = np.ones(data.sizes["query"])
    views = data["view"].values.tolist()
    rho = np.stack([Coupling(data, view, every)(ones) for view in views])
    own = Coupling(data, "model", every)

    def resampled(index: Int[np.ndarray, " row"]) -> style.Floats:
        return own(np.bincount(index, minlength=len(ones)).astype(np.float64))

    interval = bootstrap(resampled, np.asarray(data["document"].values), resamples=resamples, seed=0)
    found = data.assign(
        rho=(("view", "layer"), rho),
        rho_bounds=(("bound", "layer"), np.stack([np.asarray(interval.low), np.asarray(interval.high)])),
        adjusted_p=("layer", adjusted_p(data)),
        stable=("layer", stable_layers(data, thresholds.threshold_excess)),
    )
    return found.assign(agrees=agreement(data)) if "grid_rho" in data else found
