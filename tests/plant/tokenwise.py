"""A plausible Dataset of the layer-update analysis, drawn from a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from probe.analyses.tokenwise.schema import SCHEMA

FITS = (
    *("zero", "mean", "diagonal", "linear", "low_rank", "local", "local_diagonal", "local_orthogonal"),
    *("mlp", "mlp_random", "alone", "mlp_alone"),
)
# The typical relative error of each class; the update's own size is 1.
ERROR = dict(zip(FITS, (1.0, 0.93, 0.78, 0.42, 0.46, 0.37, 0.55, 0.6, 0.35, 0.36, 0.8, 0.9), strict=True))
REPLACED = ("mean", "linear", "local", "mlp_random")
WORDS = (" the", " of", " river", " 1984", ",", " unlikely", "ing", " Ålesund", "\n", " 東京", "<unk>", " =")


def dataset(
    *,
    n_layers: int = 6,
    layers: Sequence[int] | None = None,
    queries: int = 240,
    documents: int = 16,
    d_model: int = 64,
    fits: Sequence[str] = FITS,
    draws: int = 4,
    drop: Sequence[str] = (),
    tokens: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    slope: float = 2.0,
    control_slope: float = 1.0,
    control_gap: float = 0.7,
    demonstration: bool = True,
    seed: int = 0,
) -> xr.Dataset:
    """A Dataset with the variables of the analysis's contract, without those named in `drop`.

    The Kullback-Leibler divergence follows error^slope with noise; a replacement residual's follows error^control_slope
    and is smaller by `control_gap` in log. Cosines are those of a residual orthogonal to the tokenwise part.
    """
    generator = np.random.default_rng(seed)
    depth = np.arange(n_layers) if layers is None else np.asarray(layers)
    document = np.sort(generator.integers(documents, size=queries))
    document[:documents] = np.arange(documents)  # none is empty
    error = _errors(generator, fits, document, np.cos(np.pi * depth / n_layers))
    norm = np.exp(0.3 * generator.standard_normal((len(depth), queries))) * (2 + depth)[:, None]
    sharpness = 0.5 * generator.standard_normal(norm.shape) - 3
    kl = np.exp(sharpness + slope * np.log(error) + 0.2 * generator.standard_normal(error.shape))
    kl[[fit not in REPLACED for fit in fits]] = np.nan
    variables = _fitted(generator, fits, error, norm) | _replaced(generator, kl) | _tokens(generator, queries)
    variables["mlp_flat"] = np.asarray([
        [not (fit.startswith("mlp") and layer == 1) for layer in depth] for fit in fits
    ])
    variables |= _shares(generator, fits, error)
    variables |= _controls(generator, fits, error, kl, sharpness, draws, control_slope, control_gap)
    variables |= _regimes(generator, fits, error)
    variables |= _sweeps(generator, error)
    words = np.asarray(WORDS if tokens is None else tokens, dtype=object)
    heads = np.asarray([f"Article {i}" for i in range(documents)] if titles is None else titles, dtype=object)
    return xr.Dataset(
        {name: SCHEMA.entry(name, values) for name, values in variables.items() if name not in drop},
        coords={
            "layer": depth,
            "map": list(fits),
            "target": ["update", "state"],
            "control": ["random", "other", "covariance"],
            "k": [1, 4, 8],
            "vector": ["update", "fit", "residual", "other"],
            "centring": ["centred", "uncentred", "no_outliers"],
            "neighbours": [32, 64, 128, 256],
            "rank": [4, 8, 16, 32, 64],
            "window": ("query", document * 2),
            "position": ("query", generator.integers(1, 256, queries)),
            "document": ("query", document),
            "token": ("query", words[np.arange(queries) % len(words)].astype(str)),
            "context": ("query", np.asarray(["".join(words[:5])] * queries, dtype=str)),
            "title": ("query", heads[document % len(heads)].astype(str)),
        },
        attrs={
            "analysis": "tokenwise",
            "model": "planted-6x64",
            "description": "drawn from a seed, no model behind it",
            "architecture": "none",
            "text": "planted text",
            "n_fit_windows": 24,
            "n_fit_tokens": 6000,
            "n_documents_scored": documents,
            "window_length": 256,
            "demonstration": int(demonstration),
            "deciding_fit": "local" if "local" in fits else fits[-1],
            "d_model": d_model,
            "provenance": json.dumps({
                "analysis": "tokenwise",
                "config": {"model": "planted-6x64", "classes": list(fits), "thresholds": {"threshold_alignment": 0.9}},
                "fingerprint": {"weights": "0" * 64},
                "versions": {"numpy": np.__version__},
                "provenance": {"command": "python -m probe.analyses.tokenwise --model planted-6x64", "commit": None},
            }),
        },
    )


Variables = dict[str, np.ndarray]


def _errors(generator: np.random.Generator, fits: Sequence[str], document: np.ndarray, wave: np.ndarray) -> np.ndarray:
    """Relative errors (map, layer, query): of its class, following the layer's wave, hard tokens and hard documents."""
    shape = (len(wave), len(document))
    hardness = 0.2 * generator.standard_normal(shape)
    hardness += 0.1 * generator.standard_normal(document.max() + 1)[document]
    level = np.asarray([ERROR[fit] for fit in fits])[:, None, None] * (1 + 0.3 * wave)[None, :, None]
    error = level * np.exp(hardness + 0.08 * generator.standard_normal((len(fits), *shape)))
    error[[fit == "zero" for fit in fits]] = 1.0
    return error


