"""Batched factorisations against SciPy, one matrix after another; threads, their limits and their end."""

from __future__ import annotations

import logging
import signal
import threading
import time

import numpy as np
import pytest
import scipy.linalg
import threadpoolctl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe import machine
from probe.errors import InputError
from probe.spectra import lapack
from tests.plant.matrices import F64, draw, ginibre, rotation, spectra_distance

BIG = 130  # a matrix that is worth a task of its own


def singular(values: Tensor) -> Tensor:
    return torch.diag_embed(values).to(values.dtype)


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


def workers_end() -> bool:
    """Whether all workers end; one that an interrupt met at its very start may still finish a matrix."""
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("probe-lapack")]
    for worker in workers:
        worker.join(timeout=60)
    return not any(worker.is_alive() for worker in workers)


# --- against SciPy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 9, BIG])
@pytest.mark.parametrize("workers", [1, 2])
def test_factors_are_scipys(d: int, workers: int) -> None:
    A = ginibre(2, 3, d).float()
    exact = A.double()
    values = lapack.eigvals(A, workers=workers)
    found, vectors = lapack.eig(A, workers=workers)
    form = lapack.schur(A, workers=workers)
    left, sizes, right = lapack.svd(A, workers=workers)
    symmetric = lapack.eigvalsh(A + A.mT, workers=workers)
    basis, triangle = lapack.qr(A, workers=workers)
    identity = torch.eye(d, dtype=F64).expand(2, 3, d, d)
    assert values.dtype == found.dtype == torch.complex128
    assert form.Q is not None
    torch.testing.assert_close(exact.to(vectors.dtype) @ vectors, vectors * found[..., None, :], atol=1e-11, rtol=0)
    torch.testing.assert_close(vectors.norm(dim=-2), torch.ones(2, 3, d, dtype=F64))
    torch.testing.assert_close(form.Q @ form.T @ form.Q.mT, exact, atol=1e-12, rtol=0)
    torch.testing.assert_close(form.Q @ form.Q.mT, identity, atol=1e-12, rtol=0)
    torch.testing.assert_close(left @ singular(sizes) @ right, exact, atol=1e-12, rtol=0)
    torch.testing.assert_close(sizes, lapack.svdvals(A, workers=workers))
    torch.testing.assert_close(basis @ triangle, exact, atol=1e-12, rtol=0)
    torch.testing.assert_close(triangle, triangle.triu(), atol=0, rtol=0)
    for i in range(2):
        for j in range(3):
            one = exact[i, j].numpy()
            expected = torch.from_numpy(scipy.linalg.eigvals(one)).to(torch.complex128)
            for spectrum in (values[i, j], found[i, j], form.eigenvalues[i, j]):
                assert spectra_distance(spectrum, expected) < 1e-10
            T, Q = scipy.linalg.schur(one)
            np.testing.assert_allclose(form.T[i, j].numpy(), T, atol=1e-9)
            np.testing.assert_allclose(form.Q[i, j].numpy(), Q, atol=1e-9)
            np.testing.assert_allclose(sizes[i, j].numpy(), scipy.linalg.svdvals(one), atol=1e-12)
            np.testing.assert_allclose(
                symmetric[i, j].numpy(), scipy.linalg.eigvalsh((A + A.mT)[i, j].double().numpy()), atol=1e-12
            )


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_schur_forms_are_standardised(seed: int, d: int) -> None:
    form = lapack.schur(ginibre(d, seed=seed))
    T, below = form.T, form.T.diagonal(-1)
    torch.testing.assert_close(T, T.triu(-1), atol=0, rtol=0)
    assert not ((below[:-1] != 0) & (below[1:] != 0)).any()  # blocks do not touch
    expected = T.diagonal().to(torch.complex128)
    for i in below.nonzero().flatten().tolist():
        assert T[i, i] == T[i + 1, i + 1]
        assert T[i, i + 1] * T[i + 1, i] < 0
        turn = (-T[i, i + 1] * T[i + 1, i]).sqrt()
        expected[i] += 1j * turn
        expected[i + 1] -= 1j * turn
    torch.testing.assert_close(form.eigenvalues, expected, atol=1e-13, rtol=1e-13)


