"""The figures of a layer-update run: drawn put together, with captions that say what was measured on what.

A figure is left out where the run holds none of its variables.
"""

from __future__ import annotations

from functools import cache, partial

import matplotlib.figure
import numpy as np
import pandas as pd
import xarray as xr

from probe.analyses.tokenwise import panels
from probe.analyses.tokenwise.config import Config
from probe.analyses.tokenwise.interactive import scatter, scatter_fits, scatter_queries
from probe.analyses.tokenwise.panels.regimes import CUTS, MEASURES
from probe.analyses.tokenwise.panels.styles import BASELINES, FIT_STYLES, deciding_fit, fits_present
from probe.analysis.subject import spread
from probe.plots import captions
from probe.plots.pages import legend_below, outer_labels, panel_rows, titled
from probe.report import Figure
from probe.report.page import interval_text

MAX_POINTS = 200_000  # of the interactive chart, over layers and classes: about 3 MB of the page
LINES = (
    "Lines are medians over tokens; narrow bands their 95 % intervals, documents resampled; "
    "pale bands hold the middle half of the tokens."
)


def figures(data: xr.Dataset, config: Config) -> list[Figure]:
    """Make all figures that a run's variables allow, in the order of the report.

    Args:
        data: The Dataset of the analysis.
        config: The run's configuration, for the claims' thresholds.

    Returns:
        The figures; nothing is drawn before `Figure.draw` is called.
    """
    threshold = config.thresholds.threshold_error_predicts_output
    made = [
        _error(data),
        _alignment(data),
        _projection(data),
        _error_against_kl(data),
        _rho(data, threshold),
        _ratio(data),
        _output(data),
        _modes(data),
        _sweep(data),
        _residual(data),
        _regimes(data),
    ]
    return [figure for figure in made if figure is not None]


def _error(data: xr.Dataset) -> Figure | None:
    if "relative_error" not in data:
        return None
    own = [name for name in FIT_STYLES if name not in BASELINES]

    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled("a  tokenwise classes", panels.relative_error, data, own),
            titled(
                "b  baselines, and the block on one token",
                panels.relative_error,
                data,
                [*BASELINES, deciding_fit(data)],
            ),
            titled("c  over the next state h′ = h + u", panels.relative_error, data, own, target="state"),
        ]
        if "explained_variance" in data:
            drawn.append(titled("d  explained variance of u", panels.explained_variance, data, own))
        return panel_rows(drawn, 2, legend=3)

    return Figure(
        "error",
        "Relative error by block and class of maps",
        f"How much of each block's update u a function of the token's own state leaves over, on held-out text (a, b): "
        f"the null line, dotted, is 1, no update at all{_floor(data)}. (b): baselines, and what the architecture "
        f"computes of the token alone. (c): the same residuals over the norm of the next state, smaller wherever h "
        f"itself dominates. (d): pooled over tokens. {LINES}{_not_flat(data)} {_where(data)}",
        draw,
        alt="Line charts of the relative error over the depth of the model, one line for each class of maps.",
    )


def _alignment(data: xr.Dataset) -> Figure | None:
    if not {"relative_error", "cos_update_fit", "cos_update_residual", "cos_fit_residual"} <= set(data):
        return None

    def draw() -> matplotlib.figure.Figure:
        names = {"update": "update u", "state": "next state h′ (fixed by the error)"}
        drawn = [
            titled(name, panels.alignment, data, target=target, angle=angle)
            for target, name in names.items()
            for angle in (False, True)
        ]
        return panel_rows(drawn, 2, legend=3)

    return Figure(
        "alignment",
        "Alignment of the full update, its tokenwise part and the residual",
        f"Cosines and angles of u, û and r = u − û for the {_label(deciding_fit(data))} class. Dashed: what the "
        "relative error e alone fixes, cos(u, û) ≥ √(1 − e²) for any residual, and cos(u, r) = e, cos(û, r) = 0 for "
        "one at right angles to û; agreement with these curves is no finding of its own. Dotted, the null: û fitted to "
        f"targets permuted within windows. Below, the same for the next state, where h dominates. {LINES} "
        f"{_where(data)}",
        draw,
        alt="Cosines and angles between update, tokenwise part and residual over depth, with what the error fixes.",
    )


