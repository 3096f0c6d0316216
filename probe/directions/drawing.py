"""The picture of directions through depth."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe import plots
from probe.errors import InputError
from probe.inference import Interval
from probe.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, Style, line

_STYLES = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (PINK, "D"), (BLACK, "v"), (SKY, "P"))
_NULLS = {"isotropic": (GREY, "any direction"), "covariance": (ORANGE, "direction of the states' covariance")}
_TITLES = {
    "gain": "gain",
    "cosine_self": "cosine with itself",
    "cosine_state": "cosine with the state",
    "cosine_update": "cosine with the update before",
}


def path_figure(summary: xr.Dataset, directions: Sequence[str] | None) -> Figure:
    """Draw the measures of a path's summary, a panel each.

    Args:
        summary: The summary of a `DirectionPath`.
        directions: Names of the directions to draw; None: all.

    Returns:
        The figure.

    Raises:
        InputError: If there is no direction of that name, or more than six are to be drawn.
    """
    known = [str(name) for name in summary["direction"].values]
    chosen = known if directions is None else list(directions)
    if not 1 <= len(chosen) <= len(_STYLES) or not set(chosen) <= set(known):
        raise InputError(
            f"a picture shows one to {len(_STYLES)} of the directions {', '.join(known[:8])}, got "
            f"{', '.join(chosen) or 'none'}: "
            "choose some by directions="
        )
    styles = {name: Style(name, *style) for name, style in zip(chosen, _STYLES, strict=False)}
    with plots.page_style():
        figure, axes = plots.new_figure(2, 2, height=2.4)
        for ax, measure in zip(axes.ravel(), _TITLES, strict=True):
            _panel(ax, summary.sel(measure=measure), styles)
            ax.set_title(_TITLES[measure], loc="left")
            plots.finish(ax, _TITLES[measure], log=measure == "gain", xlabel="depth")
        plots.shared_legend(figure)
    return figure


def _panel(ax: Axes, summary: xr.Dataset, styles: dict[str, Style]) -> None:
    depth = summary["depth"]
    for null, (color, words) in _NULLS.items():
        drawn = summary.sel(null=null)
        plots.band(ax, depth, drawn["null_low"].values, drawn["null_high"].values, color, alpha=0.15)
        line(ax, depth, drawn["null_median"], Style(f"random: {words}", color, "", ":"))
    for name, style in styles.items():
        own = summary.sel(direction=name)
        median, low, high = (own[variable].values for variable in ("median", "median_low", "median_high"))
        documents, method = own.attrs["documents"], own.attrs["interval"]
        plots.curve(ax, depth, Interval(median, low, high, documents, method), style)
