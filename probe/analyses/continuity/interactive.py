"""The chart in which a reader turns a direction's path through depth."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from probe.plots.style import GREY, RED, Floats
from probe.plots.weights import SIDE_STYLES, sides_of

HOVER = "block %{customdata[0]}<br>|cos| to the next %{customdata[1]}<br>σ₁/σ₂ %{customdata[2]}<extra></extra>"


def trajectories(data: xr.Dataset) -> go.Figure:
    """Paths of leading singular vectors in three principal components: a dropdown for projection and space.

    Args:
        data: The continuity analysis's Dataset with the trajectories.

    Returns:
        The figure; colour goes from the first block (dark) to the last, a ring marks the first.
    """
    chosen = [(str(name), side) for name in data["projection"].values for side in sides_of(str(name))]
    figure = go.Figure(layout=_layout())
    for number, (name, side) in enumerate(chosen):
        shown = number == 0
        x, y, z = data[f"{side}_trajectory"].sel(projection=name).transpose("axis", "block").values
        path = {"x": _rounded(x), "y": _rounded(y), "z": _rounded(z)}
        figure.add_scatter3d(
            **path,
            mode="lines+markers",
            line={"color": GREY, "width": 2},
            marker={"color": data["block"].values.tolist(), "colorscale": "Viridis", "size": 4},
            customdata=_labels(data, name, side),
            hovertemplate=HOVER,
            visible=shown,
        )
        first = {axis: values[:1] for axis, values in path.items()}
        ring = {"color": "rgba(0,0,0,0)", "size": 8, "line": {"color": RED, "width": 2}, "symbol": "circle-open"}
        figure.add_scatter3d(**first, mode="markers", marker=ring, hoverinfo="skip", visible=shown)
    buttons = [
        {
            "method": "update",
            "label": f"{name}, {SIDE_STYLES[side].label}",
            "args": [
                {"visible": [place // 2 == number for place in range(2 * len(chosen))]},
                {f"scene.{axis}axis.title.text": text for axis, text in _axes(data, name, side).items()},
            ],
        }
        for number, (name, side) in enumerate(chosen)
    ]
    figure.update_layout(updatemenus=[{"name": "projection", "active": 0, "buttons": buttons}])
    for axis, text in _axes(data, *chosen[0]).items():
        figure.update_layout({f"scene_{axis}axis_title_text": text})
    return figure


def _layout() -> dict[str, object]:
    axis = {"showticklabels": False, "showspikes": False}
    scene = {"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "data"}
    return {
        "template": "plotly_white",
        "scene": scene,
        "height": 520,
        "margin": {"l": 0, "r": 0, "t": 10, "b": 10},
        "showlegend": False,
    }


def _axes(data: xr.Dataset, name: str, side: str) -> dict[str, str]:
    held = data[f"{side}_trajectory_share"].sel(projection=name).values
    return {axis: f"PC {place + 1}, {held[place]:.0%}" for place, axis in enumerate("xyz")}


def _labels(data: xr.Dataset, name: str, side: str) -> list[list[str]]:
    """Block, continuity to the next and gap, as text."""
    model = data.sel(variant="model", projection=name)
    following = [*(f"{value:.2f}" for value in model[f"{side}_continuity"].values), "–"]
    gaps = [f"{value:.2f}" for value in model["block_gap"].values]
    blocks = [str(block) for block in data["block"].values.tolist()]
    return [list(label) for label in zip(blocks, following, gaps, strict=True)]


def _rounded(values: Floats) -> list[float]:
    """Four digits: what a screen can show."""
    return [float(f"{value:.4g}") for value in np.nan_to_num(values).tolist()]
