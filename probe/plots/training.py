"""Panels of trainings: continuity, coherence and loss by step, concentration, the grid of decay and start.

A line is the mean over seeds, its band Student's 95 % interval over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from probe.inference import seed_interval
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
    plain_log,
)

ACTIVATION_STYLES = {
    "identity": Style("identity", GREY, "s"),
    "radial_gate": Style("rotation-preserving, gate", ORANGE, "v", "--"),
    "radial_squash": Style("rotation-preserving, squash", PINK, "^", "--"),
    "relu": Style("ReLU", SKY, "D"),
    "gelu": Style("GELU", BLUE, "o"),
    "silu": Style("SiLU", GREEN, "P"),
    "tanh": Style("tanh", RED, "X"),
}
ARM_STYLES = {
    "full": Style("full", BLUE, "o"),
    "v_nonlinearity": Style("GELU after V", RED, "^"),
    "radial": Style("rotation-preserving MLP", ORANGE, "v", "--"),
    "no_residual": Style("no residual", GREY, "s"),
    "no_norm": Style("no norm", GREEN, "D", "-."),
    "linear_attention": Style("linear attention", PINK, "P", ":"),
}
NORM_STYLES = {
    "none": Style("no norm", BLACK, "o"),
    "layer": Style("LayerNorm", GREEN, "D", "--"),
    "rms": Style("RMSNorm with gain", RED, "^", "--"),
    "rms_bare": Style("RMSNorm without gain", SKY, "v", "--"),
}
LAST = 0.2  # share of the steps over which an end value is averaged, as in the claims


def through_training(
    data: xr.Dataset,
    variable: str,
    cells: Mapping[str, Style],
    *,
    weights: str = "W",
    space: str = "input",
    null: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """A variable of some toys by step.

    Args:
        data: The analysis's Dataset.
        variable: One over `cell`, `step` and `seed`; averaged over `pair` where it has it.
        cells: Names of cells and how each looks; those that are not there are left out.
        weights: "W" or "ΔW", where it has both.
        space: "input" or "output", where it has both.
        null: Draw, of a continuity, what random directions have, and the end of their 99 % band.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    values = _chosen(data[variable], weights, space)
    for name, style in cells.items():
        if name in data["cell"].values:
            curve_over_seeds(ax, data["step"].values, values.sel(cell=name).transpose("seed", "step").values, style)
    if variable == "cosine" and null:
        _null_lines(ax, data.attrs["haar_cosine"], data.attrs["haar_band"])
    return step_axis(ax, data["step"].values, own)


def learning(data: xr.Dataset, cells: Mapping[str, Style], ax: Axes | None = None) -> Axes:
    """Held-out loss of some toys by step; 1 is that of a constant guess.

    Args:
        data: The analysis's Dataset.
        cells: Names of cells and how each looks.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax = through_training(data, "held_out_loss", cells, ax=ax)
    ax.axhline(1.0, color=GREY, lw=1, ls=(0, (1, 1)), label="a constant guess")
    ax.set_yscale("log")
    least = data["held_out_loss"].sel(cell=[name for name in cells if name in data["cell"].values]).min()
    ax.set_ylim(min(0.5, float(least)) / 1.5, 4.0)  # a start may lie orders of magnitude above
    plain_log(ax.yaxis)
    ax.set_ylabel("held-out loss")
    return ax


def matches(data: xr.Dataset, cells: Mapping[str, Style], weights: str = "W", ax: Axes | None = None) -> Axes:
    """How well each of the leading directions carries on at the end, beyond random frames.

    Args:
        data: The analysis's Dataset with `match`.
        cells: Names of cells and how each looks.
        weights: "W" or "ΔW".
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    excess = (_chosen(data["match"], weights, "input") - data["null_match"]).isel(step=_late(data["step"].values))
    for name, style in cells.items():
        if name in data["cell"].values:
            values = excess.sel(cell=name).mean("step").transpose("seed", "k").values
            curve_over_seeds(ax, data["k"].values, values, style)
    ax.axhline(0.0, color=GREY, lw=1, ls=(0, (1, 1)), label="random frames")
    ax.set(xlabel="direction i", ylabel="mᵢ² − null")
    if own:
        ax.legend()
    return ax


