"""The graph of a layer's nodes and its communities: in the model, against null graphs, in every other view."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe import graphs
from probe.analyses.communities.config import Config
from probe.analyses.communities.work import HALVES, CommunitySubject, Half, norm_gains_of, states_of
from probe.analysis import Task
from probe.graphs import Algorithm, Graph, layout
from probe.inference import resampled_rows
from probe.runs import Piece, Run

OUTLIER = 20.0  # times the median standard deviation
FAST = 2  # iterations of Leiden where hundreds of runs are made; the null has the same
NULL_SEEDS = 3
LINKS = 1200  # drawn: the strongest ones
TOKENS = 3  # named for each node
TOPOLOGY = (
    *("degree", "strength", "within_module_z", "participation", "participation_positive", "participation_negative"),
    *("external_share", "eigenvector_centrality", "core", "betweenness", "core_distance"),
)


def graph_of(config: Config, states: Float[Tensor, "token node"]) -> Graph:
    """Build the graph of nodes whose states are given."""
    return graphs.correlation_graph(states, kind=config.edges, top_k=min(config.neighbours, states.shape[1] - 1))


def algorithm_of(config: Config, *, fast: bool = False) -> Algorithm:
    """Choose how communities are found."""
    return Algorithm(config.method, config.objective, iterations=FAST if fast else -1)


def find_communities(subject: CommunitySubject, task: Task, run: Run) -> Piece:
    """Find the communities of the model's nodes at a layer, their resolution, and what null graphs have.

    Args:
        subject: The subject.
        task: Which `layer`.
        run: Where the states are.

    Returns:
        What `find_in_view` returns; of single runs `run_quality` and `run_stability`, and `null_quality` and
        `null_stability` (null_draw,); the profile over resolutions, and the topology.
    """
    config = subject.config
    states = states_of(subject, run, "model", task["layer"])
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
    topology = graphs.node_topology(graph, found.labels)
    scalars = {
        "resolution": resolution,
        "excess": excess,
        "stability": found.stability,
        "quality": found.quality,
        "modularity": found.modularity,
        "run_quality": float(null["quality"][0]),
        "run_stability": float(null["stability"][0]),
    }
    arrays = {
        **_saved(graph, found.labels),
        **{name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()},
        "given": _given(subject, run, "model", task["layer"], states),
        "topology": np.stack([topology[name].values for name in TOPOLOGY]).astype(np.float32),
        "null_quality": null["null_quality"].values[:, 0],
        "null_stability": null["null_stability"].values[:, 0],
        "profile_stability": profile["stability"].values,
        "profile_communities": profile["communities"].values,
        "profile_null_stability": profile["null_stability"].values.mean(axis=0),
    }
    return Piece(arrays, {"measure": TOPOLOGY, "profiled": profile["resolution"].values.tolist()})


def find_in_view(subject: CommunitySubject, task: Task, run: Run) -> dict[str, Tensor]:
    """Find the communities of another view of a layer, at the resolution of the model's own graph.

    Args:
        subject: The subject.
        task: Which `view` and `layer`.
        run: Where states and resolutions are.

    Returns:
        `label` (node,), −1 for nodes that the view leaves out; `edge_ends` (edge, 2) and `edge_weight` (edge,) among
        the nodes that it keeps, `present` (node,); what is held fixed, `given` (covariate, node).
    """
    view, layer = task["view"], task["layer"]
    states = states_of(subject, run, view, layer)
    given = _given(subject, run, view, layer, states)
    present = given[-1] == 0 if view == "no_outliers" else torch.ones(states.shape[1], dtype=torch.bool)
    graph = graph_of(subject.config, states[:, present])
    found = _communities(subject.config, graph, resolution_of(run, layer))
    return {**_saved(graph, found.labels, present), "given": given}


def resample_documents(subject: CommunitySubject, task: Task, run: Run) -> dict[str, Tensor]:
    """Compare the communities of the two halves, and make both anew from resampled documents, by one run each.

    Args:
        subject: The subject.
        task: Which `layer`.
        run: Where states, communities and resolutions are.

    Returns:
        `half_ami`; `resampled_quality` of the first half and `resampled_half_ami`, (resample,).
    """
    config, layer = subject.config, task["layer"]
    algorithm, resolution = algorithm_of(config, fast=True), resolution_of(run, layer)
    halves = [states_of(subject, run, view, layer) for view in ("model", "half_b")]
    rows = [
        resampled_rows(_documents(run, half), resamples=config.graph_resamples, seed=config.seed + number)
        for number, half in enumerate(HALVES)
    ]
    quality, ami = [], []
    for draw, indices in enumerate(zip(*rows, strict=True)):
        drawn = [
            graph_of(config, states[torch.from_numpy(index)]) for states, index in zip(halves, indices, strict=True)
        ]
        labels = [algorithm.run(graph, resolution, config.seed + draw) for graph in drawn]
        quality.append(algorithm.quality(drawn[0], labels[0], resolution))
        ami.append(graphs.ami(*labels))
    own, other = (load(run, view, layer, "label").numpy("label") for view in ("model", "half_b"))
    return {
        "half_ami": torch.tensor(graphs.ami(own, other), dtype=torch.float64),
        "resampled_quality": torch.tensor(quality, dtype=torch.float64),
        "resampled_half_ami": torch.tensor(ami, dtype=torch.float64),
    }


def draw_graph(subject: CommunitySubject, task: Task, run: Run) -> dict[str, Tensor]:
    """Draw the graph of a layer: places, strongest links, and the tokens at which each node peaks.

    Args:
        subject: The subject.
        task: Which layer, `drawn`.
        run: Where graph and states are.

    Returns:
        `place` (node, 2); `link` (link, 2) and `link_weight` (link,), padded with −1 and 0; `largest` (node, token),
        which of the tokens of the first half.
    """
    layer = task["drawn"]
    graph, labels, _ = load_graph(run, "model", layer)
    states = states_of(subject, run, "model", layer)
    strongest = np.argsort(-np.abs(graph.weights), kind="stable")[:LINKS]
    link, weight = np.full((LINKS, 2), -1), np.zeros(LINKS)
    link[: len(strongest)], weight[: len(strongest)] = graph.edges[strongest], graph.weights[strongest]
    away = (states - states.mean(0)).abs()
    return {
        "place": torch.from_numpy(layout(graph, labels, seed=subject.config.seed)),
        "link": torch.from_numpy(link),
        "link_weight": torch.from_numpy(weight),
        "largest": away.topk(min(TOKENS, len(away)), dim=0).indices.T,
    }


def load(run: Run, view: str, layer: int, *names: str) -> Piece:
    """Read arrays of a view's graph; the symmetric part of the Jacobian is seen on the model's own graph.

    Args:
        run: The run.
        view: Which view.
        layer: Which layer.
        *names: The arrays.

    Returns:
        The arrays.
    """
    if view in {"model", "symmetrised"}:
        return run.piece("graphs", names, layer=layer)
    return run.piece("views", names, view=view, layer=layer)


def load_graph(run: Run, view: str, layer: int) -> tuple[Graph, Int[np.ndarray, " node"], Bool[np.ndarray, " every"]]:
    """Read a view's graph, the labels of its nodes, and which of all nodes these are."""
    piece = load(run, view, layer, "label", "edge_ends", "edge_weight", "present")
    present = piece.numpy("present")
    graph = Graph(int(present.sum()), piece.numpy("edge_ends").astype(np.int64), piece.numpy("edge_weight"))
    return graph, piece.numpy("label")[present], present


