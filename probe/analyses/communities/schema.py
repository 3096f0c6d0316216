"""The finished units of a communities run as one `xarray.Dataset`.

Values are NaN, and labels −1, where a view leaves units out; gains are NaN where a control was not measured: at all but
the first position of each window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Num
from torch import Tensor

from probe import graphs
from probe.analyses.communities import coupling, gains, partitions, work
from probe.analyses.communities.config import Config
from probe.analysis import subject as subjects
from probe.analysis.subject import layers_of, model_of, variable
from probe.runs import Run
from probe.runs.engine import Unit

SCALARS = {
    "resolution": "resolution, in units of the mean |w|",
    "excess": "stability less that of null graphs, at this resolution",
    "stability": "mean pairwise AMI of seeds",
    "quality": "objective per edge weight, consensus",
    "modularity": "signed modularity",
    "run_quality": "objective per edge weight, mean of single runs",
    "run_stability": "mean pairwise AMI of fewer and shorter runs",
}


def assemble(config: Config, run: Run) -> xr.Dataset:
    """The finished units of a run as its Dataset; which variables it holds depends on the configuration."""
    units = work.units(config)
    data = xr.Dataset(coords=_coordinates(config))
    _add_graphs(data, run, units["graphs"])
    _add_views(data, config, run)
    _add_operators(data, config, run)
    if units["ablation"]:
        _add_ablation(data, run, units["ablation"])
    if units["drawings"]:
        _add_drawings(data, config, run, units["drawings"])
    data.attrs |= subjects.attributes(config, work.scored_windows(config))
    graphed = [work.graph_windows(config, half) for half in partitions.HALVES]
    tokens = len(work.documents_of(run, "half_a"))
    data.attrs |= {
        "context": config.context,
        "nodes": config.nodes,
        "n_units": data.sizes["unit"],
        "n_graph_tokens": tokens,
        "n_graph_documents": graphed[0].n_documents,
        "n_other_documents": graphed[1].n_documents,
    }
    return data


def _coordinates(config: Config) -> dict[str, object]:
    windows, positions = work.scored_windows(config), work.scored_positions(config)
    return subjects.token_coordinates(model_of(config), windows, positions) | {
        "layer": layers_of(config),
        "view": work.views_of(config),
    }


def _add_graphs(data: xr.Dataset, run: Run, units: Sequence[Unit]) -> None:
    """What was found of the model's own graph of each layer, with its null graphs and its topology."""
    parts = [run.load(unit.stage, unit.key) for unit in units]
    for name, long_name in SCALARS.items():
        data[name] = variable("layer", _stack(parts, name), long_name)
    for name, long_name in (("quality", "objective per edge weight"), ("stability", "mean pairwise AMI of seeds")):
        values = _stack(parts, f"null_{name}")
        data[f"null_{name}"] = variable(("layer", "null_draw"), values, f"{long_name} of a null graph, single runs")
    data.coords["profiled"] = parts[0]["profile.resolution"].numpy()
    for name, long_name in (
        ("stability", "mean pairwise AMI of seeds"),
        ("communities", "communities of two and more"),
    ):
        values = _stack(parts, f"profile.{name}")
        data[f"profile_{name}"] = variable(("layer", "profiled"), values, long_name)
    null = _stack(parts, "profile.null_stability").mean(axis=1)
    data["profile_null_stability"] = variable(("layer", "profiled"), null, "stability of null graphs")
    data.coords["measure"] = list(partitions.TOPOLOGY)
    topology = np.stack([_stack(parts, f"topology.{name}") for name in partitions.TOPOLOGY]).astype(np.float32)
    data["topology"] = variable(("measure", "layer", "unit"), topology, "place of a unit in its graph")
    draws = [run.load("resamples", unit.key) for unit in units]
    for name in ("quality", "half_ami"):
        words = f"{name} of resampled documents, single runs"
        data[f"resampled_{name}"] = variable(("layer", "resample"), _stack(draws, name), words)


def _add_views(data: xr.Dataset, config: Config, run: Run) -> None:
    """Labels, places, covariates, gains and permuted couplings (view, layer, …), and how alike partitions are."""
    layers, views = layers_of(config), work.views_of(config)
    width = data.sizes["unit"]
    chosen = work.scored_positions(config).shape[1]
    labels = np.stack([[partitions.load_labels(run, view, layer) for layer in layers] for view in views])
    data["community"] = variable(
        ("view", "layer", "unit"), labels.astype(np.int32), "community, by falling size; −1: left out", units=None
    )
    parts = [[run.load("coupling", f"{view}-layer-{layer:03d}") for layer in layers] for view in views]
    place = np.stack([_stack(row, "participation") for row in parts]).astype(np.float32)
    data["participation"] = variable(("view", "layer", "unit"), place, "participation coefficient")
    permuted = np.stack([_stack(row, "permuted_rho") for row in parts])
    words = "coupling with places permuted within degree deciles"
    data["permuted_rho"] = variable(("view", "layer", "permutation"), permuted, words)
    covariates = np.array([[partitions.load_covariates(run, view, layer) for layer in layers] for view in views])
    words = "variance, |mean|, gains of norms, outlier"
    data["covariate"] = variable(("view", "layer", "covariates", "unit"), covariates, words, units=None)
    square = np.full((len(views), len(layers), width, data.sizes["query"]), np.nan, dtype=np.float32)
    for v, view in enumerate(views):
        for row, layer in enumerate(layers):
            values = coupling.load_square_gains(run, view, layer).T
            step = data.sizes["query"] // values.shape[1]
            assert step in {1, chosen}
            square[v, row, :, ::step] = values
    words = "squared gain ‖K e_i‖² of a unit at a token"
    data["square_gain"] = variable(("view", "layer", "unit", "query"), square, words)
    _add_agreement(data, run, labels[0], layers)


