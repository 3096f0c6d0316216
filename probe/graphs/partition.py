"""Partitions of nodes: canonical labels, similarity of two, stability and consensus of many."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.special import gammaln

from probe.boundary import filled, public
from probe.errors import InputError

Labels = Int[np.ndarray, " node"]
Partitions = Int[np.ndarray, "run node"]

# Runs of Leiden on the co-assignment graph, of which the best counts: where runs disagree, one can be stuck.
RESTARTS = 5
# Rows of the co-assignment matrix held at a time.
ROWS = 1024


@public
def canonical_labels(labels: Labels) -> Labels:
    """Label the communities of a partition by decreasing size, equal sizes by their smallest member.

    >>> canonical_labels(np.array([7, 3, 3]))
    array([1, 0, 0])

    Args:
        labels: The community of each node, any integers, (n,).

    Returns:
        Labels 0, 1, …, (n,): equal for equal partitions.
    """
    _, first, members, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(size), dtype=np.int64)
    rank[np.lexsort((first, -size))] = np.arange(len(size))
    return rank[members]


@public
def ami(a: Labels, b: Labels) -> float:
    """Compute the adjusted mutual information of two partitions, ``(I − E I) / ((H_a + H_b)/2 − E I)``.

    ``E I`` is the mean over permutations of the labels (Vinh, Epps & Bailey 2010, Journal of Machine Learning Research
    11, eq. 24a): 0 for independent partitions whatever their sizes, 1 for equal ones. This is scikit-learn's measure.
    The expectation depends on sizes only and is summed here over distinct sizes, of which there are at most ``√(2n)``:
    many small communities cost nothing.

    >>> ami(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))  # the names of communities do not count
    1.0

    Args:
        a: The community of each node, (n,).
        b: Another partition of the same nodes, (n,).

    Returns:
        At most 1; may fall below 0. Equal partitions have 1, trivial ones too.

    Raises:
        InputError: If the two do not label the same nodes.
    """
    if a.shape != b.shape or not len(a):
        raise InputError(
            f"two partitions must label the same nodes, got {len(a)} and {len(b)} labels: pass partitions of one graph"
        )
    n = len(a)
    a, b = canonical_labels(a), canonical_labels(b)
    if np.array_equal(a, b):
        return 1.0
    size_a, size_b = np.bincount(a), np.bincount(b)
    pair, joint = np.unique(a * len(size_b) + b, return_counts=True)
    expected_joint = size_a[pair // len(size_b)] * size_b[pair % len(size_b)] / n
    information = float((joint / n * np.log(joint / expected_joint)).sum())
    chance = _expected_information(size_a, size_b, n)
    ceiling = (_entropy(size_a, n) + _entropy(size_b, n)) / 2
    # All alone against nearly all alone: nothing is left to explain beyond chance.
    return (information - chance) / (ceiling - chance) if ceiling - chance > 1e-12 else 0.0


@public
def pairwise_ami(partitions: Partitions) -> Float[np.ndarray, "run run"]:
    """Compute the AMI of each two of several partitions of the same nodes.

    Args:
        partitions: One partition a row, (run, n).

    Returns:
        A symmetric matrix with unit diagonal, (run, run).
    """
    table = np.eye(len(partitions))
    for i, j in combinations(range(len(partitions)), 2):
        table[i, j] = table[j, i] = ami(partitions[i], partitions[j])
    return table


@public
def stability(partitions: Partitions) -> tuple[float, float]:
    """Average the pairwise AMI of several runs, with the standard error of the delete-one jackknife over runs.

    Args:
        partitions: One partition a row, at least three, (run, n).

    Returns:
        Mean and standard error.

    Raises:
        InputError: If there are fewer than three runs.
    """
    runs = len(partitions)
    if runs < 3:
        raise InputError(f"stability needs the partitions of at least 3 runs, got {runs}: use more seeds")
    table = pairwise_ami(partitions)
    np.fill_diagonal(table, 0.0)
    total = table.sum()
    without = (total - 2 * table.sum(axis=1)) / ((runs - 1) * (runs - 2))
    error = np.sqrt((runs - 1) / runs * np.square(without - without.mean()).sum())
    return float(total / (runs * (runs - 1))), float(error)


@public(partitions=filled)
def consensus(partitions: Partitions, seed: int = 0) -> Labels:
    """Find the partition that several runs agree on: their co-assignment graph, clustered again.

    ``D_ij`` is the share of runs that put i and j together, kept where it is at least a half, and the partition
    maximises ``Σ_{i<j} (D_ij − ½) δ_ij`` (CPM at ½, by Leiden): nodes share a community if most runs say so. Runs
    that agree on little yield many small communities and single nodes.

    Args:
        partitions: One partition a row, (run, n).
        seed: Seed of Leiden on the co-assignment graph.

    Returns:
        Canonical labels, (n,).

    Cost: nodes that are together in all runs are one node of the co-assignment graph, which is small where runs agree.

    Source: Lancichinetti & Fortunato, *Consensus clustering in complex networks*, Scientific Reports 2 (2012), with
    the graph's threshold τ = ½; one round, as CPM at ½ is already the majority's partition.
    """
    import igraph
    import leidenalg

    _, atom, size = np.unique(partitions, axis=1, return_inverse=True, return_counts=True)
    atom = atom.ravel()
    runs = [canonical_labels(run) for run in partitions]
    first = np.unique(atom, return_index=True)[1]
    members = sparse.hstack([
        sparse.csr_array((np.ones(len(size)), (np.arange(len(size)), run[first]))) for run in runs
    ]).tocsr()
    i, j, share = _often_together(members, len(runs))
    graph = igraph.Graph(n=len(size), edges=np.stack([i, j], axis=1))
    found = []
    for restart in range(RESTARTS):
        partition = leidenalg.CPMVertexPartition(
            graph,
            weights=(share * size[i] * size[j]).tolist(),
            node_sizes=size.tolist(),
            resolution_parameter=0.5,
        )
        optimiser = leidenalg.Optimiser()
        optimiser.set_rng_seed(seed + restart)
        optimiser.optimise_partition(partition, n_iterations=-1)
        found.append((partition.quality(), -restart, partition.membership))
    return canonical_labels(np.asarray(max(found)[-1])[atom])


def _often_together(
    members: sparse.csr_array, runs: int
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """Pairs i < j of rows that share a community in at least half of the runs, and the share, in blocks of rows."""
    found = []
    for start in range(0, members.shape[0], ROWS):
        together = (members[start : start + ROWS] @ members.T).tocoo()
        kept = (together.data >= 0.5 * runs) & (together.col > together.row + start)
        found.append((together.row[kept] + start, together.col[kept], together.data[kept] / runs))
    i, j, share = (np.concatenate(part) for part in zip(*found, strict=True))
    return i, j, share


def _entropy(size: Int[np.ndarray, " community"], n: int) -> float:
    share = size / n
    return float(-(share * np.log(share)).sum())


def _expected_information(a: Int[np.ndarray, " community"], b: Int[np.ndarray, " other"], n: int) -> float:
    """Mean mutual information of partitions with these sizes when labels are permuted: a sum over hypergeometrics."""
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    sizes_b, times_b = np.unique(b, return_counts=True)
    total = 0.0
    for x, times in zip(*np.unique(a, return_counts=True), strict=True):
        least = np.maximum(1, x + sizes_b - n)
        terms = np.maximum(np.minimum(x, sizes_b) - least + 1, 0)
        y, weight = np.repeat(sizes_b, terms), np.repeat(times_b, terms)
        joint = np.arange(terms.sum()) - np.repeat(np.cumsum(terms) - terms - least, terms)
        log_p = (
            log_factorial[x] + log_factorial[y] + log_factorial[n - x] + log_factorial[n - y] - log_factorial[n]
            - log_factorial[joint] - log_factorial[x - joint] - log_factorial[y - joint]
            - log_factorial[n - x - y + joint]
        )  # fmt: skip
        total += times * float((weight * joint / n * np.log(n * joint / (x * y)) * np.exp(log_p)).sum())
    return total
