"""The linear fit against scikit-learn's Ridge, and batched local fits against one SVD after another.

Every linear fit is a fresh process, so that its peak memory is its own: what it needs beyond the data. The local fits
run on the same queries in one process. What is compared has to agree: coefficients, predictions. The clock is the CPU
time of one thread, so that other programs on the machine count for less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import torch
from torch import Tensor

from probe.geometry import relative_error
from probe.maps import LocalMap
from probe.maps.local import STRENGTHS

WIDTH = 576
TOKENS = (5_000, 20_000, 80_000)
QUERIES, BANK, NEIGHBOURS, RANK = 2_000, 20_000, 256, 64
LINEAR = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from sklearn.linear_model import Ridge
from probe.maps import LinearMap
who, tokens, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
generator = torch.Generator().manual_seed(0)
dtype = torch.float64 if who.endswith("64") else torch.float32
x, y = (torch.empty(tokens, width, dtype=dtype) for _ in range(2))
for block in (*x.split(1000), *y.split(1000)):
    block.copy_(torch.randn(block.shape, generator=generator))
def fit(x, y):
    if who.startswith("probe"):
        return LinearMap(ridge=0.01).fit(x, y)
    return Ridge(alpha=0.01 * len(x)).fit(x.numpy(), y.numpy())
fit(x[:700], y[:700])  # loads what is loaded once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
fitted = fit(x, y)
seconds = time.process_time() - start
megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
weight = fitted.weight_ if who.startswith("probe") else fitted.coef_
print(json.dumps([seconds, megabytes, float((weight**2).sum() ** 0.5)]))
"""
FITS = {"probe": "probe.maps.LinearMap", "ridge32": "Ridge, float32", "ridge64": "Ridge, float64"}


def states(n: int, seed: int) -> Tensor:
    """Correlated coordinates with a few outliers, like a residual stream's."""
    generator = torch.Generator().manual_seed(seed)
    mix = (
        torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99)) * torch.logspace(0.5, -1, WIDTH)[:, None]
    )
    x = torch.randn(n, WIDTH, generator=generator) @ mix
    x[:, :3] *= 30
    return x


def updates(x: Tensor) -> Tensor:
    mix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(98)) / WIDTH
    return torch.tanh(x @ mix)


def linear(who: str, tokens: int) -> tuple[float, float, float]:
    """Seconds, MiB and the norm of the coefficients."""
    command = [sys.executable, "-c", LINEAR, who, str(tokens), str(WIDTH)]
    # what is freed goes back at once, so that the peak is what is held and not how the heap has broken up
    settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | settings)
    seconds, megabytes, norm = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes, norm


def test_a_linear_fit_needs_no_more_memory_as_tokens_grow() -> None:
    print(f"\n{'':22}{'tokens':>8}{'seconds':>9}{'x probe':>9}{'MiB more':>10}{'x probe':>9}")
    memory: dict[tuple[str, int], float] = {}
    for tokens in TOKENS:
        results = {who: linear(who, tokens) for who in FITS}
        for who, (seconds, megabytes, norm) in results.items():
            memory[who, tokens] = megabytes
            times, mega = seconds / results["probe"][0], megabytes / max(results["probe"][1], 1)
            assert abs(norm / results["probe"][2] - 1) < 1e-3
            print(f"{FITS[who]:22}{tokens:8}{seconds:9.2f}{times:9.2f}{megabytes:10.0f}{mega:9.2f}")
    most, least = memory["probe", TOKENS[-1]], memory["probe", TOKENS[0]]
    assert most < 1.1 * least
    assert most < memory["ridge64", TOKENS[-1]]


def naive(bank: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    """The definition, query by query: distances, one SVD of the neighbours, ridge by leave-one-out."""
    scale = bank.std(0)
    predictions = []
    for query in queries:
        near = ((bank - query) / scale).norm(dim=1).topk(NEIGHBOURS, largest=False).indices
        x, y = bank[near], targets[near]
        mean_x, mean_y = x.mean(0), y.mean(0)
        left, singular, right = torch.linalg.svd(x - mean_x, full_matrices=False)
        left, squares = left[:, :RANK], singular[:RANK].square()
        along = left.T @ (y - mean_y)
        best, chosen = float("inf"), None
        for strength in STRENGTHS:
            shrunk = squares / (squares + strength * squares.mean())
            leverage = 1 / NEIGHBOURS + (left.square() * shrunk).sum(1)
            error = ((y - mean_y - (left * shrunk) @ along) / (1 - leverage)[:, None]).square().sum().item()
            if error < best:
                best, chosen = error, shrunk
        assert chosen is not None
        scores = right[:RANK] @ (query - mean_x) / singular[:RANK] * chosen
        predictions.append(mean_y + scores @ along)
    return torch.stack(predictions)


def test_local_fits_in_batches_against_a_loop() -> None:
    torch.set_num_threads(1)
    bank = states(BANK, 0)
    targets = updates(bank)
    queries = states(QUERIES, 1)
    fit = LocalMap(neighbours=NEIGHBOURS, rank=RANK).fit(bank, targets)
    few = queries[:40]
    fit.predict(few)
    start = time.process_time()
    batched = fit.predict(few)
    middle = time.process_time()
    looped = naive(bank, targets, few)
    end = time.process_time()
    fit.predict(queries)
    whole = time.process_time() - end
    print(f"\n{'':26}{'queries':>8}{'seconds':>9}{'ms a query':>12}{'x probe':>9}")
    for name, count, seconds in (
        ("probe.maps.LocalMap", len(few), middle - start),
        ("loop over queries", len(few), end - middle),
        ("probe.maps.LocalMap", QUERIES, whole),
    ):
        ratio = seconds / count * len(few) / (middle - start)
        print(f"{name:26}{count:8}{seconds:9.2f}{1000 * seconds / count:12.1f}{ratio:9.2f}")
    assert relative_error(looped, batched).median() < 1e-3
    assert end - middle > middle - start
