"""A Dataset of the lens analysis in which every claim is supported, drawn from a seed."""

from __future__ import annotations

import itertools
import json
from functools import cache

import numpy as np
import xarray as xr

from probe.analyses.lens import schema
from probe.analyses.lens.schema import SCHEMA

LAYERS, DOCUMENTS, CHOSEN, FITTED, CONTROLLED, WIDTH, SEEDS, TOKENS = 6, 14, 2, 14, 12, 10, 5, 3
ALPHA = 2.0
# what is read of held-out documents; nat, cosines
KL = {
    "jacobian": 0.5,
    "second": 0.5,
    "logit": 2.0,
    "displaced": 1.5,
    "blocks": 1.8,
    "affine": 0.4,
    "tuned": 0.3,
    "own": 0.2,
}
COSINE = {"own": 0.95, "first": 0.7, "second": 0.7, "same": 0.75}
# noise over the spread of predictions
ERROR = {"lens": 0.3, "logit": 1.5, "random": 3.0}


def matrices(
    rng: np.random.Generator, documents: int, *, rank: int = 2, noise: float = 0.3, layers: int = LAYERS
) -> np.ndarray:
    """M of each document, (layer, document, d, d): a mean of rank `rank` and norm 1, and noise of norm `noise`."""
    left, right = (np.linalg.qr(rng.normal(size=(layers, WIDTH, WIDTH)))[0][..., :rank] for _ in range(2))
    mean = left @ right.swapaxes(-1, -2) / rank**0.5
    drawn = rng.normal(size=(layers, documents, WIDTH, WIDTH)) * noise / WIDTH
    return without_trace(mean[:, None] + drawn)


def without_trace(found: np.ndarray) -> np.ndarray:
    """M less the multiple of the identity that it may have."""
    return found - np.trace(found, axis1=-2, axis2=-1)[..., None, None] * np.eye(WIDTH) / WIDTH


def grams(found: np.ndarray) -> np.ndarray:
    """Inner products of documents' matrices, (layer, document, document)."""
    flat = found.reshape(*found.shape[:2], -1)
    return flat @ flat.swapaxes(-1, -2)


def quartics(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a participation ratio follows from, of matrices (layer, document, d, d): `quartic` and `pair_trace`."""
    a, b = np.array(list(itertools.combinations_with_replacement(range(found.shape[1]), 2))).T
    one, other = found[:, a].swapaxes(-1, -2) @ found[:, b], found[:, b].swapaxes(-1, -2) @ found[:, a]
    products = one + (a != b)[:, None, None] * other
    flat = products.reshape(*products.shape[:2], -1)
    return flat @ flat.swapaxes(-1, -2), np.trace(products, axis1=-2, axis2=-1)


def plant_fits(data: xr.Dataset, found: np.ndarray) -> None:
    """Write the inner products of M of all fitted documents, and of J = α I + M."""
    data["gram"].loc[{"part": "M"}] = grams(found)
    data["gram"].loc[{"part": "J"}] = grams(found + ALPHA * np.eye(WIDTH))


def plant_means(data: xr.Dataset, variant: str, found: np.ndarray) -> None:
    """Write what a run keeps of the mean over `found`, (layer, document, d, d) of M, in one variant."""
    at = {"variant": variant}
    mean = found.mean(1)
    whole = mean + ALPHA * np.eye(WIDTH)
    data["quartic"].loc[at], data["pair_trace"].loc[at] = quartics(found)
    data["singular_value"].loc[at] = np.stack([np.linalg.svd(one, compute_uv=False) for one in (whole, mean)])
    data["mean_alpha"].loc[at] = ALPHA
    data["identity_share"].loc[at] = ALPHA**2 * WIDTH / np.square(whole).sum((-2, -1))


def dataset(
    *, seeds: int = SEEDS, documents: int = DOCUMENTS, fitted: int = FITTED, controlled: int = CONTROLLED
) -> xr.Dataset:
    """The planted run: two fits of the text, one of a second corpus, three kinds of control."""
    return _made(seeds, documents, fitted, controlled).copy(deep=True)


@cache
def _made(seeds: int, documents: int, fitted: int, controlled: int) -> xr.Dataset:
    rng = np.random.default_rng(0)
    kinds = ("init", "shuffled", "blocks")
    variants = ["model", *(f"{kind}-{seed}" for kind in kinds for seed in range(seeds))]
    queries, every, pairs = documents * CHOSEN, 3 * fitted, controlled * (controlled + 1) // 2
    sizes = {"variant": len(variants), "source": LAYERS, "part": 2, "index": WIDTH, "query": queries, "steered": TOKENS}
    sizes |= {"fitted": every, "fitted_other": every, "pair": pairs, "pair_other": pairs}
    sizes |= {"lens": len(schema.LENSES), "predictor": len(schema.PREDICTORS), "direction": len(schema.DIRECTIONS)}
    names = [name for name, variable in SCHEMA.items() if variable.kept]
    data = xr.Dataset(
        {name: SCHEMA.entry(name, np.full([sizes[dim] for dim in SCHEMA[name].dims], np.nan)) for name in names},
        coords={
            "variant": variants,
            "source": np.arange(LAYERS),
            "part": list(schema.PARTS),
            "lens": list(schema.LENSES),
            "predictor": list(schema.PREDICTORS),
            "direction": list(schema.DIRECTIONS),
            "group": ("fitted", np.repeat(schema.GROUPS, fitted)),
            "controlled": ("fitted", np.arange(every) < controlled),
            "document": ("query", np.arange(queries) // CHOSEN),
            "index": np.arange(WIDTH),
            "steered": np.arange(TOKENS),
        },
        attrs={
            "model": "planted-7x10",
            "description": "drawn from a seed, no model behind it",
            "text": "planted text",
            "other_text": "another text",
            "kind": "transformer",
            "targets": "later",
            "strength": 0.05,
            "d_model": WIDTH,
            "provenance": json.dumps({"analysis": "lens", "fingerprint": {"weights": "0" * 64}}),
        },
    )
    own = matrices(rng, every)
    plant_fits(data, own)
    plant_means(data, "model", own[:, :controlled])
    data["noise_edge"][:] = 0.1
    for variant in variants[1:]:
        plant_means(data, variant, matrices(rng, controlled, rank=WIDTH))
    for name, value in KL.items():
        data["kl"].loc[{"lens": name}] = value * np.exp(0.1 * rng.normal(size=(LAYERS, queries)))
    data["agrees"][:] = (data["kl"] < 1).astype(float)
    data["output_rank"][:] = np.where(data["agrees"] > 0, 0.0, 3.0)
    for name, value in COSINE.items():
        data["cosine"].loc[{"predictor": name}] = value + 0.01 * rng.normal(size=(LAYERS, queries))
    for name, error in ERROR.items():
        predicted = rng.normal(size=(LAYERS, TOKENS, queries))
        data["predicted"].loc[{"direction": name}] = predicted
        data["measured"].loc[{"direction": name}] = predicted + error * rng.normal(size=predicted.shape)
    data["norm"][:], data["alpha"][:] = 1.0, ALPHA
    return data
