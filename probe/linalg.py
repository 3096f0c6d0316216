"""LAPACK work on a batch of small matrices, on all cores.

One matrix of a few hundred rows is too small for a threaded LAPACK call, which then mostly waits; a batch of them is
worked off by one thread a core, each with a single BLAS thread. numpy's calls release the interpreter lock.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import ThreadpoolController
from torch import Tensor


def eigh(matrices: Float[Tensor, "batch n n"]) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n n"]]:
    """Eigenvalues and eigenvectors of symmetric matrices, A = V diag(λ) Vᵀ (LAPACK's divide and conquer).

    Args:
        matrices: the batch; on a GPU torch's own batched routine is used.

    Returns:
        Eigenvalues in ascending order, and eigenvectors as columns, of the matrices' dtype and device.
    """
    workers = min(torch.get_num_threads(), len(matrices))
    if matrices.device.type != "cpu" or workers < 1:
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    parts = np.array_split(matrices.numpy(), workers)
    with _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(np.linalg.eigh, parts))
    values, vectors = (torch.from_numpy(np.concatenate(halves)) for halves in zip(*found, strict=True))
    return values, vectors


@cache
def _blas() -> ThreadpoolController:
    """The process's BLAS libraries; finding them takes milliseconds."""
    return ThreadpoolController()
