"""`decompose`: every score of a batch of matrices as a lazy attribute, sharing factorisations."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Real
from torch import Tensor

from probe import display, plots
from probe.boundary import public
from probe.errors import InputError
from probe.spectra import normality, ranks, resolvent
from probe.spectra.factors import Factors

if TYPE_CHECKING:
    import xarray as xr


class Spectrum(Factors):
    """The scores of a batch of matrices, each computed at its first use; made by `decompose`.

    Attributes have the names of the functions of `probe.spectra`, and any of these functions takes a `Spectrum` in
    place of matrices. Cost of an attribute where nothing is known yet (each line several times the one above):

    - products: `frobenius_norm`, `antisymmetric_fraction`, `symmetric_share`, `identity_share`, `commutator_norm`;
      `numerical_abscissa`
    - one Schur form without vectors: `eigenvalues`, `spectral_radius`, `spectral_abscissa`, `complex_fraction`,
      `rotation_fraction`, `henrici_departure`
    - one SVD without vectors: `singular_values`, `stable_rank`, `effective_rank`, `energy_effective_rank`,
      `participation_ratio`; one with vectors: `svd`, `polar_rotation`
    - eigenvectors: `eigenvectors`, `eigenvector_condition`; `schur(vectors=True)`
    - the resolvent over many points: `kreiss_constant`
    """

    symmetric_share = cached_property(normality.symmetric_share)
    antisymmetric_fraction = cached_property(normality.antisymmetric_fraction)
    commutator_norm = cached_property(normality.commutator_norm)
    numerical_abscissa = cached_property(normality.numerical_abscissa)
    spectral_radius = cached_property(normality.spectral_radius)
    spectral_abscissa = cached_property(normality.spectral_abscissa)
    complex_fraction = cached_property(normality.complex_fraction)
    rotation_fraction = cached_property(normality.rotation_fraction)
    henrici_departure = cached_property(normality.henrici_departure)
    eigenvector_condition = cached_property(normality.eigenvector_condition)
    stable_rank = cached_property(ranks.stable_rank)
    effective_rank = cached_property(ranks.effective_rank)
    energy_effective_rank = cached_property(ranks.energy_effective_rank)
    participation_ratio = cached_property(ranks.participation_ratio)
    identity_share = cached_property(ranks.identity_share)
    polar_rotation = cached_property(ranks.polar_rotation)
    kreiss_constant = cached_property(resolvent.kreiss_constant)

    @cached_property
    def update(self) -> Spectrum:
        """The spectrum of ``K = J − I`` for a state's Jacobian J.

        It shares J's Schur form (``T − I`` with the same Q), eigenvalues (λ − 1) and eigenvectors; its singular values
        are its own.
        """
        identity = torch.eye(self.d, dtype=self.matrices.dtype, device=self.matrices.device)
        return Spectrum(self.matrices - identity, origin=self)

    def to_dataset(self, scores: Sequence[str] | None = None, *, dims: Sequence[str] | None = None) -> xr.Dataset:
        """Collect the scores of all matrices, with units and meanings; what is not computed yet is computed.

        >>> import torch
        >>> table = decompose(torch.eye(3).expand(2, 4, 3, 3)).to_dataset(["stable_rank"])
        >>> dict(table.sizes), table["stable_rank"].mean().item()
        ({'window': 2, 'position': 4}, 3.0)

        Args:
            scores: Names of scores; by default all but those of `COSTLY`, which are there if they are computed already.
            dims: Names of the batch axes; by default (window, position) of two, as `block_jacobian` makes them, (layer,
                window, position) of three, and batch_0, batch_1 … of any other number.

        Returns:
            One variable a score, with `units` and `long_name`. `.to_dataframe()` has one row a matrix.

        Raises:
            InputError: If a score is unknown, or there is not one name for each batch axis.
        """
        import xarray as xr  # slow to import, and needed for nothing else here

        shape = tuple(self.matrices.shape[:-2])
        names = tuple(DIMS.get(len(shape), [f"batch_{axis}" for axis in range(len(shape))]) if dims is None else dims)
        if len(names) != len(shape) or len(set(names)) != len(names):
            raise InputError(
                f"dims= must give each batch axis its name, and the batch is {shape}, got {names}: give {len(shape)}"
            )
        wanted = [name for name in SCORES if name not in COSTLY or name in vars(self)] if scores is None else scores
        for name in wanted:
            if name not in SCORES:
                close = difflib.get_close_matches(name, SCORES, n=1)
                raise InputError(
                    f"a score must be one of {', '.join(SCORES)}, got {name!r}: "
                    f"{f'perhaps {close[0]}' if close else 'choose among these'}"
                )
        return xr.Dataset({
            name: (
                names,
                getattr(self, name).cpu().numpy(),
                {"units": "rad" if name == "polar_rotation" else "1", "long_name": MEANINGS[name]},
            )
            for name in wanted
        })

    def plot(
        self, what: Literal["eigenvalues", "singular_values", "pseudospectrum"] = "eigenvalues", **options: Any
    ) -> plots.Picture:
        """Draw eigenvalues beside the unit circle, singular values, or the pseudospectrum of one matrix.

        Args:
            what: "eigenvalues" or "singular_values", of the whole batch, or "pseudospectrum", of a single matrix.
            **options: Of the function of this name in `probe.plots`, such as `by`, `title`, `ax` and `width`.

        Returns:
            The picture. The circle of an `update` is that of its state's Jacobian, around −1.

        Raises:
            InputError: If there is no such drawing, or a pseudospectrum is asked of several matrices.

        Cost: of the eigenvalues or singular values, if they are not known yet; of the resolvent at 64 × 32 points.
        """
        if what == "eigenvalues":
            return plots.eigenvalues(self, **({"circle": 0 if self._origin is None else -1} | options))
        if what == "singular_values":
            return plots.singular_values(self, **options)
        if what != "pseudospectrum":
            raise InputError(
                f'what must be "eigenvalues", "singular_values" or "pseudospectrum", got {what!r}: choose one'
            )
        count = int(np.prod(self.matrices.shape[:-2]))
        if count != 1:
            raise InputError(
                f"a pseudospectrum is drawn of one matrix, got {count}: decompose one, such as matrices[0, 0]"
            )
        found = resolvent.pseudospectrum(self, resolvent.spectral_grid(self))
        return found.plot(**({"eigenvalues": self} | options))

    def __repr__(self) -> str:
        shown = [f"{name}={value}" for name, value in self._medians().items()] or ["no score computed yet"]
        return f"Spectrum(shape={tuple(self.matrices.shape)}, {', '.join(shown)})"

    def _repr_html_(self) -> str:
        waiting = [name for name in SCORES if name not in vars(self)]
        rows = self._medians() | {"computed when asked for": ", ".join(waiting) or "nothing more"}
        return display.table(f"Spectrum of {tuple(self.matrices.shape)}: medians of what is computed", rows)

    def _medians(self) -> dict[str, str]:
        """Medians over the batch of the scores that are computed; none is computed for the display."""
        scores = {name: vars(self)[name] for name in SCORES if name in vars(self)}
        return {name: f"{float(value.median()):.4g}" for name, value in scores.items() if value.numel()}


SCORES = (
    "frobenius_norm",
    *(name for name, value in vars(Spectrum).items() if isinstance(value, cached_property) and name != "update"),
)


COSTLY = ("eigenvector_condition", "kreiss_constant")
"""Scores that cost several times the others."""
DIMS = {2: ("window", "position"), 3: ("layer", "window", "position")}
"""Names of batch axes, by their number."""
MEANINGS = {
    "frobenius_norm": "‖A‖_F",
    "identity_share": "share of ‖A‖² that αI has, α = tr(A)/d",
    "symmetric_share": "‖A + Aᵀ‖² / (4‖A‖²)",
    "antisymmetric_fraction": "‖A − Aᵀ‖ / (2‖A‖)",
    "commutator_norm": "‖AᵀA − AAᵀ‖ / ‖A‖²",
    "numerical_abscissa": "numerical abscissa",
    "spectral_radius": "spectral radius",
    "spectral_abscissa": "spectral abscissa",
    "complex_fraction": "share of complex eigenvalues",
    "rotation_fraction": "Σ|Im λ| / Σ|λ|",
    "henrici_departure": "departure from normality",
    "eigenvector_condition": "κ₂ of the eigenvectors",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "energy_effective_rank": "effective rank of the energies",
    "participation_ratio": "participation ratio",
    "polar_rotation": "rotation of the polar factor",
    "kreiss_constant": "Kreiss constant, half-plane form, a lower bound",
}
"""The scores in a line each, for tables and figures."""


@public
def decompose(A: Real[Tensor, "*batch d d"] | Spectrum) -> Spectrum:
    """Decompose matrices: all scores of `probe.spectra` as lazy attributes that share factorisations.

    >>> import torch
    >>> s = decompose(torch.tensor([[0.0, -2.0], [2.0, 0.0]]))
    >>> round(float(s.spectral_radius), 6), round(float(s.update.spectral_abscissa), 6)
    (2.0, -1.0)

    Args:
        A: Finite matrices of any float dtype, (..., d, d); kept in float64. A spectrum is returned as it is.

    Returns:
        The spectrum; for a state's Jacobian, ``.update`` is that of K = J − I.

    Cost: nothing until an attribute is read; see `Spectrum`.
    """
    return A if isinstance(A, Spectrum) else Spectrum(A)
