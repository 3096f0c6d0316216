"""A Dataset of the analysis of causes in which every claim is supported, drawn from a seed."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import xarray as xr

from probe.analyses.causes.cells import Cell, named
from probe.analyses.causes.schema import SCHEMA
from probe.training.names import POINTWISE
from probe.training.transformer import ARM_OF, PROJECTIONS

STEPS, ARM_STEPS = (0, 10, 300, 1000, 2000, 2400, 2700, 3000), (0, 20, 100, 400, 500)
BLOCKS, K, NULL = 8, 8, 0.06
FIRST = {"gelu": 0.3, "identity": 0.05, "norm": 0.1}  # excess of the first direction's best match
OTHER = {"gelu": 0.05, "identity": 0.05, "norm": 0.1}  # of the seven others
WIDTHS = {"step": STEPS, "weights": ("W", "ΔW"), "space": ("input", "output"), "arm_step": ARM_STEPS}
ARM_NAMES = ("full", "v_nonlinearity", "radial")


def continuity(cell: Cell, weights: str) -> float:
    """What is planted at the end of training."""
    if not cell.residual:
        return 0.1
    if cell.activation in POINTWISE:
        return 0.5 if weights == "W" else 0.6
    return 0.1 if weights == "W" else 0.2


def excess(cell: Cell) -> list[float]:
    kind = "norm" if cell.norm != "none" else cell.activation if cell.activation == "identity" else "gelu"
    return [FIRST[kind], *[OTHER[kind]] * (K - 1)]


def loss(cell: Cell) -> float:
    if cell.teacher == "linear":
        return 0.01
    return 0.1 if cell.activation in POINTWISE else 0.5


def dataset(*, seeds: int = 5, noise: float = 0.005, arms: bool = True, without: str = "") -> xr.Dataset:
    """The planted run.

    Args:
        seeds: How many.
        noise: Spread over seeds.
        arms: With transformers.
        without: Leave out the cells whose names hold this.
    """
    rng = np.random.default_rng(0)
    cells = [cell for cell in named() if not without or without not in cell.name]
    grown = np.linspace(0.0, 1.0, len(STEPS)) ** 0.1  # most of it early

    def spread(values: np.ndarray, trailing: int) -> np.ndarray:
        """(cell, step, ...) with seeds as third axis; `trailing` axes share a seed's deviation."""
        whole = np.repeat(values[:, :, None], seeds, axis=2)
        deviation = noise * rng.normal(size=(len(values), 1, seeds, *[1] * trailing))
        return whole + deviation

    def through(ends: np.ndarray, start: float) -> np.ndarray:
        """(cell, ...) to (cell, step, ...): from a start to the end, which holds over the last fifth."""
        shape = (1, len(STEPS), *[1] * (ends.ndim - 1))
        share = np.where(np.array(STEPS) >= 2400, 1.0, grown).reshape(shape)
        return start + share * (ends[:, None] - start)

    cosine = np.array([[[continuity(cell, w)] * 2 for w in WIDTHS["weights"]] for cell in cells])
    cosine = spread(through(cosine, 0.1), 2)[..., None] + noise * rng.normal(size=BLOCKS - 1)
    match = np.array([[[[x + NULL for x in excess(cell)]] * 2] * 2 for cell in cells])
    coherent = np.array([[0.8 if cell.residual else 0.02] * 2 for cell in cells])
    cosine[:, 0, :, 1] = np.nan  # at step 0 nothing has been added
    sizes = (len(cells), len(STEPS), seeds)
    arrays = {
        "cosine": cosine,
        "match": spread(through(match, NULL), 3),
        "gradient_coherence": spread(through(coherent, 0.7) * 0 + coherent[:, None], 1),
        "held_out_loss": spread(through(np.array([loss(cell) for cell in cells]), 1.5), 0),
        "null_match": np.full(K, NULL),
        "gap": 1.3 + 0.1 * rng.random((*sizes, 2, 2, BLOCKS)),
        "layer_angle": 60 + rng.random((*sizes, 2, 2)),
        "step_angle": 60 + rng.random((*sizes, 2)),
    }
    coords: dict[str, object] = {
        "cell": [cell.name for cell in cells],
        "step": list(STEPS),
        "seed": list(range(seeds)),
        "weights": list(WIDTHS["weights"]),
        "space": list(WIDTHS["space"]),
        "pair": np.arange(BLOCKS - 1),
        "layer": np.arange(BLOCKS),
        "k": np.arange(1, K + 1),
    }
    coords |= {name: ("cell", [getattr(cell, name) for cell in cells]) for name in asdict(cells[0])}
    attrs = {"haar_cosine": 0.1, "haar_band": 0.17, "width": 64, "model": "toys", "provenance": json.dumps({})}
    data = xr.Dataset({name: SCHEMA.entry(name, values) for name, values in arrays.items()}, coords, attrs)
    return _with_arms(data, rng, seeds, noise) if arms else data


def _with_arms(data: xr.Dataset, rng: np.random.Generator, seeds: int, noise: float) -> xr.Dataset:
    blocks = 6
    cosine = np.full((len(ARM_NAMES), len(ARM_STEPS), seeds, len(PROJECTIONS), 2, 2, blocks - 1), 0.4)
    cosine[:, :, :, PROJECTIONS.index("v")] = 0.1
    cosine[ARM_NAMES.index("v_nonlinearity"), :, :, PROJECTIONS.index("v")] = 0.3
    cosine += noise * rng.normal(size=cosine.shape)
    losses = np.linspace(5.5, 2.0, len(ARM_STEPS))[None, :, None] + noise * rng.normal(
        size=(len(ARM_NAMES), len(ARM_STEPS), seeds)
    )
    sizes = (len(ARM_NAMES), len(ARM_STEPS), seeds, len(PROJECTIONS), 2, blocks)
    arrays = {
        "arm_cosine": cosine,
        "arm_held_out_loss": losses,
        "arm_gap": np.full(sizes, 1.4),
        "arm_null_cosine": np.full((len(PROJECTIONS), 2), 0.07),
    }
    found = data.assign({name: SCHEMA.entry(name, values) for name, values in arrays.items()})
    coords = {"arm": list(ARM_NAMES), "arm_step": list(ARM_STEPS), "projection": list(PROJECTIONS)}
    coords |= {"arm_label": ("arm", [ARM_OF[name].label for name in ARM_NAMES])}
    return found.assign_coords(coords).assign_attrs(arm_guess=3.3, text="a text")
