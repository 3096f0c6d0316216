"""The positions at which the nodes of a graph are drawn."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from probe.boundary import public
from probe.graphs.algorithms import seeded_igraph
from probe.graphs.graph import Graph, require_labels
from probe.graphs.partition import Labels

INSIDE = 4.0  # the pull of a link inside a community, relative to others


@public
def layout(graph: Graph, labels: Labels, *, seed: int = 0) -> Float[np.ndarray, "node 2"]:
    """Place the nodes in the plane by Fruchterman and Reingold's forces, communities held together.

    Links pull by ``|w|``, those inside a community four times as much.

    Args:
        graph: The graph.
        labels: The community of each node, (n,).
        seed: Seed of the initial positions.

    Returns:
        Coordinates, centred, of unit root mean square, (n, 2).

    Raises:
        InputError: If there is not one label a node.
    """
    require_labels(graph, labels)
    i, j = graph.edges.T
    pull = np.abs(graph.weights) * np.where(labels[i] == labels[j], INSIDE, 1.0)
    network = graph.to_igraph()
    with seeded_igraph(seed):
        found = network.layout_fruchterman_reingold(weights=pull.tolist())
    positions = np.asarray(found.coords, dtype=np.float64)
    positions -= positions.mean(axis=0)
    return np.asarray(positions / max(float(np.sqrt(np.square(positions).mean())), np.finfo(float).tiny))
