"""Panels of what three analyses find in one model: angles between leading directions, by depth."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes

from probe.analyses.continuity.panels import PROJECTION_STYLES
from probe.plots.pages import axes_or_new
from probe.plots.style import BLUE, GREY, RED, Style, finish, line

SIDE_STYLES = {"input": Style("what K reads", BLUE, "o"), "output": Style("what K writes", RED, "s")}


def direction_angles(data: xr.Dataset, variable: str, ax: Axes | None = None) -> Axes:
    """Draw the angle between each projection's leading direction and a subspace, by depth.

    Args:
        data: As `probe.study.joint.joint` gives it: `variable` (projection, layer), `haar_direction` (level,).
        variable: "weights_jacobian" or "weights_update".
        ax: Where to draw.

    Returns:
        The Axes; grey, the null: the middle 95 % of random directions, dashed their median.
    """
    ax, own = axes_or_new(ax)
    _null(ax, data["haar_direction"])
    for name in data[variable]["projection"].values.tolist():
        line(ax, data["layer"], data[variable].sel(projection=name), PROJECTION_STYLES[name])
    return _finished(ax, own)


def subspace_angles(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the principal angles between the mean Jacobian's leading directions and the tokenwise part's, by depth.

    Args:
        data: As `probe.study.joint.joint` gives it: `jacobian_update` (side, angle, layer), `haar_subspace` (angle,
            level).
        ax: Where to draw.

    Returns:
        The Axes; full lines: the smallest angle, pale ones the others; grey, the null: the smallest between random
        subspaces.
    """
    ax, own = axes_or_new(ax)
    _null(ax, data["haar_subspace"].sel(angle=1))
    for side, style in SIDE_STYLES.items():
        angles = data["jacobian_update"].sel(side=side)
        for angle in angles["angle"].values[1:]:
            ax.plot(data["layer"], angles.sel(angle=angle), color=style.color, lw=0.8, alpha=0.35)
        line(ax, data["layer"], angles.sel(angle=1), style)
    return _finished(ax, own)


def _null(ax: Axes, levels: xr.DataArray) -> None:
    low, median, high = (float(levels.sel(level=name)) for name in ("low", "median", "high"))
    ax.axhspan(low, high, color=GREY, alpha=0.25, lw=0, label="random directions, middle 95 %")
    ax.axhline(median, color=GREY, lw=1, ls="--")


def _finished(ax: Axes, own: bool) -> Axes:
    ax.set_ylim(0, 93)
    ax.set_yticks([0, 30, 60, 90])
    return finish(ax, "angle, degrees", legend=own)