def decay_against_start(data: xr.Dataset, activation: str, weights: str = "W", ax: Axes | None = None) -> Axes:
    """Continuity at the end over weight decay and the scale of the start, as a heat map with its numbers.

    Args:
        data: The analysis's Dataset.
        activation: Of the stream form without norm, under the nonlinear teacher and AdamW.
        weights: "W" or "ΔW".
        ax: Where to draw.

    Returns:
        The Axes; a cell that did not learn is crossed out, one that was not trained is blank.
    """
    ax, _ = axes_or_new(ax)
    core = {"activation": activation, "form": "stream", "residual": True, "norm": "none"}
    core |= {"teacher": "nonlinear", "optimiser": "adamw"}
    chosen = np.all([data[name].values == value for name, value in core.items()], axis=0)
    part = data.isel(cell=np.flatnonzero(chosen), step=_late(data["step"].values))
    ends = _chosen(part["cosine"], weights, "input").mean(("step", "seed")).values
    losses = part["held_out_loss"].mean(("step", "seed")).values
    every = data.isel(cell=np.flatnonzero(data["residual"].values))  # one scale for all activations
    decays, scales = np.unique(every["decay"].values), np.unique(every["scale"].values)
    table = np.full((len(decays), len(scales)), np.nan)
    for end, loss, decay, scale in zip(ends, losses, part["decay"].values, part["scale"].values, strict=True):
        row, column = np.searchsorted(decays, decay), np.searchsorted(scales, scale)
        table[row, column] = end
        lazy = loss >= data.attrs.get("threshold_learned", 0.9)
        text = f"({end:.2f})" if lazy else f"{end:.2f}"
        ax.text(column, row, text, ha="center", va="center", color="black" if end > 0.55 else "white", fontsize=8)
    image = ax.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower")
    ax.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    ax.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
    ax.set(xlabel="scale of the start", ylabel="weight decay")
    image.set_label("continuity")
    return ax


def coherence_against_continuity(data: xr.Dataset, weights: str = "W", ax: Axes | None = None) -> Axes:
    """Gradient coherence at step 0 against continuity at the end, a point a cell.

    Args:
        data: The analysis's Dataset.
        weights: "W" or "ΔW".
        ax: Where to draw.

    Returns:
        The Axes; filled where the cell has a residual connection.
    """
    ax, own = axes_or_new(ax)
    late = data.isel(step=_late(data["step"].values))
    y = _chosen(late["cosine"], weights, "input").mean(("step", "seed")).values
    x = data["gradient_coherence"].sel(space="output").isel(step=0).mean("seed").values
    residual, kinds = data["residual"].values.astype(bool), data["activation"].values
    for name, style in ACTIVATION_STYLES.items():
        for filled in (True, False):
            rows = (kinds == name) & (residual == filled)
            face = style.color if filled else "none"
            label = style.label if filled else "_"
            ax.scatter(
                x[rows], y[rows], s=14, facecolors=face, edgecolors=style.color, marker=style.marker, label=label
            )
    ax.axhline(data.attrs["haar_cosine"], color=GREY, lw=1, ls=(0, (1, 1)), label="random directions")
    ax.set(xlabel="gradient coherence at step 0", ylabel=f"continuity of {weights} at the end", ylim=(0, 1.02))
    if own:
        ax.legend(ncols=2)
    return ax


