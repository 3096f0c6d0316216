"""Matrices with known scores, oracles and properties of the scores of `probe.spectra`."""

from __future__ import annotations

import math
from types import ModuleType

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe import spectra
from probe.errors import InputError
from probe.spectra import decomposition, lapack, normality, products, resolvent
from probe.spectra.decomposition import Spectrum
from tests.plant.matrices import (
    F64,
    draw,
    ginibre,
    grcar,
    jordan,
    orthogonal,
    rotation,
    spectra_distance,
    square,
    toeplitz,
)

quick = settings(max_examples=60)
SCORES = [
    spectra.spectral_radius,
    spectra.spectral_abscissa,
    spectra.complex_fraction,
    spectra.rotation_fraction,
    spectra.antisymmetric_fraction,
    normality.symmetric_share,
    spectra.henrici_departure,
    spectra.commutator_norm,
    spectra.eigenvector_condition,
    spectra.numerical_abscissa,
    spectra.stable_rank,
    spectra.effective_rank,
    spectra.energy_effective_rank,
    spectra.participation_ratio,
    spectra.identity_share,
    spectra.polar_rotation,
]
GROW = {"spectral_radius", "spectral_abscissa", "numerical_abscissa"}  # with the matrix; the others are blind to scale


# --- matrices whose scores are known ----------------------------------------------------------------------------------


def test_scores_of_a_nilpotent_jordan_block() -> None:
    d = 7
    s = spectra.decompose(jordan(d, 0.0))
    assert s.henrici_departure.item() == pytest.approx(1, abs=1e-15)
    assert s.spectral_radius.item() == 0
    assert s.rotation_fraction.isnan()
    assert s.commutator_norm.item() == pytest.approx(math.sqrt(2) / (d - 1))
    assert s.numerical_abscissa.item() == pytest.approx(math.cos(math.pi / (d + 1)))
    assert s.eigenvector_condition.isinf()
    torch.testing.assert_close(s.singular_values, torch.tensor([1.0] * (d - 1) + [0.0], dtype=F64))
    for rank in (s.stable_rank, s.effective_rank, s.energy_effective_rank, s.participation_ratio):
        assert rank.item() == pytest.approx(d - 1)
    assert s.polar_rotation.isnan()


@pytest.mark.parametrize("value", [0.5, -2.0])
def test_scores_of_a_jordan_block(value: float) -> None:
    d = 6
    s = spectra.decompose(jordan(d, value))
    assert s.henrici_departure.item() == pytest.approx(math.sqrt((d - 1) / (d * value**2 + d - 1)))
    assert s.numerical_abscissa.item() == pytest.approx(value + math.cos(math.pi / (d + 1)))
    assert s.spectral_abscissa.item() == pytest.approx(value)
    assert s.spectral_radius.item() == pytest.approx(abs(value))


@pytest.mark.parametrize(("low", "middle", "high"), [(1.0, 0.0, 1.0), (0.25, 2.0, 1.0), (4.0, -1.0, 0.5)])
def test_scores_of_a_tridiagonal_toeplitz_matrix(low: float, middle: float, high: float) -> None:
    d = 12
    A = toeplitz(d, {-1: low, 0: middle, 1: high})
    values = middle + 2 * math.sqrt(low * high) * np.cos(np.arange(1, d + 1) * math.pi / (d + 1))
    energy = d * middle**2 + (d - 1) * (low**2 + high**2)
    assert spectra_distance(spectra.eigenvalues(A), torch.from_numpy(values).to(torch.complex128)) < 1e-8
    assert spectra.complex_fraction(A).item() == 0
    departure = spectra.henrici_departure(A).item() * math.sqrt(energy)
    assert departure == pytest.approx(math.sqrt(d - 1) * abs(low - high), abs=1e-13)
    assert spectra.numerical_abscissa(A).item() == pytest.approx(
        middle + (low + high) * math.cos(math.pi / (d + 1)), abs=1e-13
    )
    share = spectra.antisymmetric_fraction(A).item()
    assert share == pytest.approx(math.sqrt((d - 1) / 2 / energy) * abs(high - low), abs=1e-15)


