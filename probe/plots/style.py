"""Parts of all panels: colours and markers, intervals over documents, curves in their bands, null lines, axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import is_color_like, to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from probe.boundary import public, within
from probe.errors import InputError
from probe.inference import Interval, Ranking, bootstrap

# Okabe and Ito's colours, distinct under every common colour vision, without their yellow, which is faint on white.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#707070"
DOTTED = (0, (1, 1))  # of null lines and thresholds
RESAMPLES = 200  # enough for the bands of a figure; claims have their own number
KL_FLOOR = 1e-12  # nats; smaller values are rounding in a float32 log-softmax

Floats: TypeAlias = Float[np.ndarray, "..."]
Rows: TypeAlias = Int[np.ndarray, " row"]  # indices of scored tokens, with repeats


@public
@dataclass(frozen=True)
class Style:
    """The look of a curve in every figure.

    Attributes:
        label: Name in legends.
        color: Colour.
        marker: Marker, so that curves differ by more than colour.
        line: Line style.
    """

    label: str
    color: str
    marker: str = "o"
    line: str = "-"


def over_documents(data: xr.Dataset, statistic: Callable[[Rows], Floats]) -> Interval:
    """Compute the 95 % interval of a statistic of query rows over resampled documents.

    Args:
        data: The analysis's Dataset.
        statistic: Function of row indices; its values may have any shape.

    Returns:
        Estimate and bounds of the statistic's shape.
    """
    return bootstrap(statistic, np.asarray(data["document"].values), resamples=RESAMPLES, seed=0)


@public
def median_over_documents(data: xr.Dataset, values: xr.DataArray, average: bool = False) -> Interval:
    """Compute the median over queries with its interval; rows without a value are left out.

    Args:
        data: The analysis's Dataset.
        values: Dimensions (..., query).
        average: Whether to average the medians over the last of the other dimensions.

    Returns:
        Estimate and bounds of shape (...), without its last axis if averaged.

    Raises:
        InputError: If there is no axis to average over.
    """
    if average and values.ndim < 2:
        raise InputError(f"average=True needs another dimension than query, got {values.dims}: leave it out for False")
    array = np.asarray(values.transpose(..., "query").values, dtype=np.float64)
    present = np.isfinite(array).any(axis=tuple(range(array.ndim - 1)))
    ranking, n = Ranking(array[..., present]), int(present.sum())  # sorted once for all resamples

    def statistic(index: Rows) -> Floats:
        median = ranking.median(np.bincount(index, minlength=n))
        return median.mean(axis=-1) if average else median

    documents = np.asarray(data["document"].values)[present]
    return bootstrap(statistic, documents, resamples=RESAMPLES, seed=0)


def positive_median(data: xr.Dataset, values: xr.DataArray) -> Interval:
    """Compute the median over queries of positive values, with an interval from their logarithms.

    Args:
        data: The analysis's Dataset.
        values: Dimensions (..., query).

    Returns:
        Estimate and bounds of shape (...), all positive.
    """
    with np.errstate(divide="ignore"):
        logs = values.copy(data=np.log(values.values))
    return exponential(median_over_documents(data, logs))


def exponential(interval: Interval) -> Interval:
    """Convert an interval of logarithms to one of values.

    Args:
        interval: Interval of logarithms.

    Returns:
        exp of the estimate and of both bounds.
    """
    return replace(interval, **{name: np.exp(getattr(interval, name)) for name in ("estimate", "low", "high")})


def geometric_mean(values: xr.DataArray, dim: str) -> xr.DataArray:
    """Compute the geometric mean along a dimension; missing values are left out.

    Args:
        values: Positive values.
        dim: The dimension to average.

    Returns:
        The mean.
    """
    logs = values.copy(data=np.log(values.values)).mean(dim)
    return logs.copy(data=np.exp(logs.values))


def middle_of(draws: Float[np.ndarray, "draw ..."]) -> Interval:
    """Summarise draws, such as resamples or permutations, by their mean and middle 95 %.

    Args:
        draws: Shape (draw, ...).

    Returns:
        The mean, and the ends of the middle 95 %.
    """
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return Interval(draws.mean(axis=0), low, high, len(draws), "draws")


def range_of(draws: Float[np.ndarray, "draw ..."]) -> Interval:
    """Summarise a few seeds or draws of a control by their mean, least and largest.

    Args:
        draws: Shape (draw, ...).

    Returns:
        The mean, the least and the largest.
    """
    return Interval(draws.mean(axis=0), draws.min(axis=0), draws.max(axis=0), len(draws), "range")


def of_kind(names: xr.DataArray, kind: str) -> list[str]:
    """Select the names of one kind: the kind itself, or all its seeds and draws ("init-0", "init-1").

    Args:
        names: A coordinate of names.
        kind: The kind.

    Returns:
        Names along the coordinate; empty if there are none of that kind.
    """
    return [str(name) for name in names.values if name == kind or str(name).startswith(f"{kind}-")]


@public
def curve(ax: Axes, x: xr.DataArray, interval: Interval, style: Style, spread: xr.DataArray | None = None) -> None:
    """Draw an estimate in a narrow band for its interval, and a pale band for the middle half of the tokens.

    Args:
        ax: The Axes.
        x: The coordinate along which the curve runs, for example `data["layer"]`.
        interval: Estimate and bounds of the coordinate's shape.
        style: The look of the curve.
        spread: Values along the coordinate and other dimensions, whose quartiles bound the pale band.
    """
    if spread is not None:
        others = [dim for dim in spread.dims if dim not in x.dims]
        low, high = spread.quantile([0.25, 0.75], dim=others).transpose("quantile", *x.dims).values
        band(ax, x, low, high, style.color, alpha=0.1)
    band(ax, x, interval.low, interval.high, style.color)
    line(ax, x, np.asarray(interval.estimate), style)


def line(ax: Axes, x: xr.DataArray, y: xr.DataArray | Float[np.ndarray, " point"], style: Style) -> None:
    """Draw a curve with about ten markers, staggered so that curves on top of each other stay distinct.

    Args:
        ax: The Axes.
        x: The coordinate along which the curve runs.
        y: Ordinates of the coordinate's shape.
        style: The look of the curve.
    """
    step = max(1, round(len(x) / 10))
    every = (len(ax.lines) % step, step)
    ax.plot(x, y, color=style.color, marker=style.marker, ls=style.line, label=style.label, markevery=every)


@public(alpha=within(0, 1))
def band(
    ax: Axes,
    x: xr.DataArray,
    low: float | Floats,
    high: float | Floats,
    color: str,
    *,
    alpha: float = 0.25,
    label: str = "_",
) -> None:
    """Draw a band between two curves.

    Args:
        ax: The Axes.
        x: The coordinate along which the curves run.
        low: Lower ends, one number or of the coordinate's shape.
        high: Upper ends.
        color: Colour of the band.
        alpha: Opacity.
        label: Name in the legend; by default none.

    Raises:
        InputError: If the ends do not fit the coordinate, or the colour is none.
    """
    require_color(color)
    for name, values in (("low", low), ("high", high)):
        if np.shape(values) not in ((), x.shape):
            raise InputError(
                f"{name}= must be a number or of the shape {x.shape} of x=, got a {type(values).__name__} of shape "
                f"{np.shape(values)}: pass a value for each point"
            )
    ax.fill_between(x, low, high, color=color, alpha=alpha, lw=0, label=label)


def require_color(color: str) -> None:
    """Refuse what is no colour.

    Args:
        color: A name or a hexadecimal number.

    Raises:
        InputError: If matplotlib knows no such colour.
    """
    if not is_color_like(color):
        raise InputError(f"color= must be a colour of matplotlib, got {color!r}: pass a name or #rrggbb")


def dark(color: str) -> tuple[float, float, float]:
    """Return a dark shade of a colour, for a line over another of that colour.

    Args:
        color: The colour.

    Returns:
        Red, green and blue, half of the colour's.
    """
    red, green, blue = to_rgb(color)
    return red / 2, green / 2, blue / 2


@public
def null_line(ax: Axes, value: float, label: str = "_", color: str = GREY) -> None:
    """Draw the dotted line of a null value or a threshold.

    Args:
        ax: The Axes.
        value: Its place on the vertical axis.
        label: Name in the legend; by default none.
        color: Colour of the line.
    """
    require_color(color)
    ax.axhline(value, color=color, lw=1, ls=DOTTED, label=label)


@public
def finish(ax: Axes, label: str, *, log: bool = False, legend: bool = False, xlabel: str = "block") -> Axes:
    """Label the axes of a panel over whole numbers, such as blocks.

    Args:
        ax: The Axes, fully drawn.
        label: Quantity and unit of the vertical axis.
        log: Whether the vertical axis is logarithmic, with plain numbers.
        legend: Whether to show the panel's own legend.
        xlabel: Label of the horizontal axis.

    Returns:
        The Axes.
    """
    ax.set(xlabel=xlabel, ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log:
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    if legend:
        ax.legend(ncols=2)
    return ax


def plain_log(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis with plain numbers, as dense as its range needs.

    Args:
        axis: `ax.xaxis` or `ax.yaxis`, already logarithmic.
    """
    low, high = axis.get_view_interval()
    if high / low < 300:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low > 5 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    else:
        axis.set_major_locator(LogLocator(numticks=6))
    axis.set_minor_formatter(NullFormatter())


def tick_text(value: float) -> str:
    """Format a tick of a logarithmic axis: plain from 0.001 on, as m·10ⁿ below.

    Args:
        value: The tick's value, with one significant digit.

    Returns:
        The label.
    """
    if value >= 1e-3:
        return f"{value:g}"
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}·10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
