"""One run of one algorithm: Leiden or Louvain on a signed objective, Infomap, spectral clustering.

Objectives, of edge weights w with signs, resolution γ, and δ = 1 inside a community:

- ``cpm``: ``Σ_{i<j} (w_ij − γ) δ_ij``. No resolution limit, and negative weights as they are (Traag, Van Dooren &
  Nesterov, arXiv 1104.3083). γ is a weight; it is given in units of γ₀, the mean ``|w|`` over all pairs.
- ``modularity``: ``Σ_{i<j}`` of positive weights against their configuration model, less the same for negative ones
  (Gómez, Jensen & Arenas, arXiv 0812.3030); γ multiplies both models and is 1 for Newman's modularity.

Leiden moves a node only to communities that it has an edge to. Under signed modularity two nodes without an edge can
belong together (each is less hostile than chance), and then Leiden cannot reach the best partition.

Signs: ``signed`` as written, ``layers`` the same as a two-layer multiplex with layer weights (1, −1), ``merged`` with
``|w|`` for w, which loses opposed communities.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import eigsh

from probe.boundary import public
from probe.errors import InputError
from probe.graphs.graph import Graph, require_labels
from probe.graphs.partition import Labels, canonical_labels

Method: TypeAlias = Literal["leiden", "louvain", "infomap", "spectral"]
Objective: TypeAlias = Literal["cpm", "modularity"]
Signs: TypeAlias = Literal["signed", "layers", "merged"]

_igraph_random = threading.Lock()


@public
@dataclass(frozen=True)
class Algorithm:
    """A way to find communities: method, objective and treatment of signs.

    Attributes:
        method: ``leiden`` and ``louvain`` maximise the objective; Louvain is Leiden's local moves and aggregation
            without its refinement, in one layer, so it cannot do signed modularity. ``infomap`` compresses random
            walks; it has no resolution. ``spectral`` is k-means on the rows of the leading eigenvectors of the
            normalised signed adjacency (Ng, Jordan & Weiss 2001; Kunegis 2010).
        objective: ``cpm`` or ``modularity``; the measure of quality, whatever the method.
        signs: Treatment of negative weights. Infomap's walks cannot follow them; it leaves them out unless ``merged``.
        n_communities: Their number, for ``spectral``; None takes the number of communities of two or more nodes that
            Leiden finds.
        iterations: Iterations of Leiden; −1 continues until nothing improves; 2 take a quarter of the time in noise.

    Raises:
        InputError: If the method, objective or treatment of signs is unknown.
    """

    method: Method = "leiden"
    objective: Objective = "cpm"
    signs: Signs = "signed"
    n_communities: int | None = None
    iterations: int = -1

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, ("leiden", "louvain", "infomap", "spectral")),
            ("objective", self.objective, ("cpm", "modularity")),
            ("signs", self.signs, ("signed", "layers", "merged")),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}: choose one of them")

    @public
    def seen(self, graph: Graph) -> Graph:
        """Return the graph with the weights that the objective sees: merged signs are absolute values."""
        return graph.with_weights(np.abs(graph.weights)) if self.signs == "merged" else graph

    @public
    def gamma(self, graph: Graph, resolution: float) -> float:
        """Convert a resolution to the objective's γ: for CPM it is in units of the mean ``|w|`` over pairs."""
        return resolution * graph.mean_weight if self.objective == "cpm" else resolution

    @public
    def run(self, graph: Graph, resolution: float, seed: int) -> Labels:
        """Find one partition from one seed.

        Args:
            graph: The graph, signs as they are.
            resolution: Resolution in units of γ₀ (CPM) or of 1 (modularity).
            seed: Seed of the algorithm's random choices.

        Returns:
            Canonical labels, (n,).

        Raises:
            InputError: If Louvain is asked for signed modularity.
        """
        graph = self.seen(graph)
        if not graph.n_edges:
            return np.arange(graph.n_nodes)
        if self.method == "infomap":
            return _infomap(graph, seed)
        if self.method == "spectral":
            return _spectral(graph, self._number(graph, resolution, seed), seed)
        return self._optimise(graph, resolution, seed)

    @public
    def quality(self, graph: Graph, labels: Labels, resolution: float) -> float:
        """Evaluate the objective of a partition per edge weight: divided by ``Σ|w|``.

        Args:
            graph: The graph, signs as they are.
            labels: The community of each node, (n,).
            resolution: Resolution in units of γ₀ (CPM) or of 1 (modularity).

        Returns:
            0 for single nodes under CPM; at most 1. NaN for a graph without edges.

        Raises:
            InputError: If there is not one label a node.
        """
        require_labels(graph, labels)
        graph = self.seen(graph)
        if not graph.n_edges:
            return float("nan")
        gamma, total = self.gamma(graph, resolution), float(np.abs(graph.weights).sum())
        if self.objective == "cpm":
            size = np.bincount(labels)
            inside = graph.weights[labels[graph.edges[:, 0]] == labels[graph.edges[:, 1]]].sum()
            return float(inside - gamma * (size * (size - 1) / 2).sum()) / total
        positive, negative = (_excess(side, labels, gamma) for side in _sides(graph))
        return (positive - negative) / total

    def _optimise(self, graph: Graph, resolution: float, seed: int) -> Labels:
        import leidenalg

        kinds = {"cpm": leidenalg.CPMVertexPartition, "modularity": leidenalg.RBConfigurationVertexPartition}
        gamma = self.gamma(graph, resolution)

        def layer(side: Graph, value: float) -> leidenalg.VertexPartition.MutableVertexPartition:
            return kinds[self.objective](side.to_igraph(), weights="weight", resolution_parameter=value)

        optimiser = leidenalg.Optimiser()
        optimiser.set_rng_seed(seed)
        two = bool((graph.weights < 0).any()) and (self.objective == "modularity" or self.signs == "layers")
        if two and self.method == "leiden":
            # CPM subtracts γ from a pair once: in the positive layer.
            resolutions = (gamma, 0.0 if self.objective == "cpm" else gamma)
            layers = [layer(side, value) for side, value in zip(_sides(graph), resolutions, strict=True)]
            optimiser.optimise_partition_multiplex(layers, layer_weights=[1, -1], n_iterations=self.iterations)
            return canonical_labels(np.asarray(layers[0].membership))
        if two and self.objective == "modularity":
            raise InputError(
                "Louvain moves nodes in one layer and signed modularity has two: "
                'choose objective="cpm", signs="merged" or method="leiden"'
            )
        partition = layer(graph, gamma)
        if self.method == "leiden":
            optimiser.optimise_partition(partition, n_iterations=self.iterations)
        else:
            # leidenalg 0.12 aborts the process when its refinement is switched off; its steps alone do not.
            aggregate = partition.aggregate_partition()
            while optimiser.move_nodes(aggregate) > 0:
                partition.from_coarse_partition(aggregate)
                aggregate = aggregate.aggregate_partition()
        return canonical_labels(np.asarray(partition.membership))

    def _number(self, graph: Graph, resolution: float, seed: int) -> int:
        if self.n_communities is not None:
            return self.n_communities
        leiden = replace(self, method="leiden").run(graph, resolution, seed)
        return max(int((np.bincount(leiden) > 1).sum()), 1)


