"""Graphs, the communities of their nodes, the position of a node among them, and null graphs; needs no model.

A node is a column of the states or a row of the matrix: a coordinate of the stream, or a neuron of an MLP.

    g = correlation_graph(states)            # or from_matrix(A)
    c = communities(g, seed=0)               # c.labels, c.quality, c.stability
    compare_with_null(g, c).p_value          # against the same states in a Haar-random basis
    nodes = node_topology(g, c.labels)

- graphs: `correlation_graph`, `from_matrix`, `Graph` (to igraph, networkx, GraphML)
- communities: `communities`, `Algorithm`, `resolution_profile`, `choose_resolution`
- partitions: `ami`, `pairwise_ami`, `stability`, `consensus`, `canonical_labels`
- nulls: `null_graph`, `permuted_columns`, `rewired`, `degree_deciles`, `compare_with_null`
- drawing: `layout`
- topology: `node_topology`, `participation_coefficient`, `community_topology`
"""

from __future__ import annotations

from probe.errors import renamed
from probe.graphs.algorithms import Algorithm
from probe.graphs.build import correlation_graph, from_matrix, permuted_columns
from probe.graphs.detect import (
    Communities,
    NullComparison,
    ResolutionChoice,
    choose_resolution,
    communities,
    compare_with_null,
    resolution_profile,
)
from probe.graphs.drawing import layout
from probe.graphs.graph import Graph
from probe.graphs.nulls import degree_deciles, null_graph, rewired
from probe.graphs.partition import ami, canonical_labels, consensus, pairwise_ami, stability
from probe.graphs.topology import community_topology, node_topology, participation_coefficient

__all__ = [
    "Algorithm",
    "Communities",
    "Graph",
    "NullComparison",
    "ResolutionChoice",
    "ami",
    "canonical_labels",
    "choose_resolution",
    "communities",
    "community_topology",
    "compare_with_null",
    "consensus",
    "correlation_graph",
    "degree_deciles",
    "from_matrix",
    "layout",
    "node_topology",
    "null_graph",
    "pairwise_ami",
    "participation_coefficient",
    "permuted_columns",
    "resolution_profile",
    "rewired",
    "stability",
]


def __dir__() -> list[str]:
    return __all__


__getattr__ = renamed(__name__, {"RESOLUTIONS": "detect.RESOLUTIONS", "participation": "participation_coefficient"})