def _projection(data: xr.Dataset) -> Figure | None:
    if deciding_fit(data) not in fits_present(data, "share"):
        return None
    words = {"no_outliers": "centred", "uncentred": "uncentred"}
    rows = {name: said for name, said in words.items() if name in data["centring"].values}
    ks = data["k"].values.tolist()

    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled(f"k = {k}, {said}", panels.projection, data, k, centring=centring)
            for centring, said in rows.items()
            for k in ks
        ]
        return outer_labels(panel_rows(drawn, len(ks), share_y="all", height=2.4, legend=3))

    width = data.attrs.get("d_model")
    null = f"k/d with d = {width}" if width is not None else "k/d (d was not recorded)"
    return Figure(
        "projection",
        "Share in the dominant tokenwise subspace",
        f"‖Vₖᵀx‖²/‖x‖² for k = {', '.join(map(str, ks))}, Vₖ the leading directions of û of the "
        f"{_label(deciding_fit(data))} class on training tokens; upper row centred and without outlier coordinates "
        f"(the claim's), lower row uncentred. The null lines: {null}, a random subspace, dotted; and r′, another "
        f"token's update scaled to ‖r‖. Dashed: u in the leading directions of u itself. {LINES} {_where(data)}",
        draw,
        alt="Shares of update, tokenwise part, residual and another token's update in leading directions, by depth.",
    )


def _error_against_kl(data: xr.Dataset) -> Figure | None:
    if "relative_error" not in data or deciding_fit(data) not in fits_present(data, "kl"):
        return None

    def draw() -> matplotlib.figure.Figure:
        layers = spread(data["layer"].values.tolist(), 6)
        drawn = [partial(panels.error_against_kl, data, layer) for layer in layers]
        return outer_labels(panel_rows(drawn, 3, height=2.5))

    drawn, held = len(scatter_queries(data, MAX_POINTS)), data.sizes["query"]
    thinned = "" if drawn == held else f" (it shows {drawn:,} of the {held:,} tokens; ρ is over all)"
    return Figure(
        "error-kl",
        "Error of the map against change of the output, token by token",
        f"One point a token for the {_label(deciding_fit(data))} class: its relative error, and the KL divergence of "
        "the next-token distribution when the block's output at that one position is replaced by h + û. ρ is "
        "Spearman's with its 95 % interval, documents resampled; a residual in a random direction gives a high ρ too "
        f"where errors spread (next figure). The chart below has all blocks and three classes{thinned}; hover "
        f"a point to read its token. {_where(data)}",
        draw,
        interactive=partial(scatter, data, MAX_POINTS) if scatter_fits(data) else None,
        alt="Scatter plots of relative error against KL divergence, both logarithmic, for six blocks.",
    )


def _rho(data: xr.Dataset, threshold: float) -> Figure | None:
    if "relative_error" not in data or not fits_present(data, "kl"):
        return None
    controlled = "kl_control" in data and deciding_fit(data) in fits_present(data, "kl")

    def draw() -> matplotlib.figure.Figure:
        drawn = [titled("a  classes of maps", panels.rho_by_layer, data, threshold=threshold)]
        if controlled:
            drawn.append(titled("b  replaced residuals", panels.rho_controls, data, threshold))
        figure = panel_rows(drawn, 2, height=3.6)
        low = min(ax.get_ylim()[0] for ax in figure.axes)
        for ax in figure.axes:
            ax.set_ylim(low, 1.02)
            legend_below(ax, columns=1)
        return figure

    draws = f" (ρ averaged over {data.sizes['draw']} draws)" if controlled and data.sizes["draw"] > 1 else ""
    return Figure(
        "rho",
        "How well the error predicts the output, by block",
        f"Spearman's ρ over tokens of relative error and KL, one position replaced. (b): the null lines for the "
        f"{_label(deciding_fit(data))} class, residuals r′ of the same norm, token by token: drawn from the residuals' "
        f"covariance, in a random direction, and another token's{draws}; and the partial ρ given update and state "
        f"norm, output entropy, position and token frequency. Dotted: the claim's threshold. Bands are 95 % intervals, "
        f"documents resampled. {_where(data)}",
        draw,
        alt="Rank correlation of error and KL over depth for each class, and for residuals replaced by controls.",
    )


