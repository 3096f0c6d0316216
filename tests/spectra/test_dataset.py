"""Scores of a batch as a Dataset: the functions' own values, by name, with units."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe import InputError, spectra
from probe.spectra.decomposition import COSTLY, MEANINGS, SCORES


def matrices(*batch: int) -> torch.Tensor:
    return torch.randn(*batch, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_every_score_is_that_of_its_function():
    A = matrices(2, 3)
    found = spectra.decompose(A).to_dataset(SCORES)
    assert dict(found.sizes) == {"window": 2, "position": 3}
    functions = set(SCORES) - {"frobenius_norm", "symmetric_share"}
    for name in functions:
        np.testing.assert_allclose(found[name], getattr(spectra, name)(A), rtol=1e-10)
    np.testing.assert_allclose(found["frobenius_norm"], A.norm(dim=(-2, -1)))
    np.testing.assert_allclose(found["symmetric_share"], 1 - found["antisymmetric_fraction"] ** 2)
    assert {name: found[name].attrs["long_name"] for name in found} == MEANINGS
    assert {name for name in found if found[name].attrs["units"] != "1"} == {"polar_rotation"}


def test_what_costs_much_is_there_when_it_is_known_or_named():
    s = spectra.decompose(matrices(2, 3))
    assert set(s.to_dataset()) == set(SCORES) - set(COSTLY)
    assert s.eigenvector_condition.shape == (2, 3)
    assert set(s.to_dataset()) == set(SCORES) - {"kreiss_constant"}
    assert list(s.update.to_dataset(["stable_rank"])) == ["stable_rank"]


@pytest.mark.parametrize(
    ("batch", "dims", "expected"),
    [
        ((), None, ()),
        ((3,), None, ("batch_0",)),
        ((4, 2, 3), None, ("layer", "window", "position")),
        ((4, 2), ["layer", "seed"], ("layer", "seed")),
    ],
)
def test_axes_have_names(batch: tuple[int, ...], dims: list[str] | None, expected: tuple[str, ...]):
    found = spectra.decompose(matrices(*batch)).to_dataset(["stable_rank"], dims=dims)
    assert found["stable_rank"].dims == expected
    assert found["stable_rank"].shape == batch


def test_a_row_a_matrix():
    A = matrices(2, 3)
    table = spectra.decompose(A).to_dataset(["numerical_abscissa"]).to_dataframe().reset_index()
    assert list(table.columns) == ["window", "position", "numerical_abscissa"]
    np.testing.assert_allclose(table["numerical_abscissa"], spectra.numerical_abscissa(A).flatten())


@pytest.mark.parametrize(
    ("scores", "dims", "message"),
    [
        (["stable_rnk"], None, "got 'stable_rnk': perhaps stable_rank"),
        (None, ["window"], r"the batch is \(2, 3\), got \('window',\): give 2"),
        (None, ["window", "window"], "give 2"),
    ],
)
def test_wrong_names_are_refused(scores: list[str] | None, dims: list[str] | None, message: str):
    with pytest.raises(InputError, match=message):
        spectra.decompose(matrices(2, 3)).to_dataset(scores, dims=dims)
