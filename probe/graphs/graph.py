"""A weighted, undirected graph, and its export to igraph, networkx and GraphML."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from probe import display, plots
from probe.boundary import public
from probe.errors import InputError

if TYPE_CHECKING:
    import igraph
    import networkx as nx

    from probe.graphs.detect import Communities


@public
@dataclass(frozen=True, eq=False, repr=False)
class Graph(display.Shown):
    """Nodes 0 … n − 1 and signed weights on pairs of them; no loops, no second edge between a pair.

    Attributes:
        n_nodes: Number of nodes n.
        edges: Pairs i < j in lexicographic order, (edge, 2).
        weights: Weight of each edge, finite and not zero, (edge,).
        kind: Meaning of a weight, in words.
        null: Function that draws a null graph from a seed. That of a graph of correlations takes a Haar-random basis of
            its states, to which it holds a reference. Without one, `null_graph` rewires.

    Raises:
        InputError: If the edges or weights are not as described.
    """

    n_nodes: int
    edges: Int[np.ndarray, "edge 2"]
    weights: Float[np.ndarray, " edge"]
    kind: str = "weight"
    null: Callable[[int], Graph] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        code = self.edges[:, 0] * self.n_nodes + self.edges[:, 1]
        inside = not len(code) or bool(self.edges.min() >= 0 and self.edges.max() < self.n_nodes)
        if not (inside and (self.edges[:, 0] < self.edges[:, 1]).all() and (np.diff(code) > 0).all()):
            raise InputError(
                f"edges must be pairs i < j < n_nodes = {self.n_nodes} in lexicographic order, each once, got others: "
                "sort them, or build the graph with from_matrix"
            )
        if not (np.isfinite(self.weights).all() and self.weights.all()):
            bad = self.weights[~np.isfinite(self.weights) | (self.weights == 0)][0]
            raise InputError(f"weights must be finite and not zero, got {bad:g}: leave such edges out")

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.edges)

    @property
    def density(self) -> float:
        """Share of the pairs of nodes that have an edge."""
        return self.n_edges / max(n_pairs(self.n_nodes), 1)

    @property
    def mean_weight(self) -> float:
        """Mean ``|w|`` over all pairs, ``γ₀ = Σ|w| · 2 / (n (n − 1))``: the unit of CPM's resolution."""
        return float(np.abs(self.weights).sum()) / max(n_pairs(self.n_nodes), 1)

    @property
    def degree(self) -> Int[np.ndarray, " node"]:
        """Number of edges at each node, (n,)."""
        return np.bincount(self.edges.ravel(), minlength=self.n_nodes)

    @property
    def strength(self) -> Float[np.ndarray, " node"]:
        """``Σ_j |w_ij|`` of each node, (n,)."""
        doubled = np.abs(np.repeat(self.weights, 2))
        return np.bincount(self.edges.ravel(), weights=doubled, minlength=self.n_nodes).astype(np.float64)

    def _facts(self) -> dict[str, object]:
        null = "its own" if self.null is not None else "rewired"
        weights = {"weights": f"{self.weights.min():.3g} to {self.weights.max():.3g}"} if self.n_edges else {}
        counts: dict[str, object] = {"nodes": self.n_nodes, "edges": self.n_edges, "density": self.density}
        return counts | {"kind": self.kind} | weights | {"null": null}

    def adjacency(self) -> sparse.csr_array:
        """Build the symmetric matrix of weights, sparse, (n, n)."""
        i, j = self.edges.T
        half = sparse.coo_array((self.weights, (i, j)), shape=(self.n_nodes, self.n_nodes))
        return sparse.csr_array(half + half.T)

    @public
    def with_weights(self, weights: Float[np.ndarray, " edge"]) -> Graph:
        """Build the graph with other weights on the same edges; edges of weight zero are left out.

        Args:
            weights: The new weights, (edge,).

        Returns:
            A graph without a null of its own.
        """
        kept = weights != 0
        return Graph(self.n_nodes, self.edges[kept], weights[kept], self.kind)

    def to_igraph(self) -> igraph.Graph:
        """Convert the graph to igraph, weights as the edge attribute ``weight``."""
        import igraph

        return igraph.Graph(n=self.n_nodes, edges=self.edges, edge_attrs={"weight": self.weights.tolist()})

    @public
    def to_networkx(self, labels: Int[np.ndarray, " node"] | None = None) -> nx.Graph:
        """Convert the graph to networkx, weights as the edge attribute ``weight``.

        Args:
            labels: The community of each node, which becomes the node attribute ``community``, (n,).

        Returns:
            A `networkx.Graph` with nodes 0 … n − 1.
        """
        import networkx as nx

        graph = nx.Graph()
        graph.add_nodes_from(range(self.n_nodes))
        graph.add_weighted_edges_from(zip(*self.edges.T.tolist(), self.weights.tolist(), strict=True))
        if labels is not None:
            nx.set_node_attributes(graph, dict(enumerate(labels.tolist())), "community")
        return graph

    @public
    def layout(self, labels: Int[np.ndarray, " node"] | None = None, *, seed: int = 0) -> Float[np.ndarray, "node 2"]:
        """Place the nodes in the plane; see `probe.graphs.layout`.

        Args:
            labels: The community of each node, (n,); without, links pull alike.
            seed: Seed of the initial positions.

        Returns:
            Coordinates, (n, 2).
        """
        from probe.graphs.drawing import layout

        return layout(self, np.zeros(self.n_nodes, dtype=np.int64) if labels is None else labels, seed=seed)

    @public
    def plot(self, communities: Communities | Int[np.ndarray, " node"] | None = None, **options: Any) -> plots.Picture:
        """Draw the graph, its nodes coloured by community; see `probe.plots.graph`.

        Args:
            communities: What `probe.graphs.communities` found, or a label for each node, (n,).
            **options: Of `probe.plots.graph`, such as `size`, `names` and `width`.

        Returns:
            The picture.
        """
        return plots.graph(self, communities, **options)

    @public
    def write_graphml(self, path: str | os.PathLike[str], labels: Int[np.ndarray, " node"] | None = None) -> None:
        """Write the graph as GraphML, which Gephi, Cytoscape, igraph and networkx read.

        Args:
            path: The file.
            labels: The community of each node, written beside it, (n,).

        Raises:
            InputError: If the file cannot be written.
        """
        import networkx as nx

        network = self.to_networkx(labels)
        try:
            nx.write_graphml(network, os.fspath(path))
        except OSError as error:
            raise InputError(
                f"path= must be a file that can be written, and {path} is not ({error.strerror}): name another"
            ) from error


def require_labels(graph: Graph, labels: Int[np.ndarray, " node"]) -> None:
    """Refuse what is no partition of a graph's nodes.

    Args:
        graph: The graph.
        labels: The community of each node, (n,).

    Raises:
        InputError: If there is not one label a node, or one is negative.
    """
    if len(labels) != graph.n_nodes or (labels < 0).any():
        start = f" from {labels.min()} on" if len(labels) else f" ({labels.dtype})"
        raise InputError(
            f"a partition of {graph.n_nodes} nodes needs as many labels 0, 1, …, got {len(labels)} labels{start}: "
            "pass labels found on this graph"
        )


def n_pairs(n: int) -> int:
    """Count the pairs of n nodes."""
    return n * (n - 1) // 2
