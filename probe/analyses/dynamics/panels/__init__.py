"""The panels of the dynamics: Dataset in, Axes out."""

from __future__ import annotations

from probe.analyses.dynamics.panels.depth import (
    bottleneck,
    effective_rank_of_product,
    lyapunov,
    mean_products,
    singular_growth,
    subspace_overlap,
)
from probe.analyses.dynamics.panels.linearity import linear_range, perturbation
from probe.analyses.dynamics.panels.spectral import (
    coupling,
    eigenvalue_cloud,
    eigenvector_condition,
    mean_score_by_depth,
    polar_rotation,
    pseudospectrum,
    score_by_depth,
)

__all__ = [
    "bottleneck",
    "coupling",
    "effective_rank_of_product",
    "eigenvalue_cloud",
    "eigenvector_condition",
    "linear_range",
    "lyapunov",
    "mean_products",
    "mean_score_by_depth",
    "perturbation",
    "polar_rotation",
    "pseudospectrum",
    "score_by_depth",
    "singular_growth",
    "subspace_overlap",
]
