"""The chart in which a reader turns a direction's path through depth."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import xarray as xr

from probe.analyses.continuity.panels import shown_spaces
from probe.plots.charts import LAYOUT, one_shown, rounded
from probe.plots.directions import SIDE_STYLES
from probe.plots.style import GREY, RED

HOVER = "block %{customdata[0]}<br>|cos| to the next %{customdata[1]}<br>σ₁/σ₂ %{customdata[2]}<extra></extra>"
TRACES = 2  # of a projection in a space: the path, and the ring around its first block


def trajectories(data: xr.Dataset) -> go.Figure:
    """Draw paths of leading singular vectors in three principal components: a dropdown for projection and space.

    Args:
        data: The continuity analysis's Dataset with `SIDE_trajectory` and `SIDE_trajectory_share`.

    Returns:
        The figure; colour goes from the first block (dark) to the last, a ring marks the first.
    """
    chosen = shown_spaces(data)
    titles = [_axes(data, name, side) for name, side in chosen]
    figure = go.Figure(layout=_layout(titles[0]))
    for number, (name, side) in enumerate(chosen):
        for trace in _traces(data, name, side):
            figure.add_scatter3d(**trace, visible=number == 0)
    buttons = [
        {
            "method": "update",
            "label": f"{name}, {SIDE_STYLES[side].label}",
            "args": [
                one_shown(number, len(chosen), TRACES),
                {f"scene.{axis}.title.text": text for axis, text in titles[number].items()},
            ],
        }
        for number, (name, side) in enumerate(chosen)
    ]
    return figure.update_layout(updatemenus=[{"name": "projection", "active": 0, "buttons": buttons}])


def _traces(data: xr.Dataset, name: str, side: str) -> list[dict[str, Any]]:
    """A path, and the ring around its first block."""
    points = data[f"{side}_trajectory"].sel(projection=name).transpose("axis", "block").values
    path = {axis: rounded(values) for axis, values in zip("xyz", points, strict=True)}
    ring = {"color": "rgba(0,0,0,0)", "size": 8, "line": {"color": RED, "width": 2}, "symbol": "circle-open"}
    return [
        path
        | {
            "mode": "lines+markers",
            "line": {"color": GREY, "width": 2},
            "marker": {"color": data["block"].values.tolist(), "colorscale": "Viridis", "size": 4},
            "customdata": _labels(data, name, side),
            "hovertemplate": HOVER,
        },
        {axis: values[:1] for axis, values in path.items()} | {"mode": "markers", "marker": ring, "hoverinfo": "skip"},
    ]


def _layout(titles: dict[str, str]) -> dict[str, Any]:
    """Axes of one scale, named by the components in which the first path is drawn."""
    axis = {"showticklabels": False, "showspikes": False}
    scene = {name: axis | {"title": {"text": text}} for name, text in titles.items()}
    return LAYOUT | {
        "scene": scene | {"aspectmode": "data"},
        "height": 520,
        "margin": {"l": 0, "r": 0, "t": 10, "b": 10},
        "showlegend": False,
    }


def _axes(data: xr.Dataset, name: str, side: str) -> dict[str, str]:
    """Each axis of the scene and its title: a component, and the share of the variance that it holds."""
    held = data[f"{side}_trajectory_share"].sel(projection=name).values
    return {f"{axis}axis": f"PC {place + 1}, {held[place]:.0%}" for place, axis in enumerate("xyz")}


def _labels(data: xr.Dataset, name: str, side: str) -> list[list[str]]:
    """Block, continuity to the next and gap, as text."""
    model = data.sel(variant="model", projection=name)
    following = [*(f"{value:.2f}" for value in model[f"{side}_continuity"].values), "–"]
    gaps = [f"{value:.2f}" for value in model["block_gap"].values]
    blocks = [str(block) for block in data["block"].values.tolist()]
    return [list(label) for label in zip(blocks, following, gaps, strict=True)]
