"""Measures of each node in a graph and in a partition of it, and of each community.

Strengths are sums of ``|w|`` unless their name says positive or negative. Paths have length ``1/|w|``. A measure
that an isolated node lacks (a participation, a path) is NaN.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse.linalg import eigsh

from probe.boundary import public
from probe.graphs.graph import Graph, n_pairs, require_labels
from probe.graphs.partition import Labels

Floats = Float[np.ndarray, " node"]

NODE_NAMES = {
    "degree": "number of edges",
    "strength": "sum of |w|",
    "within_module_z": "within-module strength, z-score",
    "participation": "participation coefficient",
    "participation_positive": "participation coefficient of positive links",
    "participation_negative": "participation coefficient of negative links",
    "external_share": "share of strength that leaves the community",
    "eigenvector_centrality": "eigenvector centrality",
    "core": "core number",
    "betweenness": "betweenness centrality",
    "core_distance": "mean shortest path to the innermost core",
}
COMMUNITY_NAMES = {
    "size": "number of nodes",
    "internal_density": "share of inner pairs that have an edge",
    "internal_weight": "mean |w| over inner pairs",
    "conductance": "conductance",
}


@public
def node_topology(graph: Graph, labels: Labels, *, paths: bool = True) -> xr.Dataset:
    """Measure the position of each node in the graph and in a partition of it.

    With ``k_ic`` the strength of node i towards community c, ``k_i`` its sum and ``c_i`` the node's own community:

    - `degree`, `strength` ``k_i``
    - `within_module_z` ``(k_{i c_i} − mean) / sd`` over the members of the node's community (sd of the population); 0
      where the community has no spread
    - `participation` ``1 − Σ_c (k_ic / k_i)²``; `participation_positive` and `participation_negative` the same of
      positive and of negative weights alone
    - `external_share` ``1 − k_{i c_i} / k_i``
    - `eigenvector_centrality`: the leading eigenvector of ``|w|``, of length 1; in a graph of several components it
      lives on one of them
    - `core`: core number, unweighted
    - `betweenness`: share of the shortest paths between other nodes that pass through, mean over pairs
    - `core_distance`: mean length of the shortest paths to the other nodes of the innermost core within reach

    Args:
        graph: The graph.
        labels: The community of each node, (n,).
        paths: Include the last two, which cost a search from every node.

    Returns:
        Dataset over `node`; NaN for isolated nodes where the measure divides by their strength, or needs a path.

    Raises:
        InputError: If the labels are not those of the graph's nodes.

    Source: Guimerà & Amaral, Nature 433 (2005); Rubinov & Sporns, NeuroImage 56 (2011).

    Cost: O(edges), and O(n · edges · log n) for paths: 4,096 nodes of 30 neighbours take minutes.
    """
    require_labels(graph, labels)
    membership = _membership(labels)
    adjacency = graph.adjacency()
    towards = (abs(adjacency) @ membership).toarray()  # k_ic, (n, community)
    inside = towards[np.arange(graph.n_nodes), labels]
    measures = {
        "degree": graph.degree,
        "strength": graph.strength,
        "within_module_z": _z_within(inside, labels),
        "participation": _participation(towards),
        "participation_positive": _participation((adjacency.maximum(0) @ membership).toarray()),
        "participation_negative": _participation(((-adjacency).maximum(0) @ membership).toarray()),
        "external_share": 1 - _ratio(inside, graph.strength),
        "eigenvector_centrality": _eigenvector_centrality(graph),
        "core": np.asarray(graph.to_igraph().coreness()),
    }
    # An isolated node has no strength to compare; sums of an empty row would give it a z-score.
    measures["within_module_z"] = np.where(graph.degree > 0, measures["within_module_z"], np.nan)
    if paths:
        measures |= _paths(graph, measures["core"])
    return _dataset("node", measures, NODE_NAMES).assign_coords(node=np.arange(graph.n_nodes))


@public
def participation_coefficient(graph: Graph, labels: Labels) -> Floats:
    """Compute the participation coefficient of each node in a partition: `participation` of `node_topology` alone.

    0 for a node whose links all stay in one community, near 1 for one whose links are spread evenly over many. Not the
    participation ratio of singular values (`probe.spectra`) or of a vector's coordinates (`probe.weights`).

    Args:
        graph: The graph.
        labels: The community of each node, (n,).

    Returns:
        ``1 − Σ_c (k_ic / k_i)²``, (n,); NaN for isolated nodes.

    Source: Guimerà & Amaral, Nature 433 (2005).
    """
    require_labels(graph, labels)
    return _participation((abs(graph.adjacency()) @ _membership(labels)).toarray())


@public
def community_topology(graph: Graph, labels: Labels, nodes: xr.Dataset | None = None) -> xr.Dataset:
    """Measure each community of a partition.

    - `size` ``n_c``
    - `internal_density`: share of its ``n_c (n_c − 1) / 2`` pairs that have an edge; `internal_weight`: mean ``|w|``
      over these pairs. NaN for a single node.
    - `conductance` ``cut / min(vol_c, vol_rest)``, on ``|w|``; NaN where one side has no links

    Args:
        graph: The graph.
        labels: The community of each node, 0, 1, …, (n,).
        nodes: `node_topology` of the same partition: each of its measures is added as ``mean_…``, its mean over the
            members that have it.

    Returns:
        Dataset over `community`.

    Raises:
        InputError: If the labels are not those of the graph's nodes.
    """
    require_labels(graph, labels)
    i, j = graph.edges.T
    inside = labels[i] == labels[j]
    weight, size = np.abs(graph.weights), np.bincount(labels)
    links = np.bincount(labels[i[inside]], minlength=len(size))
    within = np.bincount(labels[i[inside]], weights=weight[inside], minlength=len(size))
    volume = np.bincount(labels, weights=graph.strength, minlength=len(size))
    pairs = np.asarray([n_pairs(int(n)) for n in size])
    measures = {
        "size": size,
        "internal_density": _ratio(links, pairs),
        "internal_weight": _ratio(within, pairs),
        "conductance": _ratio(volume - 2 * within, np.minimum(volume, volume.sum() - volume)),
    }
    names = dict(COMMUNITY_NAMES)
    for name, of_node in (nodes or {}).items():
        known = np.isfinite(of_node.values)
        total = np.bincount(labels[known], weights=of_node.values[known], minlength=len(size))
        measures[f"mean_{name}"] = _ratio(total, np.bincount(labels[known], minlength=len(size)))
        names[f"mean_{name}"] = f"mean over members: {NODE_NAMES[str(name)]}"
    return _dataset("community", measures, names).assign_coords(community=np.arange(len(size)))


def _membership(labels: Labels) -> sparse.csr_array:
    shape = (len(labels), int(labels.max()) + 1)
    return sparse.csr_array((np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=shape)


def _ratio(part: np.ndarray, whole: np.ndarray) -> Float[np.ndarray, " any"]:
    """Part over whole, NaN where the whole is zero."""
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))


def _participation(towards: Float[np.ndarray, "node community"]) -> Floats:
    return 1 - _ratio(np.square(towards).sum(axis=1), np.square(towards.sum(axis=1)))


def _z_within(inside: Floats, labels: Labels) -> Floats:
    size = np.bincount(labels)
    mean = np.bincount(labels, weights=inside) / np.maximum(size, 1)
    away = inside - mean[labels]
    spread = np.sqrt(np.bincount(labels, weights=np.square(away)) / np.maximum(size, 1))
    # Rounding of equal strengths is no spread.
    flat = spread <= 1e-12 * np.maximum(mean, np.finfo(float).tiny)
    return np.where(flat[labels], 0.0, away / np.where(flat, 1.0, spread)[labels])


def _eigenvector_centrality(graph: Graph) -> Floats:
    if graph.n_nodes < 3:
        return np.full(graph.n_nodes, np.nan if not graph.n_edges else graph.n_nodes**-0.5)
    if not graph.n_edges:
        return np.full(graph.n_nodes, np.nan)
    start = graph.strength / np.linalg.norm(graph.strength)
    _, vector = eigsh(abs(graph.adjacency()), k=1, which="LA", v0=start)
    return np.asarray(np.abs(vector[:, 0]))


def _paths(graph: Graph, core: Int[np.ndarray, " node"]) -> dict[str, Floats]:
    """Betweenness and the mean distance to the innermost core, along edges of length 1/|w|."""
    network = graph.to_igraph()
    weight = np.abs(graph.weights)
    unit = float(np.median(weight)) if len(weight) else 1.0
    # igraph takes paths for equally long within an absolute 1e-10, so lengths are counted in the median's.
    length = (unit / weight).tolist()
    through = np.asarray(network.betweenness(directed=False, weights=length))
    inner = np.flatnonzero(core == core.max())
    distance = np.asarray(network.distances(source=inner.tolist(), weights=length), dtype=float)  # (core, node)
    distance[np.arange(len(inner)), inner] = np.inf  # a member's distance to itself says nothing
    reached = np.isfinite(distance)
    total = np.where(reached, distance, 0).sum(axis=0)
    pairs = n_pairs(graph.n_nodes - 1)
    return {
        "betweenness": through / pairs if pairs else np.full(graph.n_nodes, np.nan),
        "core_distance": _ratio(total / unit, reached.sum(axis=0)),
    }


def _dataset(dimension: str, measures: dict[str, np.ndarray], names: dict[str, str]) -> xr.Dataset:
    return xr.Dataset({
        name: xr.DataArray(values, dims=dimension, attrs={"long_name": names[name]})
        for name, values in measures.items()
    })
