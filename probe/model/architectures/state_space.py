"""State-space models: blocks of one mixer, which carries a state along the positions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from probe.model.architectures.layout import Layout, Place, separate

_SHARED: dict[str, Any] = {
    "blocks": "backbone.layers",
    "embedding": "backbone.embeddings",
    "final_norm": "backbone.norm_f",
    "recurrent": True,
    "head_dtype_first": True,
    "places": {"hook_mixer_out": Place("mixer")},
}

ROWS: Mapping[str, Layout] = MappingProxyType({
    "mamba": Layout(
        **_SHARED,
        projections=separate(in_="mixer.in_proj", x="mixer.x_proj", dt="mixer.dt_proj", out="mixer.out_proj"),
    ),
    "mamba2": Layout(**_SHARED, projections=separate(in_="mixer.in_proj", out="mixer.out_proj")),
})
