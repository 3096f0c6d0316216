"""What all figures share: colours, markers, page style, intervals over documents, one curve."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import matplotlib
import numpy as np
import xarray as xr
from jaxtyping import Float, Int, Num, Shaped
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from probe.inference import Interval, Ranking, bootstrap

# Okabe and Ito's colours, told apart with every common colour vision, without their yellow, which is faint on white.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#707070"
WIDTH = 7.0  # inches: the text width of a page
NOTEBOOK_DPI = 110
RESAMPLES = 200  # enough for the bars of a figure; the claims take their own
KL_FLOOR = 1e-12  # nats; below it float32 log-softmax holds nothing

Floats: TypeAlias = Float[np.ndarray, "..."]
Rows: TypeAlias = Int[np.ndarray, " row"]  # of the scored tokens, with repeats


@dataclass(frozen=True)
class Style:
    """How one curve looks in every figure.

    Attributes:
        label: Its name in legends.
        color: Its colour.
        marker: Its marker, so that colour is not alone.
        line: Its line style.
    """

    label: str
    color: str
    marker: str = "o"
    line: str = "-"


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


@contextmanager
def page_style() -> Iterator[None]:
    """The style of a printed page, as a context that leaves matplotlib's settings as they were."""
    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "savefig.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": False,
        "lines.linewidth": 1.2,
        "lines.markersize": 3.5,
        "svg.fonttype": "path",
        "svg.hashsalt": "probe",  # equal data, equal file
    }
    with matplotlib.rc_context(settings):
        yield


class PageFigure(Figure):
    """A figure of page width that shows itself in a notebook, whichever backend is set there."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=NOTEBOOK_DPI)
        return file.getvalue()


def new_figure(
    rows: int = 1, columns: int = 1, *, height: float = 2.6, share_y: Literal["none", "row", "all"] = "none"
) -> tuple[Figure, Shaped[np.ndarray, "row column"]]:
    """A figure of page width and its panels.

    Args:
        rows: Rows of panels.
        columns: Panels in a row.
        height: Inches a row.
        share_y: Which panels have one vertical scale.

    Returns:
        The figure and an object array (rows, columns) of Axes.
    """
    figure = PageFigure(figsize=(WIDTH, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    return figure, np.asarray(axes, dtype=object)


def shared_legend(figure: Figure, columns: int = 4) -> None:
    """One legend below all panels, each label once.

    Args:
        figure: The figure.
        columns: Columns of the legend.
    """
    found = {
        label: handle
        for ax in figure.axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        if not label.startswith("_")
    }
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(columns, len(found)))


def legend_below(ax: Axes, columns: int = 2) -> None:
    """A panel's own legend, under its horizontal axis.

    Args:
        ax: The panel.
        columns: Columns of the legend.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    under = ax.transAxes + ScaledTranslation(0, -0.45, figure.dpi_scale_trans)  # inches: ticks and label lie between
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=under,
        ncols=columns,
        handlelength=1.6,
        columnspacing=1,
        borderaxespad=0,
    )


def fits_present(data: xr.Dataset, variable: str, names: Sequence[str] | None = None) -> list[str]:
    """The classes of maps for which a variable holds values, in the order in which figures name them.

    Args:
        data: The analysis's Dataset.
        variable: One of its variables over `fit`; none are present if it is absent.
        names: Only these; default all.

    Returns:
        Names of classes.
    """
    if variable not in data:
        return []
    array = data[variable]
    finite = np.isfinite(array.transpose("fit", ...).values.astype(np.float64))
    valued = {str(name) for name, values in zip(array["fit"].values, finite, strict=True) if values.any()}
    return [name for name in FIT_STYLES if name in valued and (names is None or name in names)]


def deciding_fit(data: xr.Dataset) -> str:
    """The class on which claims and controls are read.

    Args:
        data: The analysis's Dataset.

    Returns:
        `data.attrs["deciding_fit"]`, by default "local".
    """
    return str(data.attrs.get("deciding_fit", "local"))


def over_documents(data: xr.Dataset, statistic: Callable[[Rows], Floats]) -> Interval:
    """95 % interval of a statistic of query rows, documents resampled.

    Args:
        data: The analysis's Dataset.
        statistic: Row indices to values, any shape.

    Returns:
        Estimate and bounds of the statistic's shape.
    """
    return bootstrap(statistic, np.asarray(data["document"].values), resamples=RESAMPLES, seed=0)


