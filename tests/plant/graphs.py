"""States and graphs whose communities are known."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from probe.graphs import Graph


def planted_states(
    labels: Int[np.ndarray, " node"],
    tokens: int,
    *,
    noise: float = 1.0,
    signs: Float[np.ndarray, " node"] | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "token node"]:
    """Each community shares one factor, ``x_i = s_i f_c(i) + noise ε_i``: r = ±1 / (1 + noise²) inside, 0 outside."""
    generator = np.random.default_rng(seed)
    factors = generator.standard_normal((tokens, labels.max() + 1))
    signed = factors[:, labels] if signs is None else factors[:, labels] * signs
    return signed + noise * generator.standard_normal((tokens, len(labels)))


def planted_graph(
    labels: Int[np.ndarray, " node"], inside: float, outside: float, *, weight: float = 1.0, seed: int = 0
) -> Graph:
    """Each pair has an edge with a chance that depends on whether its ends share a community; equal weights."""
    generator = np.random.default_rng(seed)
    i, j = np.triu_indices(len(labels), k=1)
    chance = np.where(labels[i] == labels[j], inside, outside)
    edges = np.stack([i, j], axis=1)[generator.random(len(i)) < chance]
    return Graph(len(labels), edges, np.full(len(edges), weight))


def random_graph(n: int, density: float, *, signed: bool = True, seed: int = 0) -> Graph:
    """Edges at random, weights with a spread and, unless told, of both signs."""
    generator = np.random.default_rng(seed)
    i, j = np.triu_indices(n, k=1)
    edges = np.stack([i, j], axis=1)[generator.random(len(i)) < density]
    weights = generator.uniform(0.2, 1.0, len(edges))
    return Graph(n, edges, weights * generator.choice([-1.0, 1.0], len(edges)) if signed else weights)


def relabelled(graph: Graph, order: Int[np.ndarray, " node"]) -> Graph:
    """The same graph with node i called ``order[i]``."""
    pairs = np.sort(order[graph.edges], axis=1)
    sequence = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Graph(graph.n_nodes, pairs[sequence], graph.weights[sequence])


def dense(graph: Graph) -> Float[np.ndarray, "node node"]:
    """The symmetric matrix of weights."""
    return np.asarray(graph.adjacency().todense())
