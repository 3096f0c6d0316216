"""Thresholds of the claims on communities: ours, part of the configuration, printed with each verdict.

Apart from `claims` so that a configuration can hold them without importing arrays.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What each statistic must clear; the defaults were fixed before any model was measured.

    Attributes:
        threshold_exist: AMI of the communities of two halves of the text, mean over layers.
        threshold_coupling: √A, A = mean over layers of ρ² less what permuted places reach.
        threshold_sign: Spearman's ρ over layers of the coupling and the antisymmetric fraction of K.
        threshold_learned: what A must exceed that of fresh initialisations by.
        threshold_learned_init: √A of fresh initialisations that still counts as none.
        threshold_robust: share of choices that must agree with the default ones.
        threshold_fragile: share at and below which the finding is an artefact of choices.
        threshold_excess: stability above that of the null from which a layer has communities at all.
        threshold_layers: fewer layers with communities than this decide nothing.
        threshold_signed_layers: layers with a significant coupling that each sign must have.
        threshold_documents: fewer documents than this decide nothing.
        threshold_seeds: fewer fresh initialisations than this decide nothing.
    """

    threshold_exist: float = 0.2
    threshold_coupling: float = 0.1
    threshold_sign: float = 0.0
    threshold_learned: float = 0.0
    threshold_learned_init: float = 0.1
    threshold_robust: float = 0.8
    threshold_fragile: float = 0.5
    threshold_excess: float = 0.2
    threshold_layers: int = 5
    threshold_signed_layers: int = 3
    threshold_documents: int = 12
    threshold_seeds: int = 5