def _add_agreement(data: xr.Dataset, run: Run, labels: np.ndarray, layers: Sequence[int]) -> None:
    """AMI of the two halves of the text by layer, and of every two layers."""
    other = [partitions.load_labels(run, "half_b", layer) for layer in layers]
    ami = [graphs.ami(own, half) for own, half in zip(labels, other, strict=True)]
    data["half_ami"] = variable("layer", np.array(ami), "AMI of the two halves of the text")
    between = graphs.pairwise_ami(labels)
    data["layer_ami"] = variable(("layer", "other_layer"), between, "AMI of the communities of two layers")


def _add_operators(data: xr.Dataset, config: Config, run: Run) -> None:
    """The kind of operator that a block is, and what it does to whole communities."""
    parts = [run.load("jacobians", f"model-layer-{layer:03d}") for layer in layers_of(config)]
    for name, long_name in (
        ("antisymmetric_fraction", "‖K − Kᵀ‖ / (2‖K‖)"),
        ("rotation_fraction", "Σ|Im λ| / Σ|λ| of K"),
    ):
        data[name] = variable(("layer", "query"), _stack(parts, name), long_name)
    if config.nodes == "mlp":
        return
    data.coords["matrix"] = ["J", "K"]
    data.coords["amplification"] = list(gains.MEASURES)
    for prefix, name in (("", "community_amplification"), ("z.", "community_z")):
        values = np.full((2, len(gains.MEASURES), len(parts), gains.LARGEST), np.nan)
        for matrix, measure, layer in np.ndindex(*values.shape[:3]):
            found = parts[layer][f"{prefix}{'JK'[matrix]}.{gains.MEASURES[measure]}"].numpy()
            values[matrix, measure, layer, : len(found)] = found
        dims = ("matrix", "amplification", "layer", "largest")
        data[name] = variable(dims, values, "amplification of the largest communities")
    own = [
        graphs.ami(c, part["jacobian_labels"].numpy())
        for c, part in zip(data["community"][0].values, parts, strict=True)
    ]
    data["jacobian_ami"] = variable("layer", np.array(own), "AMI with the communities of |K| + |K|ᵀ")


def _add_ablation(data: xr.Dataset, run: Run, units: Sequence[Unit]) -> None:
    """The coupling under every other choice."""
    parts = [run.load(unit.stage, unit.key) for unit in units]
    data.coords["ablated"] = [unit.arguments["layer"] for unit in units]
    data.coords["half"], data.coords["edges"] = list(partitions.HALVES), list(coupling.EDGES)
    data.coords["neighbours"], data.coords["method"] = list(coupling.NEIGHBOURS), list(coupling.METHODS)
    data.coords["factor"] = list(coupling.FACTORS)
    dims = ("ablated", "half", "edges", "neighbours", "method", "factor")
    data["grid_rho"] = variable(dims, _stack(parts, "rho"), "coupling under other choices")
    words = "the same with places permuted within degree deciles"
    data["grid_permuted_rho"] = variable((*dims, "grid_permutation"), _stack(parts, "permuted_rho"), words)


def _add_drawings(data: xr.Dataset, config: Config, run: Run, units: Sequence[Unit]) -> None:
    """Places, links and tokens of the layers that are drawn."""
    parts = [run.load(unit.stage, unit.key) for unit in units]
    data.coords["drawn"] = [unit.arguments["layer"] for unit in units]
    for name, dims, long_name in (
        ("place", ("drawn", "unit", "axis"), "where a unit is drawn"),
        ("link", ("drawn", "link_index", "end"), "the strongest links"),
        ("link_weight", ("drawn", "link_index"), "their weights"),
    ):
        data[name] = variable(dims, _stack(parts, name), long_name, units=None)
    windows, positions = work.graph_windows(config, "half_a"), work.graph_positions(config, "half_a")
    tokens = windows.tokens.gather(1, positions).flatten()
    decode = model_of(config).tokenizer.decode
    words = np.array([decode([token]) for token in tokens.tolist()], dtype=object)
    largest = np.stack([words[part["largest"].numpy()] for part in parts])
    data["largest_token"] = variable(
        ("drawn", "unit", "place_of_token"), largest, "tokens at which |h_i − mean| peaks", units=None
    )


def _stack(parts: Sequence[dict[str, Tensor]], name: str) -> Num[np.ndarray, "part ..."]:
    return np.asarray(torch.stack([part[name] for part in parts]).numpy())
