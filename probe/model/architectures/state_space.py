"""State-space models: a block is a norm and one mixer, which carries a state along the positions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from probe.model.architectures.layout import BlockLayout, Layout, SitePath, separate


def _mamba(**matrices: str) -> Layout:
    return Layout(
        blocks="backbone.layers",
        embedding="backbone.embeddings",
        final_norm="backbone.norm_f",
        kinds=(
            BlockLayout(sites={"hook_mixer_out": SitePath("mixer")}, projections=separate(**matrices), recurrent=True),
        ),
    )


ROWS: Mapping[str, Layout] = MappingProxyType({
    "mamba": _mamba(in_="mixer.in_proj", x="mixer.x_proj", dt="mixer.dt_proj", out="mixer.out_proj"),
    "mamba2": _mamba(in_="mixer.in_proj", out="mixer.out_proj"),
})
