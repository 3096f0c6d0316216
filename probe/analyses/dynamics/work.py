"""The units of a dynamics run: which windows, positions and models, and the stage that scores every block's matrices.

Each unit is a plain function of `(config, unit, run)` that returns named arrays. A unit takes a few windows through all
blocks, so that the product over depth is at hand, and keeps no matrix: scores, and the spectrum of the product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import spectra
from probe.analyses.dynamics.config import Config
from probe.analysis import subject as subjects
from probe.analysis.subject import layers_of, model_of, spread, variant_of
from probe.jacobian import iter_block_jacobians
from probe.runs import Run
from probe.runs.engine import Unit
from probe.text import Windows

MATRICES = ("J", "K")
SCORES = {
    "complex_fraction": "share of complex eigenvalues",
    "rotation_fraction": "Σ|Im λ| / Σ|λ|",
    "antisymmetric_fraction": "‖A − Aᵀ‖ / (2‖A‖)",
    "henrici_departure": "departure from normality",
    "commutator_norm": "‖AᵀA − AAᵀ‖ / ‖A‖²",
    "numerical_abscissa": "numerical abscissa",
    "spectral_abscissa": "spectral abscissa",
    "spectral_radius": "spectral radius",
    "frobenius_norm": "‖A‖_F",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "energy_effective_rank": "effective rank of the energies",
    "participation_ratio": "participation ratio",
}
"""Scores of a matrix, by their names in `probe.spectra`, with their long names."""
CLOUDS = 3  # windows whose eigenvalues are kept for the clouds
OVERLAPS = (1, 4, 8)
MEMORY = 2**29  # bytes of float32 matrices in one unit
JACOBIAN_MEMORY = 2**28  # bytes while they are computed


def windows_of(config: Config) -> Windows:
    """The windows, from all documents of the text: nothing is fitted."""
    return subjects.windows_of(config, config.windows)


def positions_of(config: Config) -> Int[Tensor, "window chosen"]:
    """The measured positions, a seeded draw; controls are measured at the first column."""
    return subjects.draw_positions(
        windows_of(config), config.positions_per_window, skip_first=config.skip_first, seed=config.seed
    )


def exponents_of(width: int) -> list[int]:
    """Which Lyapunov exponents are kept: the 1st, 2nd, 4th, 8th … and the last."""
    return sorted({2**power for power in range(width.bit_length()) if 2**power <= width} | {width})


def variants_of(config: Config) -> list[str]:
    """The model, its blocks on the token alone, and the controls."""
    return ["model", *(["alone"] if config.alone and config.context != "alone" else []), *config.controls]


def units(config: Config) -> dict[str, list[Unit]]:
    """All units of a run by stage, in the order in which the stages follow each other."""
    n_windows, chosen = positions_of(config).shape
    few = min(config.control_windows, n_windows)
    size = batch_of(config, chosen)

    def batches(variant: str, n: int, count: int) -> list[Unit]:
        return [
            Unit(
                "scores" if variant == "model" else "controls",
                f"{variant}-{start:05d}",
                {"variant": variant, "start": start, "stop": min(start + count, n)},
            )
            for start in range(0, n, count)
        ]

    def single(stage: str, n: int) -> list[Unit]:
        return [Unit(stage, f"window-{window:05d}", {"window": window}) for window in range(min(n, n_windows))]

    others = variants_of(config)[1:]
    layers = layers_of(config)
    return {
        "scores": batches("model", n_windows, size),
        "controls": [unit for variant in others for unit in batches(variant, few, batch_of(config, 1))],
        "products": single("products", min(few, config.product_windows)) if config.interventions else [],
        "eigenvectors": single("eigenvectors", config.eigenvector_windows),
        "means": [Unit("means", f"layer-{layer:03d}", {"layer": layer}) for layer in layers] if config.mean else [],
        "mean_products": [Unit("mean_products", "all", {})] if config.mean else [],
        "perturb": single("perturb", n_windows) if config.perturb and config.context == "sequence" else [],
        "pseudospectra": [
            Unit("pseudospectra", f"layer-{layer:03d}", {"layer": layer})
            for layer in spread(layers, config.kreiss_layers)
        ],
    }


def batch_of(config: Config, chosen: int) -> int:
    """Windows of one unit: as many as give each core two matrices a block, and no more than fit the memory."""
    model = model_of(config)
    stack = 4 * model.n_layers * model.d_model**2 * chosen
    return max(1, min(-(-4 // chosen), MEMORY // stack))


def jacobians(
    config: Config,
    rows: slice,
    *,
    variant: str = "model",
    layers: list[int] | None = None,
    every_position: bool = False,
) -> Iterator[tuple[int, Float[Tensor, "window chosen d d"]]]:
    """Jacobians J of the blocks in depth order, in float32, from one recorded pass.

    Args:
        config: The run's configuration.
        rows: Which windows.
        variant: Which model.
        layers: Which blocks, all by default.
        every_position: At all measured positions, by default at the first of each window.

    Yields:
        Block and matrices.
    """
    positions = positions_of(config)[rows]
    model = model_of(variant_of(config, variant))
    found = iter_block_jacobians(
        model,
        windows_of(config).tokens[rows],
        range(model.n_layers) if layers is None else layers,
        positions if every_position else positions[:, :1],
        context="alone" if variant == "alone" else config.context,
        method=config.method,
        memory=JACOBIAN_MEMORY,
    )
    for layer, matrices in found:
        yield layer, matrices.cpu()  # `probe.spectra.lapack` sends to a GPU what is quicker there


def stacked(
    config: Config, rows: slice, *, variant: str = "model", every_position: bool = False
) -> Float[Tensor, "window chosen layer d d"]:
    """The Jacobians of all blocks at once: 4 L d² bytes a position."""
    found = jacobians(config, rows, variant=variant, every_position=every_position)
    return torch.stack([jacobian for _, jacobian in found], dim=2)


def scores_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Scores of J and K of every analysed block, and the spectrum of the product, for a batch of windows.

    Args:
        config: The run's configuration.
        unit: Which model and windows.
        run: Where matrices go if they are kept.

    Returns:
        For each score (window, chosen, matrix, layer); `product_participation_ratio`, `product_effective_rank`,
        `product_log_norm` (window, chosen, depth); of the model itself also `lyapunov_exponent` (window, chosen, depth,
        exponent), `product_overlap` (window, chosen, depth, k), `eigenvalues` (window, layer, d, 2) of K, and the
        `tokens` (window, position) and `positions` (window, chosen) by which another analysis finds them.
    """
    variant, rows = unit.arguments["variant"], slice(unit.arguments["start"], unit.arguments["stop"])
    whole = variant == "model"
    J = stacked(config, rows, variant=variant, every_position=whole)
    found: dict[str, list[Tensor]] = {}
    for layer in layers_of(config):
        for name, values in scores(J[:, :, layer], eigenvalues=whole).items():
            found.setdefault(name, []).append(values)
        if whole and config.keep_matrices:
            run.save(
                "matrices", f"{unit.key}-layer-{layer:03d}", {"jacobian": J[:, :, layer]}, seconds=0.0
            )  # a by-product
    clouds = found.pop("eigenvalues", None)
    arrays = {name: torch.stack(values, dim=-1) for name, values in found.items()}
    if clouds is not None:
        kept = slice(0, max(0, CLOUDS - rows.start))
        arrays["eigenvalues"] = torch.stack([cloud[kept, 0] for cloud in clouds], dim=1)
        arrays |= {"tokens": windows_of(config).tokens[rows], "positions": positions_of(config)[rows]}
    return arrays | products(J, overlaps=whole)


