"""Panels of trainings: continuity, coherence and loss by step, concentration, the grid of decay and start.

A line is the mean over seeds, its band Student's 95 % interval over seeds. Variables have the dimensions (cell, step,
seed), those of weights `weights` and `space` too; of the transformers (arm, arm_step, seed).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Int, Num
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from probe.analyses.causes.table import LAST
from probe.inference import seed_interval
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
    band,
    finish,
    null_line,
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
LABELS = {
    "cosine": "|cos v₁|",
    "gradient_coherence": "gradient coherence",
    "held_out_loss": "held-out loss",
    "layer_angle": "angle, degrees",
    "step_angle": "angle, degrees",
}


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
    """Draw a variable of some toys by step.

    Args:
        data: The analysis's Dataset.
        variable: A key of `LABELS`, over `cell`, `step` and `seed`; averaged over `pair` where it has it.
        cells: Names of cells and how each looks; those that are not there are left out.
        weights: "W" or "ΔW", where it has both.
        space: "input" or "output", where it has both.
        null: Draw the null: of a continuity random directions and their 99 % band, of coherence 0, unrelated gradients.
        ax: Where to draw.

    Returns:
        The Axes; angles have no null.
    """
    ax, own = axes_or_new(ax)
    _each(ax, _chosen(data[variable], weights, space), "cell", cells, "step")
    if null and variable == "cosine":
        _random_directions(ax, data.attrs["haar_cosine"], data.attrs["haar_band"])
    elif null and variable == "gradient_coherence":
        null_line(ax, 0.0, "unrelated gradients")
    ax.set_ylabel(LABELS[variable])
    return step_axis(ax, data["step"].values, own)


def learning(data: xr.Dataset, cells: Mapping[str, Style], ax: Axes | None = None) -> Axes:
    """Draw the held-out loss of some toys by step; 1 is that of a constant guess.

    Args:
        data: The analysis's Dataset with `held_out_loss` (cell, step, seed), over the variance of the targets.
        cells: Names of cells and how each looks.
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: a constant guess.
    """
    ax, own = axes_or_new(ax)
    through_training(data, "held_out_loss", cells, ax=ax)
    null_line(ax, 1.0, "a constant guess")
    ax.set_yscale("log")
    least = data["held_out_loss"].sel(cell=[name for name in cells if name in data["cell"].values]).min()
    ax.set_ylim(min(0.5, float(least)) / 1.5, 4.0)  # a start may lie orders of magnitude above
    plain_log(ax.yaxis)
    if own:
        ax.legend(ncols=2)
    return ax


def matches(data: xr.Dataset, cells: Mapping[str, Style], weights: str = "W", ax: Axes | None = None) -> Axes:
    """Draw the best match of each leading direction at the end, beyond that of random frames.

    Args:
        data: The analysis's Dataset with `match` (cell, step, seed, weights, space, k) and `null_match` (k,).
        cells: Names of cells and how each looks.
        weights: "W" or "ΔW".
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: 0, random frames.
    """
    ax, own = axes_or_new(ax)
    excess = (_chosen(data["match"], weights, "input") - data["null_match"]).isel(step=_late(data["step"].values))
    _each(ax, excess.mean("step"), "cell", cells, "k")
    null_line(ax, 0.0, "random frames")
    return finish(ax, "mᵢ² − null", legend=own, xlabel="direction i")


def decay_against_start(data: xr.Dataset, activation: str, weights: str = "W", ax: Axes | None = None) -> Axes:
    """Draw continuity at the end over weight decay and the scale of the start, as a heat map with its numbers.

    Args:
        data: The analysis's Dataset with `cosine` and `held_out_loss`, and what its cells are.
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
    ax.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower")
    ax.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    ax.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
    ax.set(xlabel="scale of the start", ylabel="weight decay")
    return ax


