"""The graph of a layer's units and its communities: in the model, against null graphs, in every other view."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe import graphs
from probe.analyses.communities.config import Config
from probe.analyses.communities.work import Half, basis_of, documents_of, states_of
from probe.analysis.subject import model_of, variant_of
from probe.graphs import Algorithm, Graph, layout
from probe.inference import resampled_rows
from probe.jacobian import norm_gains
from probe.runs import Run
from probe.runs.engine import Unit

OUTLIER = 20.0  # times the median standard deviation
HALVES: tuple[Half, Half] = ("half_a", "half_b")
FAST = 2  # iterations of Leiden where hundreds of runs are made; the null has the same
NULL_SEEDS = 3
TOPOLOGY = (
    *("degree", "strength", "within_module_z", "participation", "participation_positive", "participation_negative"),
    *("external_share", "eigenvector_centrality", "core", "betweenness", "core_distance"),
)


def graph_of(config: Config, states: Float[Tensor, "token unit"]) -> Graph:
    """The graph of units whose states are given."""
    return graphs.correlation_graph(states, kind=config.edges, top_k=min(config.neighbours, states.shape[1] - 1))


def algorithm_of(config: Config, *, fast: bool = False) -> Algorithm:
    """How communities are found."""
    return Algorithm(config.method, config.objective, iterations=FAST if fast else -1)


def graphs_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """The communities of the model's units at a layer, the resolution that was chosen for them, and what nulls have.

    Args:
        config: The run's configuration.
        unit: Which layer.
        run: Where the states are.

    Returns:
        What `views_unit` returns; `topology.NAME` (unit,); the profile over resolutions `profile.NAME`; `resolution`,
        `excess`, `stability`, `quality`, `modularity` (); `run_quality` () and `null_quality`, `null_stability` (draw,)
        of single runs.
    """
    states = states_of(config, run, "model", unit.arguments["layer"])
    graph = graph_of(config, states)
    resolution, excess, profile = _resolution(config, graph)
    found = _communities(config, graph, resolution)
    null = graphs.resolution_profile(
        graph,
        algorithm=algorithm_of(config, fast=True),
        resolutions=(resolution,),
        seeds=NULL_SEEDS,
        draws=config.null_graphs,
        seed=config.seed,
    )
    place = graphs.node_topology(graph, found.labels)
    scalars = {
        "resolution": resolution,
        "excess": excess,
        "stability": found.stability,
        "quality": found.quality,
        "modularity": found.modularity,
        "run_quality": float(null["quality"][0]),
        "run_stability": float(null["stability"][0]),
    }
    return (
        _saved(graph, found.labels)
        | _covariates(config, "model", unit.arguments["layer"], states)
        | {f"topology.{name}": torch.from_numpy(place[name].values.astype(np.float64)) for name in TOPOLOGY}
        | {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}
        | {f"null_{name}": torch.from_numpy(null[f"null_{name}"].values[:, 0]) for name in ("quality", "stability")}
        | profile
    )


def views_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """The communities of another view of a layer, at the resolution of the model's own graph.

    Args:
        config: The run's configuration.
        unit: Which view and layer.
        run: Where states and resolutions are.

    Returns:
        `labels` (unit,), −1 for units that the view leaves out; `edges` (edge, 2) and `weights` (edge,) among the units
        that it keeps; `kept` (unit,); covariates `variance`, `mean_size`, `norm_gain` (norm, unit), `outlier` (unit,).
    """
    view, layer = unit.arguments["view"], unit.arguments["layer"]
    states = states_of(config, run, view, layer)
    covariates = _covariates(config, view, layer, states)
    kept = ~covariates["outlier"] if view == "no_outliers" else torch.ones(states.shape[1], dtype=torch.bool)
    graph = graph_of(config, states[:, kept])
    found = _communities(config, graph, resolution_of(run, layer))
    return _saved(graph, found.labels, kept) | covariates


def resamples_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Graph and communities made anew from resampled documents, by one run of the algorithm each.

    Args:
        config: The run's configuration.
        unit: Which layer.
        run: Where states and resolutions are.

    Returns:
        `quality` of the first half and `half_ami` of the two halves, (resample,).
    """
    layer = unit.arguments["layer"]
    algorithm, resolution = algorithm_of(config, fast=True), resolution_of(run, layer)
    halves = [states_of(config, run, view, layer) for view in ("model", "half_b")]
    rows = [
        resampled_rows(documents_of(run, half).numpy(), resamples=config.graph_resamples, seed=config.seed + place)
        for place, half in enumerate(HALVES)
    ]
    quality, ami = [], []
    for draw, indices in enumerate(zip(*rows, strict=True)):
        drawn = [
            graph_of(config, states[torch.from_numpy(index)]) for states, index in zip(halves, indices, strict=True)
        ]
        labels = [algorithm.run(graph, resolution, config.seed + draw) for graph in drawn]
        quality.append(algorithm.quality(drawn[0], labels[0], resolution))
        ami.append(graphs.ami(*labels))
    return {"quality": torch.tensor(quality, dtype=torch.float64), "half_ami": torch.tensor(ami, dtype=torch.float64)}


def resolution_of(run: Run, layer: int) -> float:
    """The resolution of a layer's communities."""
    return float(run.load("graphs", f"model-layer-{layer:03d}", ["resolution"])["resolution"])