def test_a_schur_form_without_vectors_is_the_same_form() -> None:
    A = ginibre(3, 20)
    whole, form = lapack.schur(A), lapack.schur(A, vectors=False)
    assert form.Q is None
    torch.testing.assert_close(form.T, whole.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(form.eigenvalues, whole.eigenvalues, atol=1e-12, rtol=0)


def test_the_input_is_left_as_it_was() -> None:
    A = ginibre(2, 6)
    before = A.clone()
    for factorise in (lapack.eigvals, lapack.eig, lapack.schur, lapack.svd, lapack.svdvals, lapack.qr, lapack.eigvalsh):
        factorise(A)
        factorise(A.mT)
    assert torch.equal(A, before)
    assert lapack.svdvals(A.clone().requires_grad_()).requires_grad is False


def test_rectangular_and_complex_matrices_where_they_make_sense() -> None:
    A = torch.complex(draw(3, 7, 4), draw(3, 7, 4, seed=1))
    left, sizes, right = lapack.svd(A)
    assert (left.shape, sizes.shape, right.shape) == ((3, 7, 4), (3, 4), (3, 4, 4))
    torch.testing.assert_close(left @ singular(sizes).to(A.dtype) @ right, A)
    torch.testing.assert_close(lapack.svdvals(A.mT), sizes)
    basis, triangle = lapack.qr(draw(3, 7, 4))
    assert (basis.shape, triangle.shape) == ((3, 7, 4), (3, 4, 4))
    hermitian = A.mH @ A
    torch.testing.assert_close(lapack.eigvalsh(hermitian).flip(-1), sizes.square())


def test_real_eigenvalues_are_complex_numbers_too() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0]))
    assert lapack.eigvals(A).dtype == torch.complex128
    assert all(part.dtype == torch.complex128 for part in lapack.eig(A))
    assert lapack.schur(A).eigenvalues.tolist() == [1, 2]


def test_an_empty_batch_has_empty_factors() -> None:
    A = torch.empty(0, 2, 5, 5)
    assert lapack.eigvals(A).shape == (0, 2, 5)
    assert lapack.schur(A).T.shape == (0, 2, 5, 5)
    assert [part.shape[0] for part in lapack.svd(A)] == [0, 0, 0]


@pytest.mark.guards(
    "matrices are finite",
    when="matrices and graphs are measured",
    says="the matrices must be finite, got … with an infinity or NaN: leave those out",
)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_matrices_must_be_finite(bad: float) -> None:
    A = ginibre(2, 3, 4)
    A[1, 0, 0, 0] = A[0, 0, 2, 1] = bad
    with pytest.raises(InputError, match="finite, got 2 with"):
        lapack.schur(A)


def test_workers_must_be_positive() -> None:
    with pytest.raises(InputError, match="at least 1, got 0"):
        lapack.eigvals(ginibre(3), workers=0)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_two_workers_work_at_the_same_time_with_one_blas_thread_each() -> None:
    together = threading.Barrier(2)
    seen: list[tuple[str, set[int]]] = []

    def routine(A):
        together.wait(timeout=60)  # breaks unless two are inside at once
        seen.append((threading.current_thread().name, blas_threads()))
        return (A.sum((-2, -1)),)

    A = np.arange(4 * BIG * BIG, dtype=float).reshape(4, BIG, BIG)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        (found,) = lapack._on_cpu(routine, A, workers=2)
        assert blas_threads() == {2}
    np.testing.assert_array_equal(found, A.sum((-2, -1)))
    assert len({name for name, _ in seen}) == 2
    assert all(name.startswith("probe-lapack") for name, _ in seen)
    assert all(threads == {1} for _, threads in seen)
    assert workers_end()


