"""Graphs and their communities: closed forms, planted communities, determinism."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import igraph
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from sklearn.covariance import LedoitWolf

import probe
from probe import graphs
from probe.errors import InputError
from probe.graphs import Algorithm, Graph, ami
from probe.graphs.build import _standardised
from tests.plant.graphs import dense, planted_graph, planted_states, random_graph, relabelled

quick = settings(max_examples=30)
EIGHT = np.arange(240) % 8


def states(tokens: int, nodes: int, seed: int = 0) -> Float[np.ndarray, "token node"]:
    """States with some correlation of every size and sign."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((tokens, nodes)) @ generator.standard_normal((nodes, nodes))


def partitions_of(n: int) -> list[Int[np.ndarray, " node"]]:
    """All partitions of n nodes."""
    found = [[0]]
    for _ in range(n - 1):
        found = [[*labels, c] for labels in found for c in range(max(labels) + 2)]
    return [np.asarray(labels) for labels in found]


# --- building ---------------------------------------------------------------------------------------------------------


class TestBuilding:
    @pytest.mark.parametrize("nodes", [40, 700])  # one block, two blocks
    def test_signed_correlation_is_numpys(self, nodes: int) -> None:
        x = states(300, nodes)
        x[:, 3] += 1e3  # an offset is no correlation
        graph = graphs.correlation_graph(x, density=1.0)
        r = np.corrcoef(x.T) - np.eye(nodes)
        np.testing.assert_allclose(dense(graph), r, atol=1e-9)

    def test_absolute_correlation_has_no_sign(self) -> None:
        x = states(200, 30)
        signed, absolute = (graphs.correlation_graph(x, kind=kind, top_k=4) for kind in ("signed", "absolute"))
        assert (signed.weights < 0).any()
        np.testing.assert_array_equal(np.abs(dense(signed)), dense(absolute))

    def test_partial_correlation_is_that_of_the_residuals(self) -> None:
        x = states(60_000, 4)
        x = x - x.mean(0)
        others = x[:, 2:]
        left = x[:, :2] - others @ np.linalg.lstsq(others, x[:, :2])[0]
        expected = np.corrcoef(left.T)[0, 1]
        found = dense(graphs.correlation_graph(x, kind="partial", density=1.0))[0, 1]
        assert found == pytest.approx(expected, abs=0.01)  # the shrinkage at 60,000 tokens is small

    def test_partial_correlation_sees_through_a_chain(self) -> None:
        generator = np.random.default_rng(0)
        first = generator.standard_normal(5000)
        second = first + generator.standard_normal(5000)
        third = second + generator.standard_normal(5000)
        x = np.stack([first, second, third], axis=1)
        r = dense(graphs.correlation_graph(x, density=1.0))
        partial = dense(graphs.correlation_graph(x, kind="partial", density=1.0))
        assert r[0, 2] > 0.5
        assert abs(partial[0, 2]) < 0.05
        assert partial[0, 1] > 0.4

    @pytest.mark.parametrize("tokens", [15, 60])
    def test_the_precision_is_that_of_scikit_learns_shrinkage(self, tokens: int) -> None:
        x = states(tokens, 20)
        standard = (x - x.mean(0)) / x.std(0)
        P = LedoitWolf(assume_centered=True).fit(standard).precision_
        expected = -P / np.sqrt(np.outer(np.diag(P), np.diag(P))) + np.eye(20)
        found = dense(graphs.correlation_graph(x, kind="partial", density=1.0))
        np.testing.assert_allclose(found - np.diag(np.diag(found)), expected - np.diag(np.diag(expected)), atol=1e-9)

    def test_partial_correlation_of_fewer_tokens_than_nodes_exists(self) -> None:
        x = planted_states(np.arange(120) % 4, 60, noise=0.3)
        x[:, 7] = 2.0
        graph = graphs.correlation_graph(x, kind="partial")
        assert np.isfinite(graph.weights).all()
        assert graph.degree[7] == 0

    @quick
    @given(st.integers(1, 12), st.integers(0, 100))
    def test_top_k_keeps_what_either_end_keeps(self, k: int, seed: int) -> None:
        x = states(50, 12, seed)
        r = np.corrcoef(x.T) - np.eye(12)
        rank = np.argsort(np.argsort(-np.abs(r), axis=1), axis=1)
        kept = rank < min(k, 11)
        expected = np.where((kept | kept.T) & ~np.eye(12, dtype=bool), r, 0)
        graph = graphs.correlation_graph(x, top_k=k)
        np.testing.assert_allclose(dense(graph), expected, atol=1e-12)

    @pytest.mark.parametrize("nodes", [30, 600])
    def test_density_keeps_the_strongest_pairs(self, nodes: int) -> None:
        x = states(100, nodes)
        r = np.corrcoef(x.T)[np.triu_indices(nodes, k=1)]
        graph = graphs.correlation_graph(x, density=0.1)
        count = round(0.1 * len(r))
        assert graph.n_edges == count
        np.testing.assert_allclose(np.sort(np.abs(graph.weights)), np.sort(np.abs(r))[-count:], atol=1e-12)

    def test_thirty_neighbours_where_nothing_is_said(self) -> None:
        x = states(100, 50)
        assert graphs.correlation_graph(x).edges.tolist() == graphs.correlation_graph(x, top_k=30).edges.tolist()
        assert graphs.correlation_graph(x).degree.min() == 30

    def test_a_column_without_spread_is_isolated(self) -> None:
        x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
        x[:, 2] = 1234.567  # float32: its mean is rounded
        graph = graphs.correlation_graph(x, density=1.0)
        assert graph.degree.tolist() == [4, 4, 0, 4, 4, 4]

    def test_half_precision_states_are_computed_in_float32(self) -> None:
        x = torch.randn(400, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
        assert _standardised(x).dtype == torch.float32
        r = np.corrcoef(x.double().numpy().T) - np.eye(10)
        np.testing.assert_allclose(dense(graphs.correlation_graph(x, density=1.0)), r, atol=1e-6)

    def test_a_matrix_is_made_symmetric(self) -> None:
        matrix = np.array([[9.0, 2.0, 0.0], [-4.0, 9.0, 1.0], [0.0, 3.0, 9.0]])
        assert dense(graphs.from_matrix(matrix)).tolist() == [[0, -1, 0], [-1, 0, 2], [0, 2, 0]]
        assert dense(graphs.from_matrix(matrix, magnitude=True)).tolist() == [[0, 3, 0], [3, 0, 2], [0, 2, 0]]
        assert dense(graphs.from_matrix(torch.from_numpy(matrix), top_k=1)).tolist() == [
            [0, -1, 0],
            [-1, 0, 2],
            [0, 2, 0],
        ]

    def test_a_large_matrix_comes_back_whole(self) -> None:
        matrix = np.random.default_rng(0).standard_normal((530, 530))  # two blocks
        symmetric = (matrix + matrix.T) / 2
        np.testing.assert_allclose(
            dense(graphs.from_matrix(matrix)), symmetric - np.diag(np.diag(symmetric)), atol=1e-15
        )

    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (lambda: graphs.correlation_graph(np.zeros((2, 5))), "3 tokens"),
            (lambda: graphs.correlation_graph(np.full((9, 5), np.nan)), "finite"),
            (lambda: graphs.correlation_graph(states(9, 5), top_k=3, density=0.5), "exclude each other"),
            (lambda: graphs.correlation_graph(states(9, 5), top_k=0), "at least 1"),
            (lambda: graphs.correlation_graph(states(9, 5), density=1.5), r"\(0, 1\]"),
            (lambda: graphs.from_matrix(np.zeros((3, 4))), "square"),
            (lambda: graphs.from_matrix(np.full((3, 3), np.inf)), "finite"),
            (lambda: Graph(3, np.array([[1, 0]]), np.ones(1)), "lexicographic"),
            (lambda: Graph(3, np.array([[0, 3]]), np.ones(1)), "lexicographic"),
            (lambda: Graph(3, np.array([[0, 1], [0, 1]]), np.ones(2)), "lexicographic"),
            (lambda: Graph(3, np.array([[0, 1]]), np.zeros(1)), "not zero"),
        ],
    )
    def test_wrong_input_is_told(self, make: Callable[[], Graph], told: str) -> None:
        with pytest.raises(InputError, match=told):
            make()


