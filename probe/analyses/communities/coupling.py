"""Does a node's place among the communities predict how much the block amplifies it?

The coupling of a layer is the partial Spearman correlation, over nodes, of the participation coefficient in the graph
of one half of the text and the root-mean-square gain ``‖K e_i‖`` on the other, given what drives both: the node's
variance and |mean|, the gains of the norms that read it, and being an outlier.

Its null permutes the nodes' places among nodes of like degree. To permute the communities' labels and compute the
participation coefficients again is no null at its level: the places of all such draws are alike, because a node's links
decide most of its place whatever the labels, so that in noise 12 % of layers pass at 5 %.
"""

from __future__ import annotations

import math
import time
from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from probe import graphs
from probe.analyses.communities.gains import load_square_gains, square_gains
from probe.analyses.communities.partitions import FAST, load, load_given, load_graph, resolution_of
from probe.analyses.communities.work import HALVES, CommunitySubject, states_of
from probe.analysis import Task
from probe.graphs import Graph
from probe.graphs.algorithms import Method
from probe.inference import Ranking, partial_spearman, permutation_null
from probe.runs import Piece, Run

GRID_SEEDS, GRID_PERMUTATIONS = 3, 100
EDGES: tuple[Literal["signed", "partial"], ...] = ("signed", "partial")
NEIGHBOURS = (15, 30, 60)
METHODS: tuple[Method, ...] = ("leiden", "louvain", "spectral", "infomap")
FACTORS = (0.5, 1.0, 2.0)
CHOICES = {"half": HALVES, "edges": EDGES, "neighbours": NEIGHBOURS, "method": METHODS, "factor": FACTORS}


def measure_coupling(subject: CommunitySubject, task: Task, run: Run) -> Piece:
    """Measure the place and the gain of each node in a view, and the coupling when places are permuted.

    Args:
        subject: The subject.
        task: Which `view` and `layer`.
        run: Where communities and gains are.

    Returns:
        `community` and `participation` (node,), −1 and NaN for nodes that the view leaves out; `covariate`
        (covariate, node); `square_gain` (node, query); `permuted_rho` (permutation,).
    """
    view, layer = task["view"], task["layer"]
    graph, labels, present = load_graph(run, view, layer)
    square, given = load_square_gains(run, view, layer), load_given(run, view, layer)
    participation = graphs.participation_coefficient(graph, labels)
    gain, config = square.mean(axis=0)[present], subject.config
    everywhere = np.full(len(present), np.nan, dtype=np.float32)
    everywhere[present] = participation
    arrays = {
        "community": load(run, view, layer, "label")["label"],
        "participation": everywhere,
        "covariate": given,
        "square_gain": square.T.astype(np.float32),
        "permuted_rho": permuted(graph, participation, gain, given[:, present], config.permutations, config.seed),
    }
    queries = subject.scored_positions().numel()
    return Piece(arrays, {"query": range(0, queries, queries // len(square))})


def permuted(
    graph: Graph,
    place: Float[np.ndarray, " node"],
    gain: Float[np.ndarray, " node"],
    covariates: Float[np.ndarray, "covariate node"],
    permutations: int,
    seed: int,
) -> Float[np.ndarray, " permutation"]:
    """Correlate places that are permuted among nodes of like degree with gains.

    Args:
        graph: The graph.
        place: Participation coefficient of each node.
        gain: Of each node.
        covariates: What is held fixed.
        permutations: How many.
        seed: Of the permutations.

    Returns:
        Partial Spearman correlations.
    """
    ranked, given = Ranking(gain), [Ranking(one) for one in covariates]

    def coupled(order: Int[np.ndarray, " node"]) -> float:
        return float(partial_spearman(place[order], ranked, given))

    strata = graphs.degree_deciles(graph)
    return permutation_null(coupled, len(place), groups=strata, permutations=permutations, seed=seed).values


def vary_choices(subject: CommunitySubject, task: Task, run: Run) -> Piece:
    """Measure the coupling of a layer under every other choice of half, edges, neighbours, algorithm and resolution.

    Graphs of one half are always coupled with gains on the other.

    Args:
        subject: The subject.
        task: Which layer, `ablated`; how many `permutations`.
        run: Where states, resolutions and gains are.

    Returns:
        `grid_rho` (half, edges, neighbours, method, factor) and `grid_permuted_rho`, the same with (…, permutation).
    """
    layer = task["ablated"]
    squares = {
        "model": load_square_gains(run, "model", layer),
        "half_b": square_gains(subject, "model", layer, "half_a").numpy(),  # the graphs' own half is half B there
    }
    resolution, rho, permuted_rho = resolution_of(run, layer), [], []
    for view, square in squares.items():
        states, gain, given = states_of(subject, run, view, layer), square.mean(axis=0), load_given(run, view, layer)
        for edges, neighbours in product(EDGES, NEIGHBOURS):
            graph = graphs.correlation_graph(states, kind=edges, top_k=min(neighbours, states.shape[1] - 1))
            for method, factor in product(METHODS, FACTORS):
                place = _place(graph, method, factor * resolution, subject.config.seed)
                rho.append(float(partial_spearman(place, gain, list(given))))
                null = permuted(graph, place, gain, given, task["permutations"], subject.config.seed)
                permuted_rho.append(null)
    shape = [len(choices) for choices in CHOICES.values()]
    arrays = {
        "grid_rho": torch.tensor(rho, dtype=torch.float64).reshape(shape),
        "grid_permuted_rho": torch.from_numpy(np.stack(permuted_rho)).reshape(*shape, -1),
    }
    return Piece(arrays, CHOICES)


def choices_seconds(subject: CommunitySubject, task: Task) -> float:
    """Estimate the time that `vary_choices` takes, from one choice of each algorithm on a graph of noise.

    Args:
        subject: The subject.
        task: Which layer, `ablated`; how many `permutations`.

    Returns:
        Seconds.
    """
    mlp, rng = subject.config.nodes == "mlp", np.random.default_rng(0)
    width = subject.model.projections(task["ablated"])["down"].shape[1] if mlp else subject.model.d_model
    for nodes in (16, width):  # the first imports the libraries
        graph = graphs.correlation_graph(rng.standard_normal((2 * nodes, nodes)), top_k=min(NEIGHBOURS[1], nodes - 1))
        gain, *given = rng.standard_normal((5, nodes))
        start = time.perf_counter()
        for method in METHODS:
            place = _place(graph, method, 1.0, subject.config.seed)
            permuted(graph, place, gain, np.array(given), task["permutations"], subject.config.seed)
    return (time.perf_counter() - start) / len(METHODS) * math.prod(len(choices) for choices in CHOICES.values())


def _place(graph: Graph, method: Method, resolution: float, seed: int) -> Float[np.ndarray, " node"]:
    """The participation coefficients in the communities that an algorithm finds."""
    found = graphs.communities(
        graph, method=method, iterations=FAST, resolution=resolution, seeds=GRID_SEEDS, seed=seed
    )
    return graphs.participation_coefficient(graph, found.labels)
