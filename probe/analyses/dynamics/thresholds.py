"""Thresholds of the claims on dynamics: ours, part of the configuration, printed with each verdict.

Apart from `claims` so that a configuration can hold them without importing arrays.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What each statistic must clear; the defaults were fixed before any model was measured.

    Attributes:
        threshold_gradient: Spearman's ρ of layer and score, for the slower of the two scores of K.
        threshold_late_symmetric: antisymmetric fraction of K in the last quarter of the blocks; 0.316 = √0.1 leaves a
            tenth of ‖K‖² to the antisymmetric part, a random K has √½.
        threshold_bottleneck: participation ratio of the product of all blocks, over d.
        threshold_learned: what the trained model's drops and log participation ratio must differ from a control's by.
        threshold_nonnormal_origin: share of the bottleneck that goes with the structure of the non-normal part.
        threshold_linear_holds: ε over median ‖u‖ at which the linear prediction is 10 % off.
        threshold_documents: fewer documents than this decide nothing.
        threshold_seeds: fewer fresh initialisations than this decide nothing.
    """

    threshold_gradient: float = -0.5
    threshold_late_symmetric: float = 0.316
    threshold_bottleneck: float = 0.05
    threshold_learned: float = 0.0
    threshold_nonnormal_origin: float = 0.5
    threshold_linear_holds: float = 0.1
    threshold_documents: int = 12
    threshold_seeds: int = 5
