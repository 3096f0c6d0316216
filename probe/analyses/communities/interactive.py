"""The chart in which a reader finds the nodes of a layer: their community, their gain, the tokens that move them."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from probe.analyses.communities.config import NODE_NAMES
from probe.analyses.communities.panels.communities import drawn_links, gain_scale, node_gain, signed
from probe.plots.charts import LAYOUT, TITLE, block_slider, hover_text, one_shown, rounded, title_change
from probe.plots.networks import community_colors
from probe.plots.style import GREY, RED, Floats

HOVER = (
    " %{customdata[0]}</b>, community %{customdata[1]}<br>gain %{customdata[2]}, participation "
    "%{customdata[3]}<br>largest at %{customdata[4]}<extra></extra>"
)
TRACES = 3  # of a layer: links of either sign, and the nodes
TOKEN = 24  # characters of a token that are shown


def network(data: xr.Dataset) -> go.Figure:
    """Draw the graphs of the drawn layers: a slider for the block.

    Args:
        data: The communities analysis's Dataset with `place` (drawn, node, axis), `link` (drawn, link_index, end),
            `link_weight` (drawn, link_index), `largest_token` (drawn, node, place_of_token) and `rho` (view, layer).

    Returns:
        The figure; hovering shows a node's index, community, gain and participation, and the tokens where it is
        largest.
    """
    layers = data["drawn"].values.tolist()
    titles = [_title(data, layer) for layer in layers]
    figure = go.Figure(layout=_layout(data, titles[0]))
    for place, layer in enumerate(layers):
        for trace in _traces(data, layer):
            figure.add_scatter(**trace, visible=place == 0)
    shown = [one_shown(place, len(layers), TRACES) for place in range(len(layers))]
    return figure.update_layout(sliders=block_slider(layers, zip(shown, map(title_change, titles), strict=True)))


def _layout(data: xr.Dataset, title: str) -> dict[str, Any]:
    """One range for all layers; a unit of length is the same along both axes."""
    reach = 1.05 * float(np.abs(data["place"].values).max())
    axis = {"visible": False, "range": [-reach, reach]}
    return LAYOUT | {
        "xaxis": axis,
        "yaxis": axis | {"scaleanchor": "x"},
        "title": TITLE | {"text": title},
        "margin": {"l": 10, "r": 10, "t": 50, "b": 10},
        "height": 560,
        "showlegend": False,
    }


def _traces(data: xr.Dataset, layer: int) -> list[dict[str, Any]]:
    """Positive links, negative links, and the nodes of a layer."""
    place = data["place"].sel(drawn=layer).transpose("node", "axis").values
    links, weights = drawn_links(data, layer)
    traces: list[dict[str, Any]] = []
    for chosen, color in ((weights >= 0, GREY), (weights < 0, RED)):
        ends = place[links[chosen]]  # (link, end, axis); a gap after each link
        broken = np.concatenate([ends, np.full((len(ends), 1, 2), np.nan)], axis=1).reshape(-1, 2)
        line = {"color": color, "width": 0.5}
        x, y = rounded(broken[:, 0]), rounded(broken[:, 1])
        traces.append({"x": x, "y": y, "mode": "lines", "line": line, "opacity": 0.4, "hoverinfo": "skip"})
    gain = node_gain(data, layer)
    labels = data["community"].sel(view="model", layer=layer).values
    marker = {
        "color": community_colors(labels),
        "size": [round(float(size), 1) for size in 5 + 9 * gain_scale(gain)],
        "line": {"width": 0.5, "color": "white"},
    }
    template = f"<b>{NODE_NAMES[data.attrs['nodes']]}{HOVER}"
    shown = {"customdata": _labels(data, layer, gain), "hovertemplate": template, "marker": marker}
    return [*traces, {"x": rounded(place[:, 0]), "y": rounded(place[:, 1]), "mode": "markers"} | shown]


def _labels(data: xr.Dataset, layer: int, gain: Floats) -> list[list[str]]:
    """The words that hovering shows of each node, as plotly may show them."""
    own = data.sel(view="model", layer=layer)
    tokens = data["largest_token"].sel(drawn=layer).transpose("node", "place_of_token").values
    columns = zip(own["community"].values, gain, own["participation"].values, tokens, strict=True)
    return [
        [
            str(node),
            str(community),
            f"{size:.3g}",
            f"{share:.2f}",
            ", ".join(dict.fromkeys(f"“{hover_text(str(token), TOKEN)}”" for token in largest)),
        ]
        for node, (community, size, share, largest) in enumerate(columns)
    ]


def _title(data: xr.Dataset, layer: int) -> str:
    labels = data["community"].sel(view="model", layer=layer).values
    rho = float(data["rho"].sel(view="model", layer=layer))
    return f"block {layer}: {len(np.unique(labels))} communities, coupling ρ = {signed(rho)}"
