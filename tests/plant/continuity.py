"""A Dataset of the continuity analysis in which every claim is supported, drawn from a seed."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probe import weights
from probe.analyses.continuity.schema import SCHEMA
from probe.analyses.continuity.table import CLAIMED
from probe.analyses.continuity.work import described
from probe.geometry import haar_frame
from probe.runs import Piece
from probe.weights.bases import Bases

BLOCKS, STREAM, INNER, SEEDS, ANGLE = 19, 64, 96, 5, 0.08
NAMES = ("q", "k", "v", "o", "gate", "up", "down")
COMPARED = [name for name, variable in SCHEMA.items() if "variant" in variable.dims]


def rotating(angle: float, n: int, blocks: int, generator: torch.Generator) -> Tensor:
    """(block, n, 2): the first vector turns by an angle a block in a random plane, the second is orthogonal to it."""
    plane = haar_frame(n, 2, generator, dtype=torch.float64)
    turned = angle * torch.arange(blocks, dtype=torch.float64)
    first, second = torch.stack([turned.cos(), turned.sin()]), torch.stack([-turned.sin(), turned.cos()])
    signs = torch.randint(0, 2, (blocks, 1), generator=generator) * 2 - 1
    return torch.stack([first.mT @ plane.mT * signs, second.mT @ plane.mT], -1)


def random(n: int, blocks: int, generator: torch.Generator) -> Tensor:
    return torch.stack([haar_frame(n, 2, generator, dtype=torch.float64) for _ in range(blocks)])


def bases(
    name: str, generator: torch.Generator, angle: float | None, *, blocks: int = BLOCKS, gap: float = 1.5
) -> Bases:
    """The claimed side of a projection turns by the angle, or is random for None; the other side is random."""
    writer = CLAIMED.get(name) == "output"
    stream = random(STREAM, blocks, generator) if angle is None else rotating(angle, STREAM, blocks, generator)
    inner = random(INNER, blocks, generator)
    left, right = (stream, inner) if writer else (inner, stream)
    singular = torch.tensor([gap, 1.0], dtype=torch.float64).expand(blocks, 2)
    ones = torch.ones(blocks, dtype=torch.float64)
    return Bases(left.float(), singular, right.float(), 3 * ones, 1e-6 * ones)


def variant(generator: torch.Generator, angles: dict[str, float | None], **options: float) -> Piece:
    made = {name: bases(name, generator, angles[name], **options) for name in NAMES}  # type: ignore[arg-type]
    return described(made, (1, 2))


def dataset(*, angle: float = ANGLE, seeds: int = SEEDS, blocks: int = BLOCKS, gap: float = 1.5) -> xr.Dataset:
    """Claimed projections turn by `angle` a block, v and all controls are random; a copy that may be changed."""
    return _planted(angle, seeds, blocks, gap).copy(deep=True)


@cache
def _planted(angle: float, seeds: int, blocks: int, gap: float) -> xr.Dataset:
    generator = torch.Generator().manual_seed(0)
    trained: dict[str, float | None] = {name: angle if name in CLAIMED else None for name in NAMES}
    none: dict[str, float | None] = dict.fromkeys(NAMES)
    own = variant(generator, trained, blocks=blocks, gap=gap)
    variants = {"model": own, "trimmed": own}
    for name in (*(f"init-{seed}" for seed in range(seeds)), "shuffled-0"):
        variants[name] = variant(generator, none, blocks=blocks, gap=1.01)
    entries = {
        name: SCHEMA.entry(
            name, np.stack([v.numpy(name) for v in variants.values()]) if name in COMPARED else own.numpy(name)
        )
        for name in own
    }
    data = xr.Dataset(entries, coords=dict(own.labels) | {"variant": list(variants)})
    data.attrs |= {"model": "planted", "description": "", "d_model": STREAM, "block_length": 3, "outlier_share": 0.005}
    return data


def plant(data: xr.Dataset, name: str, side: str, angle: float | None, variant: str = "model", seed: int = 7) -> None:
    """Replace one projection's vectors in one space: they turn by the angle, or are random for None."""
    generator = torch.Generator().manual_seed(seed)
    width, blocks = int(data[f"{side}_width"].sel(projection=name)), data.sizes["block"]
    vectors = random(width, blocks, generator) if angle is None else rotating(angle, width, blocks, generator)
    put(data, name, side, vectors[..., 0], variant)


def put(data: xr.Dataset, name: str, side: str, vectors: Tensor, variant: str = "model") -> None:
    """Replace one projection's leading vectors in one space by the given ones."""
    where = {"projection": name}
    data[f"{side}_continuity"].loc[where | {"variant": variant}] = weights.adjacent_cosines(vectors).numpy()
    if variant == "model":
        cosines = weights.cosine_matrix(vectors)
        data[f"{side}_cosine"].loc[where] = cosines.numpy()
        data[f"{side}_lag"].loc[where] = weights.lag_curve(cosines).numpy()