def coherence_against_continuity(data: xr.Dataset, weights: str = "W", ax: Axes | None = None) -> Axes:
    """Plot gradient coherence at step 0 against continuity at the end, a point a cell.

    Args:
        data: The analysis's Dataset with `gradient_coherence` (cell, step, seed, space) and `cosine`.
        weights: "W" or "ΔW".
        ax: Where to draw.

    Returns:
        The Axes; filled where the cell has a residual connection; dotted, the null: random directions.
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
    null_line(ax, data.attrs["haar_cosine"], "random directions")
    ax.set(xlabel="gradient coherence at step 0", ylabel=f"continuity of {weights} at the end", ylim=(0, 1.02))
    if own:
        ax.legend(ncols=2)
    return ax


def arm_continuity(
    data: xr.Dataset, projection: str, space: str = "input", weights: str = "W", ax: Axes | None = None
) -> Axes:
    """Draw the continuity of one projection through the training of the transformers, by arm.

    Args:
        data: The analysis's Dataset with `arm_cosine` (arm, arm_step, seed, projection, weights, space, arm_pair) and
            `arm_null_cosine` (projection, space).
        projection: For example "v".
        space: "input" or "output".
        weights: "W" or "ΔW".
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: random directions.
    """
    ax, own = axes_or_new(ax)
    values = data["arm_cosine"].sel(projection=projection, space=space, weights=weights).mean("arm_pair")
    _each(ax, values, "arm", ARM_STYLES, "arm_step")
    _random_directions(ax, float(data["arm_null_cosine"].sel(projection=projection, space=space)))
    ax.set_ylabel("|cos|")
    return step_axis(ax, data["arm_step"].values, own)


def arm_learning(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the held-out loss of the transformers by step, in bits a byte.

    Args:
        data: The analysis's Dataset with `arm_held_out_loss` (arm, arm_step, seed), in nats.
        ax: Where to draw.

    Returns:
        The Axes; dotted, the null: the frequencies of single bytes.
    """
    ax, own = axes_or_new(ax)
    _each(ax, data["arm_held_out_loss"] / np.log(2), "arm", ARM_STYLES, "arm_step")
    null_line(ax, data.attrs["arm_guess"] / np.log(2), "frequencies of bytes alone")
    ax.set_ylabel("bits / byte")
    return step_axis(ax, data["arm_step"].values, own)


def curve_over_seeds(ax: Axes, values: xr.DataArray, along: str, style: Style) -> None:
    """Draw the mean over seeds in a band for its interval; points without a value are left out.

    Args:
        ax: Where to draw.
        values: (seed, `along`).
        along: The coordinate along which the curve runs.
        style: How the curve looks.
    """
    each = values.transpose("seed", along).values.astype(np.float64)
    there = np.isfinite(each).all(axis=0)
    x, interval = values[along][there], seed_interval(each[:, there])
    if len(each) > 1:
        band(ax, x, interval.low, interval.high, style.color)
    every = (0.02 * (len(ax.lines) % 5), 0.1)  # in lengths of the panel: snapshots crowd at the end of a log axis
    (curve,) = ax.plot(x, interval.estimate, color=style.color, ls=style.line, label=style.label)
    curve.set(marker=style.marker, markevery=every)


def step_axis(ax: Axes, steps: Num[np.ndarray, " snapshot"], legend: bool) -> Axes:
    """Lay out a horizontal axis of steps: 0, then logarithmic from the first snapshot after it.

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


def _each(ax: Axes, values: xr.DataArray, over: str, styles: Mapping[str, Style], along: str) -> None:
    """A curve over seeds for each label of a dimension that has a style and was trained."""
    for name, style in styles.items():
        if name in values[over].values:
            curve_over_seeds(ax, values.sel({over: name}), along, style)


def _chosen(values: xr.DataArray, weights: str, space: str) -> xr.DataArray:
    """One kind of weights and one space, where the variable has them; mean over pairs of neighbouring layers."""
    labels = {name: label for name, label in (("weights", weights), ("space", space)) if name in values.dims}
    chosen = values.sel(labels)
    return chosen.mean("pair") if "pair" in chosen.dims else chosen


def _late(steps: Num[np.ndarray, " snapshot"]) -> Int[np.ndarray, " late"]:
    return np.flatnonzero(steps >= (1 - LAST) * steps[-1])


def _random_directions(ax: Axes, mean: float, end: float | None = None) -> None:
    """The null of a continuity: the mean of random directions, and the end of their 99 % band."""
    null_line(ax, mean, "random directions")
    if end is not None:
        ax.axhspan(0, end, color=GREY, alpha=0.12, lw=0, label="their 99 % band")
    ax.set_ylim(0, 1.02)
