"""The position of a node and the measures of a community: closed forms, and networkx as the reference."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from probe import graphs
from probe.errors import InputError
from probe.graphs import Graph
from tests.plant.graphs import planted_graph, random_graph, relabelled

LABELS = np.random.default_rng(1).integers(0, 4, 40)
GRAPH = random_graph(40, 0.15)


def lengths(graph: Graph) -> nx.Graph:
    """The networkx graph with |w| as weight and 1/|w| as length."""
    there = graph.to_networkx()
    for _, _, data in there.edges(data=True):
        data["weight"] = abs(data["weight"])
        data["length"] = 1 / data["weight"]
    return there


def test_degree_strength_and_share() -> None:
    nodes = graphs.node_topology(GRAPH, LABELS)
    there = lengths(GRAPH)
    np.testing.assert_array_equal(nodes["degree"], [there.degree(i) for i in range(40)])
    np.testing.assert_allclose(nodes["strength"], [there.degree(i, weight="weight") for i in range(40)])
    for i in range(40):
        out = sum(data["weight"] for _, j, data in there.edges(i, data=True) if LABELS[i] != LABELS[j])
        assert float(nodes["external_share"][i]) == pytest.approx(out / float(nodes["strength"][i]), abs=1e-12)


def test_participation_of_a_small_graph() -> None:
    # Node 0 has 3 towards its own community (nodes 0, 1), 2 and −1 towards the other (2, 3).
    edges = np.array([[0, 1], [0, 2], [0, 3], [2, 3]])
    graph = Graph(5, edges, np.array([3.0, 2.0, -1.0, 1.0]))
    nodes = graphs.node_topology(graph, np.array([0, 0, 1, 1, 2]))
    np.testing.assert_allclose(nodes["participation"], [0.5, 0, 1 - (4 + 1) / 9, 0.5, np.nan])
    np.testing.assert_allclose(nodes["participation_positive"], [1 - (9 + 4) / 25, 0, 1 - (4 + 1) / 9, 0, np.nan])
    np.testing.assert_allclose(nodes["participation_negative"], [0, np.nan, np.nan, 0, np.nan])


def test_participation_is_largest_when_links_are_spread_evenly() -> None:
    star = Graph(5, np.array([[0, 1], [0, 2], [0, 3], [0, 4]]), np.ones(4))
    nodes = graphs.node_topology(star, np.array([0, 1, 2, 3, 4]))
    assert float(nodes["participation"][0]) == pytest.approx(1 - 1 / 4)


def test_participation_by_itself_is_that_of_the_topology() -> None:
    expected = graphs.node_topology(GRAPH, LABELS, paths=False)["participation"]
    np.testing.assert_array_equal(graphs.participation_coefficient(GRAPH, LABELS), expected)
    with pytest.raises(InputError, match="40 nodes"):
        graphs.participation_coefficient(GRAPH, LABELS[:5])
    with pytest.warns(DeprecationWarning, match=r"use probe\.graphs\.participation_coefficient"):
        assert graphs.participation is graphs.participation_coefficient


def test_a_drawing_holds_communities_together() -> None:
    labels = np.arange(40) % 4
    graph = planted_graph(labels, 0.8, 0.05)
    place = graphs.layout(graph, labels, seed=3)
    np.testing.assert_array_equal(place, graphs.layout(graph, labels, seed=3))
    np.testing.assert_allclose(place.mean(axis=0), 0, atol=1e-9)
    assert np.square(place).mean() == pytest.approx(1)
    middle = np.stack([place[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    inside = np.linalg.norm(place - middle[labels], axis=1).mean()
    assert inside < 0.5 * np.linalg.norm(place, axis=1).mean()


def test_z_within_a_community_standardises() -> None:
    nodes = graphs.node_topology(GRAPH, LABELS)
    matrix = np.abs(GRAPH.adjacency().todense())
    for c in range(4):
        members = np.flatnonzero(c == LABELS)
        inside = matrix[np.ix_(members, members)].sum(1)
        expected = (inside - inside.mean()) / inside.std()
        np.testing.assert_allclose(nodes["within_module_z"][members], expected, atol=1e-12)


def test_z_is_zero_without_spread_and_missing_without_links() -> None:
    ring = Graph(5, np.array([[0, 1], [0, 3], [1, 2], [2, 3]]), np.full(4, 0.1))
    nodes = graphs.node_topology(ring, np.array([0, 0, 0, 0, 1]))
    np.testing.assert_array_equal(nodes["within_module_z"], [0, 0, 0, 0, np.nan])
    assert np.isnan(nodes["core_distance"][4])
    assert float(nodes["core"][4]) == 0


def test_cores_are_networkx() -> None:
    nodes = graphs.node_topology(GRAPH, LABELS, paths=False)
    expected = nx.core_number(GRAPH.to_networkx())
    assert nodes["core"].values.tolist() == [expected[i] for i in range(40)]
    assert "betweenness" not in nodes


def test_eigenvector_centrality_is_networkx() -> None:
    assert nx.is_connected(GRAPH.to_networkx())
    expected = nx.eigenvector_centrality_numpy(lengths(GRAPH), weight="weight")
    found = graphs.node_topology(GRAPH, LABELS, paths=False)["eigenvector_centrality"]
    np.testing.assert_allclose(found, [expected[i] for i in range(40)], atol=1e-10)


def test_betweenness_is_networkx() -> None:
    expected = nx.betweenness_centrality(lengths(GRAPH), weight="length")
    found = graphs.node_topology(GRAPH, LABELS)["betweenness"]
    np.testing.assert_allclose(found, [expected[i] for i in range(40)], atol=1e-12)


def test_distance_to_the_innermost_core_is_networkx() -> None:
    core = nx.core_number(GRAPH.to_networkx())
    inner = [i for i in core if core[i] == max(core.values())]
    distance = dict(nx.all_pairs_dijkstra_path_length(lengths(GRAPH), weight="length"))
    expected = [np.mean([distance[i][j] for j in inner if j != i]) for i in range(40)]
    np.testing.assert_allclose(graphs.node_topology(GRAPH, LABELS)["core_distance"], expected)


def test_conductance_and_density_are_networkx() -> None:
    there = lengths(GRAPH)
    found = graphs.community_topology(GRAPH, LABELS)
    for c in range(4):
        members = np.flatnonzero(c == LABELS).tolist()
        inside = there.subgraph(members)
        assert float(found["conductance"][c]) == pytest.approx(nx.conductance(there, members, weight="weight"))
        assert float(found["internal_density"][c]) == pytest.approx(nx.density(inside))
        pairs = len(members) * (len(members) - 1) / 2
        assert float(found["internal_weight"][c]) == pytest.approx(inside.size(weight="weight") / pairs)
        assert int(found["size"][c]) == len(members)


def test_a_community_has_the_mean_of_its_members() -> None:
    nodes = graphs.node_topology(GRAPH, LABELS)
    nodes["participation"][np.flatnonzero(LABELS == 0)[0]] = np.nan
    found = graphs.community_topology(GRAPH, LABELS, nodes)
    for c in range(4):
        for name in ("strength", "participation", "core", "core_distance"):
            expected = np.nanmean(nodes[name].values[c == LABELS])
            assert float(found[f"mean_{name}"][c]) == pytest.approx(expected, rel=1e-12)


def test_single_nodes_have_neither_density_nor_conductance() -> None:
    graph = Graph(3, np.array([[0, 1]]), np.ones(1))
    found = graphs.community_topology(graph, np.array([0, 0, 1]))
    np.testing.assert_array_equal(found["internal_density"], [1, np.nan])
    np.testing.assert_array_equal(found["conductance"], [np.nan, np.nan])  # nobody links across or outside


def test_relabelling_moves_every_measure_with_its_node() -> None:
    order = np.random.default_rng(2).permutation(40)
    there = graphs.node_topology(relabelled(GRAPH, order), LABELS[np.argsort(order)])
    here = graphs.node_topology(GRAPH, LABELS)
    for name in here:
        np.testing.assert_allclose(there[name].values[order], here[name].values, atol=1e-9, err_msg=str(name))


def test_the_empty_graph_has_places_without_content() -> None:
    empty = Graph(4, np.zeros((0, 2), dtype=np.int64), np.zeros(0))
    nodes = graphs.node_topology(empty, np.arange(4))
    assert np.isnan(nodes["participation"]).all()
    assert np.isnan(nodes["eigenvector_centrality"]).all()
    assert nodes["degree"].values.tolist() == [0, 0, 0, 0]


def test_every_measure_says_what_it_is() -> None:
    nodes = graphs.node_topology(GRAPH, LABELS)
    for data in (nodes, graphs.community_topology(GRAPH, LABELS, nodes)):
        assert all(data[name].attrs["long_name"] for name in data)


def test_labels_of_another_graph_are_refused() -> None:
    for measure in (graphs.node_topology, graphs.community_topology):
        with pytest.raises(InputError, match="40 nodes"):
            measure(GRAPH, np.arange(39))


@pytest.mark.guards(
    "igraph takes paths for equally long within an absolute 1e-10",
    when="matrices and graphs are measured",
    gives="lengths by their median: betweenness whatever the unit",
)
@pytest.mark.parametrize("factor", [1e-12, 1e-8, 1e6, 1e8, 1e12])
def test_places_on_paths_do_not_depend_on_the_unit_of_the_weights(factor: float) -> None:
    """igraph takes paths for equally long within an absolute 1e-10, which is no little of a length of 1e-8."""
    scaled = Graph(GRAPH.n_nodes, GRAPH.edges, GRAPH.weights * factor, GRAPH.kind)
    one, other = graphs.node_topology(GRAPH, LABELS), graphs.node_topology(scaled, LABELS)
    expected = nx.betweenness_centrality(lengths(GRAPH), weight="length")
    np.testing.assert_allclose(other["betweenness"], [expected[i] for i in range(40)], rtol=1e-9)
    np.testing.assert_allclose(other["betweenness"], one["betweenness"], rtol=1e-12)
    np.testing.assert_allclose(other["core_distance"] * factor, one["core_distance"], rtol=1e-9)
