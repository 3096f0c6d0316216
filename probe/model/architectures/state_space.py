"""State-space models: a block is a norm and one mixer, which carries a state along the positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from probe.model.architectures.layout import Layout, SitePath, separate

_MAMBA = Layout(
    blocks="backbone.layers",
    embedding="backbone.embeddings",
    final_norm="backbone.norm_f",
    recurrent=True,
    head_dtype_first=True,
    sites={"hook_mixer_out": SitePath("mixer")},
    projections=separate(in_="mixer.in_proj", x="mixer.x_proj", dt="mixer.dt_proj", out="mixer.out_proj"),
)

ROWS: Mapping[str, Layout] = MappingProxyType({
    "mamba": _MAMBA,
    "mamba2": replace(_MAMBA, projections=separate(in_="mixer.in_proj", out="mixer.out_proj")),
})
