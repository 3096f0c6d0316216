"""Thresholds of the claims on layer updates: ours, part of the configuration, printed with each verdict.

Apart from `claims` so that a configuration can hold them without importing arrays.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What each statistic must clear; the defaults were fixed before any model was measured.

    Attributes:
        threshold_alignment: median cosine of update and tokenwise part.
        threshold_alignment_over_mean: by how much that cosine must exceed the mean baseline's.
        threshold_residual_distinct: difference of the shares of update and residual in the 4 leading directions.
        threshold_error_predicts_output: Spearman's ρ of relative error and KL.
        threshold_residual_matters: median log ratio of KL, residual to covariance-matched direction.
        threshold_mlp_helps: median log ratio of relative errors, linear to MLP, in the high-error regime.
        threshold_low_dimensional: log ratio of errors (rank 4 to 64) and of instabilities (32 to 256 neighbours).
        threshold_documents: fewer scored documents than this decide nothing.
        threshold_error_spread: below this standard deviation of the log relative error a rank correlation says nothing.
    """

    threshold_alignment: float = 0.9
    threshold_alignment_over_mean: float = 0.05
    threshold_residual_distinct: float = 0.1
    threshold_error_predicts_output: float = 0.7
    threshold_residual_matters: float = 0.0
    threshold_mlp_helps: float = 0.02
    threshold_low_dimensional: float = 0.0
    threshold_documents: int = 12
    threshold_error_spread: float = 0.1