def _sides(graph: Graph) -> tuple[Graph, Graph]:
    """The positive and the negative edges, both with positive weights, on the same nodes."""
    return graph.with_weights(np.maximum(graph.weights, 0)), graph.with_weights(np.maximum(-graph.weights, 0))


def _excess(side: Graph, labels: Labels, gamma: float) -> float:
    """Weight inside communities beyond γ times that of the configuration model, ``Σ_in w − γ Σ_c K_c² / 4m``."""
    if not side.n_edges:
        return 0.0
    inside = side.weights[labels[side.edges[:, 0]] == labels[side.edges[:, 1]]].sum()
    volume = np.bincount(labels, weights=side.strength)
    return float(inside - gamma * np.square(volume).sum() / (4 * side.weights.sum()))


def _infomap(graph: Graph, seed: int) -> Labels:
    positive = _sides(graph)[0]
    with seeded_igraph(seed):
        found = positive.to_igraph().community_infomap(edge_weights="weight", trials=1)
    return canonical_labels(np.asarray(found.membership))


def _spectral(graph: Graph, count: int, seed: int) -> Labels:
    """k-means on the unit rows of the leading eigenvectors of ``D^−½ A D^−½``, D the sums of ``|w|``."""
    from sklearn.cluster import KMeans

    linked = np.flatnonzero(graph.strength)
    count = min(count, len(linked) - 2)
    if count < 2:
        return canonical_labels(np.where(graph.strength > 0, graph.n_nodes, np.arange(graph.n_nodes)))
    scale = sparse.csr_array(sparse.diags_array(graph.strength[linked] ** -0.5))
    normalised = sparse.csr_array(scale @ graph.adjacency()[linked][:, linked] @ scale)
    start: Float[np.ndarray, " node"] = np.random.default_rng(seed).standard_normal(len(linked))
    _, vectors = eigsh(normalised, k=count, which="LA", v0=start)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = vectors / np.maximum(length, np.finfo(float).tiny)
    labels = np.arange(graph.n_nodes) + count  # nodes without an edge stay alone
    labels[linked] = KMeans(count, n_init=10, random_state=seed).fit_predict(rows)
    return canonical_labels(labels)


@contextmanager
def seeded_igraph(seed: int) -> Iterator[None]:
    """Let igraph draw from a generator with this seed, then from Python's `random` again, its default."""
    import igraph

    with _igraph_random:
        igraph.set_random_number_generator(random.Random(seed))
        try:
            yield
        finally:
            igraph.set_random_number_generator(random)
