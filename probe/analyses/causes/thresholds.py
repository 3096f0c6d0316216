"""Thresholds of the claims on causes: ours, part of the configuration, printed with each verdict.

Apart from `claims` so that a configuration can hold them without importing arrays.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What each statistic must clear; the defaults were fixed before any network was trained.

    Attributes:
        threshold_residual_coherence: gradient coherence with the residual less without, in the fifth best of seven
            activations.
        threshold_plain_coherence: below this lies the gradient coherence without a residual.
        threshold_symmetry_breaking: share of the cells of decay × init in which the difference holds.
        threshold_symmetry_refuted: at most this share refutes the claim.
        margin_symmetry_breaking: continuity of the symmetry-breaking activation less that of each radial one.
        threshold_concentration: of both differences of s₁.
        margin_concentration: Σ of the excess of the best matches without which s₁ is a quotient of noise.
        threshold_v_nonlinearity: continuity of V, with a nonlinearity after it less without.
        threshold_learned: an arm learned if its held-out loss is below this share of that of a constant guess.
        threshold_gap: σ₁/σ₂ below which a leading direction means nothing.
        threshold_seeds: fewer seeds than this decide nothing.
    """

    threshold_residual_coherence: float = 0.1
    threshold_plain_coherence: float = 0.1
    threshold_symmetry_breaking: float = 0.8
    threshold_symmetry_refuted: float = 0.5
    margin_symmetry_breaking: float = 0.1
    threshold_concentration: float = 0.0
    margin_concentration: float = 0.1
    threshold_v_nonlinearity: float = 0.0
    threshold_learned: float = 0.9
    threshold_gap: float = 1.05
    threshold_seeds: int = 5