@pytest.mark.parametrize(("matrices", "d", "workers"), [(6, BIG, 1), (50, 3, 2), (1, BIG, 2)])
def test_small_work_and_one_worker_stay_in_the_calling_thread(matrices: int, d: int, workers: int) -> None:
    names: list[str] = []

    def routine(A):
        names.append(threading.current_thread().name)
        return (A,)

    lapack._on_cpu(routine, np.zeros((matrices, d, d)), workers=workers)
    assert names == [threading.current_thread().name]


def test_the_number_of_workers_is_torch_s_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    original = lapack.ThreadPoolExecutor

    def pool(workers: int, **kwargs):
        started.append(workers)
        return original(workers, **kwargs)

    monkeypatch.setattr(lapack, "ThreadPoolExecutor", pool)
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    A = ginibre(5, BIG)
    lapack.svdvals(A)
    lapack.svdvals(A, workers=2)
    lapack.svdvals(A[:2], workers=8)  # no more than there are tasks
    monkeypatch.setattr(machine, "cores", lambda: 1)
    lapack.svdvals(A)
    assert started == [3, 2, 2]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_workers_and_restores_the_limits() -> None:
    done: list[int] = []

    def routine(A):
        done.append(1)
        if len(done) == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.05)
        return (A,)

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with pytest.raises(KeyboardInterrupt):
            lapack._on_cpu(routine, np.zeros((100, BIG, BIG)), workers=2)
        assert blas_threads() == {2}
    assert len(done) < 100
    assert workers_end()
    assert lapack.eigvals(ginibre(4, BIG), workers=2).shape == (4, BIG)


def test_an_error_in_one_task_is_the_caller_s() -> None:
    def routine(A):
        raise np.linalg.LinAlgError("did not converge")

    with pytest.raises(np.linalg.LinAlgError, match="did not converge"):
        lapack._on_cpu(routine, np.zeros((4, BIG, BIG)), workers=2)
    assert workers_end()


def test_no_task_outlives_the_call() -> None:
    """The limit on BLAS threads ends with the call, and a task still at work would run without it."""
    slow, ended = threading.Event(), threading.Event()

    def routine(A):
        if A[0, 0, 0] == 0:
            slow.wait(10)
            raise np.linalg.LinAlgError("did not converge")
        slow.set()
        time.sleep(0.3)
        ended.set()
        return (A,)

    A = np.ones((2, BIG, BIG))
    A[0] = 0
    with pytest.raises(np.linalg.LinAlgError):
        lapack._on_cpu(routine, A, workers=2)
    assert ended.is_set()


def test_one_caller_at_a_time_limits_the_blas() -> None:
    """The limit belongs to the process: a caller that came in meanwhile would lose it when the first one leaves."""
    entered = threading.Event()

    def second() -> None:
        with lapack._single_threaded_blas():
            entered.set()

    other = threading.Thread(target=second)
    with lapack._single_threaded_blas():
        other.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    other.join()


