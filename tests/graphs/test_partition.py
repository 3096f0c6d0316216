"""Partitions: canonical labels, adjusted mutual information against scikit-learn, stability, consensus."""

from __future__ import annotations

import itertools

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Int
from scipy import sparse
from sklearn.metrics import adjusted_mutual_info_score

from probe import graphs
from probe.errors import InputError
from probe.graphs import partition

quick = settings(max_examples=100)


def partitions(n: int, most: int) -> st.SearchStrategy[Int[np.ndarray, " node"]]:
    return st.lists(st.integers(0, most), min_size=n, max_size=n).map(np.asarray)


def test_canonical_labels_go_by_size_then_by_smallest_member() -> None:
    assert graphs.canonical_labels(np.array([7, 3, 3, 9, 9, 9, 7])).tolist() == [1, 2, 2, 0, 0, 0, 1]
    assert graphs.canonical_labels(np.array([5, 2, 8])).tolist() == [0, 1, 2]


@quick
@given(partitions(12, 5), st.permutations(range(6)))
def test_canonical_labels_do_not_depend_on_names(labels: Int[np.ndarray, " node"], names: list[int]) -> None:
    canonical = graphs.canonical_labels(labels)
    assert graphs.canonical_labels(np.asarray(names)[labels]).tolist() == canonical.tolist()
    assert (np.diff(np.bincount(canonical)) <= 0).all()
    together = labels[:, None] == labels
    np.testing.assert_array_equal(canonical[:, None] == canonical, together)


@quick
@given(partitions(20, 6), partitions(20, 3))
def test_ami_is_scikit_learns(a: Int[np.ndarray, " node"], b: Int[np.ndarray, " node"]) -> None:
    trivial = max(len(set(a)), len(set(b))) == 1
    expected = 1.0 if trivial else adjusted_mutual_info_score(a, b)
    assert graphs.ami(a, b) == pytest.approx(expected, abs=1e-9)
    assert graphs.ami(a, b) == pytest.approx(graphs.ami(b, a), abs=1e-12)


@pytest.mark.parametrize("sizes", [(3, 40), (40, 300), (300, 300)])
def test_ami_of_many_communities_is_scikit_learns(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, most, 500) for most in sizes)
    assert graphs.ami(a, b) == pytest.approx(adjusted_mutual_info_score(a, b), abs=1e-9)


def test_ami_of_equal_and_of_trivial_partitions() -> None:
    alone, together = np.arange(9), np.zeros(9, dtype=np.int64)
    assert graphs.ami(alone, alone) == graphs.ami(together, together) == 1.0
    assert graphs.ami(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2])) == 1.0
    assert graphs.ami(alone, together) == 0.0


def test_ami_of_independent_partitions_has_mean_zero() -> None:
    generator = np.random.default_rng(0)
    values = [graphs.ami(generator.integers(0, 5, 60), generator.integers(0, 4, 60)) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20


def test_ami_wants_the_same_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    with pytest.raises(InputError, match=r"b= must have the shape \(node,\)"):
        graphs.ami(np.arange(3), np.arange(4))


def test_stability_is_the_mean_over_pairs_with_a_jackknife_error() -> None:
    runs = np.random.default_rng(0).integers(0, 3, (5, 30))
    runs[1] = runs[0]
    table = graphs.pairwise_ami(runs)
    np.testing.assert_array_equal(table, table.T)
    assert np.diag(table).tolist() == [1.0] * 5
    assert table[0, 1] == 1.0

    def mean(chosen: list[int]) -> float:
        return float(np.mean([table[i, j] for i, j in itertools.combinations(chosen, 2)]))

    found, error = graphs.stability(runs)
    assert found == pytest.approx(mean([0, 1, 2, 3, 4]), rel=1e-12)
    without = np.array([mean([j for j in range(5) if j != i]) for i in range(5)])
    assert error == pytest.approx(np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum()), rel=1e-12)


def test_stability_of_two_runs_is_refused() -> None:
    with pytest.raises(InputError, match="at least 3 runs"):
        graphs.stability(np.zeros((2, 4), dtype=np.int64))


# --- consensus --------------------------------------------------------------------------------------------------------


def test_the_consensus_of_equal_runs_is_the_run() -> None:
    run = np.array([1, 1, 0, 0, 0, 2])
    assert graphs.consensus(np.stack([run] * 4)).tolist() == graphs.canonical_labels(run).tolist()


def test_the_majority_decides() -> None:
    whole, split = np.zeros(10, dtype=np.int64), np.repeat([0, 1], 5)
    assert graphs.consensus(np.stack([whole] * 3 + [split] * 2)).max() == 0
    assert graphs.consensus(np.stack([whole] * 2 + [split] * 3)).tolist() == split.tolist()


def test_a_node_that_moves_about_goes_where_it_is_most() -> None:
    runs = np.tile(np.repeat([0, 1], 5), (5, 1))
    runs[:3, 0] = 1
    assert graphs.consensus(runs).tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0, 0]


def test_runs_that_agree_on_nothing_have_single_nodes() -> None:
    runs = np.random.default_rng(0).integers(0, 20, (10, 60))
    assert (np.bincount(graphs.consensus(runs)) == 1).mean() > 0.9


def test_names_of_communities_do_not_matter() -> None:
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(6), 10)
    runs = []
    for _ in range(7):
        run = generator.permutation(6)[truth]
        run[generator.integers(0, 60, 3)] = 0
        runs.append(run)
    assert graphs.ami(graphs.consensus(np.stack(runs)), truth) == 1.0


@pytest.mark.parametrize("repeats", [(1,) * 6, (1, 3, 1, 1), (2, 2, 1, 1)], ids=str)
def test_the_consensus_maximises_agreement_beyond_a_half(repeats: tuple[int, ...]) -> None:
    """Against all partitions of a few nodes, some of them together in all runs: ``Σ (D_ij [D_ij ≥ ½] − ½) δ_ij``."""
    n = sum(repeats)
    every = [np.asarray(labels) for labels in itertools.product(range(n), repeat=n) if labels[0] == 0]
    masks = np.stack([np.triu(labels[:, None] == labels, k=1) for labels in every])
    short = []
    for seed in range(20):
        runs = np.repeat(np.random.default_rng(seed).integers(0, 2, (9, len(repeats))), repeats, axis=1)
        share = (runs[:, :, None] == runs[:, None, :]).mean(0)
        value = np.where(share >= 0.5, share, 0) - 0.5
        found = graphs.consensus(runs)
        short.append((masks * value).sum((1, 2)).max() - value[np.triu(found[:, None] == found, k=1)].sum())
    assert min(short) > -1e-12
    assert sum(gap > 1e-12 for gap in short) <= 1  # Leiden is a heuristic


def test_pairs_that_are_often_together_are_found_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = np.random.default_rng(0).integers(0, 2, (5, 20))
    members = sparse.hstack([sparse.csr_array(np.eye(2)[run]) for run in runs]).tocsr()
    expected = np.triu((runs[:, :, None] == runs[:, None, :]).mean(0), k=1)
    expected[expected < 0.5] = 0
    for rows in (20, 7):
        monkeypatch.setattr(partition, "ROWS", rows)
        i, j, share = partition._often_together(members, 5)
        found = np.zeros((20, 20))
        np.add.at(found, (i, j), share)
        np.testing.assert_allclose(found, expected)
