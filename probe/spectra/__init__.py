"""Maths on square matrices: eigenvalues, non-normality, ranks, controls and products. Knows no model.

One function a score, batched over all leading dimensions, any float dtype in, float64 out:

- symmetry, from norms: `antisymmetric_fraction`, `commutator_norm`
- from a symmetric eigenvalue problem: `numerical_abscissa`
- eigenvalues: `eigenvalues`, `spectral_radius`, `spectral_abscissa`, `complex_fraction`, `rotation_fraction`
- non-normality: `henrici_departure`, `eigenvector_condition`
- ranks: `singular_values`, `stable_rank`, `effective_rank`, `energy_effective_rank`, `participation_ratio`;
  beside them `identity_share`
- rotation: `polar_rotation`
- the resolvent: `pseudospectrum` (on a `spectral_grid`), `kreiss_constant`

`decompose` offers the same scores as lazy attributes that share factorisations; each function takes its result in the
place of matrices. Interventions: `symmetrised`, `schur_normal`, `schur_shuffle`. Along depth: `cumulative_spectra`;
more in `probe.spectra.products`.

Rotation, non-normality and rank are separate axes: an orthogonal matrix is normal and nearly all complex, a random
matrix of low rank looks non-normal and real. Of a block's Jacobian J and of the update's K = J − I they say different
things: as the update shrinks, J → I and every score of J falls, whatever K does.
"""

from __future__ import annotations

from probe.errors import renamed
from probe.spectra.controls import schur_normal, schur_shuffle, symmetrised
from probe.spectra.decomposition import decompose
from probe.spectra.normality import (
    antisymmetric_fraction,
    commutator_norm,
    complex_fraction,
    eigenvalues,
    eigenvector_condition,
    henrici_departure,
    numerical_abscissa,
    rotation_fraction,
    spectral_abscissa,
    spectral_radius,
)
from probe.spectra.products import cumulative_spectra
from probe.spectra.ranks import (
    effective_rank,
    energy_effective_rank,
    identity_share,
    participation_ratio,
    polar_rotation,
    singular_values,
    stable_rank,
)
from probe.spectra.resolvent import kreiss_constant, pseudospectrum, spectral_grid

__all__ = [
    "antisymmetric_fraction",
    "commutator_norm",
    "complex_fraction",
    "cumulative_spectra",
    "decompose",
    "effective_rank",
    "eigenvalues",
    "eigenvector_condition",
    "energy_effective_rank",
    "henrici_departure",
    "identity_share",
    "kreiss_constant",
    "numerical_abscissa",
    "participation_ratio",
    "polar_rotation",
    "pseudospectrum",
    "rotation_fraction",
    "schur_normal",
    "schur_shuffle",
    "singular_values",
    "spectral_abscissa",
    "spectral_grid",
    "spectral_radius",
    "stable_rank",
    "symmetrised",
]


def __dir__() -> list[str]:
    return __all__


_MOVED = {
    "decomposition": ("Spectrum",),
    "normality": ("symmetric_share",),
    "products": ("CumulativeSpectra", "block_coupling", "cumulative_product", "lyapunov_exponents"),
    "resolvent": ("Pseudospectrum",),
}
__getattr__ = renamed(__name__, {name: f"{home}.{name}" for home, names in _MOVED.items() for name in names})
