"""Panels of the linear prediction: how well the product of Jacobians tells what the network does."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes

from probe.plots.pages import axes_or_new
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
    curve,
    finish,
    geometric_mean,
    median_over_documents,
    null_line,
    plain_log,
    positive_median,
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
    """Draw error or cosine of the linear prediction against the size of the step, for each direction.

    Args:
        data: The dynamics analysis's Dataset with `perturb_error` and `perturb_cosine`.
        measure: "error" or "cosine".
        horizon: Number of blocks to the comparison, or "all".
        ax: Where to draw.

    Returns:
        The Axes; medians over positions, mean over the blocks where the step was made. The null is a linear
        network, error 0 and cosine 1; dotted, the 10 % at which the claim reads ε.
    """
    ax, own = axes_or_new(ax)
    for name, style in DIRECTION_STYLES.items():
        values = data[f"perturb_{measure}"].sel(direction=name, horizon=horizon).transpose("epsilon", "start", "query")
        reached = _reached(values)
        if reached.sizes["start"]:
            curve(ax, data["epsilon"], median_over_documents(data, reached, average=True), style)
    if measure == "error":
        null_line(ax, 0.1, "10 %")
    ax.set_xscale("log")
    label = "relative error" if measure == "error" else "cosine"
    finish(ax, label, log=measure == "error", legend=own, xlabel="ε / median ‖u‖")
    plain_log(ax.xaxis)
    return ax


def linear_range(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the ε at which the error passes 10 %, by the block before which the step is made, for each horizon.

    Args:
        data: The dynamics analysis's Dataset with `epsilon_at_tenth`.
        ax: Where to draw.

    Returns:
        The Axes; geometric means over the directions, medians over positions. No null: a linear network has no such ε.
    """
    ax, own = axes_or_new(ax)
    for horizon, style in HORIZON_STYLES.items():
        reached = _reached(geometric_mean(data["epsilon_at_tenth"].sel(horizon=horizon), "direction"))
        if reached.sizes["start"]:
            curve(ax, reached["start"], positive_median(data, reached), style)
    label = "ε at 10 % error / median ‖u‖"
    return finish(ax, label, log=True, legend=own, xlabel="block before which the step is made")


def _reached(values: xr.DataArray) -> xr.DataArray:
    """Without the starts from which no such horizon lies within the model."""
    others = [dim for dim in values.dims if dim != "start"]
    return values.isel(start=values.notnull().any(others).values)
