"""Null graphs of any graph, and strata of similar degree for permutations of labels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from probe.boundary import at_least, public
from probe.graphs.algorithms import seeded_igraph
from probe.graphs.graph import Graph


@public(seed=at_least(0))
def null_graph(graph: Graph, seed: int) -> Graph:
    """Draw a null graph: by the graph's own `null` (correlations: a Haar-random basis), else `rewired`.

    Args:
        graph: The graph.
        seed: Seed of the draw.

    Returns:
        A graph of the same nodes.
    """
    return graph.null(seed) if graph.null is not None else rewired(graph, seed)


@public(seed=at_least(0))
def rewired(graph: Graph, seed: int, *, trials_per_edge: int = 10) -> Graph:
    """Rewire the edges at random, keeping every degree, and permute the weights.

    Pairs of edges (a, b), (c, d) become (a, d), (c, b) wherever that makes no loop and no double edge (Maslov & Sneppen
    2002). For correlation graphs this null is far too weak: it breaks the transitivity that any correlation has.

    Args:
        graph: The graph.
        seed: Seed of the rewiring and of the permutation of weights.
        trials_per_edge: Swaps tried for each edge.

    Returns:
        The rewired graph.
    """
    changed = graph.to_igraph()
    with seeded_igraph(seed):
        changed.rewire(n=trials_per_edge * graph.n_edges)
    pairs = np.sort(np.asarray(changed.get_edgelist(), dtype=np.int64).reshape(-1, 2), axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    weights = np.random.default_rng(seed).permutation(graph.weights)
    return Graph(graph.n_nodes, pairs, weights, graph.kind)


@public
def degree_deciles(graph: Graph, groups: int = 10) -> Int[np.ndarray, " node"]:
    """Group nodes of similar degree, about as many in each group: strata in which labels or gains may be permuted.

    Pass them to `probe.inference.permutation_null` as its groups. Nodes of one degree never fall into two groups, so
    that many of them (those of degree k in a top-k graph) make a group large.

    Args:
        graph: The graph.
        groups: Number of groups.

    Returns:
        The group of each node, 0 for the lowest degrees, (n,).
    """
    # The mid-rank of a degree decides for all nodes that have it.
    _, index, count = np.unique(graph.degree, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2
    return np.minimum((groups * middle / graph.n_nodes).astype(np.int64), groups - 1)[index]
