"""A Dataset of the communities analysis in which every claim is supported, drawn from a seed."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr
from scipy.stats import norm

from probe import graphs
from probe.analyses.communities.coupling import CHOICES
from probe.analyses.communities.gains import LARGEST, MEASURES
from probe.analyses.communities.partitions import TOPOLOGY
from probe.analyses.communities.schema import SCHEMA

LAYERS, DOCUMENTS, CHOSEN, WIDTH, SEEDS, BASES, PERMUTATIONS = 24, 16, 2, 64, 5, 2, 400
COMMUNITIES = 8
HALVES_AMI = 0.6
COUPLING = (0.75, -0.5)  # Spearman's ρ of the first and the last layer
Values = dict[str, np.ndarray]


def coupling_of(layers: int) -> np.ndarray:
    """The planted coupling by layer."""
    return np.linspace(*COUPLING, layers)


def dataset(
    *,
    seeds: int = SEEDS,
    bases: int = BASES,
    documents: int = DOCUMENTS,
    layers: int = LAYERS,
    width: int = WIDTH,
    nodes: str = "residual",
    ablated: int = 3,
    drawn: int = 2,
) -> xr.Dataset:
    """The planted run: controls, without any coupling, at the first of each document's two positions."""
    rng = np.random.default_rng(0)
    queries = documents * CHOSEN
    residual = nodes == "residual"
    views = ["model", *(["symmetrised"] * residual), "no_outliers"]
    views += [f"basis-{draw}" for draw in range(bases * residual)] + [f"init-{seed}" for seed in range(seeds)]
    values = _graphs(rng, layers, width) | _coupled(rng, views, layers, width, queries)
    labels = _drifting(rng, layers, width)
    values["community"] = np.broadcast_to(labels, (len(views), *labels.shape)).astype(np.int32).copy()
    values["layer_ami"] = graphs.pairwise_ami(labels)
    if residual:
        values |= _amplified(rng, layers, len(np.unique(labels[0])))
    coordinates: dict[str, object] = {
        "layer": np.arange(layers),
        "view": views,
        "matrix": ["J", "K"],
        "amplification": list(MEASURES),
        "measure": list(TOPOLOGY),
        "profiled": 2.0 ** np.arange(-4, 4),
        "document": ("query", np.arange(queries) // CHOSEN),
        "position": ("query", rng.integers(16, 100, queries)),
    }
    if ablated:
        coordinates["ablated"] = chosen = np.linspace(0, layers - 1, ablated).round().astype(int)
        coordinates |= {name: list(choices) for name, choices in CHOICES.items()}
        values |= _grid(rng, coupling_of(layers)[chosen])
    if drawn:
        coordinates["drawn"] = shown = np.linspace(0, layers - 1, drawn).round().astype(int)
        values |= _drawn(rng, labels[shown])
    attrs = {
        "model": f"planted-{layers}x{width}",
        "description": "drawn from a seed, no model behind it",
        "text": "planted text",
        "kind": "transformer",
        "context": "sequence",
        "nodes": nodes,
        "d_model": width,
        "n_nodes": width,
        "n_graph_tokens": 4 * width,
        "n_graph_documents": documents,
        "n_other_documents": documents,
        "provenance": json.dumps({"analysis": "communities", "fingerprint": {"weights": "0" * 64}}),
    }
    variables = {name: SCHEMA.entry(name, array) for name, array in values.items()}
    return xr.Dataset(variables, coords=coordinates, attrs=attrs)


def _graphs(rng: np.random.Generator, layers: int, width: int) -> Values:
    """Communities as stable as can be, in graphs of more quality than their nulls, and as stable between halves."""
    scalars = {
        "resolution": 1.0,
        "excess": 0.6,
        "stability": 0.9,
        "quality": 0.5,
        "modularity": 0.5,
        "run_quality": 0.5,
        "run_stability": 0.9,
        "half_ami": HALVES_AMI,
        "jacobian_ami": 0.1,
    }
    found: Values = {name: value + 0.02 * rng.normal(size=layers) for name, value in scalars.items()}
    profile = 0.9 - 0.1 * np.abs(np.arange(-4, 4)) + 0.01 * rng.normal(size=(layers, 8))
    return found | {
        "null_quality": 0.3 + 0.01 * rng.normal(size=(layers, 20)),
        "null_stability": 0.3 + 0.02 * rng.normal(size=(layers, 20)),
        "resampled_quality": 0.5 + 0.01 * rng.normal(size=(layers, 20)),
        "resampled_half_ami": HALVES_AMI + 0.03 * rng.normal(size=(layers, 20)),
        "profile_stability": profile,
        "profile_null_stability": 0.3 + 0.01 * rng.normal(size=(layers, 8)),
        "profile_communities": np.tile(2.0 ** np.arange(1, 9), (layers, 1)),
        "topology": rng.uniform(size=(len(TOPOLOGY), layers, width)),
    }


def _coupled(rng: np.random.Generator, views: list[str], layers: int, width: int, queries: int) -> Values:
    """Places and gains with a known rank correlation in the model and where its labels or K are varied; 0 in controls.

    The antisymmetric fraction rises as the coupling falls.
    """
    first = np.arange(queries) % CHOSEN == 0
    covariate = rng.normal(size=(len(views), layers, 5, width))
    covariate[:, :, -1] = np.arange(width) < 2  # outliers
    place, log_gain = np.empty((2, len(views), layers, width))
    for v, view in enumerate(views):
        for layer, planted in enumerate(coupling_of(layers)):
            rho = 0.0 if view.startswith(("init", "basis")) else 2 * np.sin(np.pi / 6 * planted)
            x, noise = norm.ppf(np.stack([rng.permutation(width), rng.permutation(width)]) / width + 0.5 / width)
            given = np.column_stack([np.ones(width), x, covariate[v, layer].T])
            noise -= given @ np.linalg.lstsq(given, noise)[0]
            place[v, layer], log_gain[v, layer] = x, rho * x + np.sqrt(1 - rho**2) * noise
    square = np.exp(0.6 * log_gain)[..., None] * np.exp(0.1 * rng.normal(size=(len(views), layers, width, queries)))
    square[1:, ..., ~first] = np.nan
    square[views.index("no_outliers")] = square[0]
    log_gain[views.index("no_outliers")], place[views.index("no_outliers")] = log_gain[0], place[0]
    place = 0.8 * norm.cdf(place)
    place[views.index("no_outliers"), :, :2] = np.nan
    rising = np.linspace(0.2, 0.6, layers)[:, None] + 0.005 * rng.normal(size=(2, layers, queries))
    return {
        "participation": place,
        "square_gain": square,
        "covariate": covariate,
        "permuted_rho": rng.normal(size=(len(views), layers, PERMUTATIONS)) / np.sqrt(width),
        "antisymmetric_fraction": rising[0],
        "rotation_fraction": rising[1],
    }


def _drifting(rng: np.random.Generator, layers: int, width: int) -> np.ndarray:
    """Communities of which a tenth of the nodes moves from layer to layer."""
    labels = [np.arange(width) * COMMUNITIES // width]
    for _ in range(layers - 1):
        moved = np.where(rng.random(width) < 0.1, rng.permutation(labels[-1]), labels[-1])
        labels.append(graphs.canonical_labels(moved))
    return np.stack(labels)


def _amplified(rng: np.random.Generator, layers: int, communities: int) -> Values:
    raw = rng.uniform(0.5, 1.5, (2, len(MEASURES), layers, LARGEST))
    z = 3 * rng.normal(size=raw.shape)
    raw[..., communities:], z[..., communities:] = np.nan, np.nan
    return {"community_amplification": raw, "community_z": z}


def _grid(rng: np.random.Generator, rho: np.ndarray) -> Values:
    """Every choice finds nine tenths of the coupling."""
    shape = (len(rho), *map(len, CHOICES.values()))
    found = 0.9 * rho.reshape(-1, 1, 1, 1, 1, 1) + 0.01 * rng.normal(size=shape)
    return {"grid_rho": found, "grid_permuted_rho": rng.normal(size=(*shape, 100)) / 8}


def _drawn(rng: np.random.Generator, labels: np.ndarray) -> Values:
    """Communities on a circle; links inside them, and few between; the last third of the links is padding."""
    layers, width = labels.shape
    angle = 2 * np.pi * labels / (labels.max() + 1)
    place = 1.4 * np.stack([np.cos(angle), np.sin(angle)], axis=-1) + 0.15 * rng.normal(size=(layers, width, 2))
    link, weight = np.full((layers, 3 * width, 2), -1), np.zeros((layers, 3 * width))
    for row in range(layers):
        i, j = rng.integers(width, size=(2, 60 * width))
        likely = (i < j) & ((labels[row, i] == labels[row, j]) | (rng.random(len(i)) < 0.02))
        pairs = np.unique(np.column_stack([i, j])[likely], axis=0)
        kept = rng.permutation(len(pairs))[: 2 * width]
        link[row, : len(kept)], weight[row, : len(kept)] = pairs[kept], rng.uniform(0.3, 0.8, len(kept))
        weight[row, : len(kept) : 5] *= -1
    words = np.array([" the", "<b>", "&", "\n", "Σ", " of"], dtype=object)
    largest = words[rng.integers(len(words), size=(layers, width, 3))]
    return {"place": place, "link": link, "link_weight": weight, "largest_token": largest}
