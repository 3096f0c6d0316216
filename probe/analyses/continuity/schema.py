"""The finished units of a continuity run as one `xarray.Dataset`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import torch
import xarray as xr

from probe import weights
from probe.analyses.continuity import work
from probe.analyses.continuity.config import Config
from probe.analysis.subject import subject_attributes, variable
from probe.runs import Run
from probe.runs.engine import Unit

COMPARED = (
    *("input_continuity", "output_continuity", "gap"),
    *("block_gap", "input_participation", "output_participation"),
)
"""What is known of every variant; all else is of the model alone."""
LEVEL = 0.99


def assemble(config: Config, run: Run) -> xr.Dataset:
    """What `probe.weights.continuity` gives, with a dimension `variant` where controls were measured as well."""
    first = work.layers_of(config)[0]
    described = {
        variant: weights.described(dict(work.bases_of(config, run, variant)), config.subspaces, first)
        for variant in work.variants_of(config)
        if variant != "folded" or any(True for _ in work.bases_of(config, run, variant))
    }
    variants = pd.Index(list(described), name="variant")
    compared = xr.concat([data[list(COMPARED)] for data in described.values()], variants, join="outer")
    names = list(work.names_of(config))
    data = described["model"].drop_vars(COMPARED).merge(compared.reindex(projection=names))
    for name in COMPARED:
        data[name].attrs |= described["model"][name].attrs
    for side in ("input", "output"):
        high = np.array([weights.haar_quantile(width, LEVEL) for width in data[f"{side}_width"].values.tolist()])
        words = "what 99 % of the |cosines| of random directions stay below"
        data[f"{side}_haar_high"] = variable("projection", high, words)
    _add_directions(data, config, run)
    if config.composites:
        _add_heads(data, config, run)
    if config.docs:
        _add_docs(data, config, run, work.units(config)["docs"])
    data.attrs |= _attributes(config)
    return data


def _add_directions(data: xr.Dataset, config: Config, run: Run) -> None:
    """The leading direction of each stored projection in the stream: v₁ of what reads it, u₁ of what writes to it."""
    found = {}
    for name, bases in work.bases_of(config, run, "model"):
        sides = weights.stream_sides(name)
        if len(sides) == 1:  # composites lie in the stream on both sides
            vectors = getattr(bases, weights.SIDES[sides[0]])[..., 0]  # (block, d_model)
            found[name] = xr.DataArray(vectors.numpy(), dims=("block", "coordinate"))
    if found:
        words = "v₁ of readers, u₁ of writers"
        stacked = xr.concat(list(found.values()), pd.Index(list(found), name="projection"))
        data["directions"] = stacked.reindex(projection=data["projection"]).assign_attrs(units="1", long_name=words)


def _add_heads(data: xr.Dataset, config: Config, run: Run) -> None:
    """For each head of a block the best |cosine| to a head of the next, mean over heads (composite, layer)."""
    names = [name for name in work.names_of(config) if name in weights.COMPOSITES]
    if not names:
        return
    data.coords["composite"] = names
    for side, part in weights.SIDES.items():
        values = []
        for name in names:
            array = f"{name}.heads.{part}"
            heads = [run.load("vectors", f"model-{layer:03d}", [array])[array] for layer in work.layers_of(config)]
            values.append([float(weights.best_matches(one, other).mean()) for one, other in pairwise(heads)])
        words = "best |cosine| of a head to a head of the next block, mean over heads"
        data[f"{side}_heads"] = variable(("composite", "layer"), np.array(values), words)
    null = np.array(weights.haar_best_match(*heads[0].shape))
    data["heads_null"] = variable((), null, "the same of random directions")


def _add_docs(data: xr.Dataset, config: Config, run: Run, units: list[Unit]) -> None:
    stored = work.weights_of(config).stored
    values = torch.stack([run.load(unit.stage, unit.key)["similarity"] for unit in units])
    array = xr.DataArray(values.numpy(), {"projection": list(stored)}, ("layer", "projection"))
    data["docs"] = array.reindex(projection=data["projection"]).transpose("projection", "layer")
    data["docs"].attrs |= {"units": "1", "long_name": "DOCS of the two blocks' columns"}


def _attributes(config: Config) -> dict[str, object]:
    own = {"block_length": config.block_length, "outlier_share": config.outlier_share}
    return subject_attributes(config, work.weights_of(config)) | own