@pytest.mark.guards(
    "several threads factor at once",
    when="matrices and graphs are measured",
    gives="the factors of one thread, the limits of BLAS as they were",
)
def test_callers_in_several_threads_do_not_disturb_each_other() -> None:
    A = ginibre(4, BIG)
    expected = lapack.svdvals(A, workers=1)
    found: list[Tensor] = []
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        threads = [threading.Thread(target=lambda: found.append(lapack.svdvals(A, workers=2))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert blas_threads() == {2}
    assert len(found) == 4
    for one in found:
        torch.testing.assert_close(one, expected)


# --- where ------------------------------------------------------------------------------------------------------------


def test_without_a_gpu_everything_is_computed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for operation in ("eigvals", "eig", "schur", "svdvals", "svd", "eigvalsh", "qr"):
        assert lapack.device_policy(operation, 10_000).type == "cpu"


def test_a_gpu_is_used_from_a_width_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu129")
    caplog.set_level(logging.DEBUG, logger="probe.spectra.lapack")
    for operation, width in (("eigvals", 2048), ("eig", 2048), ("svd", 1024), ("svdvals", 1024), ("eigvalsh", 512)):
        assert lapack.device_policy(operation, width - 1).type == "cpu"
        assert lapack.device_policy(operation, width).type == "cuda"
    assert "eigvals of width 2048: on cuda" in caplog.text
    assert lapack.device_policy("schur", 10_000).type == "cpu"
    assert lapack.device_policy("eigvals", 4096, device="cpu").type == "cpu"
    assert lapack.device_policy("eigvals", 3, device="cuda:1") == torch.device("cuda:1")
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert lapack.device_policy("eig", 4096).type == "cpu"
    assert lapack.device_policy("svd", 4096).type == "cuda"


def test_schur_forms_are_refused_elsewhere_than_on_the_cpu() -> None:
    with pytest.raises(InputError, match="computed on the CPU, not on cuda"):
        lapack.device_policy("schur", 5, device="cuda")


def test_torch_s_own_routines_give_the_same_factors() -> None:
    """What a GPU would run, here on the CPU."""
    A = ginibre(3, 8)
    assert all(
        spectra_distance(a, b) < 1e-12 for a, b in zip(lapack._TORCH["eigvals"](A)[0], lapack.eigvals(A), strict=True)
    )
    values, vectors = lapack._TORCH["eig"](A)
    torch.testing.assert_close(A.to(vectors.dtype) @ vectors, vectors * values[:, None], atol=1e-12, rtol=0)
    left, sizes, right = lapack._TORCH["svd"](A[..., :5])
    torch.testing.assert_close(left @ singular(sizes) @ right, A[..., :5])
    torch.testing.assert_close(lapack._TORCH["svdvals"](A)[0], lapack.svdvals(A))
    torch.testing.assert_close(lapack._TORCH["eigvalsh"](A + A.mT)[0], lapack.eigvalsh(A + A.mT))
    basis, triangle = lapack._TORCH["qr"](A)
    torch.testing.assert_close(basis @ triangle, A)


@pytest.mark.cuda
def test_factors_on_a_gpu() -> None:
    A = ginibre(3, 40)
    there = A.to("cuda")
    values = lapack.eigvals(A, device="cuda")
    assert values.device.type == "cpu"  # back where the input is
    assert all(spectra_distance(a, b) < 1e-10 for a, b in zip(values, lapack.eigvals(A), strict=True))
    torch.testing.assert_close(lapack.svdvals(A, device="cuda"), lapack.svdvals(A))
    torch.testing.assert_close(lapack.eigvalsh(A + A.mT, device="cuda"), lapack.eigvalsh(A + A.mT))
    form = lapack.schur(there)
    assert form.T.device.type == "cuda"
    torch.testing.assert_close((form.Q @ form.T @ form.Q.mT).cpu(), A)
    left, sizes, right = lapack.svd(there, device="cuda")
    torch.testing.assert_close(left @ singular(sizes) @ right, there)
    basis, triangle = lapack.qr(there, device="cuda")
    torch.testing.assert_close(basis @ triangle, there)
    vectors = lapack.eig(there, device="cuda")[1]
    torch.testing.assert_close(vectors.norm(dim=-2).cpu(), torch.ones(3, 40, dtype=F64))


@pytest.mark.cuda
def test_scores_of_matrices_on_a_gpu() -> None:
    from probe import spectra

    A = ginibre(2, 30)
    for score in (spectra.henrici_departure, spectra.participation_ratio, spectra.kreiss_constant):
        torch.testing.assert_close(score(A.to("cuda")).cpu(), score(A), rtol=1e-6, atol=1e-6)


def test_rotations_come_back_as_pairs() -> None:
    form = lapack.schur(rotation(0.4))
    torch.testing.assert_close(form.eigenvalues.angle().abs(), torch.tensor([0.4, 0.4], dtype=F64))
