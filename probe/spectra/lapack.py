"""Dense factorisations of many matrices at once: eigenvalues, Schur forms, singular values, on all cores.

A batch is cut into matrices, and each matrix is factorised by one thread with single-threaded BLAS: LAPACK on a matrix
of a few hundred rows gains little from threads of its own. NumPy's LAPACK calls release the interpreter's lock, so
threads are enough. `scipy.linalg.schur` does not release it; `schur` therefore calls SciPy's ``dgees`` by its address
(the capsules of `scipy.linalg.cython_lapack`), which does: no processes, no copies, nothing to clean up after an
interrupt. It also skips the Schur vectors where they are not needed, and returns the eigenvalues with the form.

Milliseconds of one thread for a matrix, d = 576, float64 (AMD EPYC, NumPy 2.4, SciPy 1.17, torch 2.13), for an identity
with a decaying update and for a Gaussian matrix:

========================================  ========  ========
                                          Jacobian  Gaussian
========================================  ========  ========
`eigvalsh`                                      14        15
`qr`                                            18        17
`svdvals`                                       33        30
`svd`                                           71        74
`eigvals`                                      122       171
`schur` without vectors, with eigenvalues      128       174
`schur`                                        145       207
`eig`                                          172       228
========================================  ========  ========

torch's own calls are as quick for `eigvals` and `eig` and slower by a fifth (`svd`, `svdvals`) to a half (`eigvalsh`),
so on the CPU all work is NumPy's and SciPy's. `device_policy` decides when a GPU is used instead.

Everything is computed in float64 (complex128 for complex input) and comes back on the device of the input. Nothing is
differentiable.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact
from scipy.linalg import cython_lapack
from threadpoolctl import ThreadpoolController
from torch import Tensor

from probe import machine
from probe.errors import InputError

__all__ = ["SchurForm", "device_policy", "eig", "eigvals", "eigvalsh", "qr", "schur", "svd", "svdvals"]

Operation: TypeAlias = Literal["eigvals", "eig", "schur", "svdvals", "svd", "eigvalsh", "qr"]
Array: TypeAlias = Inexact[np.ndarray, "..."]
Arrays: TypeAlias = tuple[Array, ...]

_LOG = logging.getLogger(__name__)
# The width from which a GPU is used. cuSOLVER's eigenvalues of a general matrix take 2 s at d = 4096 against 21 s on 32
# cores, but lose to the CPU by an order of magnitude on small matrices; Schur forms exist on the CPU only.
_GPU_FROM: dict[Operation, int] = {
    "eigvals": 2048,
    "eig": 2048,
    "svdvals": 1024,
    "svd": 1024,
    "eigvalsh": 512,
    "qr": 512,
}
# Before this version torch sent general eigenvalue problems on the GPU back to the CPU.
_GPU_EIG_SINCE = (2, 10)
# d³ of the work that is worth a task for another thread: about a millisecond.
_TASK = 2e6
# The width from which one matrix gets several BLAS threads. Below it they gain little, and where other programs use the
# cores they wait for each other: ten times as long was seen.
_THREADS_FROM = 1024
# Held by one caller at a time: the number of BLAS threads belongs to the whole process.
_ONE_BLAS_THREAD = threading.Lock()
_BLAS = ThreadpoolController().select(user_api="blas")


class SchurForm(NamedTuple):
    """Real Schur forms A = Q T Qᵀ, standardised as LAPACK does.

    T is zero below its first subdiagonal; each 2 × 2 block on its diagonal is ``[[a, b], [c, a]]`` with ``bc < 0`` and
    holds the pair ``a ± i sqrt(−bc)``.

    Attributes:
        T: Quasi-triangular matrices, (..., d, d).
        Q: Orthogonal matrices, (..., d, d); None if not asked for.
        eigenvalues: The eigenvalues in the order of T's diagonal, complex, (..., d).
    """

    T: Float[Tensor, "*batch d d"]
    Q: Float[Tensor, "*batch d d"] | None
    eigenvalues: Complex[Tensor, "*batch d"]


def eigvals(
    A: Float[Tensor, "*batch d d"], *, workers: int | None = None, device: str | torch.device | None = None
) -> Complex[Tensor, "*batch d"]:
    """Compute the eigenvalues of general matrices, in no particular order.

    Args:
        A: Finite matrices, (..., d, d).
        workers: Threads on the CPU; `torch.get_num_threads()` if None.
        device: Where to compute; `device_policy` decides if None.

    Returns:
        Eigenvalues, complex128, (..., d).
    """
    return _factorised("eigvals", A, workers, device)[0]


def eig(
    A: Float[Tensor, "*batch d d"], *, workers: int | None = None, device: str | torch.device | None = None
) -> tuple[Complex[Tensor, "*batch d"], Complex[Tensor, "*batch d d"]]:
    """Compute eigenvalues and right eigenvectors of general matrices.

    Args:
        A: Finite matrices, (..., d, d).
        workers: Threads on the CPU; `torch.get_num_threads()` if None.
        device: Where to compute; `device_policy` decides if None.

    Returns:
        Eigenvalues, complex128, (..., d), and eigenvectors in columns of length 1, (..., d, d).
    """
    values, vectors = _factorised("eig", A, workers, device)
    return values, vectors


def schur(A: Float[Tensor, "*batch d d"], *, vectors: bool = True, workers: int | None = None) -> SchurForm:
    """Compute real Schur forms by LAPACK's ``dgees``, always on the CPU.

    Without vectors it costs a few per cent more than the eigenvalues alone, and the strictly upper part of T measures
    the departure from normality.

    Args:
        A: Finite matrices, (..., d, d).
        vectors: Compute Q as well: a fifth more time.
        workers: Threads; `torch.get_num_threads()` if None.

    Returns:
        The standardised form.
    """
    found = _factorised("schur" if vectors else "schur_form", A, workers, "cpu")
    return SchurForm(found[0], found[2] if vectors else None, found[1])


def svdvals(
    A: Inexact[Tensor, "*batch m n"], *, workers: int | None = None, device: str | torch.device | None = None
) -> Float[Tensor, "*batch k"]:
    """Compute singular values, decreasing.

    Args:
        A: Finite matrices, real or complex, (..., m, n).
        workers: Threads on the CPU; `torch.get_num_threads()` if None.
        device: Where to compute; `device_policy` decides if None.

    Returns:
        The min(m, n) singular values, float64, (..., min(m, n)).
    """
    return _factorised("svdvals", A, workers, device)[0]


def svd(
    A: Inexact[Tensor, "*batch m n"], *, workers: int | None = None, device: str | torch.device | None = None
) -> tuple[Inexact[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Inexact[Tensor, "*batch k n"]]:
    """Compute the thin singular value decomposition ``A = U diag(σ) Vᴴ``.

    Args:
        A: Finite matrices, real or complex, (..., m, n).
        workers: Threads on the CPU; `torch.get_num_threads()` if None.
        device: Where to compute; `device_policy` decides if None.

    Returns:
        U (..., m, k), the decreasing singular values (..., k) and Vᴴ (..., k, n), with k = min(m, n). Signs are
        arbitrary, and so are vectors whose singular values coincide.
    """
    left, values, right = _factorised("svd", A, workers, device)
    return left, values, right


def eigvalsh(
    A: Inexact[Tensor, "*batch d d"], *, workers: int | None = None, device: str | torch.device | None = None
) -> Float[Tensor, "*batch d"]:
    """Compute the eigenvalues of symmetric (Hermitian) matrices, increasing; only the lower triangles are read.

    Args:
        A: Finite symmetric matrices, (..., d, d).
        workers: Threads on the CPU; `torch.get_num_threads()` if None.
        device: Where to compute; `device_policy` decides if None.

    Returns:
        Eigenvalues, float64, (..., d).
    """
    return _factorised("eigvalsh", A, workers, device)[0]


def qr(
    A: Float[Tensor, "*batch m n"], *, workers: int | None = None, device: str | torch.device | None = None
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k n"]]:
    """Compute the thin QR factorisation by Householder reflections.

    Args:
        A: Finite matrices, (..., m, n).
        workers: Threads on the CPU; `torch.get_num_threads()` if None.
        device: Where to compute; `device_policy` decides if None.

    Returns:
        Q with orthonormal columns, (..., m, k), and upper triangular R, (..., k, n), with k = min(m, n).
    """
    basis, triangle = _factorised("qr", A, workers, device)
    return basis, triangle


def device_policy(operation: Operation, d: int, device: str | torch.device | None = None) -> torch.device:
    """Choose the device of a factorisation: the CPU's threads for small matrices, a GPU from a width on.

    A CUDA device, where there is one, is used from d = 512 (`eigvalsh`, `qr`), 1024 (`svdvals`, `svd`) or 2048 on
    (`eigvals`, `eig`, from torch 2.10 on); Schur forms are computed on the CPU. The widths are cautious guesses from
    published times, for a GPU with fast float64. Each decision is logged at level DEBUG.

    Args:
        operation: The name of the function of this module.
        d: Width of the matrices (the smaller side).
        device: Device to use instead.

    Returns:
        The device.

    Raises:
        InputError: If a Schur form is asked for on a device other than the CPU.
    """
    wanted = None if device is None else torch.device(device)
    if operation == "schur" and wanted is not None and wanted.type != "cpu":
        raise InputError(f"Schur forms are computed on the CPU, not on {wanted}: leave device= out")
    if wanted is None:
        pays = torch.cuda.is_available() and d >= _GPU_FROM.get(operation, d + 1)
        if operation in {"eigvals", "eig"}:
            pays = pays and tuple(int(part) for part in torch.__version__.split(".")[:2]) >= _GPU_EIG_SINCE
        wanted = torch.device("cuda" if pays else "cpu")
    _LOG.debug("%s of width %d: on %s", operation, d, wanted)
    return wanted


def _factorised(
    operation: str, A: Inexact[Tensor, "*batch m n"], workers: int | None, device: str | torch.device | None
) -> tuple[Tensor, ...]:
    """Check the matrices, send them where the policy says, and bring the factors back in the input's shape."""
    square = operation not in {"svdvals", "svd", "qr"}
    if square and A.shape[-1] != A.shape[-2]:
        raise InputError(f"the matrices must be square, got shape {tuple(A.shape)}: pass (..., d, d)")
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}: leave workers= out for one per core")
    A = A.detach().to(torch.complex128 if A.is_complex() else torch.float64)
    if not bool(A.isfinite().all()):
        bad = int((~A.isfinite()).flatten(-2).any(-1).sum())
        raise InputError(f"the matrices must be finite, got {bad} with an infinity or NaN: leave those out")
    known: Operation = "schur" if operation == "schur_form" else operation  # type: ignore[assignment]
    where = device_policy(known, min(A.shape[-2:]), device)
    if where == torch.device("cuda") and A.is_cuda:
        where = A.device  # the GPU that holds them, not the first one
    flat = A.reshape(-1, *A.shape[-2:])
    if where.type == "cpu":
        factors = [torch.from_numpy(part) for part in _on_cpu(_CPU[operation], flat.cpu().numpy(), workers)]
    else:
        factors = list(_TORCH[operation](flat.to(where)))
    return tuple(part.reshape(*A.shape[:-2], *part.shape[1:]).to(A.device) for part in factors)


