"""The chart in which a reader moves through depth and sees the eigenvalues of every block."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from probe.plots.charts import LAYOUT, TITLE, block_slider, rounded, title_change
from probe.plots.style import BLUE, Floats

MAX_POINTS = 60_000  # over all layers: about a megabyte of the page


def clouds(data: xr.Dataset) -> go.Figure:
    """Draw the eigenvalues of K in the complex plane, with a slider for the block.

    Args:
        data: The dynamics analysis's Dataset with `eigenvalue_real` and `eigenvalue_imaginary`.

    Returns:
        The figure; a unit of length is the same along both axes. Each block has a range of its own, as one block's
        eigenvalues can lie many times farther out than another's.
    """
    layers, points = data["layer"].values.tolist(), _points(data)
    titles = [f"block {layer}: {_words(data, layer)}" for layer in layers]
    marker = {"color": BLUE, "size": 4, "opacity": 0.5}
    hover = "λ = %{x:.3g} %{y:+.3g} i<extra></extra>"
    figure = go.Figure(layout=_layout(points[0], titles[0]))
    real, imaginary = (rounded(part) for part in points[0].T)
    figure.add_scatter(x=real, y=imaginary, mode="markers", marker=marker, hovertemplate=hover)
    clouds = [{"x": [rounded(cloud[:, 0])], "y": [rounded(cloud[:, 1])]} for cloud in points]
    layouts = [
        title_change(title) | {"xaxis.range": _range(cloud), "yaxis.range": _range(cloud)}
        for title, cloud in zip(titles, points, strict=True)
    ]
    return figure.update_layout(sliders=block_slider(layers, zip(clouds, layouts, strict=True)))


def _range(cloud: Floats) -> list[float]:
    """A range for both axes that leaves out the farthest thousandth."""
    reach = 1.05 * float(np.quantile(np.abs(cloud), 0.999))
    return [-reach, reach]


def _layout(cloud: Floats, title: str) -> dict[str, Any]:
    """The layout of the first block; a unit is the same along both axes."""
    axis = {"range": _range(cloud), "zeroline": True}
    return LAYOUT | {
        "xaxis": axis | {"title": {"text": "Re λ(K)"}},
        "yaxis": axis | {"title": {"text": "Im λ(K)"}, "scaleanchor": "x"},
        "title": TITLE | {"text": title},
        "margin": {"l": 60, "r": 10, "t": 50, "b": 50},
        "height": 520,
        "showlegend": False,
    }


def _points(data: xr.Dataset) -> Floats:
    """Real and imaginary parts (layer, point, 2), of as many positions as fit."""
    kept = max(1, min(data.sizes["cloud"], MAX_POINTS // (data.sizes["layer"] * data.sizes["index"])))
    parts = [data[f"eigenvalue_{part}"].transpose("layer", "cloud", "index") for part in ("real", "imaginary")]
    both = np.stack([part.values[:, :kept] for part in parts], axis=-1)
    return both.reshape(len(both), -1, 2)


def _words(data: xr.Dataset, layer: int) -> str:
    """The scores of the block whose eigenvalues are shown."""
    scores = data.sel(layer=layer, matrix="K", variant="model")
    said = (("complex", "complex_fraction"), ("rotation", "rotation_fraction"), ("Henrici", "henrici_departure"))
    return ", ".join(f"{word} {float(scores[name].median()):.2f}" for word, name in said)
