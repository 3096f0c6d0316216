"""The finished units of a layer-update run as one `xarray.Dataset`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probe.analyses.tokenwise import fits, work
from probe.analyses.tokenwise.config import Config
from probe.analysis import subject as subjects
from probe.analysis.subject import variable
from probe.runs import Run
from probe.runs.engine import Unit, gather

# variable -> (dimensions, unit, long name); `layer` leads wherever it stands
_FITTED = {
    "relative_error": (("fit", "target", "layer", "query"), "1", "‖r‖ / ‖target‖"),
    "cos_update_fit": (("fit", "target", "layer", "query"), "1", "cosine of target and fit"),
    "cos_update_residual": (("fit", "target", "layer", "query"), "1", "cosine of target and residual"),
    "cos_fit_residual": (("fit", "target", "layer", "query"), "1", "cosine of fit and residual"),
    "explained_variance": (("fit", "layer"), "1", "1 − Σ‖r‖² / Σ‖u − ū‖²"),
    "update_norm": (("layer", "query"), "1", "‖u‖"),
    "state_norm": (("layer", "query"), "1", "‖h‖"),
    "share": (("fit", "centring", "vector", "k", "layer", "query"), "1", "share in the dominant tokenwise subspace"),
    "share_of_update": (("centring", "k", "layer", "query"), "1", "share of u in the dominant subspace of u"),
    "directions": (("layer", "coordinate", "leading"), "1", "dominant directions of the deciding fit's updates"),
    "n_outliers": (("layer",), "1", "outlier coordinates left out of the subspace"),
    "residual_attention_cosine": (("fit", "layer", "query"), "1", "cosine of residual and attention write"),
    "residual_offposition_cosine": (("fit", "layer", "query"), "1", "cosine of residual and off-position write"),
    "cos_permuted": (("fit", "layer", "query"), "1", "cosine of u and a fit to permuted updates"),
    "relative_error_permuted": (("fit", "layer", "query"), "1", "‖r‖ / ‖u‖ of a fit to permuted updates"),
    "error_independent": (("layer", "query"), "1", "‖r‖ / ‖u‖ of a linear fit on the other half"),
    "floor": (("fit", "layer", "query"), "1", "‖r‖ / ‖u‖ on the block run on the token alone"),
    "sweep_error": (("neighbours", "rank", "layer", "query"), "1", "‖r‖ / ‖u‖ of the local class"),
    "sweep_error_in_sample": (("neighbours", "rank", "layer"), "1", "median ‖r‖ / ‖u‖ with the query in the bank"),
    "instability": (("neighbours", "layer", "query"), "1", "‖û_A − û_B‖ / ‖u‖ of two disjoint banks"),
    "mlp_flat": (("fit", "layer"), "1", "validation curve flat at the end"),
}
_REPLACED = {
    "kl": ("nat", "KL(p ‖ p replaced), one position"),
    "loss_change": ("nat", "change of the next token's loss"),
    "logit_distance": ("1", "‖z replaced − z‖"),
    "logit_cosine": ("1", "cosine of the logits"),
    "top1": ("1", "same most probable token"),
    "kl_all": ("nat", "KL(p ‖ p replaced), all counted positions replaced"),
    "kl_later": ("nat", "KL summed over this and later positions"),
}


def assemble(config: Config, run: Run) -> xr.Dataset:
    """The finished units of a run as its Dataset; which variables it holds depends on the configuration."""
    units = work.units(config)
    data = xr.Dataset(coords=_coordinates(config))
    fits_of = {"cos_permuted": fits.permuted_fits(config), "relative_error_permuted": fits.permuted_fits(config)}
    fits_of |= {"floor": fits.floor_fits(config), "share": fits.share_fits(config)}
    layers = [run.load(unit.stage, unit.key, None) for unit in units["fit"]]
    for name, (dims, unit, long_name) in _FITTED.items():
        if name in layers[0]:
            stacked = np.stack([layer[name].numpy() for layer in layers], axis=dims.index("layer"))
            array = xr.Variable(*variable(dims, stacked, long_name, unit))
            data[name] = _over_fits(array, fits_of[name], data) if name in fits_of else array
    if units["replace"]:
        _add_replacements(data, config, run, units["replace"])
    queries = gather(run, units["queries"], ["entropy", "loss"])
    data["entropy"] = variable("query", queries["entropy"].numpy(), "entropy of the output", "nat")
    data["loss"] = variable("query", queries["loss"].numpy(), "loss of the next token", "nat")
    fitted = gather(run, units["states"], ["token"])["token"]
    frequency = _log_frequency(config, fitted)
    data["frequency"] = variable("query", frequency, "log count in the fitting text, plus 1", units=None)
    for write in ("attention", "offposition"):
        if f"residual_{write}_cosine" in data:
            long_name = f"share of ‖r‖² along the {write} write"
            share = (data[f"residual_{write}_cosine"] ** 2).assign_attrs(units="1", long_name=long_name)
            data[f"residual_{write}_share"] = share
    _add_regimes(data, config)
    data.attrs |= _attributes(config, n_fit_tokens=len(fitted))
    return data


def _coordinates(config: Config) -> dict[str, object]:
    windows, positions = work.windows_of(config, "scored"), work.query_positions(config)
    coordinates = subjects.token_coordinates(subjects.model_of(config), windows, positions) | {
        "layer": subjects.layers_of(config),
        "fit": list(work.classes_of(config)),
        "target": ["update", "state"],
        "centring": list(fits.CENTRINGS),
        "vector": list(fits.VECTORS),
        "k": list(fits.SUBSPACE_SIZES),
        "control": list(fits.CONTROLS),
    }
    if config.sweep:
        neighbours, ranks = fits.sweep_grid(config)
        coordinates |= {"neighbours": neighbours, "rank": ranks}
    return coordinates


def _add_replacements(data: xr.Dataset, config: Config, run: Run, units: list[Unit]) -> None:
    parts = [run.load(unit.stage, unit.key, None) for unit in units]
    for name, (unit, long_name) in _REPLACED.items():
        if name in parts[0]:
            values = torch.cat([part[name] for part in parts], dim=-1).transpose(0, 1).numpy()
            array = xr.Variable(*variable(("fit", "layer", "query"), values, long_name, unit))
            data[name] = _over_fits(array, config.replaced, data)
    control = torch.cat([part["kl_control"] for part in parts], dim=-1).permute(1, 2, 0, 3).numpy()
    words = "KL(p ‖ p replaced) for a residual of equal norm"
    data["kl_control"] = variable(("control", "draw", "layer", "query"), control, words, "nat")


def _over_fits(array: xr.Variable, fits_of_array: Sequence[str], data: xr.Dataset) -> xr.DataArray:
    """The array over all fits of the run: NaN where a fit has none."""
    return xr.DataArray(array, {"fit": list(fits_of_array)}).reindex(fit=data["fit"], copy=False)


def _log_frequency(config: Config, fitted: Tensor) -> np.ndarray:
    counts = torch.bincount(fitted, minlength=subjects.model_of(config).n_vocab)
    windows, positions = work.windows_of(config, "scored"), work.query_positions(config)
    return torch.log1p(counts[windows.tokens.gather(1, positions)].double()).flatten().numpy()


def _add_regimes(data: xr.Dataset, config: Config) -> None:
    """Terciles of the error: by an independent fit, by the deciding fit itself, and of the layers' means."""
    own = data["relative_error"].sel(fit=config.deciding, target="update")
    data["regime"] = _terciles(data["error_independent"], "query")
    data["regime_own"] = _terciles(own, "query")
    data["regime_layer"] = _terciles(own.mean("query"), "layer")


def _terciles(values: xr.DataArray, dim: str) -> xr.DataArray:
    """0, 1, 2 for the low, middle and high third along a dimension."""
    cuts = values.quantile([1 / 3, 2 / 3], dim=dim)
    return (values > cuts.isel(quantile=0, drop=True)).astype("int8") + (
        values > cuts.isel(quantile=1, drop=True)
    ).astype("int8")


def _attributes(config: Config, *, n_fit_tokens: int) -> dict[str, object]:
    fit = work.windows_of(config, "fit")
    return subjects.attributes(config, work.windows_of(config, "scored")) | {
        "deciding_fit": config.deciding,
        "n_fit_windows": fit.n_windows,
        "n_fit_tokens": n_fit_tokens,
        "n_fit_documents": fit.n_documents,
    }
