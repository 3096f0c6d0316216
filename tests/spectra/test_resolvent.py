"""Pseudospectra against an SVD a point; Kreiss constants against closed forms, bounds and a blind search."""

from __future__ import annotations

import math

import jaxtyping
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe import spectra
from probe.errors import InputError
from probe.spectra import lapack, resolvent
from tests.plant.matrices import F64, draw, ginibre, grcar, jordan, orthogonal, rotation, toeplitz

MATRICES = {
    "ginibre": ginibre(70),  # more rows than a block of the solver
    "grcar": grcar(30),
    "jordan": jordan(6, 0.5),
    "toeplitz": toeplitz(20, {-1: 0.25, 1: 1.0}),
    "orthogonal": orthogonal(24),
    "low rank": draw(20, 3) @ draw(3, 20, seed=1),
    "one entry": torch.tensor([[0.3]], dtype=F64),
    "zero": torch.zeros(4, 4, dtype=F64),
}


def smallest(A: Tensor, z: Tensor) -> Tensor:
    """σ_min(zI − A) by an SVD a point."""
    shifted = z[..., None, None] * torch.eye(A.shape[-1], dtype=F64) - A
    values: Tensor = torch.linalg.svdvals(shifted)[..., -1]
    return values


# --- pseudospectra ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_pseudospectrum_is_an_svd_a_point(name: str) -> None:
    A = MATRICES[name]
    z = spectra.spectral_grid(A, resolution=10)
    found = spectra.pseudospectrum(A, z)
    assert found.sigma_min.shape == z.shape == (5, 10)
    torch.testing.assert_close(found.sigma_min, smallest(A, z), rtol=1e-4, atol=1e-14 * float(A.norm()))
    assert found.residual.max() <= 1e-4
    sharp = spectra.pseudospectrum(A, z, tolerance=1e-8)
    torch.testing.assert_close(sharp.sigma_min, smallest(A, z), rtol=1e-8, atol=1e-14 * float(A.norm()))


def test_pseudospectrum_of_a_normal_matrix_is_the_distance_to_its_eigenvalues() -> None:
    A = torch.block_diag(rotation(0.5, 1.5), torch.diag(torch.tensor([2.0, -1.0], dtype=F64)))
    z = spectra.spectral_grid(A, resolution=12)
    distance = (z[..., None] - spectra.eigenvalues(A)).abs().amin(-1)
    torch.testing.assert_close(spectra.pseudospectrum(A, z, tolerance=1e-10).sigma_min, distance)


def test_pseudospectrum_at_and_near_an_eigenvalue() -> None:
    A = ginibre(12)
    z = spectra.eigenvalues(A)
    at = spectra.pseudospectrum(A, z)
    assert at.sigma_min.max() < 1e-14
    near = z + 1e-9
    torch.testing.assert_close(spectra.pseudospectrum(A, near).sigma_min, smallest(A, near), rtol=1e-4, atol=1e-15)


def test_a_resolvent_that_overflows_means_zero() -> None:
    A = jordan(600, 0.0)  # ‖(zI − A)⁻¹‖ ≈ |z|⁻⁶⁰⁰
    z = torch.tensor([0.1, 0.1j, 2.0], dtype=torch.complex128)
    found = spectra.pseudospectrum(A, z).sigma_min
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2].item() == pytest.approx(smallest(A, z[2]).item(), rel=1e-3)


def test_batches_have_their_own_pseudospectra_on_the_same_points() -> None:
    A = ginibre(2, 3, 9)
    z = spectra.spectral_grid(A, resolution=6)
    found = spectra.pseudospectrum(spectra.decompose(A), z)
    assert found.sigma_min.shape == found.residual.shape == (2, 3, 3, 6)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(found.sigma_min[i, j], smallest(A[i, j], z), rtol=1e-4, atol=0)


def test_points_are_worked_off_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    A = ginibre(20)
    z = spectra.spectral_grid(A, resolution=16)
    whole = spectra.pseudospectrum(A, z).sigma_min
    monkeypatch.setattr(resolvent, "_VECTORS", 20 * 30)
    torch.testing.assert_close(spectra.pseudospectrum(A, z).sigma_min, whole, rtol=1e-4, atol=0)