def _on_cpu(routine: Callable[[Array], Arrays], A: Array, workers: int | None) -> Arrays:
    """Run the routine on slices of the batch in threads, one BLAS thread each; in this thread if the work is small."""
    workers = workers or min(torch.get_num_threads(), machine.cores())
    size = max(1, round(_TASK / max(1, A.shape[-1]) ** 3))  # matrices a task
    slices = [A[start : start + size] for start in range(0, len(A), size)]
    if workers == 1 or len(slices) < 2:
        with _single_threaded_blas() if A.shape[-1] < _THREADS_FROM else nullcontext():
            return routine(A)
    with _single_threaded_blas():
        pool = ThreadPoolExecutor(min(workers, len(slices)), thread_name_prefix="probe-lapack")
        try:
            done = list(pool.map(routine, slices))
        finally:
            pool.shutdown(cancel_futures=True)  # after an interrupt, only the matrices at work are finished
    return tuple(np.concatenate(parts) for parts in zip(*done, strict=True))


@contextmanager
def _single_threaded_blas() -> Iterator[None]:
    """Limit a BLAS call to one thread while the workers run; torch, which has its own BLAS, is not affected."""
    with _ONE_BLAS_THREAD, _BLAS.limit(limits=1):
        yield


def _capsule(name: str, arguments: int) -> Callable[..., None]:
    """A LAPACK routine of SciPy's by its address, which does not hold the interpreter's lock when called."""
    capsule = vars(cython_lapack)["__pyx_capi__"][name]
    signature = ctypes.pythonapi.PyCapsule_GetName
    signature.restype, signature.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(pointer(capsule, signature(capsule)))


