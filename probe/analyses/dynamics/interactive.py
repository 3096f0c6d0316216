"""The chart in which a reader moves through depth and sees the eigenvalues of every block."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from probe.plots.style import BLUE, Floats

MAX_POINTS = 60_000  # over all layers: about a megabyte of the page


def clouds(data: xr.Dataset) -> go.Figure:
    """Eigenvalues of K in the complex plane: a slider for the block.

    Args:
        data: The dynamics analysis's Dataset with `eigenvalue_real` and `eigenvalue_imaginary`.

    Returns:
        The figure; both axes keep one range and one scale, so that the slider compares the blocks.
    """
    layers = data["layer"].values.tolist()
    points = _points(data)
    titles = [f"block {layer}: {_words(data, layer)}" for layer in layers]
    reach = 1.05 * float(np.quantile(np.abs(points), 0.999))
    axis = {"range": [-reach, reach], "zeroline": True}
    layout = {
        "template": "plotly_white",
        "xaxis": axis | {"title": {"text": "Re λ(K)"}},
        "yaxis": axis | {"title": {"text": "Im λ(K)"}, "scaleanchor": "x"},
        "title": {"text": titles[0], "font": {"size": 12}, "x": 0, "xanchor": "left"},
        "margin": {"l": 60, "r": 10, "t": 50, "b": 50},
        "height": 520,
        "showlegend": False,
    }
    figure = go.Figure(layout=layout)
    marker = {"color": BLUE, "size": 4, "opacity": 0.5}
    hover = "%{x:.3g} + %{y:.3g} i<extra></extra>"
    real, imaginary = _rounded(points[0, :, 0]), _rounded(points[0, :, 1])
    figure.add_scatter(x=real, y=imaginary, mode="markers", marker=marker, hovertemplate=hover)
    steps = [
        {
            "method": "update",
            "label": str(layer),
            "args": [{"x": [_rounded(cloud[:, 0])], "y": [_rounded(cloud[:, 1])]}, {"title.text": title}],
        }
        for layer, cloud, title in zip(layers, points, titles, strict=True)
    ]
    figure.update_layout(
        sliders=[{"active": 0, "steps": steps, "currentvalue": {"prefix": "block "}, "pad": {"t": 40}}]
    )
    return figure


def _points(data: xr.Dataset) -> Floats:
    """Real and imaginary parts (layer, point, 2), of as many positions as fit."""
    kept = max(1, min(data.sizes["cloud"], MAX_POINTS // (data.sizes["layer"] * data.sizes["index"])))
    parts = [data[f"eigenvalue_{part}"].transpose("layer", "cloud", "index") for part in ("real", "imaginary")]
    both = np.stack([part.values[:, :kept] for part in parts], axis=-1)
    return both.reshape(len(both), -1, 2)


def _words(data: xr.Dataset, layer: int) -> str:
    """What the scores say of the block whose eigenvalues are shown."""
    scores = data.sel(layer=layer, matrix="K", variant="model")
    said = (("complex", "complex_fraction"), ("rotation", "rotation_fraction"), ("Henrici", "henrici_departure"))
    return ", ".join(f"{word} {float(scores[name].median()):.2f}" for word, name in said)


def _rounded(values: Floats) -> list[float]:
    """Four digits: what a screen can show, and a quarter of the bytes."""
    return [float(f"{value:.4g}") for value in values.tolist()]
