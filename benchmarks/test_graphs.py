"""Communities of the sparse graph against networkx on the same graph and against Leiden on the dense one.

Every row is a fresh process, so that its peak memory is its own: what it needs beyond the states. One run of each
algorithm, from states to labels, on planted communities that all of them find. Blocked correlation is held against
`numpy.corrcoef` in the same way, betweenness against networkx in one process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import networkx as nx
import numpy as np

from probe.graphs import correlation_graph, node_topology
from tests.plant.graphs import planted_states

COMMON = """
import json, sys, time
import igraph, leidenalg, networkx as nx, numpy as np, sklearn.metrics, torch
from benchmarks import peak
from probe.graphs import Algorithm, ami, correlation_graph
from tests.plant.graphs import planted_states
torch.set_num_threads(2)
d, tokens = int(sys.argv[1]), int(sys.argv[2])
truth = np.arange(d) % 16
x = np.empty((tokens, d), dtype=np.float32)
for start in range(0, tokens, 128):  # in pieces: a peak of its own would hide the one to measure
    part = x[start : start + 128]
    part[:] = planted_states(truth, len(part), noise=3.0, seed=start)
correlation_graph(x[:500, :64])
before, start = peak.begin(), time.perf_counter()
"""
BUILT = """
built = time.perf_counter() - start
"""
DONE = """
answer = {"build": built, "seconds": time.perf_counter() - start - built, "mb": peak.resident("VmHWM") - before}
print(json.dumps(answer | {"ami": ami(np.asarray(labels), truth)}))
"""
LEIDEN = "labels = Algorithm().run(graph, 1.0, 0)"
SPARSE = "graph = correlation_graph(x)" + BUILT + LEIDEN
DENSE = "graph = correlation_graph(x, density=1.0)" + BUILT + LEIDEN
NETWORKX = f"""
graph = correlation_graph(x, kind="absolute")
{BUILT}
labels = np.empty(d, dtype=np.int64)
for c, members in enumerate(nx.community.louvain_communities(graph.to_networkx(), seed=0)):
    labels[list(members)] = c
"""
BLOCKED = "correlation_graph(x); labels = truth" + BUILT
NUMPY = f"""
r = np.corrcoef(x, rowvar=False)
np.fill_diagonal(r, 0)
near = np.argpartition(-np.abs(r), 30, axis=1)[:, :30]
labels = truth
{BUILT}
"""


def fresh(body: str, d: int, tokens: int) -> dict[str, float]:
    run = [sys.executable, "-c", COMMON + body + DONE, str(d), str(tokens)]
    answer: dict[str, float] = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    return answer


def table(rows: list[tuple[str, str, int, int]]) -> dict[tuple[str, int], dict[str, float]]:
    """Runs the rows (name, body, d, tokens) and prints each against the first of its width."""
    heads = f"{'graph s':>9}{'communities s':>15}{'MB':>7}{'AMI':>6}{'x graph':>9}{'x communities':>15}{'x MB':>7}"
    print(f"\n{'':30}{'d':>6}{'tokens':>8}{heads}")
    found: dict[tuple[str, int], dict[str, float]] = {}
    first: dict[int, dict[str, float]] = {}
    for name, body, d, tokens in rows:
        answer = found[name, d] = fresh(body, d, tokens)
        base = first.setdefault(d, answer)
        build, seconds, mb = (answer[key] / max(base[key], 1e-3) for key in ("build", "seconds", "mb"))
        numbers = f"{answer['build']:9.2f}{answer['seconds']:15.2f}{answer['mb']:7.0f}{answer['ami']:6.2f}"
        print(f"{name:30}{d:6}{tokens:8}{numbers}{build:9.1f}{seconds:15.1f}{mb:7.1f}")
    return found


def test_communities_by_width() -> None:
    names = {"probe, 30 neighbours": SPARSE, "networkx Louvain, same graph": NETWORKX, "Leiden, dense": DENSE}
    widths = {"probe, 30 neighbours": (576, 1024, 2048, 4096), "networkx Louvain, same graph": (576, 1024, 2048, 4096)}
    rows = [
        (name, body, d, 2 * d)
        for d in (576, 1024, 2048, 4096)
        for name, body in names.items()
        if d in widths.get(name, (576, 1024))
    ]
    found = table(rows)
    assert all(found["probe, 30 neighbours", d]["ami"] > 0.99 for d in (576, 1024, 2048, 4096))


def test_correlation_in_blocks() -> None:
    rows = [
        (name, body, d, 1000) for d in (2048, 8192) for name, body in (("probe", BLOCKED), ("numpy.corrcoef", NUMPY))
    ]
    found = table(rows)
    assert found["probe", 8192]["mb"] < found["numpy.corrcoef", 8192]["mb"] / 2


def test_topology_against_networkx() -> None:
    labels = np.arange(300) % 10
    graph = correlation_graph(planted_states(labels, 600, noise=3.0))
    there = graph.to_networkx()
    for _, _, data in there.edges(data=True):
        data["length"] = 1 / abs(data["weight"])
    start = time.perf_counter()
    nodes = node_topology(graph, labels)
    middle = time.perf_counter()
    expected = nx.betweenness_centrality(there, weight="length")
    end = time.perf_counter()
    print(f"\n{'':34}{'d':>6}{'seconds':>9}{'x probe':>9}")
    print(f"{'probe.graphs.node_topology, all':34}{300:6}{middle - start:9.2f}{1.0:9.1f}")
    print(f"{'networkx, betweenness alone':34}{300:6}{end - middle:9.2f}{(end - middle) / (middle - start):9.1f}")
    np.testing.assert_allclose(nodes["betweenness"], [expected[i] for i in range(300)], atol=1e-9)
