"""The units of a continuity run: singular vectors of one block of the model or of a control.

Each unit is a plain function of `(config, unit, run)` that returns named arrays. A matrix is read, decomposed and
dropped before the next is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from probe import weights
from probe.analyses.continuity.config import Config
from probe.errors import InputError
from probe.runs import Run
from probe.runs.engine import Unit
from probe.weights import ModuleWeights, Triplets

OWN = ("model", "folded")
"""Variants of the model itself; the others are controls, of which the leading two triplets are kept."""
CONTROL_RANK = 2
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@lru_cache(maxsize=1)
def weights_of(config: Config) -> ModuleWeights:
    """The weights of a configuration's model, opened once in a process."""
    return weights.open_weights(
        config.model,
        revision=config.revision,
        random_init=config.random_init,
        shuffled_weights=config.shuffled_weights,
    )


@lru_cache(maxsize=16)
def variant_of(config: Config, variant: str) -> ModuleWeights:
    """The weights of a variant: the model's own, or those of a control."""
    kind, _, seed = variant.partition("-")
    own = weights_of(config)
    if kind == "init":
        return weights.fresh_twin(own, int(seed))
    return weights.shuffled_twin(own, int(seed)) if kind == "shuffled" else own


def layers_of(config: Config) -> list[int]:
    """The blocks that are compared: two or more in a row."""
    layers = config.layer_indices(weights_of(config).n_layers)
    if len(layers) < 2 or layers[-1] - layers[0] != len(layers) - 1:
        raise InputError(
            f"continuity compares neighbouring blocks, so --layers must be two or more in a row, got {config.layers}; "
            f"give {layers[0]} to {max(layers[-1], layers[0] + 1)}, or all"
        )
    return layers


def names_of(config: Config) -> tuple[str, ...]:
    """The projections, composites last."""
    return weights.names_of(weights_of(config), composites=config.composites)


def variants_of(config: Config) -> list[str]:
    """The model, its weights with gains folded in, without outlier coordinates, and the controls."""
    own = ["model", *(["folded"] if config.folded else []), *(["trimmed"] if config.outlier_share > 0 else [])]
    return [*own, *config.controls]


def units(config: Config) -> dict[str, list[Unit]]:
    """All units of a run by stage, in the order in which the stages follow each other."""

    def by_layer(stage: str, *variants: str) -> list[Unit]:
        return [
            Unit(stage, f"{variant}-{layer:03d}", {"variant": variant, "layer": layer})
            for variant in variants
            for layer in layers_of(config)
        ]

    trim = config.outlier_share > 0
    pairs = [{"layer": layer} for layer in layers_of(config)[:-1]] if config.docs else []
    return {
        "vectors": by_layer("vectors", *(name for name in OWN if name in variants_of(config))),
        "coordinates": [Unit("coordinates", "kept", {})] if trim else [],
        "trimmed": by_layer("trimmed", "trimmed") if trim else [],
        "controls": by_layer("controls", *config.controls),
        "docs": [Unit("docs", f"pair-{pair['layer']:03d}", pair) for pair in pairs],
    }


def vectors_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Leading triplets of every projection of one block, under its name: `q.left`, `q.singular`, `q.right`."""
    variant, layer = unit.arguments["variant"], unit.arguments["layer"]
    rank = max(CONTROL_RANK, *config.subspaces) if variant in OWN else CONTROL_RANK
    found: dict[str, Tensor] = {}
    for name in names_of(config):
        matrix = weights.prepared(variant_of(config, variant), layer, name, folded=variant == "folded")
        if matrix is not None:
            found |= _arrays(name, _triplets(config, matrix, rank))
    if variant == "model":
        for name in (name for name in names_of(config) if name in weights.COMPOSITES):
            found |= _heads(config, layer, name)
    return found


def coordinates_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """The coordinates of the stream that are kept, `NAME.input` and `NAME.output`: all but those of most energy."""
    found: dict[str, Tensor] = {}
    for name in names_of(config):
        for side in weights.stream_sides(name):
            array = f"{name}.{weights.SIDES[side]}"
            loaded = (run.load("vectors", f"model-{layer:03d}", [array]) for layer in layers_of(config))
            leading = torch.stack([one[array][:, 0] for one in loaded])
            found[f"{name}.{side}"] = weights.kept_coordinates(leading, config.outlier_share)
    return found


def trimmed_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Leading triplets of one block's projections without the outlier coordinates of the stream."""
    kept = run.load("coordinates", "kept")
    found: dict[str, Tensor] = {}
    for name in names_of(config):
        if not weights.stream_sides(name):
            continue
        matrix = weights.matrix_of(weights_of(config), unit.arguments["layer"], name)
        for dim, side in enumerate(("output", "input")):
            if f"{name}.{side}" in kept:
                matrix = matrix.index_select(dim, kept[f"{name}.{side}"].to(matrix.device))
        found |= _arrays(name, _triplets(config, matrix, CONTROL_RANK))
    return found


def docs_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """DOCS of each stored projection in two neighbouring blocks, by columns: `similarity` (projection,)."""
    own, layer = weights_of(config), unit.arguments["layer"]
    values = [
        weights.docs_similarity(*(own.matrix(place, name).to(config.device) for place in (layer, layer + 1)))
        for name in own.stored
    ]
    return {"similarity": torch.tensor(values, dtype=torch.float64)}


def _triplets(config: Config, matrix: Tensor, rank: int) -> Triplets:
    """Triplets of a matrix whose entries are rounded to the configuration's number format first."""
    rounded = matrix.to(config.device, _DTYPES[config.dtype])
    exact = rounded if config.dtype == "float64" else rounded.float()
    return weights.leading_triplets(exact, min(rank, *exact.shape), method=config.method, seed=config.seed)


def _arrays(name: str, triplets: Triplets) -> dict[str, Tensor]:
    return {
        f"{name}.left": triplets.left.float(),
        f"{name}.singular": triplets.singular,
        f"{name}.right": triplets.right.float(),
        f"{name}.norm": torch.tensor(triplets.norm, dtype=torch.float64),
        f"{name}.error": torch.tensor(triplets.error, dtype=torch.float64),
    }


def _heads(config: Config, layer: int, name: str) -> dict[str, Tensor]:
    """Leading vectors of each head's composite, `NAME.heads.left` and `NAME.heads.right` (d, head)."""
    left, right = (factor.to(config.device) for factor in weights.head_factors(weights_of(config), layer, name))
    found = [weights.product_triplets(*pair) for pair in zip(left, right, strict=True)]
    return {
        f"{name}.heads.left": torch.cat([one.left for one in found], 1).float(),
        f"{name}.heads.right": torch.cat([one.right for one in found], 1).float(),
    }


def bases_of(config: Config, run: Run, variant: str) -> Iterator[tuple[str, weights.Bases]]:
    """The bases of each projection that a variant has, read from its finished units."""
    stage = "trimmed" if variant == "trimmed" else "vectors" if variant in OWN else "controls"
    keys = [f"{variant}-{layer:03d}" for layer in layers_of(config)]
    held = run.load(stage, keys[0])
    for name in names_of(config):
        if f"{name}.left" in held:
            parts = ("left", "singular", "right", "norm", "error")
            loaded = [run.load(stage, key, [f"{name}.{part}" for part in parts]) for key in keys]
            yield name, weights.Bases(*(torch.stack([one[f"{name}.{part}"] for one in loaded]) for part in parts))
