"""Factorisations of a batch on all cores against one thread and against SciPy; a pseudospectrum against an SVD a point.

Every pair runs on the same matrices in one process, one after the other, and the results have to agree. Times are the
best of three; on a shared machine the ratio of cores is a lower bound.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.linalg
import threadpoolctl
import torch
from torch import Tensor

from probe import spectra
from probe.spectra import lapack

WIDTH, MATRICES, ROUNDS = 576, 12, 3
OPERATIONS: dict[str, Callable[..., Any]] = {
    "eigvals": lapack.eigvals,
    "schur, no vectors": lambda A, **workers: lapack.schur(A, vectors=False, **workers).eigenvalues,
    "schur": lambda A, **workers: lapack.schur(A, **workers).T,
    "eig": lambda A, **workers: lapack.eig(A, **workers)[0],
    "svdvals": lapack.svdvals,
    "svd": lambda A, **workers: lapack.svd(A, **workers)[1],
    "eigvalsh": lambda A, **workers: lapack.eigvalsh(A + A.mT, **workers),
    "qr": lambda A, **workers: lapack.qr(A, **workers)[1],
}


def jacobians(n: int, d: int) -> Tensor:
    """Like a block's: the identity and an update with a falling spectrum."""
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(n, d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.eye(d, dtype=torch.float64) + update * torch.logspace(0, -1.5, d, dtype=torch.float64)


def best(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the quickest of three calls, and what it returns."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        found = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), found


def test_a_batch_is_factorised_on_all_cores() -> None:
    A = jacobians(MATRICES, WIDTH)
    workers = len(os.sched_getaffinity(0))
    print(f"\nd = {WIDTH}, {MATRICES} matrices, {workers} workers")
    print(f"{'':20}{'ms, one thread':>16}{f'ms, {workers} workers':>16}{'ratio':>8}")
    for name, function in OPERATIONS.items():
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            one, expected = best(lambda function=function: function(A, workers=1))
        many, found = best(lambda function=function: function(A, workers=workers))
        print(f"{name:20}{1e3 * one / MATRICES:16.0f}{1e3 * many / MATRICES:16.0f}{one / many:8.2f}")
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_schur_forms_without_the_lock() -> None:
    """What `scipy.linalg.schur` takes, one after another and in threads, against `lapack.schur`."""
    A = jacobians(MATRICES, WIDTH)
    workers = len(os.sched_getaffinity(0))

    def in_threads() -> list[Any]:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(scipy.linalg.schur, A.numpy()))

    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        loop, expected = best(lambda: [scipy.linalg.schur(one) for one in A.numpy()])
        threads, _ = best(in_threads)
        eigenvalues, _ = best(lambda: np.linalg.eigvals(A.numpy()))
    ours, form = best(lambda: lapack.schur(A, workers=workers))
    short, _ = best(lambda: lapack.schur(A, vectors=False, workers=workers))
    print(f"\n{f'd = {WIDTH}, {MATRICES} matrices':40}{'ms a matrix':>12}{'ratio':>8}")
    rows = {
        "scipy.linalg.schur, a loop": loop,
        "scipy.linalg.schur in threads": threads,
        "lapack.schur": ours,
        "numpy.linalg.eigvals, a loop": eigenvalues,
        "lapack.schur without vectors": short,
    }
    for name, seconds in rows.items():
        print(f"{name:40}{1e3 * seconds / MATRICES:12.0f}{loop / seconds:8.2f}")
    for one, (T, _) in zip(form.T, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), T, atol=1e-8)


def test_a_pseudospectrum_from_one_schur_form() -> None:
    print(f"\n{'':12}{'points':>8}{'s, one form':>14}{'s, SVD a point':>16}{'ratio':>8}{'error':>10}")
    for d, timed in ((100, 512), (WIDTH, 24)):
        A = jacobians(1, d)[0]
        z = spectra.spectral_grid(A, resolution=32)
        start = time.perf_counter()
        found = spectra.pseudospectrum(A, z).sigma_min
        ours = time.perf_counter() - start
        points = z.flatten()[torch.linspace(0, z.numel() - 1, timed).long()]
        start = time.perf_counter()
        expected = torch.stack([torch.linalg.svdvals(point * torch.eye(d) - A)[-1] for point in points])
        dense = (time.perf_counter() - start) / timed * z.numel()
        same = spectra.pseudospectrum(A, points).sigma_min
        error = float(((same - expected) / expected).abs().max())
        print(f"d = {d:<8}{z.numel():8}{ours:14.2f}{dense:16.1f}{dense / ours:8.0f}{error:10.0e}")
        assert error < 1e-4
        assert found.shape == z.shape
