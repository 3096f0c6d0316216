from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe import spectra, weights
from probe.errors import InputError
from probe.spectra import amplification, products
from probe.spectra.decomposition import SCORES
from probe.spectra.singular import product_triplets

RATIOS = [
    "antisymmetric_fraction",
    "symmetric_share",
    "commutator_norm",
    "complex_fraction",
    "rotation_fraction",
    "henrici_departure",
    "eigenvector_condition",
    "stable_rank",
    "effective_rank",
    "energy_effective_rank",
    "participation_ratio",
    "polar_rotation",
    "identity_share",
]
SIZES = ["frobenius_norm", "numerical_abscissa", "spectral_radius", "spectral_abscissa"]
ENTRIES: dict[str, Callable[[Any], Any]] = {
    **{name: getattr(spectra, name) for name in [*RATIOS, *SIZES] if name in spectra.__all__},
    "eigenvalues": spectra.eigenvalues,
    "singular_values": spectra.singular_values,
    "decompose": spectra.decompose,
    "kreiss_constant": spectra.kreiss_constant,
    "spectral_grid": spectra.spectral_grid,
    "pseudospectrum": lambda A: spectra.pseudospectrum(A, torch.zeros(2, dtype=torch.complex128)),
    "symmetrised": spectra.symmetrised,
    "schur_normal": spectra.schur_normal,
    "schur_shuffle": lambda A: spectra.schur_shuffle(A, torch.Generator()),
    "cumulative_spectra": lambda A: spectra.cumulative_spectra(A[None]),
    "cumulative_product": lambda A: products.cumulative_product(A[None]),
    "block_coupling": lambda A: products.block_coupling(A[None], k=1),
    "coordinate_gain": lambda A: amplification.coordinate_gain(A),
    "leading_triplets": lambda A: weights.leading_triplets(A, 1),
    "product_triplets": lambda A: product_triplets(A, A, 1),
}


def matrix(d: int = 5, *batch: int, seed: int = 0) -> Tensor:
    return torch.randn(*batch, d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users have no checks of types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.guards(
    "matrices are real tensors",
    when="matrices and graphs are measured",
    says=(
        "the matrices must be real, got …: pass A.real if nothing is lost, or [[A.real, −A.imag], "
        "[A.imag, A.real]], which has each singular value twice"
    ),
)
@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("entry", ENTRIES)
def test_complex_matrices_are_refused(entry: str) -> None:
    for wrong, words in {
        torch.complex(matrix(), matrix(seed=1)): "(real|floats).* complex128",
        matrix().to(torch.complex64): "(real|floats).* complex64",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            ENTRIES[entry](wrong)
        assert "\n" not in str(caught.value)


def test_the_real_form_that_the_refusal_names_has_the_singular_values_twice() -> None:
    A = torch.complex(matrix(), matrix(seed=1))
    form = torch.cat([torch.cat([A.real, -A.imag], 1), torch.cat([A.imag, A.real], 1)])
    expected = torch.linalg.svdvals(A).repeat_interleave(2)
    torch.testing.assert_close(spectra.singular_values(form), expected)


@pytest.mark.guards(
    "matrices have rows",
    when="matrices and graphs are measured",
    says="the matrices must have at least one row, got shape …: pass others",
)
@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0)])
@pytest.mark.parametrize("score", [*RATIOS, *SIZES])
def test_matrices_without_rows_are_refused(score: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="must have at least one row, got shape"):
        getattr(spectra.decompose(torch.ones(shape)), score)


def test_every_score_is_among_those_that_are_scaled() -> None:
    assert set(RATIOS) | set(SIZES) | {"kreiss_constant", "singular_values", "eigenvalues"} >= set(SCORES)


@pytest.mark.guards(
    "entries are so large or small that their squares are not",
    when="matrices and graphs are measured",
    gives="scores of the scaled matrix",
)
@settings(max_examples=25, deadline=None)
@given(power=st.integers(-1000, 1000), seed=st.integers(0, 50))
def test_scores_follow_a_power_of_two_to_the_ends_of_float64(power: int, seed: int) -> None:
    """A power of two changes no digit: ratios stay, sizes are multiplied, whatever the square of an entry would be."""
    A = matrix(seed=seed)
    scaled = A * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)
    one, other = spectra.decompose(A), spectra.decompose(scaled)
    for score in RATIOS:
        torch.testing.assert_close(getattr(other, score), getattr(one, score), rtol=1e-9, atol=1e-12, msg=score)
    for score in SIZES:
        back = getattr(other, score) * 2.0 ** -(power // 2) * 2.0 ** -(power - power // 2)
        torch.testing.assert_close(back, getattr(one, score), rtol=1e-9, atol=1e-12, msg=score)


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e170, 1e300])
def test_products_and_controls_of_large_and_small_matrices(size: float) -> None:
    A = matrix(5, 3) / 5
    expected, found = products.lyapunov_exponents(A), products.lyapunov_exponents(A * size)
    torch.testing.assert_close(found - torch.tensor(size, dtype=torch.float64).log(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(products.block_coupling(A * size, k=2), products.block_coupling(A, k=2))
    for control in (spectra.symmetrised, lambda A: spectra.schur_normal(A, match="frobenius")):
        torch.testing.assert_close(control(A * size) / size, control(A), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("power", [-996, -560, 560, 1000])
def test_kreiss_constants_at_the_ends_of_float64(power: int) -> None:
    B = torch.tensor([[0.0, 3.0], [0.0, -1.0]], dtype=torch.float64)  # of the half plane: sqrt(1 + 3²)
    assert spectra.kreiss_constant(B * 2.0**power).item() == pytest.approx(10**0.5, rel=1e-4)
    nilpotent = torch.tensor([[0.0, 2.0**power], [0.0, 0.0]], dtype=torch.float64)
    # For c → ∞, (r − 1) c / r² at its best r = 2, from below; for c → 0 the resolvent is that of zero.
    found = spectra.kreiss_constant(nilpotent, form="disc").item()
    assert 1 <= found <= max(1, 2.0**power / 4)


@pytest.mark.parametrize("method", ["dense", "randomised"])
@pytest.mark.parametrize(
    ("power", "dtype"), [(-1000, torch.float64), (1010, torch.float64), (-120, torch.float32), (120, torch.float32)]
)
def test_leading_triplets_at_the_ends_of_a_dtype(power: int, dtype: torch.dtype, method: Literal["dense"]) -> None:
    A = matrix(60)[:, :40].to(dtype)
    one, other = (weights.leading_triplets(each, 2, method=method) for each in (A, A * 2.0**power))
    assert other.method == one.method == method
    torch.testing.assert_close(other.singular / 2.0**power, one.singular, rtol=1e-5, atol=0)
    assert other.norm / 2.0**power == pytest.approx(one.norm)
    torch.testing.assert_close(other.left, one.left, rtol=0, atol=1e-5)
