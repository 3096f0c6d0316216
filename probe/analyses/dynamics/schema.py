"""The finished units of a dynamics run as one `xarray.Dataset`.

Scores and products are NaN where a variant was not measured: controls at one position of each window, and everything
that costs more on fewer windows still (see `probe.analyses.dynamics.Config`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from probe.analyses.dynamics import means, nulls, perturb, work
from probe.analyses.dynamics.config import Config
from probe.analysis import subject as subjects
from probe.analysis.subject import variable
from probe.inference import jackknife
from probe.jacobian import method_of
from probe.runs import Run
from probe.runs.engine import Unit, gather

TENTH = 0.1  # relative error at which the linear prediction is said to end

_PRODUCTS = {
    "product_participation_ratio": ("1", "(Σσ²)²/Σσ⁴ of J_l ⋯ J_1"),
    "product_effective_rank": ("1", "effective rank of J_l ⋯ J_1"),
    "product_log_norm": ("nat", "ln ‖J_l ⋯ J_1‖_F"),
}


def assemble(config: Config, run: Run) -> xr.Dataset:
    """The finished units of a run as its Dataset; which variables it holds depends on the configuration."""
    units = work.units(config)
    data = xr.Dataset(coords=_coordinates(config))
    _add_scores(data, config, run, [*units["scores"], *units["controls"]])
    if units["products"]:
        _add_nulls(data, config, run, units["products"])
    if units["eigenvectors"]:
        _add_eigenvectors(data, run, units["eigenvectors"])
    if units["means"]:
        _add_means(data, config, run, units)
    if units["perturb"]:
        _add_perturbations(data, config, run, units["perturb"])
    if units["pseudospectra"]:
        _add_pseudospectra(data, run, units["pseudospectra"])
    data.attrs |= subjects.attributes(config, work.windows_of(config))
    method = method_of(subjects.model_of(config)) if config.method == "auto" else config.method
    data.attrs |= {"context": config.context, "method": method}
    return data


def _coordinates(config: Config) -> dict[str, object]:
    model = subjects.model_of(config)
    return subjects.token_coordinates(model, work.windows_of(config), work.positions_of(config)) | {
        "layer": subjects.layers_of(config),
        "depth": np.arange(1, model.n_layers + 1),
        "variant": work.variants_of(config),
        "matrix": list(work.MATRICES),
        "k": [k for k in work.OVERLAPS if k <= model.d_model],
        "exponent": work.exponents_of(model.d_model),
    }


def _add_scores(data: xr.Dataset, config: Config, run: Run, units: Sequence[Unit]) -> None:
    """Scores (variant, matrix, layer, query) and products (variant, depth, query)."""
    grid = work.positions_of(config).shape
    of_scores = {name: (("variant", "matrix", "layer"), "1", long_name) for name, long_name in work.SCORES.items()}
    measured = of_scores | {name: (("variant", "depth"), *words) for name, words in _PRODUCTS.items()}
    found = {
        name: np.full([*(data.sizes[dim] for dim in dims), *grid], np.nan) for name, (dims, _, _) in measured.items()
    }
    own: dict[str, list[Tensor]] = {}
    places = {name: place for place, name in enumerate(work.variants_of(config))}
    for unit in units:
        arrays, variant = run.load(unit.stage, unit.key), places[unit.arguments["variant"]]
        rows = slice(unit.arguments["start"], unit.arguments["stop"])
        columns = slice(0, arrays["henrici_departure"].shape[1])
        for name, values in found.items():
            values[variant, ..., rows, columns] = arrays[name].movedim((0, 1), (-2, -1)).numpy()
        for name in ("lyapunov_exponent", "product_overlap", "eigenvalues"):
            if name in arrays:
                own.setdefault(name, []).append(arrays[name])
    for name, (dims, units_of, long_name) in measured.items():
        data[name] = variable((*dims, "query"), found[name].reshape(*found[name].shape[:-2], -1), long_name, units_of)
    _add_own(data, own)


def _add_own(data: xr.Dataset, own: Mapping[str, Sequence[Tensor]]) -> None:
    """What is measured of the model itself only: Lyapunov exponents, overlaps, eigenvalue clouds."""
    exponents = torch.cat(list(own["lyapunov_exponent"])).flatten(0, 1).permute(1, 2, 0)
    data["lyapunov_exponent"] = variable(
        ("depth", "exponent", "query"), exponents.numpy(), "ln σ_i(J_l ⋯ J_1) / l", "nat/block"
    )
    overlap = torch.cat(list(own["product_overlap"])).flatten(0, 1).permute(1, 2, 0)
    first = overlap.new_full((1, *overlap.shape[1:]), torch.nan)  # nothing stands before the first
    data["product_overlap"] = variable(
        ("depth", "k", "query"),
        torch.cat([first, overlap]).numpy(),
        "overlap of the top right singular subspace with that one block before",
    )
    clouds = torch.cat(list(own["eigenvalues"])).transpose(0, 1)  # (layer, cloud, d, 2)
    for place, part in enumerate(("real", "imaginary")):
        words = f"{part} part of the eigenvalues of K"
        data[f"eigenvalue_{part}"] = variable(("layer", "cloud", "index"), clouds[..., place].numpy(), words)


def _add_nulls(data: xr.Dataset, config: Config, run: Run, units: Sequence[Unit]) -> None:
    """Participation ratio (null, draw, depth, query), effective rank and antisymmetric fraction under each null."""
    parts = [run.load(unit.stage, unit.key) for unit in units]
    names = [name for name in nulls.NULLS if any(f"participation_ratio.{name}" in part for part in parts)]
    chosen = work.positions_of(config).shape[1]
    sizes = (len(names), config.draws, data.sizes["depth"], data.sizes["query"])
    ratio = np.full(sizes, np.nan)
    rank = np.full((sizes[0], *sizes[2:]), np.nan)
    fraction = np.full((sizes[0], data.sizes["layer"], sizes[3]), np.nan)
    coupling = np.full((data.sizes["depth"], data.sizes["depth"], sizes[3]), np.nan)
    for unit, part in zip(units, parts, strict=True):
        query = unit.arguments["window"] * chosen
        coupling[..., query] = part["coupling"].numpy()
        for place, name in enumerate(names):
            if f"participation_ratio.{name}" in part:
                drawn = part[f"participation_ratio.{name}"].numpy()
                ratio[place, : len(drawn), :, query] = drawn
                rank[place, :, query] = part[f"effective_rank.{name}"].numpy()
            if f"antisymmetric_fraction.{name}" in part:
                fraction[place, :, query] = part[f"antisymmetric_fraction.{name}"].numpy()
    data.coords["null"] = names
    for name, dims, values, words in (
        (
            "null_participation_ratio",
            ("null", "draw", "depth", "query"),
            ratio,
            "(Σσ²)²/Σσ⁴ of the product under a null",
        ),
        (
            "null_effective_rank",
            ("null", "depth", "query"),
            rank,
            "effective rank of the product under a null, first draw",
        ),
        ("null_antisymmetric_fraction", ("null", "layer", "query"), fraction, "‖K − Kᵀ‖ / (2‖K‖) under a null"),
        ("coupling", ("block", "other_block", "query"), coupling, "‖ |U_jᵀ K_i V_j| − S_i ‖ / ‖S_i‖, 0 = coupled"),
    ):
        data[name] = variable(dims, values, words)


def _add_eigenvectors(data: xr.Dataset, run: Run, units: Sequence[Unit]) -> None:
    found = gather(run, units, ["eigenvector_condition", "polar_rotation"])
    words = {"eigenvector_condition": ("1", "κ₂(V) of K"), "polar_rotation": ("rad", "rotation of J's polar factor")}
    for name, (units_of, long_name) in words.items():
        data[name] = variable(("layer", "eigenvector_window"), found[name].T.numpy(), long_name, units_of)


def _add_means(data: xr.Dataset, config: Config, run: Run, units: Mapping[str, Sequence[Unit]]) -> None:
    """Scores of the mean matrix, and both products, with jackknife intervals along `bound`."""
    layers = [run.load(unit.stage, unit.key) for unit in units["means"]]
    data.coords["bound"] = ["estimate", "low", "high"]
    for name, long_name in work.SCORES.items():
        values = np.stack([_jackknifed(layer[name]) for layer in layers], axis=1)
        data[f"mean_{name}"] = variable(("bound", "layer", "matrix"), values, f"{long_name}, of the mean matrix")
    spread = np.array([float(layer["spread"]) for layer in layers])
    data["mean_spread"] = variable("layer", spread, "root-mean-square ‖J − J̄‖ / ‖K̄‖")
    data.coords["side"] = ["input", "output"]
    vectors = np.stack([np.stack([layer[side].numpy() for layer in layers]) for side in data["side"].values])
    words = "leading right (input) and left (output) singular vectors of the mean K"
    data["directions"] = variable(("side", "layer", "coordinate", "leading"), vectors, words)
    products = run.load("mean_products", "all")
    for name in ("product_of_averages", "average_of_products"):
        ratio = np.exp(_jackknifed(products[name].T.log()))
        data[name] = variable(("bound", "depth"), ratio, f"(Σσ²)²/Σσ⁴ of the {name.replace('_', ' ')}")
    data.attrs["n_mean_windows"] = means.measured_windows(config)


def _jackknifed(rows: Float[Tensor, "row ..."]) -> Float[np.ndarray, "bound ..."]:
    """The value of all documents, with an interval from those with one document left out."""
    # the jackknife's own estimate, which corrects a bias of first order, may leave the range of a bounded score
    whole, left_out = rows[0].numpy(), rows[1:].numpy()
    n = len(left_out)
    if n < 2:
        return np.stack([whole, np.full_like(whole, np.nan), np.full_like(whole, np.nan)])

    def statistic(index: np.ndarray) -> np.ndarray:
        absent = np.setdiff1d(np.arange(n), index)
        return left_out[absent[0]] if len(absent) else whole

    interval = jackknife(statistic, np.arange(n))
    half = (np.asarray(interval.high) - np.asarray(interval.low)) / 2
    return np.stack([whole, whole - half, whole + half])


def _add_perturbations(data: xr.Dataset, config: Config, run: Run, units: Sequence[Unit]) -> None:
    """Relative error and cosine (direction, horizon, epsilon, start, query), and where the error passes a tenth."""
    chosen = work.positions_of(config).shape[1]
    parts = [run.load(unit.stage, unit.key) for unit in units]
    data.coords["direction"] = list(perturb.DIRECTIONS)
    data.coords["horizon"] = list(perturb.HORIZONS)
    data.coords["epsilon"] = np.array(perturb.EPSILONS)
    data.coords["start"] = perturb.starts_of(config)
    dims = ("direction", "horizon", "epsilon", "start", "query")
    words = {"error": "‖Δ − Cεδ‖ / ‖Δ‖", "cosine": "cosine of Δ and Cεδ"}
    for name, long_name in words.items():
        values = np.full([data.sizes[dim] for dim in dims], np.nan)
        for unit, part in zip(units, parts, strict=True):
            values[..., unit.arguments["window"] * chosen] = part[name].permute(2, 1, 3, 0).numpy()
        data[f"perturb_{name}"] = variable(dims, values, long_name)
    length = np.full((data.sizes["start"], data.sizes["query"]), np.nan)
    for unit, part in zip(units, parts, strict=True):
        length[:, unit.arguments["window"] * chosen] = part["length"].numpy()
    data["step_length"] = variable(("start", "query"), length, "median ‖u‖ of the window")
    crossing = epsilon_at(data["perturb_error"].values, np.array(perturb.EPSILONS), TENTH)
    data["epsilon_at_tenth"] = variable(
        ("direction", "horizon", "start", "query"), crossing, "ε over median ‖u‖ at a relative error of 10 %"
    )


def epsilon_at(
    error: Float[np.ndarray, "direction horizon epsilon start query"],
    epsilons: Float[np.ndarray, " epsilon"],
    level: float,
) -> Float[np.ndarray, "direction horizon start query"]:
    """Where the error passes a level: above the largest ε whose error is below it, on logarithmic scales.

    At the smallest ε float32 rounding can lift the error again; looking from above passes over that.

    Args:
        error: Relative errors.
        epsilons: Sizes of the step, rising.
        level: Of the error.

    Returns:
        ε; an end of the grid where all errors lie on one side, NaN where errors are missing.
    """
    logs = np.log(np.moveaxis(np.maximum(error, 1e-300), 2, -1)) - np.log(level)
    log_epsilon = np.log(epsilons)
    below = logs <= 0
    last = len(epsilons) - 1 - np.argmax(below[..., ::-1], axis=-1)
    upper = np.minimum(last + 1, len(epsilons) - 1)
    low, high = (np.take_along_axis(logs, place[..., None], axis=-1)[..., 0] for place in (last, upper))
    gap = np.where(high > low, high - low, 1.0)
    step = np.where(high > low, -low / gap, 0.0) * (log_epsilon[upper] - log_epsilon[last])
    crossing = np.where(below.any(axis=-1), log_epsilon[last] + step, log_epsilon[0])
    return np.asarray(np.where(np.isnan(logs).any(axis=-1), np.nan, np.exp(crossing)))


def _add_pseudospectra(data: xr.Dataset, run: Run, units: Sequence[Unit]) -> None:
    """Kreiss constants and pseudospectra (chosen, …) of a few blocks, with the axes of each grid."""
    parts = [run.load(unit.stage, unit.key) for unit in units]
    data.coords["chosen"] = [unit.arguments["layer"] for unit in units]
    for name, long_name in (
        ("kreiss_constant", "Kreiss constant of K, half-plane form, a lower bound"),
        ("spectral_abscissa", "spectral abscissa of K"),
        ("numerical_abscissa", "numerical abscissa of K"),
    ):
        values = np.array([float(part[name]) for part in parts])
        new = name if name == "kreiss_constant" else f"chosen_{name}"
        data[new] = variable("chosen", values, long_name)
    for name, dims in (
        ("sigma_min", ("chosen", "imaginary", "real")),
        ("real", ("chosen", "real")),
        ("imaginary", ("chosen", "imaginary")),
        ("spectrum", ("chosen", "index", "part")),
    ):
        values = np.stack([part[name].numpy() for part in parts])
        data[f"pseudospectrum_{name}"] = variable(dims, values, f"pseudospectrum: {name}")