def _ratio(data: xr.Dataset) -> Figure | None:
    if "kl_control" not in data or deciding_fit(data) not in fits_present(data, "kl"):
        return None
    return Figure(
        "ratio",
        "What the residual does beyond its size",
        f"KL when r is left out over KL when r is replaced in size by r′ (‖r′‖ = ‖r‖), {_label(deciding_fit(data))} "
        f"class, mean of log KL(r′) over {data.sizes['draw']} draws. The null line is 1: no more than its size. "
        f"{LINES} {_where(data)}",
        partial(panel_rows, [partial(panels.kl_ratio, data)], height=3.0, legend=2),
        alt="Ratio of the KL of the residual to that of a replaced residual of equal norm, by depth.",
    )


def _output(data: xr.Dataset) -> Figure | None:
    if not fits_present(data, "kl"):
        return None

    def draw() -> matplotlib.figure.Figure:
        drawn = [titled("a  divergence", panels.kl_by_layer, data)]
        if fits_present(data, "top1"):
            drawn.append(titled("b  same most likely token", panels.top1_agreement, data))
        return panel_rows(drawn, 2, height=3.2, legend=3)

    return Figure(
        "output",
        "What replacing one position's update does to the output",
        "KL divergence of the next-token distribution at the position, and the share of tokens whose most likely next "
        "token stays. The null line of (a) is 0, the class that holds the block's own map; the mean baseline leaves "
        f"out all that the token's state says. {LINES} {_where(data)}",
        draw,
        alt="KL divergence and top-1 agreement over depth for each class of maps.",
    )


def _modes(data: xr.Dataset) -> Figure | None:
    fit = deciding_fit(data)
    if fit not in fits_present(data, "kl") or fit not in fits_present(data, "kl_all") + fits_present(data, "kl_later"):
        return None
    followed = int(np.isfinite(data["kl_later"].sel(map=fit).values).any(axis=0).sum()) if "kl_later" in data else 0
    later = f"; summed over this and later positions for {followed:,} of them" if followed else ""
    everywhere = int(np.isfinite(data["kl_all"].sel(map=fit).values).any(axis=0).sum()) if "kl_all" in data else 0
    at_once = f"; with all counted positions of a window replaced at once for {everywhere:,}" if everywhere else ""
    return Figure(
        "modes",
        "One position replaced against all positions",
        f"KL for the {_label(fit)} class: read at the one replaced position for all scored tokens{later}{at_once}, "
        "where the errors of earlier tokens mix in. Claims are read from one position. The null is 0, nothing "
        f"replaced. {LINES} {_where(data)}",
        partial(panel_rows, [partial(panels.replacement_modes, data)], height=3.0, legend=2),
        alt="KL divergence over depth when one position, or all positions, are replaced.",
    )


def _sweep(data: xr.Dataset) -> Figure | None:
    if "sweep_error" not in data:
        return None
    stable = "instability" in data

    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled("a  over rank", panels.sweep, data, "rank"),
            titled("b  over neighbours", panels.sweep, data, "neighbours"),
        ]
        if stable:
            drawn.append(titled("c  two banks", panels.instability, data))
        figure = panel_rows(drawn, 3, height=2.9)
        figure.axes[1].set_ylabel("")
        return figure

    layers = data["sweep_error"].dropna("layer", how="all").sizes["layer"]
    bank = "; (c): how far apart the fits of two disjoint banks of tokens lie, the null being 0" if stable else ""
    return Figure(
        "sweep",
        "Rank and neighbourhood of the local class",
        f"Relative error of the local low-rank map, median over tokens, mean over {layers} blocks. Solid: held out. "
        "Dashed, the curve not to trust: with the query itself in the bank, where more rank always looks better"
        f"{bank}. Narrow bands: 95 % intervals, documents resampled. {_where(data)}",
        draw,
        alt="Relative error over rank and over number of neighbours, held out and in sample, and instability.",
    )