def _fitted(generator: np.random.Generator, fits: Sequence[str], error: np.ndarray, norm: np.ndarray) -> Variables:
    both = np.stack([error, error / 4], axis=1)
    return {
        "relative_error": both,
        "cos_update_fit": np.sqrt(np.clip(1 - (0.85 * both) ** 2, 0, None)),
        "cos_update_residual": np.clip(both, None, 1),
        "cos_fit_residual": np.clip(0.05 * generator.standard_normal(both.shape), -1, 1),
        "explained_variance": 1 - (error**2).mean(-1),
        "update_norm": norm,
        "state_norm": 4 * norm,
    }


def _replaced(generator: np.random.Generator, kl: np.ndarray) -> Variables:
    return {
        "kl": kl,
        "loss_change": kl * generator.normal(0.5, 1, kl.shape),
        "logit_distance": np.sqrt(kl) * 40,
        "logit_cosine": 1 - np.clip(kl, 0, 1),
        "top1": np.where(np.isnan(kl), np.nan, generator.random(kl.shape) > np.clip(kl, 0, 1)),
    }


def _tokens(generator: np.random.Generator, queries: int) -> Variables:
    return {
        "entropy": generator.gamma(4, 0.8, queries),
        "frequency": np.log1p(generator.integers(1, 1000, queries)),
        "loss": generator.gamma(3, 1, queries),
    }


def _shares(generator: np.random.Generator, fits: Sequence[str], error: np.ndarray) -> Variables:
    n, queries = error.shape[1:]
    k = np.asarray([1, 4, 8])[:, None, None]
    base = np.stack([1 - 0.75 / np.sqrt(k), 1 - 0.7 / np.sqrt(k), 0.4 - 0.36 / np.sqrt(k), 0.85 - 0.7 / np.sqrt(k)])
    base = base[None, None] + np.asarray([0.0, 0.1, -0.03])[None, :, None, None, None, None]
    base = np.broadcast_to(base, (len(fits), 3, 4, 3, n, queries))
    noise = 0.3 * generator.standard_normal(base.shape)
    logit = np.log(np.clip(base, 1e-3, 0.99) / (1 - np.clip(base, 1e-3, 0.99)))
    share = 1 / (1 + np.exp(-(logit + noise)))
    own = np.clip(share[0, :, 0] * 1.05, 0, 1)
    return {"share": share, "share_of_update": own}


def _controls(
    generator: np.random.Generator,
    fits: Sequence[str],
    error: np.ndarray,
    kl: np.ndarray,
    sharpness: np.ndarray,
    draws: int,
    slope: float,
    gap: float,
) -> Variables:
    deciding = list(fits).index("local") if "local" in fits else len(fits) - 1
    noise = 0.5 * generator.standard_normal((3, draws, *sharpness.shape))
    factor = np.asarray([1.0, 0.5, 0.6])[:, None, None, None] * gap
    control = np.exp(sharpness + slope * np.log(error[deciding]) + noise - factor)
    subsample = np.where(np.arange(kl.shape[-1]) % 4 == 0, 1.0, np.nan)
    cosine = np.clip(0.45 + 0.15 * generator.standard_normal(error.shape), -1, 1)
    return {
        "kl_control": control,
        "kl_all": kl * np.exp(0.8 + 0.4 * generator.standard_normal(kl.shape)),
        "kl_later": kl * subsample * 0.3,
        "cos_permuted": np.clip(0.2 + 0.1 * generator.standard_normal(error.shape), -1, 1),
        "relative_error_permuted": 1.0 + 0.05 * np.abs(generator.standard_normal(error.shape)),
        "residual_attention_cosine": cosine,
        "residual_attention_share": cosine**2,
        "residual_offposition_cosine": np.clip(cosine + 0.1, -1, 1),
        "residual_offposition_share": np.clip(cosine + 0.1, 0, 1) ** 2,
        "floor": 0.5 * error,
    }


def _regimes(generator: np.random.Generator, fits: Sequence[str], error: np.ndarray) -> Variables:
    deciding = list(fits).index("local") if "local" in fits else len(fits) - 1
    independent = error[deciding] * np.exp(0.15 * generator.standard_normal(error.shape[1:]))

    def terciles(values: np.ndarray) -> np.ndarray:
        return (
            values[..., None] > np.quantile(values, [1 / 3, 2 / 3], axis=-1).T.reshape(*values.shape[:-1], 1, 2)
        ).sum(-1)

    return {
        "error_independent": independent,
        "regime": terciles(independent),
        "regime_own": terciles(error[deciding]),
        "regime_layer": terciles(error[deciding].mean(-1)),
    }


def _sweeps(generator: np.random.Generator, error: np.ndarray) -> Variables:
    n, queries = error.shape[1:]
    k = np.asarray([32, 64, 128, 256])[:, None, None, None]
    rank = np.asarray([4, 8, 16, 32, 64])[None, :, None, None]
    shape = 0.3 + 0.6 / np.sqrt(rank) + 0.2 * np.minimum(rank, k) / k
    held_out = shape * np.exp(0.15 * generator.standard_normal((4, 5, n, queries)))
    in_sample = (0.3 + 0.6 / np.sqrt(rank) - 0.25 * np.minimum(rank, k) / k)[..., 0] * np.ones(n)
    instability = 1.5 / np.sqrt(k[:, 0]) * np.exp(0.2 * generator.standard_normal((4, n, queries)))
    return {
        "sweep_error": held_out,
        "sweep_error_in_sample": in_sample,
        "instability": instability,
    }
