"""The chart in which a reader finds the tokens behind a correlation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from jaxtyping import Int

from probe.analyses.tokenwise.panels.styles import FIT_STYLES, deciding_fit, fits_present
from probe.inference import spearman
from probe.plots.charts import LAYOUT, TITLE, block_slider, hover_text, rounded, title_change
from probe.plots.style import KL_FLOOR, Floats, tick_text

SYMBOLS = {"linear": "square", "mlp": "cross", "mlp_random": "x", "mean": "star"}
HOVER = (
    "<b>%{customdata[0]}</b><br>after %{customdata[1]}<br>in %{customdata[2]}<br>"
    "block %{meta}, {class}<br>relative error %{x:.3g}<br>KL %{y:.3g} nats<extra></extra>"
)
MAX_TOKENS = 2_500  # their labels are as large as their points
LINE = 34  # characters: what fits on a narrow screen


def scatter_fits(data: xr.Dataset) -> list[str]:
    """List the maps whose tokens the chart shows, of those that replaced a block's output.

    Args:
        data: The analysis's Dataset.

    Returns:
        Names of classes.
    """
    return fits_present(data, "kl", ("local", "linear", "mlp", "mlp_random"))[:3] or fits_present(data, "kl")[:1]


def scatter_queries(data: xr.Dataset, max_points: int) -> Int[np.ndarray, " kept"]:
    """Choose the scored tokens that are drawn, so that the chart holds no more than a number of points over all layers.

    Args:
        data: The analysis's Dataset.
        max_points: Over all layers and classes.

    Returns:
        Rows, ascending; all of them where they fit, else a seeded sample.
    """
    queries, curves = data.sizes["query"], data.sizes["layer"] * max(1, len(scatter_fits(data)))
    kept = min(queries, MAX_TOKENS, max(1, max_points // curves))
    return np.sort(np.random.default_rng(0).choice(queries, size=kept, replace=False))


def scatter(data: xr.Dataset, max_points: int) -> go.Figure:
    """Draw relative error against KL, a point a token: a slider for the block, a dropdown for the map.

    Args:
        data: The analysis's Dataset with `relative_error` (map, target, layer, query), `kl` (map, layer, query), and
            the coordinates `token`, `context` and `title` over `query`.
        max_points: Over all layers and classes.

    Returns:
        The figure; hovering shows the token, the text before it, its article and its values.
    """
    rows, fits, layers = scatter_queries(data, max_points), scatter_fits(data), data["layer"].values.tolist()
    points = [_points(data, fit) for fit in fits]
    titles = _titles(fits, points)
    first = fits.index(deciding_fit(data)) if deciding_fit(data) in fits else 0
    figure = go.Figure(layout=_layout(points, titles[0]))
    labels = _labels(data, rows)
    for number, fit in enumerate(fits):
        x, y = (rounded(values[0, rows]) for values in points[number])
        figure.add_scatter(x=x, y=y, customdata=labels, meta=str(layers[0]), visible=number == first, **_look(fit))
    moved = [
        {
            "x": [rounded(error[place, rows]) for error, _ in points],
            "y": [rounded(kl[place, rows]) for _, kl in points],
            "meta": str(layer),
        }
        for place, layer in enumerate(layers)
    ]
    classes = {"name": "class", "active": first, "buttons": _buttons(fits), "x": 1, "xanchor": "right"}
    return figure.update_layout(
        sliders=block_slider(layers, zip(moved, map(title_change, titles), strict=True)), updatemenus=[classes]
    )


def _titles(fits: Sequence[str], points: Sequence[tuple[Floats, Floats]]) -> list[str]:
    """For each layer, Spearman's ρ of every class over all tokens."""
    rho = {FIT_STYLES[fit].label: np.asarray(spearman(*pair)) for fit, pair in zip(fits, points, strict=True)}
    return [
        "<br>".join(f"ρ = {by_layer[place]:.2f}, {label}" for label, by_layer in rho.items())
        for place in range(len(points[0][0]))
    ]


def _look(fit: str) -> dict[str, Any]:
    """Look of a map's points, and the text on hovering."""
    style = FIT_STYLES[fit]
    marker = {"color": style.color, "symbol": SYMBOLS.get(fit, "circle"), "size": 5, "opacity": 0.55}
    hover = HOVER.replace("{class}", style.label)
    return {"mode": "markers", "name": style.label, "marker": marker, "hovertemplate": hover}


def _points(data: xr.Dataset, fit: str) -> tuple[Floats, Floats]:
    """Relative error and KL of a class, (layer, query) each."""
    error = data["relative_error"].sel(map=fit, target="update").transpose("layer", "query").values
    kl = data["kl"].sel(map=fit).transpose("layer", "query").values
    return np.asarray(error, dtype=np.float64), np.maximum(np.asarray(kl, dtype=np.float64), KL_FLOOR)


def _labels(data: xr.Dataset, rows: Int[np.ndarray, " kept"]) -> list[list[str]]:
    """Token, the text before it on two lines, and its article, as plotly may show them."""
    texts = ([str(text) for text in data[name].values[rows]] for name in ("token", "context", "title"))
    return [
        [
            hover_text(token, LINE),
            "<br>".join(hover_text(half, LINE) for half in (context[:-LINE], context[-LINE:]) if half),
            hover_text(title, LINE),
        ]
        for token, context, title in zip(*texts, strict=True)
    ]


def _buttons(fits: Sequence[str]) -> list[dict[str, object]]:
    one = [[name == fit for name in fits] for fit in fits]
    shown = [*zip((FIT_STYLES[fit].label for fit in fits), one, strict=True), ("all classes", [True] * len(fits))]
    return [{"method": "update", "label": label, "args": [{"visible": visible}, {}]} for label, visible in shown]


def _layout(points: Sequence[tuple[Floats, Floats]], title: str) -> dict[str, Any]:
    """Both axes logarithmic, with one range for all blocks, so that the slider compares them."""

    def axis(values: Floats, title: str) -> dict[str, object]:
        logs = np.log10(values[np.isfinite(values) & (values > 0)])
        low, high = float(logs.min()), float(logs.max())
        pad = 0.05 * (high - low) + 0.02
        dense = (1, 2, 5) if high - low < 2.5 else (1,)
        ticks = [m * 10.0**e for e in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in dense]
        shown = {"tickvals": ticks, "ticktext": [tick_text(tick) for tick in ticks]}
        return {"type": "log", "title": {"text": title}, "range": [low - pad, high + pad], **shown}

    return LAYOUT | {
        "xaxis": axis(np.concatenate([error.ravel() for error, _ in points]), "relative error ‖r‖ / ‖u‖"),
        "yaxis": axis(np.concatenate([kl.ravel() for _, kl in points]), "KL (nats), one position replaced"),
        "title": TITLE | {"text": title, "yref": "container", "y": 0.97, "yanchor": "top"},
        "margin": {"l": 60, "r": 10, "t": 70, "b": 50},
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.18},
    }
