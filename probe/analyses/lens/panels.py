"""Panels of the Jacobian lens: fits and documents, ranks beside the identity, readouts and predictions, over depth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes

from probe.analyses.lens.means import Distances, between_share, curve, jackknife
from probe.analysis.subject import spread
from probe.inference import spearman
from probe.plots.pages import axes_or_new
from probe.plots.style import (
    BLACK,
    BLUE,
    DOTTED,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    Floats,
    Rows,
    Style,
    band,
    finish,
    line,
    median_over_documents,
    null_line,
    of_kind,
    over_documents,
    range_of,
)
from probe.plots.style import curve as draw_curve

VARIANT_STYLES = {
    "model": Style("the model", BLUE, "o"),
    "init": Style("fresh initialisation", ORANGE, "s", "--"),
    "shuffled": Style("shuffled weights", GREEN, "^", ":"),
    "blocks": Style("fresh blocks, own embedding and head", PINK, "D", "-."),
}
LENS_STYLES = {
    "jacobian": Style("Jacobian lens", BLUE, "o"),
    "logit": Style("logit lens", BLACK, "X", "--"),
    "own": Style("the context's own Jacobian", RED, "^"),
    "affine": Style("affine lens", GREEN, "s"),
    "tuned": Style("tuned lens", SKY, "D"),
    "second": Style("second fit", BLUE, "P", ":"),
    "displaced": Style("J of another layer", ORANGE, "v", ":"),
    "blocks": Style("J of fresh blocks", PINK, "<", "-."),
}
PREDICTOR_STYLES = {
    "own": Style("the context's own", RED, "^"),
    "first": Style("first fit", BLUE, "o"),
    "second": Style("second fit", SKY, "s", "--"),
    "same": Style("mean, own position alone", GREEN, "D", "-."),
}
DIRECTION_STYLES = {
    "lens": Style("lens directions", BLUE, "o"),
    "logit": Style("logit-lens directions", BLACK, "X", "--"),
    "random": Style("random directions", ORANGE, "s", ":"),
}
PART_STYLES = {"M": Style("M = J − α I", BLUE, "o"), "J": Style("J", GREY, "s", "--")}
CHOSEN, LEADING, POINTS = 4, 32, 3000


def groups(data: xr.Dataset, *names: str) -> list[list[int]]:
    """Find the documents of each fit.

    Args:
        data: The lens analysis's Dataset.
        *names: Fits: "first", "second", "other".

    Returns:
        Their places along `fitted`.
    """
    return [np.flatnonzero(data["group"].values == name).tolist() for name in names]


def gram_of(data: xr.Dataset, part: str = "M") -> Float[np.ndarray, "source fitted fitted"]:
    """Read the inner products of the documents' matrices.

    Args:
        data: The lens analysis's Dataset.
        part: "J" or "M".

    Returns:
        (source, fitted, fitted).
    """
    values: Floats = data["gram"].sel(part=part).transpose("source", "fitted", "fitted_other").values
    return values


def participation(data: xr.Dataset) -> xr.DataArray:
    """Compute the participation ratio of the mean M from its singular values.

    Args:
        data: The lens analysis's Dataset.

    Returns:
        (Σσ²)²/Σσ⁴, (variant, source).
    """
    squares = data["singular_value"].sel(part="M") ** 2
    found: xr.DataArray = squares.sum("index", skipna=False) ** 2 / (squares**2).sum("index", skipna=False)
    return found


def rank_above_noise(data: xr.Dataset) -> xr.DataArray:
    """Count the singular values of the model's mean M beyond the edge of noise.

    Args:
        data: The lens analysis's Dataset.

    Returns:
        Their number, (source,).
    """
    found: xr.DataArray = (data["singular_value"].sel(part="M", variant="model") > data["noise_edge"]).sum("index")
    return found


def refits(data: xr.Dataset, threshold: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw the distance of two fits against the number of documents of each, for J and M.

    Args:
        data: The lens analysis's Dataset with `gram`.
        threshold: That of the claim, drawn dotted.
        ax: Where to draw.

    Returns:
        The Axes; means over layers, of M in the range of the layers. The null, dotted: slope −½ through the last point.
    """
    ax, own = axes_or_new(ax)
    for part, style in PART_STYLES.items():
        sizes, values = curve(Distances(gram_of(data, part)), *groups(data, "first", "second"))
        counts = xr.DataArray(sizes, dims="count")
        if part == "M":
            band(ax, counts, values.min(axis=1), values.max(axis=1), style.color, alpha=0.15)
            null = values.mean(axis=1)[-1] * (np.array(sizes) / sizes[-1]) ** -0.5
            ax.plot(sizes, null, color=BLACK, lw=1, ls=DOTTED, label="slope −½")
        line(ax, counts, values.mean(axis=1), style)
    if threshold is not None:
        null_line(ax, threshold, f"the claim's threshold, {threshold:g}")
    finish(ax, "distance / geometric mean of norms", log=True, legend=own, xlabel="documents in each fit")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    return ax


