"""Tokens or layers cut into thirds by relative error, and what every measure is in each third."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from probe.analyses.tokenwise.panels.styles import FIT_STYLES, fits_present
from probe.inference import Interval, Ranking, fisher_mean, spearman
from probe.plots.pages import axes_or_new
from probe.plots.style import KL_FLOOR, Floats, Rows, over_documents, plain_log

REGIMES = ("low", "middle", "high")
MEASURES = {
    "relative_error": "relative error",
    "kl": "KL (nats)",
    "rho": "ρ (error, KL)",
    "cosine": "cos (u, û)",
    "share": "share₄ of r",
}
CUTS = {
    "regime": "tokens",
    "regime_own": "tokens, by own error",
    "regime_layer": "blocks",
}


def regime_table(data: xr.Dataset, cut: str = "regime", fits: Sequence[str] | None = None) -> pd.DataFrame:
    """Tabulate every measure in the low, middle and high third, by map, with 95 % intervals over documents.

    Medians are over all (layer, token) pairs of the third; ρ is Spearman's within each layer, then tanh of the mean of
    atanh over layers.

    Args:
        data: The analysis's Dataset.
        cut: "regime" (tokens, by an independent fit's error), "regime_own" (by the fit's own) or "regime_layer".
        fits: Classes; default all that are there, without those whose error is constant.

    Returns:
        Columns cut, fit, regime, measure, estimate, low, high.
    """
    group = np.broadcast_to(
        data[cut].values[:, None] if data[cut].dims == ("layer",) else data[cut].transpose("layer", "query").values,
        (data.sizes["layer"], data.sizes["query"]),
    )
    rows = []
    for fit in fits_present(data, "relative_error", fits):
        for measure, statistic in _statistics(data, fit).items():
            interval = over_documents(data, partial(_by_regime, statistic, group))
            rows += [_row(cut, fit, measure, number, interval) for number in range(len(REGIMES))]
    return pd.DataFrame(rows)


def regimes(table: pd.DataFrame, measure: str, ax: Axes | None = None) -> Axes:
    """Plot one measure of a regime table: low, middle, high across, a marker for each map, bars for the intervals.

    Args:
        table: What `regime_table` returned.
        measure: A value of the table's column of that name.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    chosen = table[table["measure"] == measure]
    names = [name for name in FIT_STYLES if name in set(chosen["fit"])]
    for number, name in enumerate(names):
        style, part = FIT_STYLES[name], chosen[chosen["fit"] == name]
        across = np.arange(len(part)) + 0.5 * ((number + 0.5) / len(names) - 0.5)
        bars = np.abs(part[["low", "high"]].to_numpy().T - part["estimate"].to_numpy())
        ax.errorbar(across, part["estimate"], bars, fmt=style.marker, color=style.color, label=style.label, lw=1, ms=4)
    ax.set_xticks(range(len(REGIMES)), ("low", "mid", "high"))
    ax.set_xlim(-0.5, len(REGIMES) - 0.5)
    ax.set_title(MEASURES[measure], loc="left")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    if measure == "kl":
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    if own:
        ax.legend()
    return ax


Members: TypeAlias = Bool[np.ndarray, "layer query"]
Statistic: TypeAlias = Callable[[Rows, Members], float]


def _statistics(data: xr.Dataset, fit: str) -> dict[str, Statistic]:
    """For each measure that the Dataset can give: (resampled rows, members (layer, row) of the third) -> a number."""
    place = {"map": fit, "target": "update"}
    error = _array(data["relative_error"].sel(place))
    found: dict[str, Statistic] = {"relative_error": _median(error)}
    if fit in fits_present(data, "kl"):
        kl = _array(data["kl"].sel(map=fit).clip(min=KL_FLOOR))
        found["kl"] = _median(kl)
        if fit != "zero":  # its error is 1 everywhere: no rank
            found["rho"] = _fisher_rho(error, kl)
    if "cos_update_fit" in data:
        found["cosine"] = _median(_array(data["cos_update_fit"].sel(place)))
    if fit in fits_present(data, "share") and 4 in data["k"].values:
        found["share"] = _median(_array(data["share"].sel(map=fit, centring="no_outliers", vector="residual", k=4)))
    return found


def _array(values: xr.DataArray) -> Floats:
    return np.asarray(values.transpose("layer", "query").values, dtype=np.float64)


def _median(values: Floats) -> Statistic:
    """Median over all (layer, row) pairs of a third; values are sorted once, not for every resample."""
    ranking = Ranking(values.ravel())

    def statistic(index: Rows, group: Members) -> float:
        return float(ranking.median((np.bincount(index, minlength=values.shape[1]) * group).ravel()))

    return statistic


def _fisher_rho(error: Floats, kl: Floats) -> Statistic:
    """Tanh of the mean over layers of atanh ρ; values are sorted once, not for every resample."""
    first, second = Ranking(error), Ranking(kl)

    def statistic(index: Rows, group: Members) -> float:
        weights = np.bincount(index, minlength=error.shape[1]) * group
        rho = np.asarray(spearman(first, second, weights=weights))[group.any(axis=1)]
        return float(fisher_mean(rho)) if len(rho) else np.nan

    return statistic


def _by_regime(statistic: Statistic, group: Int[np.ndarray, "layer query"], index: Rows) -> Floats:
    return np.asarray([statistic(index, group == number) for number in range(len(REGIMES))])


def _row(cut: str, fit: str, measure: str, number: int, interval: Interval) -> dict[str, object]:
    values = {name: float(np.asarray(getattr(interval, name))[number]) for name in ("estimate", "low", "high")}
    return {"cut": cut, "fit": fit, "regime": REGIMES[number], "measure": measure, **values}