_DGEES = _capsule("dgees", 15)


def _dgees(A: Array, *, vectors: bool) -> Arrays:
    """T, the eigenvalues and, with vectors, Q of each matrix.

    LAPACK stores columns one after another, so that it reads and writes the transposes of NumPy's arrays.

    Args:
        A: Matrices, (m, d, d).
        vectors: Compute Q.

    Returns:
        T (m, d, d), the eigenvalues (m, d) and, with vectors, Q (m, d, d).

    Raises:
        LinAlgError: If the iteration did not converge.
    """
    m, d, _ = A.shape
    T = A.transpose(0, 2, 1).copy()
    Q = np.empty((m, d, d) if vectors else (m, 1, 1))
    real, imaginary = np.empty((2, m, d))
    unused = np.empty(d, dtype=np.int32)  # which eigenvalues were sorted to the front: none
    width, found, status = ctypes.c_int(d), ctypes.c_int(0), ctypes.c_int(0)
    n, ldq = ctypes.byref(width), ctypes.byref(ctypes.c_int(Q.shape[-1]))

    def run(i: int, work: Array, size: int) -> None:
        wanted = b"V" if vectors else b"N"
        outputs = (real[i].ctypes.data, imaginary[i].ctypes.data, Q[i].ctypes.data)
        length = ctypes.byref(ctypes.c_int(size))
        form = (b"N", None, n, T[i].ctypes.data, n, ctypes.byref(found))
        _DGEES(wanted, *form, *outputs, ldq, work.ctypes.data, length, unused.ctypes.data, ctypes.byref(status))

    work = np.empty(1)
    for i in range(m):
        if i == 0:
            run(0, work, -1)  # asks for the best size of the workspace
            work = np.empty(int(work[0]))
        run(i, work, len(work))
        if status.value != 0:
            raise np.linalg.LinAlgError(f"dgees did not converge: status {status.value}")
    T = T.transpose(0, 2, 1)
    return (T, real + 1j * imaginary, Q.transpose(0, 2, 1)) if vectors else (T, real + 1j * imaginary)