def arm_continuity(
    data: xr.Dataset, projection: str, space: str = "input", weights: str = "W", ax: Axes | None = None
) -> Axes:
    """Continuity of one projection through the training of the transformers, by arm.

    Args:
        data: The analysis's Dataset with `arm_cosine`.
        projection: For example "v".
        space: "input" or "output".
        weights: "W" or "ΔW".
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    values = data["arm_cosine"].sel(projection=projection, space=space, weights=weights).mean("arm_pair")
    for name in data["arm"].values.tolist():
        each = values.sel(arm=name).transpose("seed", "arm_step").values
        curve_over_seeds(ax, data["arm_step"].values, each, ARM_STYLES[name])
    _null_lines(ax, float(data["arm_null_cosine"].sel(projection=projection, space=space)))
    return step_axis(ax, data["arm_step"].values, own)


def arm_learning(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Held-out loss of the transformers by step, in bits a byte.

    Args:
        data: The analysis's Dataset with `arm_held_out_loss`.
        ax: Where to draw.

    Returns:
        The Axes.
    """
    ax, own = axes_or_new(ax)
    values = data["arm_held_out_loss"] / np.log(2)
    for name in data["arm"].values.tolist():
        each = values.sel(arm=name).transpose("seed", "arm_step").values
        curve_over_seeds(ax, data["arm_step"].values, each, ARM_STYLES[name])
    guess = data.attrs["arm_guess"] / np.log(2)
    ax.axhline(guess, color=GREY, lw=1, ls=(0, (1, 1)), label="frequencies of bytes alone")
    ax.set_ylabel("bits / byte")
    return step_axis(ax, data["arm_step"].values, own)


def curve_over_seeds(
    ax: Axes, x: Num[np.ndarray, " point"], values: Float[np.ndarray, "seed point"], style: Style
) -> None:
    """Draw the mean over seeds in a band for its interval; points without a value are left out.

    Args:
        ax: Where to draw.
        x: Abscissae.
        values: (seed, point).
        style: How the curve looks.
    """
    there = np.isfinite(values).all(axis=0)
    interval = seed_interval(values[:, there].astype(np.float64))
    if len(values) > 1:
        ax.fill_between(x[there], interval.low, interval.high, color=style.color, alpha=0.2, lw=0)
    every = (0.02 * (len(ax.lines) % 5), 0.1)  # in lengths of the panel: snapshots crowd at the end of a log axis
    (curve,) = ax.plot(x[there], np.asarray(interval.estimate), color=style.color, ls=style.line, label=style.label)
    curve.set(marker=style.marker, markevery=every)


def step_axis(ax: Axes, steps: Num[np.ndarray, " snapshot"], legend: bool) -> Axes:
    """A horizontal axis of steps: 0, then logarithmic from the first snapshot after it.

    Args:
        ax: The Axes.
        steps: All snapshots.
        legend: Show the panel's own legend.

    Returns:
        The Axes.
    """
    first = max(1, int(steps[steps > 0].min()))
    ax.set_xscale("symlog", linthresh=first, linscale=0.3)
    powers = [10**power for power in range(1, 8) if first <= 10**power <= steps[-1]]
    ax.xaxis.set_major_locator(FixedLocator([0, *powers]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", " ")))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="step", xlim=(0, steps[-1]))
    if legend:
        ax.legend(ncols=2)
    return ax


def _chosen(values: xr.DataArray, weights: str, space: str) -> xr.DataArray:
    labels = {name: label for name, label in (("weights", weights), ("space", space)) if name in values.dims}
    chosen = values.sel(labels)
    return chosen.mean("pair") if "pair" in chosen.dims else chosen


def _late(steps: Num[np.ndarray, " snapshot"]) -> np.ndarray:
    return np.flatnonzero(steps >= (1 - LAST) * steps[-1])


def _null_lines(ax: Axes, mean: float, band: float | None = None) -> None:
    ax.axhline(mean, color=GREY, lw=1, ls=(0, (1, 1)), label="random directions")
    if band is not None:
        ax.axhspan(0, band, color=GREY, alpha=0.12, lw=0, label="their 99 % band")
    ax.set_ylim(0, 1.02)