def corpora(data: xr.Dataset, threshold: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw the share of the variance of M that lies between two corpora, by layer.

    Args:
        data: The lens analysis's Dataset with a second corpus.
        threshold: That of the claim, drawn dotted.
        ax: Where to draw.

    Returns:
        The Axes; bands are jackknife intervals over documents. The null: documents of both corpora exchanged, the
        middle 95 % of 99 permutations.
    """
    ax, own = axes_or_new(ax)
    first, second, other = groups(data, "first", "second", "other")
    gram, mine = gram_of(data), first + second

    def share(weights: Floats) -> Floats:
        return between_share(gram, weights, mine, other)

    generator, whole = np.random.default_rng(0), np.ones(len(gram[0]))
    orders = [generator.permutation(mine + other).tolist() for _ in range(99)]
    null = [between_share(gram, whole, order[: len(mine)], order[len(mine) :]) for order in orders]
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    band(ax, data["source"], low, high, GREY, label="documents permuted")
    draw_curve(ax, data["source"], jackknife(share, [mine, other], len(whole)), Style("two corpora", BLUE, "o"))
    if threshold is not None:
        null_line(ax, threshold, f"the claim's threshold, {threshold:g}")
    ax.set_ylim(-0.02, 1.02)
    return finish(ax, "share of variance between corpora", legend=own)


def identity_by_layer(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the identity's share of ‖J‖² by layer, for the model and each kind of control.

    Args:
        data: The lens analysis's Dataset with `identity_share`.
        ax: Where to draw.

    Returns:
        The Axes; of controls the mean and the range over seeds. They are the null.
    """
    ax, own = axes_or_new(ax)
    _by_kind(ax, data, data["identity_share"])
    ax.set_ylim(-0.02, 1.02)
    return finish(ax, "identity's share of ‖J‖²", legend=own)


def participation_by_layer(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the participation ratio of M by layer, for the model and each kind of control.

    Args:
        data: The lens analysis's Dataset with `singular_value`.
        ax: Where to draw.

    Returns:
        The Axes; of controls the mean and the range over seeds. They are the null.
    """
    ax, own = axes_or_new(ax)
    _by_kind(ax, data, participation(data))
    return finish(ax, "participation ratio of M", log=True, legend=own)


def spectrum_of_mean(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the leading singular values of the model's mean M over the edge of noise, for a few layers.

    Args:
        data: The lens analysis's Dataset with `singular_value` and `noise_edge`.
        ax: Where to draw.

    Returns:
        The Axes; in the legend the identity's share, which is not in M. The null, dotted: 1, the edge of noise.
    """
    ax, own = axes_or_new(ax)
    values = data["singular_value"].sel(part="M", variant="model").isel(index=slice(0, LEADING))
    index = values["index"] + 1
    chosen = spread(data["source"].values.tolist(), CHOSEN)
    for layer, color, marker in zip(chosen, (SKY, BLUE, GREEN, BLACK), "osD^", strict=False):
        share = float(data["identity_share"].sel(variant="model", source=layer))
        ratio = values.sel(source=layer) / data["noise_edge"].sel(source=layer)
        line(ax, index, ratio, Style(f"block {layer}: identity {share:.0%} of ‖J‖²", color, marker))
    null_line(ax, 1.0)
    return finish(ax, "σ of M / edge of noise", log=True, legend=own, xlabel="singular value")


def learned_by_layer(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw ln PR of M, trained less control, by layer.

    Args:
        data: The lens analysis's Dataset with `singular_value`.
        ax: Where to draw.

    Returns:
        The Axes; means and ranges over seeds. The null: 0.
    """
    ax, own = axes_or_new(ax)
    logs = participation(data).copy(data=np.log(participation(data).values))
    _by_kind(ax, data, logs.sel(variant="model", drop=True) - logs, without="model")
    null_line(ax, 0.0)
    return finish(ax, "ln PR of M, trained − control", legend=own)


def by_lens(data: xr.Dataset, variable: str, ax: Axes | None = None) -> Axes:
    """Draw a mean over positions by layer, for every lens.

    Args:
        data: The lens analysis's Dataset with `kl` and `agrees`.
        variable: "kl" or "agrees".
        ax: Where to draw.

    Returns:
        The Axes; bands are 95 % intervals, documents resampled. The null: the logit lens.
    """
    ax, own = axes_or_new(ax)
    for name, style in LENS_STYLES.items():
        values = data[variable].sel(lens=name).transpose("source", "query").values

        def mean(rows: Rows, of: Floats = values) -> Floats:
            return np.asarray(of[:, rows].mean(axis=-1))

        if np.isfinite(values).any():
            draw_curve(ax, data["source"], over_documents(data, mean), style)
    if variable == "agrees":
        ax.set_ylim(-0.02, 1.02)
        return finish(ax, "same first token as the output", legend=own)
    return finish(ax, "KL(output ‖ lens), nat", log=True, legend=own)


def cosines(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the cosine of predicted and measured change by layer, for the context's own Jacobian and means.

    Args:
        data: The lens analysis's Dataset with `cosine`.
        ax: Where to draw.

    Returns:
        The Axes; medians over positions, documents resampled. The null is the second fit beside the first.
    """
    ax, own = axes_or_new(ax)
    for name, style in PREDICTOR_STYLES.items():
        values = data["cosine"].sel(predictor=name).transpose("source", "query")
        if bool(values.notnull().any()):
            draw_curve(ax, data["source"], median_over_documents(data, values), style)
    return finish(ax, "cosine of predicted and measured", legend=own)


def steering(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw measured against predicted changes of logits, for each kind of direction, some of the points.

    Args:
        data: The lens analysis's Dataset with `predicted` and `measured`.
        ax: Where to draw.

    Returns:
        The Axes; dotted: as predicted. The null: random directions.
    """
    ax, own = axes_or_new(ax)
    generator, ends = np.random.default_rng(0), []
    for name, style in reversed(DIRECTION_STYLES.items()):
        x, y = (data[part].sel(direction=name).values.ravel() for part in ("predicted", "measured"))
        rows = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        rows = generator.permutation(rows)[: POINTS // len(DIRECTION_STYLES)]
        ax.scatter(x[rows], y[rows], s=4, lw=0, color=style.color, alpha=0.5, label=style.label, rasterized=True)
        ends += [x[rows].min(), x[rows].max()]
    ax.plot([min(ends), max(ends)], [min(ends), max(ends)], color=BLACK, lw=1, ls=DOTTED)
    ax.set(xlabel="predicted change of the token's logit", ylabel="measured")
    if own:
        ax.legend()
    return ax


def steering_by_layer(data: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw Spearman's ρ of predicted and measured change by layer, inside a document, for each kind of direction.

    Args:
        data: The lens analysis's Dataset with `predicted` and `measured`.
        ax: Where to draw.

    Returns:
        The Axes; means over documents, which are resampled. The null: random directions.
    """
    ax, own = axes_or_new(ax)
    document = data["document"].values
    for name, style in DIRECTION_STYLES.items():
        pair = [
            data[part].sel(direction=name).transpose("source", "steered", "query").values
            for part in ("predicted", "measured")
        ]
        rho = np.full((data.sizes["source"], data.sizes["query"]), np.nan)
        for one in np.unique(document):  # a document's ρ at each of its positions: they are resampled together
            rows = document == one
            rho[:, rows] = spearman(*(values[..., rows].reshape(len(values), -1) for values in pair))[:, None]

        def mean(rows: Rows, of: Floats = rho) -> Floats:
            return np.asarray(np.nanmean(of[:, rows], axis=-1))

        draw_curve(ax, data["source"], over_documents(data, mean), style)
    null_line(ax, 0.0)
    return finish(ax, "Spearman's ρ inside a document", legend=own)


def _by_kind(ax: Axes, data: xr.Dataset, values: xr.DataArray, without: str | None = None) -> None:
    """(variant, source): a curve for each kind of variant, of seeds the mean and the range."""
    styles: Mapping[str, Style] = VARIANT_STYLES
    for kind, style in styles.items():
        names = of_kind(data["variant"], kind)
        drawn = values.sel(variant=names).transpose("variant", "source").values
        if kind != without and names and np.isfinite(drawn).any():
            draw_curve(ax, data["source"], range_of(drawn), style)
