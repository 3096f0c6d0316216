"""The tasks that score every block's matrices: as they are, by their eigenvectors, by their pseudospectra.

A task takes a few windows through all blocks, so that the product over depth is at hand. It keeps no matrix, unless it
is asked to: scores, and the spectrum of the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from probe import spectra
from probe.analyses.dynamics.schema import MATRICES, SCORES
from probe.analyses.dynamics.subject import DynamicsSubject
from probe.analysis import Task
from probe.analysis.subject import OWN
from probe.runs import Piece, Run
from probe.runs.pieces import Labels
from probe.spectra.decomposition import Spectrum

CLOUDS = 3  # windows whose eigenvalues are kept for the clouds
OVERLAPS = (1, 4, 8)


def score(subject: DynamicsSubject, task: Task, run: Run) -> Piece:
    """Score J and K of every analysed block, and the product of all blocks, on a batch of windows.

    Args:
        subject: Models and text.
        task: Its variant and windows.
        run: Not used.

    Returns:
        The scores, `identity_share` and `product_*`; of the model itself also `lyapunov_exponent`, eigenvalues of the
        first windows, the `routing_margin` of blocks with a mixture of experts, the `jacobian` if matrices are kept,
        and the `tokens` and `positions` by which another analysis finds them.
    """
    variant, rows = task["variant"], task.rows
    whole = variant == OWN
    J = subject.stacked(rows, variant=variant, every_position=whole)
    found: dict[str, list[Tensor]] = {name: [] for name in SCORES}
    eigenvalues = []
    for layer in subject.layers:
        state = spectra.decompose(J[layer])
        for name, values in scores(state).items():
            found[name].append(values)
        if whole:  # at the first position of each window
            eigenvalues.append(torch.view_as_real(state.update.eigenvalues[:: subject.chosen]).float())
    arrays = {name: torch.stack(values, dim=1) for name, values in found.items()}
    arrays["identity_share"] = spectra.identity_share(J[subject.layers])
    arrays |= product_scores(J, subject.exponents if whole else ())
    labels: dict[str, Labels] = {
        "matrix": MATRICES,
        "layer": subject.layers,
        "query": subject.queries(rows, every_position=whole),
    }
    if not whole:
        return Piece(arrays, labels)
    arrays |= {"tokens": subject.windows().tokens[rows], "positions": subject.positions[rows]}
    labels["window"] = range(rows.start, rows.stop)
    if cloud := range(rows.start, min(rows.stop, CLOUDS)):
        real, imaginary = torch.stack(eigenvalues)[:, : len(cloud)].unbind(-1)
        arrays |= {"eigenvalue_real": real, "eigenvalue_imaginary": imaginary}
        labels["cloud"] = cloud
    margins = subject.margins(rows)
    if not margins.isnan().all():
        arrays["routing_margin"] = margins
    if subject.config.keep_matrices:
        arrays["jacobian"] = J[subject.layers]
    return Piece(arrays, labels)


def scores(state: Spectrum) -> dict[str, Float[Tensor, "matrix ..."]]:
    """Score J and K = J − I.

    Args:
        state: The spectrum of J.

    Returns:
        Each score, by name.
    """
    update = state.update
    # one scale for both, so that J and K have the same share of complex eigenvalues
    scale = spectra.spectral_radius(update)
    return {
        name: torch.stack([
            spectra.complex_fraction(matrix, scale) if name == "complex_fraction" else getattr(matrix, name)
            for matrix in (state, update)
        ])
        for name in SCORES
    }


def product_scores(J: Float[Tensor, "layer query d d"], exponents: Sequence[int] = ()) -> dict[str, Tensor]:
    """Score J_l ⋯ J_1 at every depth.

    Args:
        J: The Jacobians.
        exponents: The Lyapunov exponents that are wanted; with them come the overlaps of singular subspaces.

    Returns:
        Arrays by the names of the schema, (depth, …, query).
    """
    spectrum = spectra.cumulative_spectra(J.transpose(0, 1), ranks=OVERLAPS if exponents else ())
    logs = spectrum.log_singular_values
    found = {
        "product_participation_ratio": spectrum.participation_ratio,
        "product_effective_rank": spectrum.effective_rank,
        "product_log_norm": torch.logsumexp(2 * logs.nan_to_num(nan=-torch.inf), dim=-1) / 2,
        "product_identity_share": _identity_shares(J),
    }
    if exponents:
        found["lyapunov_exponent"] = spectrum.lyapunov_exponents[..., torch.tensor(exponents) - 1]
        overlap = spectrum.overlap
        absent = overlap.new_full((len(overlap), 1, overlap.shape[-1]), torch.nan)  # nothing stands before the first
        found["product_overlap"] = torch.cat([absent, overlap], dim=1)
    return {name: values.movedim(0, -1) for name, values in found.items()}


def _identity_shares(J: Float[Tensor, "layer query d d"]) -> Float[Tensor, "query depth"]:
    """The identity's share of J_l ⋯ J_1 at every depth; of the product itself, for a QR has no trace."""
    found: list[Tensor] = []
    product = torch.eye(J.shape[-1], dtype=torch.float64, device=J.device)
    for block in J:
        product = block.double() @ product
        product = product / product.abs().amax((-2, -1), keepdim=True)  # the share is blind to scale
        found.append(spectra.identity_share(product))
    return torch.stack(found, dim=-1)


def eigenvectors(subject: DynamicsSubject, task: Task, run: Run) -> Piece:
    """Score what needs eigenvectors, at the first position of a window.

    Args:
        subject: Models and text.
        task: Its window.
        run: Not used.

    Returns:
        `eigenvector_condition` of K and `polar_rotation` of J.
    """
    window = task["window"]
    condition, rotation = [], []
    for _, J in subject.jacobians(slice(window, window + 1), layers=subject.layers):
        state = spectra.decompose(J[0])
        condition.append(state.update.eigenvector_condition)
        rotation.append(state.polar_rotation)
    arrays = {"eigenvector_condition": torch.stack(condition), "polar_rotation": torch.stack(rotation)}
    return Piece(arrays, {"layer": subject.layers, "eigenvector_window": range(window, window + 1)})


def pseudospectra(subject: DynamicsSubject, task: Task, run: Run) -> dict[str, Tensor]:
    """Draw the pseudospectrum of one block's K on a grid, at the first position of the first window.

    Args:
        subject: Models and text.
        task: Its layer, as `chosen`.
        run: Not used.

    Returns:
        The `kreiss_constant`, both abscissas, and `pseudospectrum_*`.
    """
    ((_, J),) = subject.jacobians(slice(0, 1), layers=[task["chosen"]])
    update = spectra.decompose(J[0, 0]).update
    points = spectra.spectral_grid(update, subject.config.grid)
    return {
        "kreiss_constant": update.kreiss_constant,
        "chosen_spectral_abscissa": update.spectral_abscissa,
        "chosen_numerical_abscissa": update.numerical_abscissa,
        "pseudospectrum_sigma_min": spectra.pseudospectrum(update, points).sigma_min,
        "pseudospectrum_real": points.real[0],
        "pseudospectrum_imaginary": points.imag[:, 0],
        "pseudospectrum_spectrum": torch.view_as_real(update.eigenvalues),
    }
