"""Panels of what the residual does to the output.

Effects on the output have the dimensions (map, layer, query), `relative_error` (map, target, layer, query) and
`kl_control` (control, draw, layer, query).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.analyses.tokenwise.panels.styles import CONTROL_STYLES, FIT_STYLES, class_curves, deciding_fit, fits_present
from probe.inference import Interval, Ranking, partial_spearman, spearman
from probe.plots.pages import axes_or_new
from probe.plots.style import (
    BLACK,
    BLUE,
    KL_FLOOR,
    ORANGE,
    RED,
    Floats,
    Rows,
    Style,
    curve,
    exponential,
    finish,
    median_over_documents,
    null_line,
    over_documents,
    plain_log,
)


def error_against_kl(data: xr.Dataset, layer: int, fit: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot every token's relative error against what replacing its update does to the output (Figure 2b), both log.

    Args:
        data: The analysis's Dataset with `relative_error` and `kl`.
        layer: The block.
        fit: The map; the deciding one by default.
        ax: Where to draw.

    Returns:
        The Axes; Spearman's ρ with its 95 % interval is written into it.
    """
    ax, _ = axes_or_new(ax)
    name = fit or deciding_fit(data)
    error, kl = _error_and_kl(data.sel(layer=[layer]), name)
    color = FIT_STYLES[name].color
    ax.scatter(error[0], np.maximum(kl[0], KL_FLOOR), s=5, alpha=0.35, lw=0, color=color, rasterized=True)
    rho = _rho(data, error, kl)[0]
    text = f"ρ = {rho.estimate:.2f} [{rho.low:.2f}, {rho.high:.2f}]"
    ax.set_title(f"block {layer}\n{text}", loc="left")
    ax.set(xscale="log", yscale="log", xlabel="relative error ‖r‖ / ‖u‖", ylabel="KL (nats)")
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    return ax


def rho_by_layer(
    data: xr.Dataset, fits: Sequence[str] | None = None, threshold: float = 0.7, ax: Axes | None = None
) -> Axes:
    """Plot Spearman's ρ of relative error and KL over tokens, by layer and map.

    Args:
        data: The analysis's Dataset with `relative_error` and `kl`.
        fits: Classes; default all but those whose error is constant.
        threshold: Where the claim's line is drawn.
        ax: Where to draw.

    Returns:
        The Axes; dotted, the threshold. `rho_controls` draws the nulls.
    """
    ax, own = axes_or_new(ax)
    ranked = [name for name in fits_present(data, "kl", fits) if name != "zero"]  # whose error is 1 everywhere: no rank
    class_curves(ax, data, "kl", lambda name: _rho(data, *_error_and_kl(data, name)), ranked)
    null_line(ax, threshold, f"threshold {threshold:g}", BLACK)
    return finish(ax, "Spearman's ρ (error, KL)", legend=own)


def rho_controls(data: xr.Dataset, threshold: float = 0.7, ax: Axes | None = None) -> Axes:
    """Plot ρ of the deciding map beside the ρ that replaced residuals of equal norm give, and its partial ρ.

    A control's ρ is the mean over draws of ρ(‖r‖/‖u‖, KL(r′)). The partial ρ holds log‖u‖, log‖h‖, output entropy,
    position and token frequency fixed.

    Args:
        data: The analysis's Dataset with `relative_error`, `kl` and `kl_control`.
        threshold: Where the claim's line is drawn.
        ax: Where to draw.

    Returns:
        The Axes; the nulls are the replaced residuals; dotted, the threshold.
    """
    ax, own = axes_or_new(ax)
    name = deciding_fit(data)
    error, kl = _error_and_kl(data, name)
    curve(ax, data["layer"], _rho(data, error, kl), Style("the residual r", BLUE, "o"))
    for control, style in CONTROL_STYLES.items():
        if control in data["control"].values:
            draws = np.asarray(data["kl_control"].sel(control=control).transpose("draw", "layer", "query").values)
            curve(ax, data["layer"], _rho(data, error, draws), style)
    covariates = _covariates(data)
    if covariates:
        curve(
            ax,
            data["layer"],
            _rho(data, error, kl, covariates),
            Style("r, partial ρ given five covariates", BLACK, "D", "-."),
        )
    null_line(ax, threshold, f"threshold {threshold:g}", BLACK)
    return finish(ax, "Spearman's ρ (error, KL)", legend=own)


