"""The interventions keep what they promise to keep, and take away what they promise to take away."""

from __future__ import annotations

import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import spectra
from probe.errors import InputError
from probe.spectra import lapack
from probe.spectra.controls import _blocks
from tests.plant.matrices import F64, draw, ginibre, jordan, orthogonal, rotation, spectra_distance

quick = settings(max_examples=30)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- symmetrised ------------------------------------------------------------------------------------------------------


def test_symmetrised_is_the_symmetric_part_at_the_old_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    A = ginibre(2, 6)
    part = spectra.symmetrised(A, match=None)
    torch.testing.assert_close(part, (A + A.mT) / 2)
    found = spectra.symmetrised(A)
    torch.testing.assert_close(found.norm(dim=(-2, -1)), A.norm(dim=(-2, -1)))
    ratio = (found / part).flatten(-2)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    with pytest.raises(InputError, match=r"match= must be .*'frobenius'.* got 'spectral'"):
        spectra.symmetrised(A, match="spectral")


# --- schur_normal -----------------------------------------------------------------------------------------------------


def test_schur_normal_of_a_known_block() -> None:
    A = torch.tensor([[1.0, 8.0], [-2.0, 1.0]], dtype=F64)  # 1 ± 4i
    found = spectra.schur_normal(A)
    torch.testing.assert_close(found.abs(), torch.tensor([[1.0, 4.0], [4.0, 1.0]], dtype=F64))
    assert found[0, 1] == -found[1, 0]
    torch.testing.assert_close(spectra.schur_normal(jordan(4, 0.3)), 0.3 * torch.eye(4, dtype=F64))


@quick
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_schur_normal_is_real_normal_and_keeps_the_eigenvalues(seed: int, d: int) -> None:
    A = ginibre(d, seed=seed)
    found = spectra.schur_normal(A)
    assert found.dtype == F64
    assert spectra.commutator_norm(found) < 1e-12
    assert spectra.henrici_departure(found) < 1e-12
    assert spectra_distance(spectra.eigenvalues(found), spectra.eigenvalues(A)) < 1e-9
    assert found.norm() <= A.norm() * (1 + 1e-12)
    matched = spectra.schur_normal(A, match="frobenius")
    torch.testing.assert_close(matched.norm(), A.norm())
    torch.testing.assert_close(matched * (found.norm() / A.norm()), found)


def test_schur_normal_leaves_a_normal_matrix_alone() -> None:
    Q = orthogonal(6)
    A = Q @ torch.block_diag(0.5 * rotation(0.3, 1.2), torch.diag(torch.tensor([2.0, -1.0], dtype=F64))) @ Q.T
    torch.testing.assert_close(spectra.schur_normal(A), A, atol=1e-13, rtol=0)


# --- schur_shuffle ----------------------------------------------------------------------------------------------------


