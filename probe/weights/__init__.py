"""Projection matrices by name, their leading singular vectors, and how these carry on from block to block.

A projection is (out, in), so that it acts as ``x @ W.T``: `q k v o gate up down`, of state-space blocks `in x dt out`,
of latent attention `q_a kv_a k_rot`, which read the stream, and `q_b k_b v_b`, which read normed latents; and the
composites `ov = W_O W_V` and `qk = W_Qᵀ W_K`. Of the experts of a mixture it is `experts.3.gate`, `experts.3.up` and
`experts.3.down`, by the expert's index; `stored` does not list them. All functions take a loaded model's weights or,
from `open_weights`, those of a checkpoint that is read one matrix at a time:

- one number for all blocks and projections: `continuity`; of experts, matched or averaged: `expert_continuity`
- matrices: `weights_of`, `open_weights`, `matrix_of`, `head_views`
- singular vectors: `leading_triplets`
- along depth: `adjacent_cosines`, `cosine_matrix`, `lag_curve`, `best_cosines`; more in `probe.weights.curves`
- nulls: `haar_cosine`, `haar_quantile`, `fresh_twin`, `shuffled_twin`; more in `probe.weights.nulls`
- another view: `docs_similarity`
"""

from __future__ import annotations

from probe.errors import renamed
from probe.spectra.singular import leading_triplets
from probe.weights.bases import continuity
from probe.weights.checkpoint import open_weights, weights_of
from probe.weights.curves import adjacent_cosines, best_cosines, cosine_matrix, lag_curve
from probe.weights.experts import expert_continuity
from probe.weights.heads import head_views, matrix_of
from probe.weights.nulls import haar_cosine, haar_quantile
from probe.weights.similarity import docs_similarity
from probe.weights.twins import fresh_twin, shuffled_twin

__all__ = [
    "adjacent_cosines",
    "best_cosines",
    "continuity",
    "cosine_matrix",
    "docs_similarity",
    "expert_continuity",
    "fresh_twin",
    "haar_cosine",
    "haar_quantile",
    "head_views",
    "lag_curve",
    "leading_triplets",
    "matrix_of",
    "open_weights",
    "shuffled_twin",
    "weights_of",
]


def __dir__() -> list[str]:
    return __all__


_MOVED = {
    "bases": ("SIDES", "Bases", "described", "prepared", "stream_sides"),
    "checkpoint": ("weight_hash",),
    "curves": ("adjacent_overlaps", "aligned", "kept_coordinates", "trajectory"),
    "heads": ("COMPOSITES", "head_factors", "names_of", "shapes_of"),
    "nulls": ("haar_best_match", "haar_mean_quantiles", "permuted_order", "simulated_cosines"),
    "reading": ("READERS", "WRITERS", "Heads", "ModuleWeights", "Weights"),
}
__getattr__ = renamed(
    __name__,
    {name: f"{home}.{name}" for home, names in _MOVED.items() for name in names}
    | {name: f"probe.spectra.singular.{name}" for name in ("Triplets", "product_triplets")}
    | {"best_matches": "best_cosines", "of_model": "weights_of", "participation_ratio": "curves.vector_participation"},
)
