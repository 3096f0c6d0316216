"""The stages of the dynamics analysis in their order, and what they would take beforehand."""

from __future__ import annotations

import time

import torch

from probe.analyses.dynamics import means, nulls, perturb, work
from probe.analyses.dynamics.claims import claims
from probe.analyses.dynamics.config import Config
from probe.analyses.dynamics.figures import figures
from probe.analyses.dynamics.schema import assemble
from probe.analysis import subject as subjects
from probe.analysis.contract import Stage, require_at_least, staged
from probe.analysis.subject import notes
from probe.errors import InputError
from probe.jacobian import Options
from probe.runs import engine
from probe.runs.engine import Plan
from probe.spectra import lapack

__all__ = ["assemble", "claims", "figures", "fingerprint", "notes", "plan", "stages", "title"]

STAGES = {
    "scores": (work.scores_unit, "every block of the model"),
    "controls": (work.scores_unit, "token alone, fresh and shuffled"),
    "products": (nulls.products_unit, "products under nulls"),
    "eigenvectors": (work.eigenvectors_unit, "eigenvectors"),
    "means": (means.means_unit, "mean matrices"),
    "mean_products": (means.mean_products_unit, "their product"),
    "perturb": (perturb.perturb_unit, "perturbations"),
    "pseudospectra": (work.pseudospectra_unit, "pseudospectra"),
}
"""Function and description of each stage, in their order."""


def stages(config: Config) -> list[Stage]:
    """What is to be done, in order."""
    _check(config)
    _options(config).resolved(subjects.model_of(config))  # refuses what the model's blocks do not have
    return staged(STAGES, work.units(config))


def fingerprint(config: Config) -> dict[str, str]:
    """The hashes of the weights and of the text."""
    return subjects.fingerprint(subjects.model_of(config), work.windows_of(config))


def title(config: Config) -> str:
    """The report's heading."""
    return f"Dynamics of {config.model}"


def plan(config: Config) -> Plan:
    """What the stages would take on this machine: the timings and counts that stand below."""
    _check(config)
    return subjects.planned(config, work.units(config), _seconds(config), _memory(config))


def _seconds(config: Config) -> dict[str, float]:
    """The time of each stage, where it has units."""
    model, units = subjects.model_of(config), work.units(config)
    n_windows, chosen = work.positions_of(config).shape
    width, depth, layers = model.d_model, model.n_layers, len(subjects.layers_of(config))
    rate, schur = engine.flops_per_second(), _schur_seconds(width)
    few, cores = min(config.control_windows, n_windows), min(2, torch.get_num_threads())
    jacobian = 12 * width**3 / rate
    product = 2 * width**3 / rate
    # in Schur forms, as timed at d = 576: the scores of J and K; the spectrum of one factor more; one null's factor
    score, factor, null = 1.9 * schur, 0.6 * schur, 0.25 * schur
    variants = len(work.variants_of(config)) - 1
    repeated = min(few, config.product_windows)
    order = min(config.order_windows, repeated) / repeated
    measured = means.measured_windows(config)
    ends = 20 * 8 * width**2 / rate  # of one point of the resolvent: ten steps of Lanczos
    eigenvectors = layers * (jacobian + 3.0 * schur)
    pseudospectra = depth * jacobian + schur + (1700 + config.grid**2 / 2) * ends
    return {
        "scores": n_windows * chosen * (depth * (jacobian + 1.6 * factor) + layers * score / cores),
        "controls": variants * few * (depth * (jacobian + factor) + layers * score / cores),
        "products": repeated * depth * (jacobian + (1.2 + 2.4 * order) * schur / cores + _drawn(config) * null),
        "eigenvectors": len(units["eigenvectors"]) * eigenvectors,
        "means": layers * measured * (jacobian + score / cores),
        "mean_products": depth * measured * (jacobian + 6 * product),
        "perturb": n_windows * (depth * jacobian + config.perturb_layers * schur),
        "pseudospectra": len(units["pseudospectra"]) * pseudospectra,
    }


def _memory(config: Config) -> dict[str, float]:
    """The bytes of each stage beyond those of the model."""
    model, chosen = subjects.model_of(config), work.positions_of(config).shape[1]
    matrix, depth = 8 * model.d_model**2, model.n_layers
    measured = means.measured_windows(config)
    return {
        "scores": work.batch_of(config, chosen) * chosen * matrix * (depth / 2 + 14),
        "controls": work.batch_of(config, 1) * matrix * (depth / 2 + 14),
        "products": matrix * (2.5 * depth + 2 * _drawn(config) * nulls.CHUNK),
        "eigenvectors": matrix * (depth + 20),
        "means": matrix * (1.5 * measured + 14 * means.CHUNK),
        "mean_products": matrix * 6 * measured,
        "perturb": matrix * 10,
        "pseudospectra": matrix * 10 + 2**28,
    }


def _drawn(config: Config) -> int:
    """Products of one window: the draws of three random nulls, and three nulls without draws."""
    return 3 * config.draws + 3


def _schur_seconds(width: int) -> float:
    """What a Schur form of this width takes here, from one of at most 512 rows: the unit of the estimates of time."""
    size = min(width, 512)
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    lapack.schur(matrix[:32, :32], vectors=False)
    start = time.perf_counter()
    lapack.schur(matrix, vectors=False)
    return (time.perf_counter() - start) * (width / size) ** 3


def _options(config: Config) -> Options:
    """How Jacobians are computed."""
    return Options(context=config.context, method=config.method, symmetrised_ov=config.symmetrised_ov)


def _check(config: Config) -> None:
    """Refuses options that contradict each other, before any work is done."""
    if config.symmetrised_ov and not config.interventions:
        raise InputError("--symmetrised-ov is an intervention, but got --no-interventions too: leave one of them out")
    ones = ("windows", "positions_per_window", "control_windows", "product_windows", "draws", "perturb_layers")
    least = dict.fromkeys(ones, 1) | {"grid": 2}
    least |= dict.fromkeys(("init_seeds", "shuffled_seeds", "order_windows", "eigenvector_windows", "kreiss_layers"), 0)
    require_at_least(config, least)