def test_one_schur_form_serves_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = lapack.schur
    monkeypatch.setattr(lapack, "schur", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    s = spectra.decompose(ginibre(8))
    z = spectra.spectral_grid(s, resolution=8)
    _ = spectra.pseudospectrum(s, z), s.kreiss_constant, s.henrici_departure, spectra.kreiss_constant(s.update)
    assert calls == [1]


def test_the_resolvent_of_an_update_is_that_of_its_matrix() -> None:
    J = torch.eye(8, dtype=F64) + 0.5 * ginibre(8)
    K = spectra.decompose(J).update
    z = spectra.spectral_grid(K, resolution=6)
    torch.testing.assert_close(spectra.pseudospectrum(K, z).sigma_min, smallest(K.matrices, z), rtol=1e-4, atol=0)


def test_the_grid_holds_the_upper_eigenvalues_with_a_margin() -> None:
    A = torch.block_diag(2 * rotation(math.pi / 2), torch.diag(torch.tensor([-1.0, 3.0], dtype=F64)))  # −1 … 3, ±2i
    z = spectra.spectral_grid(A, resolution=9, margin=0.25)
    assert z.shape == (4, 9)
    corners = torch.tensor([-2, 4, -2 + 3j], dtype=torch.complex128)
    torch.testing.assert_close(torch.stack([z[0, 0], z[0, -1], z[-1, 0]]), corners)
    assert spectra.spectral_grid(torch.zeros(2, 2), resolution=4).isfinite().all()


# --- Kreiss constants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("corner", "decay"), [(3.0, 1.0), (1.0, 2.0), (-100.0, 0.5)])
def test_kreiss_constant_of_a_known_matrix(corner: float, decay: float) -> None:
    # Re z ‖(zI − B)⁻¹‖ rises to the norm of the spectral projector of the eigenvalue 0 as z → 0⁺.
    B = torch.tensor([[0.0, corner], [0.0, -decay]], dtype=F64)
    found = spectra.kreiss_constant(B).item()
    expected = math.hypot(1, corner / decay)
    assert found <= expected * (1 + 1e-9)
    assert found == pytest.approx(expected, rel=1e-4)
    shifted = B + 7 * torch.eye(2, dtype=F64)  # the spectral abscissa is taken away
    assert spectra.kreiss_constant(shifted).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("value", "corner"), [(0.0, 4.0), (0.5, 4.0), (-0.9, 1.0), (0.0, 0.5)])
def test_discrete_kreiss_constant_of_a_jordan_block(value: float, corner: float) -> None:
    def growth(r: float) -> float:  # on the ray through the eigenvalue, ‖[[1/d, c/d²], [0, 1/d]]‖ in closed form
        d = r - abs(value)
        return (r - 1) * (corner + math.sqrt(corner**2 + 4 * d**2)) / (2 * d**2)

    best = scipy.optimize.minimize_scalar(lambda x: -growth(1 + math.exp(x)), bounds=(-18, 6), method="bounded")
    expected = max(1.0, -best.fun)
    A = torch.tensor([[value, corner], [0.0, value]], dtype=F64)
    assert spectra.kreiss_constant(A, form="disc").item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", ["half_plane", "disc"])
def test_kreiss_constant_of_normal_matrices_is_1(form: str) -> None:
    values = torch.tensor([0.9, -0.3, 0.1], dtype=F64)
    Q = orthogonal(7)
    normal = Q @ torch.block_diag(torch.diag(values), 0.8 * rotation(0.4, 2.0)) @ Q.T
    matrices = [normal, orthogonal(6), torch.zeros(3, 3, dtype=F64), torch.diag(values)]
    for A in matrices:
        assert spectra.kreiss_constant(A, form=form).item() == pytest.approx(1, abs=1e-6)


def test_an_unstable_matrix_has_no_finite_discrete_constant() -> None:
    A = torch.stack([1.1 * orthogonal(4), orthogonal(4), 0.5 * orthogonal(4)])
    found = spectra.kreiss_constant(A, form="disc")
    assert found[0].isinf()
    torch.testing.assert_close(found[1:], torch.ones(2, dtype=F64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_kreiss_constant_is_what_a_blind_search_finds(seed: int) -> None:
    B = ginibre(6, seed=seed).triu(-1 if seed % 2 else 0) * 3
    B = B - spectra.spectral_abscissa(B) * torch.eye(6, dtype=F64)

    def growth(point: np.ndarray) -> float:
        x = math.exp(point[0])
        return -x / max(smallest(B, torch.tensor(complex(x, point[1]))).item(), 1e-300)

    bounds = [(math.log(1e-5), math.log(50)), (0, 12)]
    best = scipy.optimize.differential_evolution(growth, bounds, seed=0, popsize=12, maxiter=60, tol=1e-6)
    assert spectra.kreiss_constant(B).item() == pytest.approx(max(1.0, -best.fun), rel=2e-3)


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_transient_growth_is_at_least_the_kreiss_constant(seed: int) -> None:
    d = 5
    B = 3 * ginibre(d, seed=seed)
    B = B - spectra.spectral_abscissa(B) * torch.eye(d, dtype=F64)
    times = torch.logspace(-3, 3, 200, dtype=F64)
    growth = torch.linalg.matrix_norm(torch.linalg.matrix_exp(times[:, None, None] * B), 2).max().item()
    found = spectra.kreiss_constant(B).item()
    assert 1 <= found <= growth * 1.02
    assert growth <= math.e * d * found


def test_kreiss_constant_is_blind_to_scale_and_basis_and_batched() -> None:
    A = ginibre(2, 1, 6)
    Q = orthogonal(6, seed=5)
    found = spectra.kreiss_constant(A)
    assert found.shape == (2, 1)
    torch.testing.assert_close(spectra.kreiss_constant(50 * A), found, rtol=1e-3, atol=0)
    torch.testing.assert_close(spectra.kreiss_constant(Q @ A @ Q.T), found, rtol=1e-3, atol=0)
    torch.testing.assert_close(spectra.kreiss_constant(A[1]), found[1], rtol=1e-6, atol=0)


def test_an_unknown_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    with pytest.raises(InputError, match="got 'sphere'"):
        spectra.kreiss_constant(ginibre(3), form="sphere")