def load_given(run: Run, view: str, layer: int) -> Float[np.ndarray, "covariate node"]:
    """Read what else drives a node's links and its gain: variance, |mean|, gains of norms, being an outlier."""
    return load(run, view, layer, "given").numpy("given")


def resolution_of(run: Run, layer: int) -> float:
    """Read the resolution of a layer's communities."""
    return float(run.piece("graphs", ["resolution"], layer=layer)["resolution"])


def _documents(run: Run, half: Half) -> Int[np.ndarray, " token"]:
    """The document of each token from which the graphs of a half are made."""
    return run.piece("states", ["token_document"], view="model", half=half).numpy("token_document")


def _resolution(config: Config, graph: Graph) -> tuple[float, float, xr.Dataset]:
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
    return resolution, excess, profile


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
    graph: Graph, labels: Int[np.ndarray, " node"], present: Bool[Tensor, " every"] | None = None
) -> dict[str, Tensor]:
    """A graph and its labels as a piece holds them."""
    present = torch.ones(graph.n_nodes, dtype=torch.bool) if present is None else present
    everywhere = torch.full((len(present),), -1, dtype=torch.int32)
    everywhere[present] = torch.from_numpy(labels).int()
    return {
        "label": everywhere,
        "present": present,
        "edge_ends": torch.from_numpy(graph.edges).int(),
        "edge_weight": torch.from_numpy(graph.weights),
    }


def _given(
    subject: CommunitySubject, run: Run, view: str, layer: int, states: Float[Tensor, "token node"]
) -> Float[Tensor, "covariate node"]:
    """Variance, |mean|, gains of the norms that read the node, and whether its scale is an outlier's."""
    exact = states.double()
    scale = exact.std(0)
    outlier = scale > OUTLIER * scale.median()
    gains = norm_gains_of(subject, run, view, layer)
    return torch.cat([scale.square()[None], exact.mean(0).abs()[None], gains, outlier.double()[None]])