def load_graph(run: Run, view: str, layer: int) -> tuple[Graph, Int[np.ndarray, " unit"], Bool[np.ndarray, " unit"]]:
    """A view's graph and labels, of the units that it keeps, and which these are; of `symmetrised` the model's."""
    unit = _load(run, view, layer, "labels", "edges", "weights", "kept")
    kept = unit["kept"].numpy()
    graph = Graph(int(kept.sum()), unit["edges"].numpy().astype(np.int64), unit["weights"].numpy())
    return graph, unit["labels"].numpy()[kept], kept


def load_labels(run: Run, view: str, layer: int) -> Int[np.ndarray, " unit"]:
    """A view's community of each unit, −1 for units that it leaves out."""
    return _load(run, view, layer, "labels")["labels"].numpy()


def load_covariates(run: Run, view: str, layer: int) -> Float[np.ndarray, "covariate unit"]:
    """What else drives a unit's links and its gain: variance, |mean|, gains of norms, being an outlier."""
    names = ["variance", "mean_size", "norm_gain", "outlier"]
    unit = _load(run, view, layer, *names)
    return np.concatenate([np.atleast_2d(unit[name].numpy().astype(np.float64)) for name in names])


def _load(run: Run, view: str, layer: int, *names: str) -> dict[str, Tensor]:
    """Arrays of a view's graph; the symmetric part of the Jacobian is seen on the model's own graph."""
    stage, name = ("graphs", "model") if view in {"model", "symmetrised"} else ("views", view)
    return run.load(stage, f"{name}-layer-{layer:03d}", list(names))


def _resolution(config: Config, graph: Graph) -> tuple[float, float, dict[str, Tensor]]:
    """The resolution, its stability beyond the null, and the profile that it was chosen from."""
    wanted = {} if config.resolution is None else {"resolutions": (config.resolution,)}
    profile = graphs.resolution_profile(
        graph,
        algorithm=algorithm_of(config, fast=True),
        seeds=config.profile_seeds,
        draws=config.profile_draws,
        seed=config.seed,
        **wanted,
    )
    choice = graphs.choose_resolution(profile, least_excess=config.thresholds.threshold_excess)
    # Where every resolution leaves one community, any says the same: there are none.
    resolution = choice.resolution if np.isfinite(choice.resolution) else 1.0
    excess = choice.excess if np.isfinite(choice.excess) else 0.0
    saved = {f"profile.{name}": torch.tensor(values.values) for name, values in profile.variables.items()}
    return resolution, excess, saved


def _communities(config: Config, graph: Graph, resolution: float) -> graphs.Communities:
    return graphs.communities(
        graph,
        method=config.method,
        objective=config.objective,
        resolution=resolution,
        seeds=config.seeds,
        seed=config.seed,
    )


def _saved(
    graph: Graph, labels: Int[np.ndarray, " node"], kept: Bool[Tensor, " unit"] | None = None
) -> dict[str, Tensor]:
    kept = torch.ones(graph.n_nodes, dtype=torch.bool) if kept is None else kept
    everywhere = torch.full((len(kept),), -1, dtype=torch.int32)
    everywhere[kept] = torch.from_numpy(labels).int()
    return {
        "labels": everywhere,
        "kept": kept,
        "edges": torch.from_numpy(graph.edges).int(),
        "weights": torch.from_numpy(graph.weights),
    }


def _covariates(config: Config, view: str, layer: int, states: Float[Tensor, "token unit"]) -> dict[str, Tensor]:
    """Variance, |mean|, gains of the norms that read the unit, and whether its scale is an outlier's."""
    exact = states.double()
    scale = exact.std(0)
    found = {"variance": scale.square(), "mean_size": exact.mean(0).abs(), "outlier": scale > OUTLIER * scale.median()}
    gains = norm_gains(model_of(variant_of(config, view)), layer) if config.nodes == "residual" else []
    stacked = torch.stack([gain.double().cpu() for gain in gains]) if gains else exact.new_zeros((0, exact.shape[1]))
    if view.startswith("basis-"):  # how long a unit step along each direction of the basis is behind the norm
        stacked = (stacked.square() @ basis_of(config, view, exact.shape[1]).double().square()).sqrt()
    return found | {"norm_gain": stacked}


LINKS = 1200  # drawn: the strongest ones
TOKENS = 3  # named for each unit


def drawings_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Places, strongest links and largest tokens of a layer's units.

    Args:
        config: The run's configuration.
        unit: Which layer.
        run: Where graph and states are.

    Returns:
        `place` (unit, 2); `link` (link, 2) and `link_weight` (link,), padded with −1 and 0; `largest` (unit, token),
        which of the tokens of the first half.
    """
    layer = unit.arguments["layer"]
    graph, labels, _ = load_graph(run, "model", layer)
    states = states_of(config, run, "model", layer)
    strongest = np.argsort(-np.abs(graph.weights), kind="stable")[:LINKS]
    link, weight = np.full((LINKS, 2), -1), np.zeros(LINKS)
    link[: len(strongest)], weight[: len(strongest)] = graph.edges[strongest], graph.weights[strongest]
    away = (states - states.mean(0)).abs()
    return {
        "place": torch.from_numpy(layout(graph, labels, seed=config.seed)),
        "link": torch.from_numpy(link),
        "link_weight": torch.from_numpy(weight),
        "largest": away.topk(min(TOKENS, len(away)), dim=0).indices.T,
    }