def test_scores_of_an_antisymmetric_toeplitz_matrix() -> None:
    d = 8
    s = spectra.decompose(toeplitz(d, {-1: -1.0, 1: 1.0}))
    assert s.rotation_fraction.item() == pytest.approx(1)
    assert s.complex_fraction.item() == 1
    assert s.antisymmetric_fraction.item() == pytest.approx(1)
    assert s.symmetric_share.item() == pytest.approx(0, abs=1e-15)
    assert s.spectral_radius.item() == pytest.approx(2 * math.cos(math.pi / (d + 1)))
    assert s.henrici_departure.item() < 1e-14
    assert s.polar_rotation.item() == pytest.approx(math.pi / 2)


def test_scores_of_a_grcar_matrix_in_30_digits() -> None:
    d = 8
    A = grcar(d)
    with mpmath.workdps(30):
        exact = mpmath.eig(mpmath.matrix(A.tolist()), left=False, right=False)
        energy = mpmath.mpf(float(A.square().sum()))
        departure = mpmath.sqrt((energy - sum(abs(v) ** 2 for v in exact)) / energy)
        rotation_share = sum(abs(mpmath.im(v)) for v in exact) / sum(abs(v) for v in exact)
    values = torch.tensor([complex(v) for v in exact], dtype=torch.complex128)
    assert spectra_distance(spectra.eigenvalues(A), values) < 1e-12
    assert spectra.henrici_departure(A).item() == pytest.approx(float(departure), rel=1e-13)
    assert spectra.rotation_fraction(A).item() == pytest.approx(float(rotation_share), rel=1e-13)


def test_scores_of_a_rank_one_matrix() -> None:
    u, v = draw(9), draw(9, seed=1)
    s = spectra.decompose(torch.outer(u, v))
    along, size = (u @ v).item(), (u.norm() * v.norm()).item()
    assert s.spectral_radius.item() == pytest.approx(abs(along))
    assert s.henrici_departure.item() == pytest.approx(math.sqrt(1 - (along / size) ** 2))
    assert s.numerical_abscissa.item() == pytest.approx((along + size) / 2)
    assert s.commutator_norm.item() == pytest.approx(math.sqrt(2 - 2 * (along / size) ** 2))
    for rank in (s.stable_rank, s.effective_rank, s.energy_effective_rank, s.participation_ratio):
        assert rank.item() == pytest.approx(1)
    assert s.polar_rotation.isnan()


def test_an_orthogonal_matrix_is_normal_and_complex() -> None:
    s = spectra.decompose(orthogonal(200))
    assert s.henrici_departure.item() < 1e-13
    assert s.commutator_norm.item() < 1e-13
    assert s.eigenvector_condition.item() == pytest.approx(1, abs=1e-9)
    assert s.complex_fraction.item() > 0.98
    assert s.effective_rank.item() == pytest.approx(200)
    assert s.participation_ratio.item() == pytest.approx(200)
    assert s.spectral_radius.item() == pytest.approx(1)


def test_a_symmetric_matrix_is_normal_and_real() -> None:
    A = draw(100, 100)
    s = spectra.decompose(A + A.T)
    assert s.henrici_departure.item() < 1e-13
    assert s.complex_fraction.item() == 0
    assert s.antisymmetric_fraction.item() == 0
    assert s.symmetric_share.item() == pytest.approx(1, abs=1e-14)
    assert s.numerical_abscissa.item() == pytest.approx(s.spectral_abscissa.item())
    assert s.eigenvector_condition.item() == pytest.approx(1, abs=1e-9)


def test_a_ginibre_matrix_has_the_scores_of_random_matrices() -> None:
    d = 400
    s = spectra.decompose(ginibre(d))
    assert s.henrici_departure.item() == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert s.symmetric_share.item() == pytest.approx(0.5, abs=0.02)
    assert s.antisymmetric_fraction.item() == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert (s.numerical_abscissa - s.spectral_abscissa).item() == pytest.approx(math.sqrt(2) - 1, abs=0.05)
    assert s.effective_rank.item() / d == pytest.approx(0.80, abs=0.01)
    assert s.participation_ratio.item() / d == pytest.approx(0.50, abs=0.01)
    assert 1 - s.complex_fraction.item() == pytest.approx(math.sqrt(2 / math.pi / d), abs=0.02)


