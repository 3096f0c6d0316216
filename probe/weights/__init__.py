"""Projection matrices by name, their leading singular vectors, and how these carry on from block to block.

A projection is (out, in), so that it acts as ``x @ W.T``: `q k v o gate up down`, of state-space blocks `in x dt out`,
and the composites `ov = W_O W_V` and `qk = W_Qᵀ W_K`. Any function takes a loaded model or, from `open_weights`, a
checkpoint that is read one matrix at a time:

- one number for all blocks and projections: `continuity`
- matrices: `weights_of`, `open_weights`, `matrix_of`, `names_of`, `head_views`, `head_factors`, `prepared` (folded)
- singular vectors: `leading_triplets`, `product_triplets`, `Bases`, `described`
- along depth: `adjacent_cosines`, `adjacent_overlaps`, `cosine_matrix`, `lag_curve`, `trajectory`, `best_matches`,
  `participation_ratio`, `kept_coordinates`
- nulls: `haar_cosine`, `haar_quantile`, `haar_mean_quantiles`, `haar_best_match`, `permuted_order`, `fresh_twin`,
  `shuffled_twin`
- another view: `docs_similarity`
"""

from __future__ import annotations

from probe.spectra.singular import Triplets, leading_triplets, product_triplets
from probe.weights.bases import SIDES, Bases, continuity, described, prepared, stream_sides
from probe.weights.checkpoint import open_weights, weight_hash, weights_of
from probe.weights.curves import (
    adjacent_cosines,
    adjacent_overlaps,
    aligned,
    best_matches,
    cosine_matrix,
    kept_coordinates,
    lag_curve,
    participation_ratio,
    trajectory,
)
from probe.weights.heads import COMPOSITES, head_factors, head_views, matrix_of, names_of, shapes_of
from probe.weights.nulls import (
    haar_best_match,
    haar_cosine,
    haar_mean_quantiles,
    haar_quantile,
    permuted_order,
    simulated_cosines,
)
from probe.weights.reading import READERS, WRITERS, Heads, ModuleWeights, Weights, of_model
from probe.weights.similarity import docs_similarity
from probe.weights.twins import fresh_twin, shuffled_twin

__all__ = [
    "COMPOSITES",
    "READERS",
    "SIDES",
    "WRITERS",
    "Bases",
    "Heads",
    "ModuleWeights",
    "Triplets",
    "Weights",
    "adjacent_cosines",
    "adjacent_overlaps",
    "aligned",
    "best_matches",
    "continuity",
    "cosine_matrix",
    "described",
    "docs_similarity",
    "fresh_twin",
    "haar_best_match",
    "haar_cosine",
    "haar_mean_quantiles",
    "haar_quantile",
    "head_factors",
    "head_views",
    "kept_coordinates",
    "lag_curve",
    "leading_triplets",
    "matrix_of",
    "names_of",
    "of_model",
    "open_weights",
    "participation_ratio",
    "permuted_order",
    "prepared",
    "product_triplets",
    "shapes_of",
    "shuffled_twin",
    "simulated_cosines",
    "stream_sides",
    "trajectory",
    "weight_hash",
    "weights_of",
]
