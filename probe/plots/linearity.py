"""Panels of how far the product of Jacobians predicts the real network."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.plots.spectral import positive_median
from probe.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    Style,
    axes_or_new,
    finish,
    geometric_mean,
    line,
    median_over_documents,
    plain_log,
)

DIRECTION_STYLES = {
    "random": Style("random", GREY, "s", "--"),
    "singular": Style("top right singular vector", BLUE, "o"),
    "other": Style("another token's difference", RED, "^"),
    "principal": Style("first principal direction", GREEN, "D", "-."),
}
HORIZON_STYLES = {
    "1": Style("1 block", BLACK, "o"),
    "2": Style("2 blocks", BLUE, "s"),
    "4": Style("4 blocks", SKY, "D"),
    "8": Style("8 blocks", ORANGE, "^"),
    "all": Style("to the end", PINK, "v", "--"),
}


def perturbation(data: xr.Dataset, measure: str = "error", horizon: str = "1", ax: Axes | None = None) -> Axes:
    """Error (or cosine) of the linear prediction against the size of the step, for each direction.

    Args:
        data: The dynamics analysis's Dataset with `perturb_error` and `perturb_cosine`.
        measure: "error" or "cosine".
        horizon: How many blocks on.
        ax: Where to draw.

    Returns:
        The Axes; medians over positions, mean over the blocks where the step was made.
    """
    ax, own = axes_or_new(ax)
    epsilon = data["epsilon"].values
    for name, style in DIRECTION_STYLES.items():
        values = data[f"perturb_{measure}"].sel(direction=name, horizon=horizon).transpose("epsilon", "start", "query")
        reached = values.isel(start=values.notnull().any(("epsilon", "query")).values)
        if not reached.sizes["start"]:
            continue
        interval = median_over_documents(data, reached, average=True)
        ax.fill_between(epsilon, interval.low, interval.high, color=style.color, alpha=0.25, lw=0)
        line(ax, epsilon, np.asarray(interval.estimate), style)
    ax.set_xscale("log")
    label = "relative error" if measure == "error" else "cosine"
    finish(ax, label, log=measure == "error", legend=own, xlabel="ε / median ‖u‖")
    plain_log(ax.xaxis)
    if measure == "error":
        ax.axhline(0.1, color=GREY, lw=1, ls=(0, (1, 1)), label="10 %")
    return ax


def linear_range(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """ε at which the error passes 10 %, by the block before which the step is made, for each horizon.

    Args:
        data: The dynamics analysis's Dataset with `epsilon_at_tenth`.
        ax: Where to draw.

    Returns:
        The Axes; geometric means over the directions, medians over positions.
    """
    ax, own = axes_or_new(ax)
    for horizon, style in HORIZON_STYLES.items():
        values = geometric_mean(data["epsilon_at_tenth"].sel(horizon=horizon), "direction")
        reached = values.isel(start=values.notnull().any("query").values)
        if not reached.sizes["start"]:
            continue
        interval = positive_median(data, reached)
        ax.fill_between(reached["start"], interval.low, interval.high, color=style.color, alpha=0.25, lw=0)
        line(ax, reached["start"].values, np.asarray(interval.estimate), style)
    finish(ax, "ε at 10 % error / median ‖u‖", log=True, legend=own, xlabel="block before which the step is made")
    return ax