def kl_ratio(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Plot KL(r) over KL(r′) by layer for replaced residuals of equal norm: does the residual matter beyond its size?

    Per token, log KL(r) minus the mean over draws of log KL(r′); medians are shown as a ratio on a log scale.

    Args:
        data: The analysis's Dataset with `kl` and `kl_control`.
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: 1, no more than its size.
    """
    ax, own = axes_or_new(ax)
    kl = _log(data["kl"].sel(map=deciding_fit(data)))
    for control, style in CONTROL_STYLES.items():
        if control in data["control"].values:
            ratio = kl - _log(data["kl_control"].sel(control=control)).mean(dim="draw")
            spread = ratio.copy(data=np.exp(ratio.values)) if control == "covariance" else None
            curve(ax, data["layer"], exponential(median_over_documents(data, ratio)), style, spread=spread)
    null_line(ax, 1.0, "no more than its size", BLACK)
    return finish(ax, "KL(r) / KL(r′)", log=True, legend=own)


def kl_by_layer(data: xr.Dataset, fits: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Plot the median KL of the output when one position's update is replaced by a map's, by layer and map.

    Args:
        data: The analysis's Dataset with `kl`.
        fits: Classes; default all that are there.
        ax: Where to draw.

    Returns:
        The Axes; the null is 0, the block's own update, below the logarithmic axis.
    """

    def median(name: str) -> Interval:
        return median_over_documents(data, data["kl"].sel(map=name).clip(min=KL_FLOOR))

    return _by_class(data, "kl", median, fits, ax, "KL (nats), one position", log=True)


def replacement_modes(data: xr.Dataset, fit: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot KL when one position is replaced, read there and summed over later positions, and when all are.

    Args:
        data: The analysis's Dataset with `kl`, and `kl_all` or `kl_later`.
        fit: The map; the deciding one by default.
        ax: Where to draw.

    Returns:
        The Axes; the null is 0, nothing replaced, below the logarithmic axis.
    """
    ax, own = axes_or_new(ax)
    modes = {
        "kl": Style("one position, read there", BLUE),
        "kl_later": Style("one position, summed over later ones", ORANGE, "s", "--"),
        "kl_all": Style("all positions at once", RED, "^"),
    }
    for name, style in modes.items():
        if (fit or deciding_fit(data)) in fits_present(data, name):
            values = data[name].sel(map=fit or deciding_fit(data)).clip(min=KL_FLOOR)
            curve(ax, data["layer"], median_over_documents(data, values), style, spread=values)
    return finish(ax, "KL (nats)", log=True, legend=own)


def top1_agreement(data: xr.Dataset, fits: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Plot the share of tokens whose most likely next token survives the replacement, by layer and map.

    Args:
        data: The analysis's Dataset with `top1`.
        fits: Classes; default all that are there.
        ax: Where to draw.

    Returns:
        The Axes; the null is 1, nothing replaced.
    """

    def share(name: str) -> Interval:
        agrees = np.asarray(data["top1"].sel(map=name).transpose("layer", "query").values, dtype=np.float64)
        return over_documents(data, partial(_mean_of_rows, agrees))

    return _by_class(data, "top1", share, fits, ax, "top-1 agreement (share)")


def _by_class(
    data: xr.Dataset,
    variable: str,
    interval: Callable[[str], Interval],
    fits: Sequence[str] | None,
    ax: Axes | None,
    label: str,
    log: bool = False,
) -> Axes:
    """A whole panel of nothing but one curve for each class."""
    ax, own = axes_or_new(ax)
    class_curves(ax, data, variable, interval, fits)
    return finish(ax, label, log=log, legend=own)


def _error_and_kl(data: xr.Dataset, fit: str) -> tuple[Floats, Floats]:
    """Relative error of the update and one-position KL of a class, each (layer, query)."""
    error = data["relative_error"].sel(map=fit, target="update").transpose("layer", "query")
    kl = data["kl"].sel(map=fit).transpose("layer", "query")
    return np.asarray(error.values, dtype=np.float64), np.asarray(kl.values, dtype=np.float64)


def _covariates(data: xr.Dataset) -> list[Floats]:
    """log‖u‖, log‖h‖, entropy, position, frequency, each (..., query); none where one of them is missing."""
    if not {"update_norm", "state_norm", "entropy", "frequency", "position"} <= set(data.variables):
        return []
    norms = [np.log(data[name].transpose("layer", "query").values) for name in ("update_norm", "state_norm")]
    return [*norms, *(np.asarray(data[name].values, dtype=np.float64) for name in ("entropy", "position", "frequency"))]


def _rho(data: xr.Dataset, error: Floats, kl: Floats, covariates: Sequence[Floats] = ()) -> Interval:
    """Spearman's ρ by layer, partial where covariates are given, mean over leading draws of `kl`."""
    first, second, *given = [Ranking(values) for values in (error, kl, *covariates)]  # sorted once for all resamples

    def statistic(index: Rows) -> Floats:
        weights = np.bincount(index, minlength=data.sizes["query"])
        if given:
            return np.asarray(partial_spearman(first, second, given, weights=weights))
        rho = np.asarray(spearman(first, second, weights=weights))
        return np.asarray(rho.mean(axis=tuple(range(rho.ndim - 1))))

    return over_documents(data, statistic)


def _mean_of_rows(values: Floats, index: Rows) -> Floats:
    return np.asarray(values[..., index].mean(axis=-1))


def _log(kl: xr.DataArray) -> xr.DataArray:
    return kl.copy(data=np.log(np.maximum(kl.values, KL_FLOOR)))
