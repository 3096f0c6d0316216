"""The finished units of a run on causes as one `xarray.Dataset`, with a `seed` dimension throughout.

Toys lie along `cell`, arms of the transformer along `arm`; variables of the latter begin with `arm_`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from probe.analyses.causes import cells, work
from probe.analyses.causes.config import Config
from probe.analysis.subject import variable
from probe.runs import Run
from probe.runs.engine import Unit
from probe.training import ARMS, LEADING, PROJECTIONS, SPACES, WEIGHTS, Size, haar_matches
from probe.weights import haar_cosine, haar_mean_quantiles

# name -> (dimensions after step and seed, unit, long name)
_MEASURED = {
    "cosine": (("weights", "space", "pair"), "1", "|cos| of neighbouring layers' leading singular vectors"),
    "overlap": (("weights", "space", "k"), "1", "mean squared cosine of neighbouring layers' top-k subspaces"),
    "match": (("weights", "space", "k"), "1", "squared cosine of the k-th direction and its best match one layer on"),
    "gap": (("weights", "space", "layer"), "1", "σ₁/σ₂"),
    "layer_angle": (("weights", "space"), "degree", "mean principal angle of neighbouring layers' top-8 frames"),
    "step_angle": (("space",), "degree", "mean principal angle of a layer's top-8 frame and its own a snapshot before"),
    "gradient_coherence": (("space",), "1", "cos of neighbouring layers' gradients, mean over batches"),
    "mean_gradient_coherence": (("space",), "1", "cos of neighbouring layers' mean gradients"),
    "update_coherence": (("space",), "1", "cos of what neighbouring layers moved since the snapshot before"),
    "held_out_loss": ((), "1", "held-out loss"),
    "train_loss": ((), "1", "training loss, mean since the snapshot before"),
}
_BY_PROJECTION = {  # of a transformer: the matrix axis is kept, and a matrix has both spaces
    "gap": ("projection", "weights", "arm_layer"),
    "gradient_coherence": ("projection",),
    "mean_gradient_coherence": ("projection",),
    "update_coherence": ("projection",),
    "held_out_loss": (),
    "train_loss": (),
}


def assemble(config: Config, run: Run) -> xr.Dataset:
    """The finished units of a run as its Dataset; without transformers where none were trained."""
    units = work.units(config)
    data = xr.Dataset(
        coords={
            "seed": list(config.seed_list),
            "weights": list(WEIGHTS),
            "space": list(SPACES),
            "k": np.arange(1, _leading(config.width) + 1),
            "pair": np.arange(config.blocks - 1),
            "layer": np.arange(config.blocks),
            "step": list(work.plan_of(config).snapshots),
        }
    )
    _add_toys(data, config, run, units["toys"])
    if units["transformers"]:
        _add_arms(data, config, run, units["transformers"])
    data.attrs |= {
        "model": "toys",
        "description": "trained by probe",
        "text": work.windows_of(config, "fit").name if config.reads_text else "",
        "width": config.width,
        "haar_band": float(haar_mean_quantiles({config.width: config.blocks - 1}, np.array([0.99]))[0]),
        "haar_cosine": haar_cosine(config.width),
    }
    return data


def _leading(width: int) -> int:
    return min(LEADING, width)


def _add_toys(data: xr.Dataset, config: Config, run: Run, units: Sequence[Unit]) -> None:
    chosen = cells.chosen(config.cells, config.full)
    data.coords["cell"] = [cell.name for cell in chosen]
    for name in asdict(chosen[0]):
        data.coords[name] = ("cell", [getattr(cell, name) for cell in chosen])
    for name, (dims, unit, long_name) in _MEASURED.items():
        values = np.stack([run.load(one.stage, one.key, [name])[name].numpy() for one in units])
        data[name] = variable(("cell", "step", "seed", *dims), values, long_name, unit)
    data["null_match"] = variable("k", haar_matches(config.width, data.sizes["k"]), "`match` of random frames")


def _add_arms(data: xr.Dataset, config: Config, run: Run, units: Sequence[Unit]) -> None:
    names = [unit.key for unit in units]
    data.coords["arm"] = names
    data.coords["arm_label"] = ("arm", [ARMS[name].label for name in names])
    data.coords["projection"] = list(PROJECTIONS)
    data.coords["arm_step"] = list(work.arm_plan_of(config).snapshots)
    data.coords["arm_layer"] = np.arange(config.arm_blocks)
    data.coords["arm_pair"] = np.arange(config.arm_blocks - 1)
    renamed = {"pair": "arm_pair", "layer": "arm_layer", "k": "arm_k"}
    data.coords["arm_k"] = np.arange(1, _leading(config.arm_width) + 1)
    for name, (dims, unit, long_name) in _MEASURED.items():
        own = _BY_PROJECTION.get(name, ("projection", *(renamed.get(dim, dim) for dim in dims)))
        values = np.stack([run.load(one.stage, one.key, [name])[name].numpy() for one in units])
        unit = "nat/byte" if name.endswith("loss") else unit
        data[f"arm_{name}"] = variable(("arm", "arm_step", "seed", *own), values, f"{long_name}, transformers", unit)
    words = "mean |cos| of random directions"
    data["arm_null_cosine"] = variable(("projection", "space"), _arm_nulls(config), words)
    data.attrs["arm_guess"] = _unigram_loss(config)


def _arm_nulls(config: Config) -> Float[np.ndarray, "projection space"]:
    size = Size(config.arm_width, config.arm_blocks, config.arm_heads)
    wide = {("gate", "output"), ("up", "output"), ("down", "input")}
    widths = [[size.hidden if (name, space) in wide else size.width for space in SPACES] for name in PROJECTIONS]
    return np.array([[haar_cosine(n) for n in row] for row in widths])


def _unigram_loss(config: Config) -> float:
    """Cross-entropy of the held-out bytes under the frequencies of the learned ones, each begun at one."""
    learned, held_out = (work.windows_of(config, part).tokens.flatten() for part in ("fit", "scored"))
    counts = torch.bincount(learned, minlength=256).double() + 1
    return float(-(counts / counts.sum()).log()[held_out].mean())