class TestGraph:
    def test_sums_of_a_small_graph(self) -> None:
        graph = Graph(5, np.array([[0, 1], [0, 2], [1, 2], [2, 3]]), np.array([0.5, -2.0, 3.0, 1.0]))
        assert graph.degree.tolist() == [2, 2, 3, 1, 0]
        assert graph.strength.tolist() == [2.5, 3.5, 6.0, 1.0, 0.0]
        assert graph.mean_weight == pytest.approx(6.5 / 10)
        assert graph.density == pytest.approx(4 / 10)

    def test_networkx_and_graphml_hold_the_same_graph(self, tmp_path: Path) -> None:
        import networkx as nx

        graph = random_graph(20, 0.3)
        labels = np.arange(20) % 3
        there = graph.to_networkx(labels)
        np.testing.assert_array_equal(nx.to_numpy_array(there), dense(graph))
        graph.write_graphml(tmp_path / "graph.graphml", labels)
        back = nx.read_graphml(tmp_path / "graph.graphml", node_type=int)
        np.testing.assert_allclose(nx.to_numpy_array(back, nodelist=range(20)), dense(graph))
        assert [back.nodes[i]["community"] for i in range(20)] == labels.tolist()

    def test_igraph_holds_the_same_graph(self) -> None:
        graph = random_graph(20, 0.3)
        there = graph.to_igraph()
        assert np.array(there.get_edgelist()).tolist() == graph.edges.tolist()
        assert there.es["weight"] == graph.weights.tolist()


