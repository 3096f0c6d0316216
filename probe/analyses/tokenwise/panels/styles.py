"""How the maps, controls and vectors of layer updates look in every figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.inference import Interval
from probe.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, Style, curve

FIT_STYLES = {
    "local": Style("local low-rank", BLUE, "o"),
    "linear": Style("linear", ORANGE, "s"),
    "low_rank": Style("reduced rank", SKY, "D", "--"),
    "local_diagonal": Style("local diagonal", RED, "^", "--"),
    "local_orthogonal": Style("local orthogonal", PINK, "v", "--"),
    "mlp": Style("MLP, ridge start", GREEN, "P"),
    "mlp_random": Style("MLP, random start", BLACK, "X", ":"),
    "zero": Style("zero (no update)", GREY, "", "-"),
    "mean": Style("mean", GREY, "*", "--"),
    "diagonal": Style("diagonal", PINK, "d", "-."),
    "alone": Style("block on the token alone", RED, "<"),
    "mlp_alone": Style("its MLP alone", GREEN, ">", "--"),
}


BASELINES = ("zero", "mean", "diagonal", "alone", "mlp_alone")


CONTROL_STYLES = {
    "covariance": Style("r′ from the residuals' covariance", ORANGE, "s"),
    "random": Style("r′ in a random direction", GREEN, "^", "--"),
    "other": Style("r′ of another token", PINK, "v", ":"),
}


VECTOR_STYLES = {
    "update": Style("update u", BLACK, "s"),
    "fit": Style("tokenwise part û", BLUE, "o"),
    "residual": Style("residual r", RED, "^"),
    "other": Style("r′, another token's update", PINK, "v", ":"),
}


PAIR_STYLES = {
    "cos_update_fit": Style("(u, û)", BLUE, "o"),
    "cos_update_residual": Style("(u, r)", RED, "^"),
    "cos_fit_residual": Style("(û, r)", GREEN, "D"),
}


CENTRINGS = {
    "no_outliers": "centred, outlier coordinates out",
    "centred": "centred",
    "uncentred": "uncentred",
}


def fits_present(data: xr.Dataset, variable: str, names: Sequence[str] | None = None) -> list[str]:
    """List the maps for which a variable holds values, in the order in which figures name them.

    Args:
        data: The analysis's Dataset.
        variable: One of its variables over `map`; none are present if it is absent.
        names: Only these; default all.

    Returns:
        Names of classes.
    """
    if variable not in data:
        return []
    array = data[variable]
    finite = np.isfinite(array.transpose("map", ...).values.astype(np.float64))
    valued = {str(name) for name, values in zip(array["map"].values, finite, strict=True) if values.any()}
    return [name for name in FIT_STYLES if name in valued and (names is None or name in names)]


def deciding_fit(data: xr.Dataset) -> str:
    """Name the map on which claims and controls are read.

    Args:
        data: The analysis's Dataset.

    Returns:
        `data.attrs["deciding_fit"]`, by default "local".
    """
    return str(data.attrs.get("deciding_fit", "local"))


def class_curves(
    ax: Axes,
    data: xr.Dataset,
    variable: str,
    interval: Callable[[str], Interval],
    fits: Sequence[str] | None = None,
) -> None:
    """Draw a curve for each class of maps that a variable holds values for.

    Args:
        ax: Where to draw.
        data: The analysis's Dataset.
        variable: One of its variables over `map`.
        interval: Name of a class to its estimate and bounds, of shape (layer,).
        fits: Classes; default all that are there.
    """
    for name in fits_present(data, variable, fits):
        curve(ax, data["layer"], interval(name), FIT_STYLES[name])