def departure(A: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = spectra.henrici_departure(A) * A.norm(dim=(-2, -1))
    return norm


@quick
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_schur_shuffle_keeps_eigenvalues_norm_and_departure(seed: int, d: int) -> None:
    A = ginibre(2, d, seed=seed)
    found = spectra.schur_shuffle(A, generator(seed), draws=3)
    assert found.shape == (3, 2, d, d)
    torch.testing.assert_close(found.norm(dim=(-2, -1)), A.norm(dim=(-2, -1)).expand(3, 2))
    torch.testing.assert_close(departure(found), departure(A).expand(3, 2), rtol=1e-9, atol=1e-12)
    for i in range(2):
        for one in found[:, i]:
            # A nearly defective pair moves by the square root of rounding.
            assert spectra_distance(spectra.eigenvalues(one), spectra.eigenvalues(A[i])) < 1e-6


def test_schur_shuffle_permutes_the_triangle_with_random_signs() -> None:
    d, draws = 6, 400
    A = torch.diag(torch.arange(1.0, d + 1, dtype=F64)) + torch.arange(1.0, d * d + 1, dtype=F64).reshape(d, d).triu(1)
    form = spectra.decompose(A).schur(vectors=True)
    upper = form.T[*torch.triu_indices(d, d, 1)]
    found = form.Q.mT @ spectra.schur_shuffle(A, generator(), draws=draws) @ form.Q
    torch.testing.assert_close(found.tril(), torch.diag(form.T.diagonal()).expand(draws, d, d), atol=1e-10, rtol=0)
    entries = found[:, *torch.triu_indices(d, d, 1)]
    torch.testing.assert_close(entries.abs().sort().values, upper.abs().sort().values.expand(draws, 15))
    # Every size comes to every place, with either sign.
    assert entries.abs().mean(0).std() / entries.abs().mean() < 0.1
    assert (entries.sign().mean(0).abs() < 5 / math.sqrt(draws)).all()


def test_a_shuffled_block_counts_its_departure_among_the_entries() -> None:
    A = torch.block_diag(torch.tensor([[1.0, 8.0], [-2.0, 1.0]], dtype=F64), torch.tensor([[5.0]], dtype=F64))
    A[0, 2], A[1, 2] = 3.0, 4.0  # the entries are b + c = 6, 3 and 4
    form = spectra.decompose(A).schur(vectors=True)
    found = form.Q.mT @ spectra.schur_shuffle(A, generator(), draws=60) @ form.Q
    sums = (found[:, 0, 1] + found[:, 1, 0]).abs()
    entries = torch.stack([sums, found[:, 0, 2].abs(), found[:, 1, 2].abs()], 1).sort().values
    torch.testing.assert_close(entries, torch.tensor([3.0, 4.0, 6.0], dtype=F64).expand(60, 3))
    assert {round(value) for value in sums.tolist()} == {3, 4, 6}
    torch.testing.assert_close(found[:, 0, 1] * found[:, 1, 0], torch.full((60,), -16.0, dtype=F64))
    torch.testing.assert_close(found[:, 0, 0], torch.ones(60, dtype=F64))
    torch.testing.assert_close(found[:, 1, 1], torch.ones(60, dtype=F64))


@quick
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e3), st.booleans())
def test_blocks_have_the_wanted_sum_and_product(total: float, turn: float, negative: bool) -> None:
    sums, turns = torch.tensor([total], dtype=F64), torch.tensor([-turn if negative else turn], dtype=F64)
    b, c = _blocks(sums, turns)
    torch.testing.assert_close(b + c, sums, rtol=1e-14, atol=1e-14 * turn)
    torch.testing.assert_close(b * c, -turns.square(), rtol=1e-14, atol=0)
    assert b.sign() == turns.sign()


def test_blocks_without_turn_are_entries() -> None:
    b, c = _blocks(torch.tensor([3.0, -2.0, 0.0], dtype=F64), torch.zeros(3, dtype=F64))
    assert b.tolist() == [3.0, -2.0, 0.0]
    assert c.tolist() == [0.0, 0.0, 0.0]


def test_draws_follow_their_generator_and_share_one_schur_form(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    original = lapack.schur

    def counted(*args, **kwargs):
        calls.append(kwargs["vectors"])
        return original(*args, **kwargs)

    monkeypatch.setattr(lapack, "schur", counted)
    before = torch.get_rng_state()
    s = spectra.decompose(ginibre(2, 5))
    one, again, other = (spectra.schur_shuffle(s, generator(seed)) for seed in (1, 1, 2))
    _ = spectra.schur_normal(s)
    assert calls == [True]
    assert one.shape == (5, 2, 5, 5)
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one[0], one[1])
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(InputError, match="at least 1, got 0"):
        spectra.schur_shuffle(s, generator(), draws=0)


def test_interventions_on_an_update_use_the_state_s_schur_form() -> None:
    J = torch.eye(6, dtype=F64) + 0.5 * draw(6, 6)
    K = spectra.decompose(J).update
    for found in (spectra.schur_normal(K), spectra.schur_shuffle(K, generator(), draws=1)[0]):
        assert spectra_distance(spectra.eigenvalues(found), spectra.eigenvalues(K.matrices)) < 1e-9


def test_shuffling_dissolves_the_structure_that_makes_products_collapse() -> None:
    d, depth = 60, 8
    planted = torch.outer(draw(d), draw(d, seed=1)) / d  # a strong non-normal direction, the same in every layer
    K = torch.stack([0.3 * ginibre(d, seed=layer) + 2 * planted for layer in range(depth)])
    identity = torch.eye(d, dtype=F64)
    raw = spectra.cumulative_spectra(identity + K, ranks=()).participation_ratio[-1]
    shuffled = spectra.schur_shuffle(K, generator(), draws=3)
    after = spectra.cumulative_spectra(identity + shuffled, ranks=()).participation_ratio[:, -1]
    assert (after > 2 * raw).all()
