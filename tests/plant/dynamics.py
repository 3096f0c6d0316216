"""A Dataset of the dynamics analysis in which every claim is supported, drawn from a seed."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from probe.analyses.dynamics import schema
from probe.analyses.dynamics.schema import SCHEMA, SCORES

LAYERS, DOCUMENTS, CHOSEN, WIDTH, DRAWS, SEEDS = 9, 16, 2, 64, 3, 5
IDENTITY = 0.25  # share of ‖C‖² that the identity has
NULLS = tuple(null for null in schema.NULLS if null != "symmetrised_ov")
EPSILONS = np.array(schema.EPSILONS)
# participation ratio of the whole product, over d
WHOLE = {"model": 0.02, "alone": 0.03, "init": 0.6, "shuffled": 0.5}
NULL_WHOLE = dict(zip(NULLS, (0.4, 0.05, 0.3, 0.5, 0.2, 0.2, 0.2, 0.1), strict=True))
# drawn scores fall from the first to the second over depth in the model, and stay at 0.7 in the controls
FALLS = {"henrici_departure": (0.9, 0.25), "antisymmetric_fraction": (0.65, 0.1), "rotation_fraction": (0.6, 0.05)}


def dataset(*, seeds: int = SEEDS, documents: int = DOCUMENTS, layers: int = LAYERS, noise: float = 0.01) -> xr.Dataset:
    """The planted run: controls at the first of each document's two positions."""
    rng = np.random.default_rng(0)
    variants = ["model", "alone", *(f"init-{seed}" for seed in range(seeds)), "shuffled-0"]
    queries = documents * CHOSEN
    first = np.arange(queries) % CHOSEN == 0
    variables = _scores(rng, len(variants), layers, first, noise) | _products(rng, variants, layers, first, noise)
    variables |= _own(rng, layers, queries, first)
    variables |= _perturbations(rng, queries, first)
    coordinates = {
        "layer": np.arange(layers),
        "depth": np.arange(1, layers + 1),
        "variant": variants,
        "matrix": list(schema.MATRICES),
        "k": [1, 4, 8],
        "exponent": [1, 2, 4, 8, 16, 32, 64],
        "null": list(NULLS),
        "bound": list(schema.BOUNDS),
        "direction": list(schema.DIRECTIONS),
        "horizon": list(schema.HORIZONS),
        "epsilon": EPSILONS,
        "start": [0, 4, 8],
        "chosen": [0, 4],
        "document": ("query", np.arange(queries) // CHOSEN),
        "position": ("query", rng.integers(16, 100, queries)),
    }
    attrs = {
        "model": "planted-9x64",
        "description": "drawn from a seed, no model behind it",
        "text": "planted text",
        "kind": "transformer",
        "context": "sequence",
        "d_model": WIDTH,
        "n_mean_windows": documents,
        "provenance": json.dumps({"analysis": "dynamics", "fingerprint": {"weights": "0" * 64}}),
    }
    entries = {name: SCHEMA.entry(name, values) for name, values in variables.items()}
    return xr.Dataset(entries, coords=coordinates, attrs=attrs)


Variables = dict[str, np.ndarray]


def _scores(rng: np.random.Generator, variants: int, layers: int, first: np.ndarray, noise: float) -> Variables:
    """Scores that fall with depth in the model and in its blocks on the token alone."""
    shares = np.full((variants, layers, len(first)), IDENTITY)
    shares[1:, :, ~first] = np.nan
    found: Variables = {"identity_share": shares}
    for name in SCORES:
        start, end = FALLS.get(name, (0.5, 0.5))
        values = np.full((variants, 2, layers, len(first)), 0.7)
        values[:2] = np.linspace(start, end, layers)[:, None]
        values += noise * rng.normal(size=values.shape)
        values[1:, ..., ~first] = np.nan
        found[name] = np.abs(values)
    return found


def _products(rng: np.random.Generator, variants: list[str], layers: int, first: np.ndarray, noise: float) -> Variables:
    """Products that lose directions at an even rate, in the variants and under the nulls."""
    steps = np.arange(1, layers + 1) / layers

    def product(shares: list[float], *lead: int) -> np.ndarray:
        curves = WIDTH * np.asarray(shares)[(..., *[None] * len(lead), None)] ** steps
        return curves[..., None] * np.exp(5 * noise * rng.normal(size=(len(shares), *lead, layers, len(first))))

    ratio = product([WHOLE[name.split("-")[0]] for name in variants])
    ratio[1:, :, ~first] = np.nan
    null = product([NULL_WHOLE[name] for name in NULLS], DRAWS)
    null[..., ~first] = np.nan
    few = [NULLS.index(name) for name in ("schur_normal_transposed", "schur_normal_rotated")]
    null[few, ..., 8:] = np.nan
    null[2 + 1 :, 1:] = np.nan  # one draw
    fraction = np.where(first, 0.7 + noise * rng.normal(size=(len(NULLS), layers, len(first))), np.nan)
    return {
        "product_participation_ratio": ratio,
        "product_effective_rank": 1.5 * ratio,
        "product_identity_share": np.where(np.isfinite(ratio), IDENTITY, np.nan),
        "product_log_norm": np.log(ratio) + 2,
        "null_participation_ratio": null,
        "null_effective_rank": 1.5 * null[:, 0],
        "null_antisymmetric_fraction": fraction,
    }


def _own(rng: np.random.Generator, layers: int, queries: int, first: np.ndarray) -> Variables:
    """What is measured of the model itself, of mean matrices, and of a few blocks."""
    overlap = rng.uniform(0.5, 1, (layers, 3, queries))
    overlap[0] = np.nan
    real = np.linspace(-1, 1, 12)
    imaginary = np.linspace(0, 1, 6)
    distance = np.hypot(real[None], imaginary[:, None])
    coupling = rng.uniform(0.7, 1.1, (layers, layers, queries))
    coupling[..., ~first] = np.nan
    variables: Variables = {
        "lyapunov_exponent": rng.normal(0, 0.1, (layers, 7, queries)),
        "product_overlap": overlap,
        "eigenvalue_real": rng.normal(size=(layers, 3, WIDTH)),
        "eigenvalue_imaginary": rng.normal(size=(layers, 3, WIDTH)),
        "coupling": coupling,
        "eigenvector_condition": rng.uniform(10, 1e4, (layers, 4)),
        "polar_rotation": rng.uniform(0, 1, (layers, 4)),
        "mean_spread": rng.uniform(0.5, 1, layers),
        "kreiss_constant": np.array([3.0, 2.0]),
        "chosen_spectral_abscissa": np.array([0.5, 0.4]),
        "chosen_numerical_abscissa": np.array([1.5, 1.4]),
        "pseudospectrum_sigma_min": np.stack([distance + 0.01, distance + 0.1]),
        "pseudospectrum_real": np.stack([real, real]),
        "pseudospectrum_imaginary": np.stack([imaginary, imaginary]),
        "pseudospectrum_spectrum": rng.normal(0, 0.3, (2, WIDTH, 2)),
    }
    for name in SCORES:
        value = np.broadcast_to(np.linspace(0.5, 0.2, layers)[:, None], (layers, 2))
        variables[f"mean_{name}"] = np.stack([value, value - 0.05, value + 0.05])
    for name in ("product_of_averages", "average_of_products"):
        curve = WIDTH * 0.1 ** (np.arange(1, layers + 1) / layers)
        variables[name] = np.stack([curve, 0.9 * curve, 1.1 * curve])
    return variables


def _perturbations(rng: np.random.Generator, queries: int, first: np.ndarray) -> Variables:
    """An error of ε / 4 at horizon 1, larger further on; the last start has no horizon beyond 1."""
    size = np.array([1.0, 1.5, 2.0, 3.0, 4.0])
    factor = np.exp(0.05 * rng.normal(size=(4, 5, 1, 3, queries)))
    error = EPSILONS[:, None, None] / 4 * size[:, None, None, None] * factor
    crossing = 0.4 / size[:, None, None] / factor[:, :, 0]
    reached = np.where(first, 1.0, np.nan) * np.ones((5, 3, 1))
    reached[1:4, 2] = np.nan
    return {
        "perturb_error": error * reached[None, :, None],
        "perturb_cosine": (1 - error / 10) * reached[None, :, None],
        "epsilon_at_tenth": crossing * reached,
    }