# --- communities ------------------------------------------------------------------------------------------------------

ALGORITHMS = [
    {},
    {"signs": "layers"},
    {"objective": "modularity"},
    {"objective": "modularity", "signs": "merged"},
    {"method": "louvain"},
    {"method": "infomap"},
    {"method": "spectral"},
    {"method": "spectral", "n_communities": 8},
]


class TestCommunities:
    @pytest.mark.parametrize("options", ALGORITHMS, ids=str)
    def test_planted_communities_are_found(self, options: dict[str, str]) -> None:
        found = graphs.communities(planted_states(EIGHT, 1000, noise=1.5), seed=1, seeds=4, **options)
        assert ami(found.labels, EIGHT) > 0.99
        assert found.stability > 0.95
        assert found.n_communities == 8

    @pytest.mark.parametrize("options", ALGORITHMS[:6], ids=str)
    def test_a_planted_partition_graph_is_recovered(self, options: dict[str, str]) -> None:
        # mean degree 14 inside, 5 outside; detectable from (c_in − c_out)² > q (c_in + (q − 1) c_out) on
        labels = np.arange(200) % 4
        found = graphs.communities(planted_graph(labels, 0.3, 0.033), seeds=4, **options)
        assert ami(found.labels, labels) >= 0.95

    def test_resolution_decides_between_levels(self) -> None:
        fine = np.arange(240) % 12
        coarse = fine % 3
        generator = np.random.default_rng(0)
        shared = generator.standard_normal((2000, 3))[:, coarse]
        x = shared + planted_states(fine, 2000, noise=0.7)
        graph = graphs.correlation_graph(x, top_k=100)
        assert ami(graphs.communities(graph, resolution=0.4, seeds=3).labels, coarse) > 0.99
        assert ami(graphs.communities(graph, resolution=3.0, seeds=3).labels, fine) > 0.99

    def test_merging_signs_loses_opposed_halves(self) -> None:
        signs = np.where(np.arange(240) // 8 % 2, 1.0, -1.0)
        halves = 2 * EIGHT + (signs > 0)
        x = planted_states(EIGHT, 1500, noise=1.0, signs=signs)
        graph = graphs.correlation_graph(x, top_k=25)
        for options in ({}, {"signs": "layers"}, {"objective": "modularity"}, {"method": "louvain"}):
            assert ami(graphs.communities(graph, seeds=3, **options).labels, halves) > 0.99
        merged = graphs.communities(graph, signs="merged", seeds=3)
        assert ami(merged.labels, EIGHT) > 0.99
        assert merged.n_communities == 8

    def test_spectral_clustering_uses_signs(self) -> None:
        # Two camps: friends inside, foes across.
        labels = np.arange(60) % 2
        graph = planted_graph(labels, 0.4, 0.0)
        foes = planted_graph(labels, 0.0, 0.4, weight=-1.0, seed=1)
        both = graphs.from_matrix(dense(graph) + dense(foes))
        assert ami(graphs.communities(both, method="spectral", n_communities=2, seeds=3).labels, labels) == 1.0

    def test_spectral_clustering_is_not_drawn_to_heavy_weights(self) -> None:
        # The noise of the heavy community has larger eigenvalues than the other communities themselves.
        labels = np.arange(90) % 3
        graph = planted_graph(labels, 0.5, 0.02)
        heavy = graph.with_weights(np.where((labels[graph.edges] == 0).any(axis=1), 20.0, 1.0))
        assert ami(graphs.communities(heavy, method="spectral", n_communities=3, seeds=3).labels, labels) > 0.9

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"signs": "layers"},
            {"signs": "merged"},
            {"objective": "modularity", "signs": "merged"},
            {"method": "louvain"},
        ],
        ids=str,
    )
    def test_the_best_run_is_the_best_of_all_partitions(self, options: dict[str, str]) -> None:
        algorithm = Algorithm(**options)
        every = partitions_of(7)
        for seed in range(6):
            graph = random_graph(7, 0.7, seed=seed)
            best = max(algorithm.quality(graph, labels, 0.7) for labels in every)
            runs = [algorithm.quality(graph, algorithm.run(graph, 0.7, run), 0.7) for run in range(15)]
            assert max(runs) == pytest.approx(best, rel=1e-12), seed

    def test_relabelling_the_nodes_changes_nothing(self) -> None:
        x = planted_states(EIGHT, 800, noise=1.5)
        order = np.random.default_rng(1).permutation(240)
        renamed = np.empty_like(x)
        renamed[:, order] = x
        first, second = (graphs.communities(given, seeds=4) for given in (x, renamed))
        assert ami(first.labels, second.labels[order]) == 1.0
        assert first.quality == pytest.approx(second.quality, rel=1e-9)

    def test_quality_is_leidenalgs(self) -> None:
        import leidenalg

        graph = random_graph(40, 0.3)
        labels = np.random.default_rng(0).integers(0, 5, 40)
        total = np.abs(graph.weights).sum()
        gamma = 1.5 * graph.mean_weight
        # leidenalg counts every pair of an undirected graph twice
        one = leidenalg.CPMVertexPartition(graph.to_igraph(), labels.tolist(), "weight", resolution_parameter=gamma)
        assert Algorithm().quality(graph, labels, 1.5) == pytest.approx(one.quality() / 2 / total, rel=1e-12)
        sides = [graph.with_weights(np.maximum(sign * graph.weights, 0)) for sign in (1, -1)]
        plus, minus = (
            leidenalg.RBConfigurationVertexPartition(
                side.to_igraph(), labels.tolist(), "weight", resolution_parameter=1.5
            )
            for side in sides
        )
        expected = (plus.quality() - minus.quality()) / 2 / total
        assert Algorithm(objective="modularity").quality(graph, labels, 1.5) == pytest.approx(expected, rel=1e-12)

    def test_modularity_of_unsigned_weights_is_networkx(self) -> None:
        import networkx as nx

        graph = random_graph(30, 0.3, signed=False)
        labels = np.arange(30) % 4
        groups = [set(np.flatnonzero(labels == c).tolist()) for c in range(4)]
        for resolution in (1.0, 0.4):
            expected = nx.community.modularity(graph.to_networkx(), groups, resolution=resolution)
            found = Algorithm(objective="modularity").quality(graph, labels, resolution)
            assert found == pytest.approx(expected, rel=1e-12)

    def test_merged_quality_sees_absolute_weights(self) -> None:
        graph = random_graph(30, 0.3)
        labels = np.arange(30) % 3
        absolute = graph.with_weights(np.abs(graph.weights))
        merged = Algorithm(signs="merged").quality(graph, labels, 1.0)
        assert merged == Algorithm().quality(absolute, labels, 1.0)
        assert merged != Algorithm().quality(graph, labels, 1.0)

    @pytest.mark.parametrize("options", [{}, {"method": "infomap"}, {"method": "spectral"}], ids=str)
    def test_isolated_nodes_stay_alone(self, options: dict[str, str]) -> None:
        x = planted_states(EIGHT, 500)
        x[:, [5, 9]] = 1.0
        labels = graphs.communities(x, seeds=3, **options).labels
        assert (np.bincount(labels)[labels[[5, 9]]] == 1).all()
        assert labels[5] != labels[9]

    @pytest.mark.parametrize("options", [*ALGORITHMS[:1], *ALGORITHMS[2:3], *ALGORITHMS[4:7]], ids=str)
    def test_a_graph_without_edges_has_single_nodes(self, options: dict[str, str]) -> None:
        empty = Graph(5, np.zeros((0, 2), dtype=np.int64), np.zeros(0))
        found = graphs.communities(empty, seeds=3, **options)
        assert found.labels.tolist() == [0, 1, 2, 3, 4]
        assert np.isnan(found.quality)
        assert found.n_communities == 0

    def test_the_same_seed_gives_the_same_answer_in_another_process(self) -> None:
        code = (
            "import numpy as np\nfrom probe.graphs import *\nfrom tests.plant.graphs import random_graph\n"
            "g = random_graph(60, 0.2, seed=3)\n"
            "for method in ('leiden', 'louvain', 'infomap', 'spectral'):\n"
            "    c = communities(g, method=method, seed=5, seeds=3)\n"
            "    print(c.labels.tolist(), c.runs.tolist(), c.quality, c.stability)\n"
            "x = np.random.default_rng(0).standard_normal((50, 20))\n"
            "print(null_graph(correlation_graph(x, top_k=3), 4).edges.tolist(), rewired(g, 2).edges.tolist())\n"
        )
        there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        here = io.StringIO()
        with contextlib.redirect_stdout(here):
            exec(code, {})
        assert here.getvalue() == there

    def test_other_seeds_give_other_runs(self) -> None:
        graph = random_graph(200, 0.03)
        for method in ("leiden", "louvain", "infomap", "spectral"):
            options = {"method": method, "signs": "merged", "seeds": 3, "n_communities": 6}
            runs = [graphs.communities(graph, seed=seed, **options).runs for seed in (0, 1)]
            assert (runs[0] != runs[1]).any(), method

    def test_igraphs_generator_is_pythons_again_afterwards(self) -> None:
        drawn = []
        for seed in range(2):
            graphs.communities(random_graph(40, 0.2, signed=False), method="infomap", seeds=3, seed=seed)
            random.seed(7)
            drawn.append(igraph.Graph.Erdos_Renyi(n=30, m=40).get_edgelist())
        random.seed(8)
        assert drawn[0] == drawn[1]
        assert igraph.Graph.Erdos_Renyi(n=30, m=40).get_edgelist() != drawn[1]

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"method": "newman"}, "method=? must be one of"),
            ({"objective": "size"}, "objective=? must be one of"),
            ({"signs": "none"}, "signs=? must be one of"),
            ({"resolution": 0.0}, "positive"),
            ({"resolution": float("nan")}, "positive"),
            ({"seeds": 2}, "at least 3"),
            ({"method": "louvain", "objective": "modularity"}, "one layer"),
        ],
    )
    def test_wrong_options_are_told(
        self, options: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
        with pytest.raises(InputError, match=told):
            graphs.communities(random_graph(20, 0.3), **options)


def test_the_room_is_reached_as_promised() -> None:
    x = torch.from_numpy(planted_states(EIGHT[:80], 300)).float()
    found = probe.graphs.communities(probe.graphs.correlation_graph(x), seed=0)
    assert found.labels.shape == (80,)
    assert isinstance(found.quality, float)
    assert isinstance(found.stability, float)
    assert len(found.runs) == 10
    again = probe.graphs.communities(x)
    assert again.labels.tolist() == found.labels.tolist()


def test_a_relabelled_graph_is_the_same_graph() -> None:
    graph = random_graph(25, 0.3)
    order = np.random.default_rng(0).permutation(25)
    np.testing.assert_array_equal(dense(relabelled(graph, order))[np.ix_(order, order)], dense(graph))


def test_constants_are_no_public_names() -> None:
    assert not [name for name in graphs.__all__ if name.isupper()]
    with pytest.warns(DeprecationWarning, match=r"use probe\.graphs\.detect\.RESOLUTIONS$"):
        found = graphs.RESOLUTIONS
    assert list(found) == [2.0**power for power in range(-4, 4)]