def scores(J: Float[Tensor, "window chosen d d"], *, eigenvalues: bool = False) -> dict[str, Tensor]:
    """The scores of J and of K = J − I, (window, chosen, matrix); eigenvalues of K as (window, chosen, d, 2)."""
    state = spectra.decompose(J)
    update = state.update
    # one scale for both, so that J and K have the same share of complex eigenvalues
    scale = spectra.spectral_radius(update)
    found = {}
    for name in SCORES:
        if name == "complex_fraction":
            both = [spectra.complex_fraction(matrix, scale) for matrix in (state, update)]
        else:
            both = [getattr(matrix, name) for matrix in (state, update)]
        found[name] = torch.stack(both, dim=-1)
    if eigenvalues:
        found["eigenvalues"] = torch.view_as_real(update.eigenvalues).float()
    return found


def products(J: Float[Tensor, "*batch layer d d"], *, overlaps: bool = False) -> dict[str, Tensor]:
    """The spectrum of J_l ⋯ J_0 at every depth, by name, (..., depth); see `scores_unit`."""
    spectrum = spectra.cumulative_spectra(J, ranks=OVERLAPS if overlaps else ())
    logs = spectrum.log_singular_values
    found = {
        "product_participation_ratio": spectrum.participation_ratio,
        "product_effective_rank": spectrum.effective_rank,
        "product_log_norm": torch.logsumexp(2 * logs.nan_to_num(nan=-torch.inf), dim=-1) / 2,
    }
    if overlaps:
        kept = torch.tensor(exponents_of(J.shape[-1])) - 1
        found["lyapunov_exponent"] = spectrum.lyapunov_exponents[..., kept]
        found["product_overlap"] = spectrum.overlap
    return found


def eigenvectors_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """What needs eigenvectors, at one position of a window.

    Args:
        config: The run's configuration.
        unit: Which window.
        run: Not used.

    Returns:
        `eigenvector_condition` of K and `polar_rotation` of J, each (1, layer).
    """
    window = unit.arguments["window"]
    condition, rotation = [], []
    chosen = jacobians(config, slice(window, window + 1), layers=layers_of(config))
    for _, J in chosen:
        state = spectra.decompose(J[0])
        condition.append(state.update.eigenvector_condition)
        rotation.append(state.polar_rotation)
    return {"eigenvector_condition": torch.stack(condition, dim=1), "polar_rotation": torch.stack(rotation, dim=1)}


def pseudospectra_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Kreiss constant and pseudospectrum of one block's K, at one position of the first window.

    Args:
        config: The run's configuration.
        unit: Which block.
        run: Not used.

    Returns:
        `kreiss_constant` (), `sigma_min` (imaginary, real) with its axes `real` and `imaginary`, `spectrum` (d, 2), and
        the `spectral_abscissa` and `numerical_abscissa` ().
    """
    ((_, J),) = jacobians(config, slice(0, 1), layers=[unit.arguments["layer"]])
    update = spectra.decompose(J[0, 0]).update
    points = spectra.spectral_grid(update, config.grid)
    return {
        "kreiss_constant": update.kreiss_constant,
        "sigma_min": spectra.pseudospectrum(update, points).sigma_min,
        "real": points.real[0],
        "imaginary": points.imag[:, 0],
        "spectrum": torch.view_as_real(update.eigenvalues),
        "spectral_abscissa": update.spectral_abscissa,
        "numerical_abscissa": update.numerical_abscissa,
    }
