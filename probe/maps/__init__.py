"""Maps of one token's state: what a block does as a function of that state alone, fitted to pairs (x, y).

Row i of ``x`` is the state of token i, row i of ``y`` the update (or anything else) that is to be predicted from it.
Every map has `fit`, `predict`, `score`, `save` and `load`, and needs no model; all but `MLPMap` are affine or locally
affine in centred coordinates:

- baselines: `ZeroMap`, `MeanMap`, `DiagonalMap`
- one map for all tokens: `LinearMap` (ridge, from one pass of `SufficientStatistics`), `ReducedRankMap`, `MLPMap`
- one map for each token, fitted on its nearest neighbours: `LocalMap`; `instability` compares two of them
"""

from __future__ import annotations

from probe.maps.base import Map
from probe.maps.linear import DiagonalMap, LinearMap, MeanMap, ReducedRankMap, SufficientStatistics, ZeroMap
from probe.maps.local import LocalMap, instability
from probe.maps.mlp import MLPMap

__all__ = [
    "DiagonalMap",
    "LinearMap",
    "LocalMap",
    "MLPMap",
    "Map",
    "MeanMap",
    "ReducedRankMap",
    "SufficientStatistics",
    "ZeroMap",
    "instability",
]


def __dir__() -> list[str]:
    return __all__