@pytest.mark.parametrize(("size", "departure", "share"), [(0.1, 0.07, 0.995), (0.3, 0.20, 0.96), (1.0, 0.50, 0.75)])
def test_the_identity_hides_the_update(size: float, departure: float, share: float) -> None:
    s = spectra.decompose(torch.eye(400, dtype=F64) + size * ginibre(400))
    assert s.henrici_departure.item() == pytest.approx(departure, abs=0.01)
    assert s.symmetric_share.item() == pytest.approx(share, abs=0.01)
    assert s.update.henrici_departure.item() == pytest.approx(math.sqrt(0.5), abs=0.01)


def test_a_random_low_rank_matrix_looks_non_normal_and_real() -> None:
    s = spectra.decompose(draw(300, 8) @ draw(8, 300, seed=1))
    assert s.henrici_departure.item() > 0.97
    assert s.complex_fraction.item() <= 8 / 300
    assert s.energy_effective_rank.item() <= 8


def test_rotation_of_known_polar_factors() -> None:
    stretch = draw(6, 6)
    stretch = stretch @ stretch.T + 6 * torch.eye(6, dtype=F64)
    angles = (1e-9, 0.7, math.pi - 1e-9)
    mean = sum(angles) / 3
    assert spectra.polar_rotation(rotation(*angles) @ stretch).item() == pytest.approx(mean, abs=1e-13)
    assert spectra.polar_rotation(rotation(1e-9, 2e-9, 3e-9)).item() == pytest.approx(2e-9, rel=1e-5)
    assert spectra.polar_rotation(stretch).item() == pytest.approx(0, abs=1e-13)
    assert spectra.polar_rotation(-stretch).item() == pytest.approx(math.pi)


def test_ranks_of_known_singular_values() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=F64)
    A = orthogonal(4) @ torch.diag(values) @ orthogonal(4, seed=1)
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 2 * 0.125 * math.log(8)
    energy = (16 * math.log(22 / 16) + 4 * math.log(22 / 4) + 2 * math.log(22)) / 22
    torch.testing.assert_close(spectra.singular_values(A), values)
    assert spectra.stable_rank(A).item() == pytest.approx(22 / 16)
    assert spectra.effective_rank(A).item() == pytest.approx(math.exp(entropy))
    assert spectra.energy_effective_rank(A).item() == pytest.approx(math.exp(energy))
    assert spectra.participation_ratio(A).item() == pytest.approx(22**2 / (256 + 16 + 2))