def _residual(data: xr.Dataset) -> Figure | None:
    if deciding_fit(data) not in fits_present(data, "residual_attention_cosine"):
        return None
    drawn = [partial(panels.residual_overlap, data, measure) for measure in ("cosine", "share")]
    return Figure(
        "residual",
        "What the residual is: its overlap with attention",
        f"The {_label(deciding_fit(data))} class's residual against what the block's attention writes, and against "
        "the part of it that comes from other positions: cosine, and share of ‖r‖² along that direction. The null line "
        f"is 0, a direction of its own. {LINES} {_where(data)}",
        partial(panel_rows, drawn, 2, height=2.9, legend=4),
        alt="Cosine and share of the residual along the attention write, by depth.",
    )


def _regimes(data: xr.Dataset) -> Figure | None:
    cuts = [name for name in ("regime", "regime_layer") if name in data]
    if not cuts or "relative_error" not in data:
        return None
    fits = [name for name in ("linear", "local", "mlp", "mlp_random") if name in data["map"].values]

    @cache
    def tables() -> dict[str, pd.DataFrame]:
        return {cut: panels.regime_table(data, cut, fits) for cut in cuts}

    def draw() -> matplotlib.figure.Figure:
        held = [name for name in MEASURES if any(name in set(table["measure"]) for table in tables().values())]
        drawn = [
            titled(MEASURES[measure] if cut == cuts[0] else "", panels.regimes, table, measure)
            for cut, table in tables().items()
            for measure in held
        ]
        figure = panel_rows(drawn, len(held), height=2.3, legend=4)
        for cut, ax in zip(cuts, figure.axes[:: len(held)], strict=True):
            ax.set_ylabel({"regime": "thirds of tokens", "regime_layer": "thirds of blocks"}[cut])
        return figure

    return Figure(
        "regimes",
        "Low, middle and high error",
        "Every measure in thirds: above, tokens of each block by the error of an independent linear fit on other "
        "documents (a regime cut by the error that is compared would favour whichever fit was unlucky); below, whole "
        "blocks by their mean error, as in the paper. ρ within blocks, averaged on Fisher's scale. Bars: 95 % "
        f"intervals, documents resampled. No null line: the classes are compared with each other. {_where(data)}",
        draw,
        table=lambda: _wide(pd.concat(tables().values())),
        alt="Dot plots of error, KL, rank correlation, cosine and share in thirds of tokens and of blocks, by class.",
    )


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each cut, third and class; a column for each measure, as text with its interval."""
    numbers = table[["estimate", "low", "high"]].to_numpy().tolist()
    texts = table.assign(text=[interval_text(*row) for row in numbers])
    rows = ["cut", "regime", "fit"]
    wide = texts.pivot_table(index=rows, columns="measure", values="text", aggfunc="first", sort=False).reset_index()
    wide["cut"], wide["fit"] = wide["cut"].map(CUTS), wide["fit"].map(_label)
    return wide.rename(columns={"cut": "thirds of", "regime": "error", "fit": "class", **MEASURES})


def _label(fit: str) -> str:
    return FIT_STYLES[fit].label if fit in FIT_STYLES else fit


def _where(data: xr.Dataset) -> str:
    """Model, text, documents and tokens, as every caption ends."""
    fitted = (
        f"; maps fitted on {int(data.attrs['n_fit_tokens']):,} tokens of others" if "n_fit_tokens" in data.attrs else ""
    )
    tokens = f"{data.sizes['query']:,} tokens of {captions.documents(data)} documents"
    return f"{captions.model_on_text(data)}: {tokens}{fitted}."


def _floor(data: xr.Dataset) -> str:
    """Meaning of the dash-dotted line, if it is there."""
    if deciding_fit(data) not in fits_present(data, "floor"):
        return ""
    return "; the dash-dotted line, the floor, is the error of the local class on the block run on the token alone"


def _not_flat(data: xr.Dataset) -> str:
    """The MLPs that had not settled when their training stopped."""
    if "mlp_flat" not in data:
        return ""
    said = []
    for name in fits_present(data, "mlp_flat", ("mlp", "mlp_random")):
        flat = data["mlp_flat"].sel(map=name)
        unsettled = data["layer"].values[flat.values == 0].tolist()
        if unsettled:
            said.append(f"{_label(name)} at blocks {', '.join(map(str, unsettled))}")
    return f" Not settled (validation curve not flat at its end): {'; '.join(said)}." if said else ""