def _complex(*parts: Array) -> Arrays:
    """NumPy drops imaginary parts that are all zero."""
    return tuple(part.astype(np.complex128, copy=False) for part in parts)


_CPU: dict[str, Callable[[Array], Arrays]] = {
    "eigvals": lambda A: _complex(np.linalg.eigvals(A)),
    "eig": lambda A: _complex(*np.linalg.eig(A)),
    "schur": lambda A: _dgees(A, vectors=True),
    "schur_form": lambda A: _dgees(A, vectors=False),
    "svdvals": lambda A: (np.linalg.svd(A, compute_uv=False),),
    "svd": lambda A: tuple(np.linalg.svd(A, full_matrices=False)),
    "eigvalsh": lambda A: (np.linalg.eigvalsh(A),),
    "qr": lambda A: tuple(np.linalg.qr(A)),
}
_TORCH: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "eigvals": lambda A: (torch.linalg.eigvals(A),),
    "eig": lambda A: tuple(torch.linalg.eig(A)),
    "svdvals": lambda A: (torch.linalg.svdvals(A),),
    "svd": lambda A: tuple(torch.linalg.svd(A, full_matrices=False)),
    "eigvalsh": lambda A: (torch.linalg.eigvalsh(A),),
    "qr": lambda A: tuple(torch.linalg.qr(A)),
}
