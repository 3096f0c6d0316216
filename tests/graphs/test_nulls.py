"""The resolution at which communities are stable, and null graphs that have none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from probe import graphs
from probe.geometry import haar_frame
from probe.graphs import Algorithm, ami
from probe.inference import permutation_null
from tests.plant.graphs import dense, planted_graph, planted_states, random_graph

EIGHT = np.arange(240) % 8


class TestResolution:
    def test_the_profile_finds_planted_communities_stable(self) -> None:
        graph = graphs.correlation_graph(planted_states(EIGHT[:160], 600, noise=2.5), top_k=15)
        profile = graphs.resolution_profile(graph, resolutions=(0.25, 1.0, 8.0), seeds=4, draws=2)
        choice = graphs.choose_resolution(profile)
        assert choice.stable
        assert choice.resolution < 8.0
        found = graphs.communities(graph, resolution=choice, seeds=4)
        assert ami(found.labels, EIGHT[:160]) > 0.9
        assert dict(profile.sizes) == {"resolution": 3, "draw": 2}

    def test_noise_has_no_stable_communities(self) -> None:
        graph = graphs.correlation_graph(np.random.default_rng(0).standard_normal((400, 100)), top_k=10)
        algorithm = Algorithm(iterations=2)
        profile = graphs.resolution_profile(graph, algorithm=algorithm, resolutions=(0.25, 1.0, 4.0), seeds=5, draws=3)
        assert not graphs.choose_resolution(profile).stable

    def profile(self, stability: list[float], null: list[list[float]], communities: list[int]) -> xr.Dataset:
        return xr.Dataset(
            {
                "stability": ("resolution", stability),
                "stability_error": ("resolution", [0.05] * len(stability)),
                "communities": ("resolution", communities),
                "null_stability": (("draw", "resolution"), null),
            },
            coords={"resolution": [0.5, 1.0, 2.0, 4.0][: len(stability)]},
        )

    def test_the_coarsest_as_good_as_the_best_is_chosen(self) -> None:
        null = [[0.1, 0.2, 0.1, 0.1]] * 2
        choice = graphs.choose_resolution(self.profile([0.5, 0.78, 0.71, 0.6], null, [9, 10, 12, 30]))
        assert (choice.resolution, choice.stable) == (1.0, True)  # .58 is within .05 of .61, .5 − .1 is not
        assert choice.excess == pytest.approx(0.58)

    def test_too_few_communities_are_passed_over_unless_nothing_else_is_as_good(self) -> None:
        null = [[0.1, 0.2, 0.1, 0.1]] * 2
        choice = graphs.choose_resolution(self.profile([0.5, 0.78, 0.71, 0.6], null, [2, 4, 12, 30]))
        assert choice.resolution == 2.0
        choice = graphs.choose_resolution(self.profile([0.5, 0.9, 0.71, 0.6], null, [2, 4, 12, 30]))
        assert choice.resolution == 1.0

    def test_one_community_is_never_chosen(self) -> None:
        null = [[0.1, 0.2, 0.1, 0.1]] * 2
        choice = graphs.choose_resolution(self.profile([1.0, 0.3, 0.25, 0.2], null, [1, 8, 9, 10]))
        assert choice.resolution == 1.0
        assert not choice.stable
        nothing = graphs.choose_resolution(self.profile([1.0, 1.0], [[0.1, 0.1]], [1, 0]))
        assert np.isnan(nothing.resolution)
        assert not nothing.stable

    def test_the_spread_of_null_graphs_counts_as_error(self) -> None:
        wide = [[0.1, 0.2, 0.0, 0.1], [0.1, 0.2, 0.4, 0.1]]  # mean .2, standard error .2
        choice = graphs.choose_resolution(self.profile([0.5, 0.5, 0.9, 0.5], wide, [9, 9, 9, 9]))
        assert choice.resolution == 2.0  # .7 against .4, .3 and .4: out of reach of hypot(.05, .2)
        choice = graphs.choose_resolution(self.profile([0.6, 0.5, 0.9, 0.5], wide, [9, 9, 9, 9]))
        assert choice.resolution == 0.5


class TestNulls:
    def test_a_haar_basis_keeps_the_spectrum_and_loses_the_communities(self) -> None:
        x = planted_states(EIGHT[:64], 500, noise=0.5)
        graph = graphs.correlation_graph(x, density=1.0)
        null = graphs.null_graph(graph, 0)
        standard = (x - x.mean(0)) / x.std(0)
        turned = standard @ haar_frame(64, 64, torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
        np.testing.assert_allclose(dense(null), np.corrcoef(turned.T) - np.eye(64), atol=1e-9)
        same = EIGHT[:64][graph.edges[:, 0]] == EIGHT[:64][graph.edges[:, 1]]
        assert np.abs(graph.weights[same]).mean() > 5 * np.abs(graph.weights[~same]).mean()
        assert np.abs(null.weights[same]).mean() == pytest.approx(np.abs(null.weights[~same]).mean(), rel=0.2)

    def test_a_haar_basis_of_partial_correlations(self) -> None:
        x = planted_states(EIGHT[:40], 4000)
        graph = graphs.correlation_graph(x, kind="partial", density=1.0)
        standard = (x - x.mean(0)) / x.std(0)
        turned = standard @ haar_frame(40, 40, torch.Generator().manual_seed(3), dtype=torch.float64).numpy()
        direct = graphs.correlation_graph(turned, kind="partial", density=1.0)
        # standardising the turned states again moves their shrinkage a little
        np.testing.assert_allclose(dense(graphs.null_graph(graph, 3)), dense(direct), atol=0.02)

    def test_null_graphs_are_as_sparse_and_of_the_same_kind(self) -> None:
        graph = graphs.correlation_graph(planted_states(EIGHT[:60], 200), top_k=5, kind="absolute")
        null = graphs.null_graph(graph, 0)
        assert null.degree.min() == 5
        assert (null.weights > 0).all()
        assert null.kind == graph.kind

    def test_permuted_columns_keep_each_column_and_no_correlation(self) -> None:
        x = planted_states(np.zeros(30, dtype=np.int64), 4000, noise=0.1)
        null = graphs.permuted_columns(x, 0, density=1.0)
        assert np.abs(null.weights).max() < 6 / np.sqrt(4000)
        assert null.n_edges == 435

    def test_rewiring_keeps_degrees_and_weights_and_loses_communities(self) -> None:
        graph = planted_graph(np.arange(120) % 3, 0.4, 0.01)
        weights = np.random.default_rng(0).uniform(-1, 1, graph.n_edges)
        graph = graph.with_weights(weights)
        null = graphs.rewired(graph, 0)
        assert null.degree.tolist() == graph.degree.tolist()
        np.testing.assert_array_equal(np.sort(null.weights), np.sort(weights))
        labels = np.arange(120) % 3
        inside = [np.mean(labels[one.edges[:, 0]] == labels[one.edges[:, 1]]) for one in (graph, null)]
        assert inside[0] > 0.9
        assert inside[1] < 0.4
        assert graphs.null_graph(graph, 0).edges.tolist() == null.edges.tolist()  # it brings no null of its own
        assert graphs.rewired(graph, 1).edges.tolist() != null.edges.tolist()

    def test_planted_communities_pass_the_haar_basis_and_noise_does_not(self) -> None:
        for noise, passes in ((1.5, True), (1e6, False)):
            graph = graphs.correlation_graph(planted_states(EIGHT[:96], 400, noise=noise, seed=1), top_k=8)
            found = graphs.communities(graph, seeds=3, iterations=2)
            compared = graphs.compare_with_null(graph, found, draws=20)
            assert compared.above == passes
            assert (compared.p_value <= 0.05) == passes
            assert len(compared.null_quality) == len(compared.null_stability) == 20
            if passes:
                assert compared.stability > compared.null_stability.max()

    def test_a_p_value_counts_ties_against_the_claim(self) -> None:
        compared = graphs.NullComparison(0.5, np.array([0.1, 0.5, 0.2]), 1.0, np.zeros(3))
        assert compared.p_value == 0.5
        assert not graphs.NullComparison(0.2, np.linspace(0, 0.2, 20), 1.0, np.zeros(20)).p_value < 0.09

    def test_a_graph_without_edges_has_no_p_value(self) -> None:
        graph = graphs.from_matrix(torch.zeros(6, 6))
        compared = graphs.compare_with_null(graph, graphs.communities(graph), draws=5)
        assert np.isnan(compared.p_value)
        assert not compared.above

    def test_low_rank_structure_passes_permuted_columns_but_not_the_haar_basis(self) -> None:
        # Rank 6 in random directions: no coordinate means anything, yet far more than chance correlation.
        generator = np.random.default_rng(0)
        x = generator.standard_normal((500, 6)) @ generator.standard_normal((6, 80))
        x += generator.standard_normal(x.shape)
        graph = graphs.correlation_graph(x, top_k=8)
        found = graphs.communities(graph, seeds=3, iterations=2)
        assert graphs.compare_with_null(graph, found, draws=9).p_value > 0.1
        weak = [
            graphs.communities(graphs.permuted_columns(x, seed, top_k=8), seeds=3, iterations=2).quality
            for seed in range(9)
        ]
        assert found.quality > max(weak)

    def test_degree_deciles_keep_equal_degrees_together(self) -> None:
        graph = random_graph(200, 0.1)
        group = graphs.degree_deciles(graph)
        assert len(set(group)) >= 8  # a common degree may take up more than a tenth
        assert (group.min(), group.max()) == (0, 9)
        for degree in np.unique(graph.degree):
            assert len(set(group[graph.degree == degree])) == 1
        order = np.argsort(graph.degree, kind="stable")
        assert (np.diff(group[order]) >= 0).all()
        assert np.bincount(group).max() < 50

    def test_a_measure_that_follows_the_degree_has_no_power_within_its_deciles(self) -> None:
        graph = random_graph(200, 0.1)
        gain = graph.degree + 0.01 * np.random.default_rng(0).standard_normal(200)

        def rho(order: object) -> float:
            return float(np.corrcoef(graph.degree[order], gain)[0, 1])

        free = permutation_null(rho, 200, permutations=99)
        within = permutation_null(rho, 200, groups=graphs.degree_deciles(graph, 200), permutations=99)
        assert free.p_value == 0.01
        assert within.p_value > 0.9  # equal degrees: every permutation gives the same


@pytest.mark.study
def test_noise_passes_the_haar_basis_at_the_nominal_rate() -> None:
    p_values = []
    for repetition in range(200):
        x = np.random.default_rng(repetition).standard_normal((200, 48))
        graph = graphs.correlation_graph(x, top_k=6)
        found = graphs.communities(graph, seeds=3, iterations=2, seed=repetition)
        p_values.append(graphs.compare_with_null(graph, found, draws=19, seed=repetition).p_value)
    false = int((np.asarray(p_values) <= 0.05).sum())
    # Binomial(200, .05): 3 … 18 with probability .998
    assert 3 <= false <= 18
    assert np.mean(p_values) == pytest.approx(0.525, abs=0.07)
