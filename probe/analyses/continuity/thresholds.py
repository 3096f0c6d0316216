"""Thresholds of the claims on continuity: ours, part of the configuration, printed with each verdict.

Apart from `claims` so that a configuration can hold them without importing arrays.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What each statistic must clear; the defaults were fixed before any model was measured.

    Attributes:
        threshold_trained: by how much the mean |cosine| of neighbours must exceed what 99 % of random means stay below.
        threshold_init: by how much it must exceed that of fresh initialisations.
        threshold_permuted: p value, under permuted orders of the blocks, that must not be reached.
        threshold_projections: by how much each reader, and each writer, must exceed v.
        threshold_adjacency: Spearman's ρ of lag and |cosine|.
        threshold_gap: σ₁/σ₂ below which a leading vector means nothing.
        threshold_blocks: fewer blocks of adjacent pairs than this decide nothing.
        threshold_seeds: fewer fresh initialisations than this decide nothing.
    """

    threshold_trained: float = 0.0
    threshold_init: float = 0.1
    threshold_permuted: float = 0.01
    threshold_projections: float = 0.1
    threshold_adjacency: float = -0.5
    threshold_gap: float = 1.05
    threshold_blocks: int = 3
    threshold_seeds: int = 5