def median_over_documents(data: xr.Dataset, values: xr.DataArray, average: bool = False) -> Interval:
    """Median over queries with its interval; rows without a value are left out.

    Args:
        data: The analysis's Dataset.
        values: Dimensions (..., query).
        average: Average the medians over the last of the other dimensions.

    Returns:
        Estimate and bounds of shape (...), without its last axis if averaged.
    """
    array = np.asarray(values.transpose(..., "query").values, dtype=np.float64)
    present = np.isfinite(array).any(axis=tuple(range(array.ndim - 1)))
    ranking, n = Ranking(array[..., present]), int(present.sum())  # sorted once for all resamples

    def statistic(index: Rows) -> Floats:
        median = ranking.median(np.bincount(index, minlength=n))
        return median.mean(axis=-1) if average else median

    documents = np.asarray(data["document"].values)[present]
    return bootstrap(statistic, documents, resamples=RESAMPLES, seed=0)


def geometric_mean(values: xr.DataArray, dim: str) -> xr.DataArray:
    """Mean along a dimension on the scale of logarithms; missing values are left out.

    Args:
        values: Positive values.
        dim: The dimension that goes.

    Returns:
        The mean.
    """
    logs = values.copy(data=np.log(values.values)).mean(dim)
    return logs.copy(data=np.exp(logs.values))


def axes_or_new(ax: Axes | None) -> tuple[Axes, bool]:
    """The given Axes, or those of a new figure.

    Args:
        ax: Axes to draw on, or None.

    Returns:
        The Axes, and whether they are new (then the panel shows its own legend).
    """
    if ax is not None:
        return ax, False
    return Figure(figsize=(WIDTH, 3.2), layout="constrained").subplots(), True


def curve(
    ax: Axes,
    data: xr.Dataset,
    interval: Interval,
    style: Style,
    spread: xr.DataArray | None = None,
    along: str = "layer",
) -> None:
    """Draw an estimate by layer in a narrow band for its interval, and a pale one for the middle half of the tokens.

    Args:
        ax: Where to draw.
        data: The Dataset with the coordinate `layer`.
        interval: Estimate and bounds of shape (layer,).
        style: How the curve looks.
        spread: Values (layer, query) whose quartiles bound the band.
        along: The coordinate that stands in the place of `layer`.
    """
    layer = data[along].values
    ax.fill_between(layer, interval.low, interval.high, color=style.color, alpha=0.25, lw=0)
    line(ax, layer, np.asarray(interval.estimate), style)
    if spread is not None:
        low, high = spread.quantile([0.25, 0.75], dim="query").transpose("quantile", along).values
        ax.fill_between(layer, low, high, color=style.color, alpha=0.1, lw=0)


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
        variable: One of its variables over `fit`.
        interval: Name of a class to its estimate and bounds, of shape (layer,).
        fits: Classes; default all that are there.
    """
    for name in fits_present(data, variable, fits):
        curve(ax, data, interval(name), FIT_STYLES[name])


def line(ax: Axes, x: Num[np.ndarray, " point"], y: Float[np.ndarray, " point"], style: Style) -> None:
    """Draw a curve with about ten markers, staggered so that curves on top of each other stay apart.

    Args:
        ax: Where to draw.
        x: Abscissae.
        y: Ordinates.
        style: How the curve looks.
    """
    step = max(1, round(len(x) / 10))
    every = (len(ax.lines) % step, step)
    ax.plot(x, y, color=style.color, marker=style.marker, ls=style.line, label=style.label, markevery=every)


def finish(ax: Axes, label: str, *, log: bool = False, legend: bool = False, xlabel: str = "block") -> None:
    """Label the axes of a panel over layers.

    Args:
        ax: The Axes.
        label: Quantity and unit of the vertical axis.
        log: Logarithmic vertical axis with plain numbers.
        legend: Show the panel's own legend.
        xlabel: Label of the horizontal axis.
    """
    ax.set(xlabel=xlabel, ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log:
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    if legend:
        ax.legend(ncols=2)


def plain_log(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers, as dense as the range asks for.

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
    """A tick of a logarithmic axis: plain from a thousandth on, below as m·10ⁿ.

    Args:
        value: The tick's value, with one significant digit.

    Returns:
        The label.
    """
    if value >= 1e-3:
        return f"{value:g}"
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}·10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
