"""The chart in which a reader finds the units of a layer: their community, their gain, the tokens that move them."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from probe.plots.communities import community_colors, drawn_links, gain_scale, signed, unit_gain
from probe.plots.style import GREY, RED, Floats
from probe.report import hover_text

HOVER = (
    "<b>unit %{customdata[0]}</b>, community %{customdata[1]}<br>gain %{customdata[2]}, participation "
    "%{customdata[3]}<br>largest at %{customdata[4]}<extra></extra>"
)
TRACES = 3  # of a layer: links of either sign, and the units
TOKEN = 24  # characters of a token that are shown


def network(data: xr.Dataset) -> go.Figure:
    """The graphs of the drawn layers: a slider for the block.

    Args:
        data: The communities analysis's Dataset with `place`, `link`, `link_weight`, `largest_token` and `rho`.

    Returns:
        The figure; hovering shows a unit's index, community, gain and participation, and the tokens where it is
        largest.
    """
    layers = data["drawn"].values.tolist()
    reach = 1.05 * float(np.abs(data["place"].values).max())
    axis = {"visible": False, "range": [-reach, reach]}
    titles = [_title(data, layer) for layer in layers]
    layout = {
        "template": "plotly_white",
        "xaxis": axis,
        "yaxis": axis | {"scaleanchor": "x"},
        "title": {"text": titles[0], "font": {"size": 12}, "x": 0, "xanchor": "left"},
        "margin": {"l": 10, "r": 10, "t": 50, "b": 10},
        "hoverlabel": {"align": "left"},
        "height": 560,
        "showlegend": False,
    }
    figure = go.Figure(layout=layout)
    for place, layer in enumerate(layers):
        for trace in _traces(data, layer):
            figure.add_scatter(**trace, visible=place == 0)
    steps = [
        {
            "method": "update",
            "label": str(layer),
            "args": [
                {"visible": [number // TRACES == place for number in range(TRACES * len(layers))]},
                {"title.text": titles[place]},
            ],
        }
        for place, layer in enumerate(layers)
    ]
    figure.update_layout(
        sliders=[{"active": 0, "steps": steps, "currentvalue": {"prefix": "block "}, "pad": {"t": 40}}]
    )
    return figure


def _traces(data: xr.Dataset, layer: int) -> list[dict[str, Any]]:
    """Positive links, negative links, and the units of a layer."""
    place = data["place"].sel(drawn=layer).transpose("unit", "axis").values
    links, weights = drawn_links(data, layer)
    traces: list[dict[str, Any]] = []
    for chosen, color in ((weights >= 0, GREY), (weights < 0, RED)):
        ends = place[links[chosen]]  # (link, end, axis); a gap after each link
        broken = np.concatenate([ends, np.full((len(ends), 1, 2), np.nan)], axis=1).reshape(-1, 2)
        line = {"color": color, "width": 0.5}
        x, y = _rounded(broken[:, 0]), _rounded(broken[:, 1])
        traces.append({"x": x, "y": y, "mode": "lines", "line": line, "opacity": 0.4, "hoverinfo": "skip"})
    gain = unit_gain(data, layer)
    labels = data["community"].sel(view="model", layer=layer).values
    marker = {
        "color": community_colors(labels),
        "size": [round(float(size), 1) for size in 5 + 9 * gain_scale(gain)],
        "line": {"width": 0.5, "color": "white"},
    }
    shown = {"customdata": _labels(data, layer, gain), "hovertemplate": HOVER, "marker": marker}
    return [*traces, {"x": _rounded(place[:, 0]), "y": _rounded(place[:, 1]), "mode": "markers"} | shown]


def _labels(data: xr.Dataset, layer: int, gain: Floats) -> list[list[str]]:
    """What hovering says of each unit, as plotly may show it."""
    own = data.sel(view="model", layer=layer)
    tokens = data["largest_token"].sel(drawn=layer).transpose("unit", "place_of_token").values
    columns = zip(own["community"].values, gain, own["participation"].values, tokens, strict=True)
    return [
        [
            str(unit),
            str(community),
            f"{size:.3g}",
            f"{share:.2f}",
            ", ".join(dict.fromkeys(f"“{hover_text(str(token), TOKEN)}”" for token in largest)),
        ]
        for unit, (community, size, share, largest) in enumerate(columns)
    ]


def _title(data: xr.Dataset, layer: int) -> str:
    labels = data["community"].sel(view="model", layer=layer).values
    rho = float(data["rho"].sel(view="model", layer=layer))
    return f"block {layer}: {len(np.unique(labels))} communities, coupling ρ = {signed(rho)}"


def _rounded(values: Floats) -> list[float | None]:
    """Three decimals: what a screen can show; None where a line breaks off."""
    return [round(value, 3) if np.isfinite(value) else None for value in values.tolist()]