def test_the_identitys_share_of_a_matrix_with_a_known_multiple() -> None:
    M = torch.randn(3, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    M -= M.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(8, dtype=F64)
    rest = M.square().sum((-2, -1))
    share = spectra.identity_share(-2.0 * torch.eye(8) + M)
    torch.testing.assert_close(share, 4 * 8 / (4 * 8 + rest))  # αI and M are orthogonal
    torch.testing.assert_close(spectra.identity_share(M), torch.zeros(3, dtype=F64))


def test_eigenvector_condition_of_a_known_matrix() -> None:
    A = torch.tensor([[1.0, 3.0], [0.0, 2.0]], dtype=F64)  # eigenvectors (1, 0) and (3, 1)/√10: cosine 3/√10
    cosine = 3 / math.sqrt(10)
    expected = math.sqrt((1 + cosine) / (1 - cosine))
    assert spectra.eigenvector_condition(A).item() == pytest.approx(expected, rel=1e-12)
    assert spectra.eigenvector_condition(jordan(2, 1.0)).isinf()  # 9e15 in float64, whatever the truth


def test_departure_keeps_its_digits_for_nearly_normal_matrices() -> None:
    size = 1e-11
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    A[0, 2] = size
    found = spectra.henrici_departure(A).item()
    assert found == pytest.approx(size / math.sqrt(14), rel=1e-3)  # the difference of squares rounds to 0
    block = torch.tensor([[0.0, 1.0 + 1e-10], [-1.0, 0.0]], dtype=F64)
    assert spectra.henrici_departure(block).item() == pytest.approx(1e-10 / math.sqrt(2), rel=1e-4)


def test_the_complex_fraction_uses_the_given_scale() -> None:
    A = torch.block_diag(rotation(0.1), torch.diag(torch.tensor([1.5e5, 0.0], dtype=F64)))
    assert spectra.complex_fraction(A).item() == 0  # sin 0.1 < 1e-6 · 1.5e5, the largest |λ|, but not the mean
    assert spectra.complex_fraction(A, scale=1.0).item() == 0.5
    both = torch.stack([A, A])
    found = spectra.complex_fraction(both, scale=torch.tensor([1.0, 1e6], dtype=F64))
    assert found.tolist() == [0.5, 0.0]


def test_a_state_and_its_update_have_the_same_complex_fraction_at_the_same_scale() -> None:
    K = 1e-7 * rotation(0.5, 0.2, 0.9)
    s = spectra.decompose(K + torch.eye(6, dtype=F64))
    assert s.update.complex_fraction.item() == 1
    assert spectra.complex_fraction(s, scale=s.update.spectral_radius).item() == 1
    assert s.complex_fraction.item() == 0


# --- properties -------------------------------------------------------------------------------------------------------


@quick
@given(square(6))
def test_bounds(A: Tensor) -> None:
    s = spectra.decompose(A)
    size = s.frobenius_norm
    slack = 1e-10 * size
    assert 0 <= s.henrici_departure <= 1
    assert s.commutator_norm**2 / 6 <= s.henrici_departure**2 + 1e-12
    assert s.spectral_radius <= s.singular_values[0] + slack
    assert s.numerical_abscissa >= s.spectral_abscissa - 1e-6 * size
    assert s.numerical_abscissa <= s.singular_values[0] + slack
    assert 0 <= s.rotation_fraction <= 1
    assert 0 <= s.antisymmetric_fraction <= 1 + 1e-12
    assert abs(s.antisymmetric_fraction**2 + s.symmetric_share - 1) < 1e-12
    assert s.eigenvector_condition >= 1 - 1e-12
    assert 1 - 1e-9 <= s.stable_rank <= s.participation_ratio * (1 + 1e-9)
    assert s.participation_ratio <= s.energy_effective_rank * (1 + 1e-9)
    assert s.energy_effective_rank <= s.effective_rank * (1 + 1e-9)
    assert s.effective_rank <= 6 + 1e-9


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_scores_do_not_depend_on_the_orthonormal_basis(seed: int, turn: int) -> None:
    A, Q = ginibre(6, seed=seed), orthogonal(6, seed=turn)
    before, after = spectra.decompose(A), spectra.decompose(Q @ A @ Q.T)
    for score in SCORES:
        wanted, found = score(before), score(after)
        if score is spectra.eigenvector_condition:
            wanted, found = 1 / wanted, 1 / found
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_scores_under_a_change_of_scale_and_transposition(seed: int, scale: float) -> None:
    A = ginibre(5, seed=seed)
    for score in SCORES:
        factor = scale if score.__name__ in GROW else 1.0
        torch.testing.assert_close(score(scale * A), factor * score(A), rtol=1e-6, atol=1e-9)
        if score is not spectra.eigenvector_condition:  # left eigenvectors of length 1 have a condition of their own
            torch.testing.assert_close(score(A.T), score(A), rtol=1e-5, atol=1e-6)


@quick
@given(square(5))
def test_departure_is_what_the_eigenvalues_leave_of_the_norm(A: Tensor) -> None:
    left = A.square().sum() - torch.linalg.eigvals(A).abs().square().sum()
    found = (spectra.henrici_departure(A) * A.norm()) ** 2
    torch.testing.assert_close(found, left, rtol=1e-6, atol=1e-7 * float(A.square().sum()))


@pytest.mark.parametrize("score", [*SCORES, spectra.eigenvalues, spectra.singular_values])
def test_batches_are_scored_matrix_by_matrix(score) -> None:
    A = ginibre(2, 3, 5)
    found = score(A)
    assert found.shape[:2] == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(found[i, j], score(A[i, j]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("score", SCORES)
def test_any_float_dtype_is_scored_in_float64(score, dtype: torch.dtype) -> None:
    A = ginibre(5).to(dtype)
    assert score(A).dtype == F64
    torch.testing.assert_close(score(A), score(A.double()), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("score", [s for s in SCORES if s.__name__ not in {*GROW, "complex_fraction"}])
def test_relative_scores_of_a_zero_matrix_are_not_numbers(score) -> None:
    found = score(torch.zeros(3, 3))
    assert found.isnan() or score is spectra.eigenvector_condition


def test_input_that_is_not_square_or_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match=r"square, got shape \(3, 4\)"):
        Spectrum(draw(3, 4))
    A = draw(2, 3, 3)
    A[1, 0, 0] = torch.nan
    with pytest.raises(InputError, match="A= must be finite"):
        spectra.henrici_departure(A)


# --- decompose --------------------------------------------------------------------------------------------------------


def test_attributes_are_the_functions() -> None:
    A = ginibre(4, 6)
    s = spectra.decompose(A)
    for score in [*SCORES, spectra.eigenvalues, spectra.singular_values, spectra.kreiss_constant]:
        torch.testing.assert_close(getattr(s, score.__name__), score(A), rtol=1e-9, atol=1e-9)
    assert spectra.decompose(s) is s


def test_scores_share_their_factorisations(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("schur", "eig", "eigvals", "svd", "svdvals", "eigvalsh"):
        original = getattr(lapack, name)

        def counted(*args, _name=name, _original=original, **kwargs):
            calls.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(lapack, name, counted)
    s = spectra.decompose(ginibre(2, 6))
    assert calls == []
    _ = s.antisymmetric_fraction, s.commutator_norm, s.symmetric_share, repr(s), s._repr_html_()
    assert calls == []
    for one in (s, s.update):
        _ = one.eigenvalues, one.henrici_departure, one.complex_fraction, one.rotation_fraction, one.spectral_radius
    assert calls == ["schur"]
    _ = s.stable_rank, s.effective_rank, s.energy_effective_rank, s.participation_ratio
    assert calls == ["schur", "svdvals"]
    _ = s.schur(vectors=True), s.schur(), s.update.schur(vectors=True)
    assert calls == ["schur", "svdvals", "schur"]
    _ = s.eigenvectors, s.update.eigenvectors
    assert calls == ["schur", "svdvals", "schur", "eig"]


def test_singular_values_come_from_the_vectors_where_these_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    s = spectra.decompose(ginibre(6))
    _ = s.svd
    monkeypatch.setattr(lapack, "svdvals", None)
    torch.testing.assert_close(s.singular_values, torch.linalg.svdvals(ginibre(6)))


def test_the_update_shares_the_schur_form() -> None:
    J = torch.eye(7, dtype=F64) + 0.4 * ginibre(3, 7)
    K = J - torch.eye(7, dtype=F64)
    s = spectra.decompose(J)
    T, Q, values = s.update.schur(vectors=True)
    assert Q is s.schur(vectors=True).Q
    torch.testing.assert_close(Q @ T @ Q.mT, K, atol=1e-13, rtol=0)
    torch.testing.assert_close(values, s.eigenvalues - 1)
    torch.testing.assert_close(s.update.eigenvectors, s.eigenvectors)
    torch.testing.assert_close(s.update.singular_values, torch.linalg.svdvals(K))
    for one, own in zip(s.update.eigenvalues, spectra.eigenvalues(K), strict=True):
        assert spectra_distance(one, own) < 1e-12
    torch.testing.assert_close(s.update.henrici_departure, spectra.henrici_departure(K))
    torch.testing.assert_close(s.update.numerical_abscissa, s.numerical_abscissa - 1)


def test_what_a_notebook_shows() -> None:
    s = spectra.decompose(torch.stack([torch.eye(2), 3 * torch.eye(2), 5 * torch.eye(2)]))
    _ = s.frobenius_norm, s.henrici_departure
    assert repr(s) == "Spectrum(shape=(3, 2, 2), frobenius_norm=4.243, henrici_departure=0)"


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "home"),
    [
        ("CumulativeSpectra", products),
        ("Pseudospectrum", resolvent),
        ("Spectrum", decomposition),
        ("block_coupling", products),
        ("cumulative_product", products),
        ("lyapunov_exponents", products),
        ("symmetric_share", normality),
    ],
)
def test_a_name_that_has_left_the_face_is_found_and_warns(old: str, home: ModuleType) -> None:
    assert old not in spectra.__all__
    with pytest.warns(DeprecationWarning, match=rf"use {home.__name__}\.{old}$"):
        assert getattr(spectra, old) is getattr(home, old)
