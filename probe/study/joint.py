"""One object, three measurements: do the directions that three analyses find in one model coincide?

By layer: the angle between each projection's leading direction in the stream (v₁ of what reads it, u₁ of what writes to
it) and the leading directions of the mean Jacobian of the update, K = J − I (right singular vectors beside readers,
left ones beside writers), and between it and the dominant directions of the tokenwise part of the update; and the
principal angles between the last two. Beside them what random subspaces of the same dimensions give.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from probe import geometry
from probe.errors import InputError
from probe.report import Result
from probe.weights.bases import stream_sides

PARTS = ("continuity", "dynamics", "tokenwise")
"""The analyses that find directions, one of each."""
LEADING = 4  # directions of the Jacobian and of the tokenwise part
LEVELS = {"low": 0.025, "median": 0.5, "high": 0.975}
DRAWS = 1000


def directions_of(result: Result) -> xr.DataArray:
    """Read the leading directions that a run keeps.

    Args:
        result: A run of one of `PARTS`.

    Returns:
        Unit vectors along `coordinate`.

    Raises:
        InputError: If it is of a version that kept none.
    """
    if "directions" not in result.data:
        raise InputError(
            f"a joint figure needs the directions that a run found, but {result.directory} keeps none: run its "
            f"analysis again ({result.data.attrs['analysis']}, out={str(result.directory)!r}, fresh=True)"
        )
    return result.data["directions"]


def joint(directions: Mapping[str, xr.DataArray], leading: int = LEADING) -> xr.Dataset:
    """Measure the angles by layer between what the analyses found, beside those of random subspaces.

    Args:
        directions: By analysis, two of `PARTS` at least: (projection, block, coordinate) of `continuity`,
            (side, layer, coordinate, leading) of `dynamics`, (layer, coordinate, leading) of `tokenwise`.
        leading: How many directions of the Jacobian and of the tokenwise part span what is compared.

    Returns:
        Degrees: `weights_jacobian` and `weights_update` (projection, layer), `jacobian_update` (side, angle, layer);
        `haar_direction` (level) of one random direction and `leading` of them, `haar_subspace` (level, angle) of two
        subspaces of that dimension: the middle 95 % of the null, and its median.

    Raises:
        InputError: If the runs looked at no layer in common.
    """
    found = {name: _by_layer(array, leading) for name, array in directions.items()}
    layers = sorted(set.intersection(*(set(array["layer"].values.tolist()) for array in found.values())))
    if not layers:
        raise InputError("a joint figure needs a layer that all runs looked at, but they share none: run one again")
    found = {name: array.sel(layer=layers) for name, array in found.items()}
    width = next(iter(found.values())).sizes["coordinate"]
    data = xr.Dataset(coords={"layer": layers, "level": list(LEVELS)}, attrs={"d_model": width, "leading": leading})
    weights, jacobian, update = (found.get(name) for name in PARTS)
    if weights is not None and jacobian is not None:
        beside = {name: jacobian.sel(side=stream_sides(name)[0]) for name in weights["projection"].values.tolist()}
        data["weights_jacobian"] = _direction_angles(weights, beside)
    if weights is not None and update is not None:
        beside = dict.fromkeys(weights["projection"].values.tolist(), update)
        data["weights_update"] = _direction_angles(weights, beside)
    if jacobian is not None and update is not None:
        sides = jacobian["side"].values.tolist()
        angles = [_angles(_columns(jacobian.sel(side=side)), _columns(update)) for side in sides]
        dims, coords = ("side", "layer", "angle"), {"side": sides, "angle": np.arange(1, leading + 1)}
        data["jacobian_update"] = xr.DataArray(np.stack(angles), coords, dims)
    data["haar_direction"] = ("level", random_direction(width, leading))
    data["haar_subspace"] = (("level", "angle"), random_subspaces(width, leading))
    for name, variable in data.data_vars.items():
        words = "of random subspaces" if str(name).startswith("haar") else "between leading directions"
        data[name] = variable.assign_attrs(units="degree", long_name=f"principal angle {words}")
    return data


def random_direction(width: int, leading: int) -> Float[np.ndarray, " level"]:
    """Give the angle between a random direction and a subspace: cos² follows Beta(k/2, (d − k)/2).

    Args:
        width: Dimension d of the space.
        leading: Dimension k of the subspace.

    Returns:
        Degrees at each of `LEVELS`.
    """
    upper = 1 - np.array(list(LEVELS.values()))  # the larger the cosine, the smaller the angle
    return np.asarray(np.degrees(np.arccos(np.sqrt(stats.beta.ppf(upper, leading / 2, (width - leading) / 2)))))


def random_subspaces(width: int, leading: int) -> Float[np.ndarray, "level angle"]:
    """Draw principal angles between two random subspaces of one dimension, under a seed.

    Args:
        width: Dimension d of the space.
        leading: Dimension k of both.

    Returns:
        Degrees at each of `LEVELS`, rising along `angle`.
    """
    generator = torch.Generator().manual_seed(0)
    # one of the two may be held fixed: the first k coordinates
    corners = torch.stack([geometry.haar_frame(width, leading, generator)[:leading] for _ in range(DRAWS)])
    angles = torch.rad2deg(torch.linalg.svdvals(corners).clamp(max=1).arccos())
    return np.asarray(np.quantile(angles.numpy(), list(LEVELS.values()), axis=0))


def _by_layer(array: xr.DataArray, leading: int) -> xr.DataArray:
    """An analysis's directions over `layer`, those of the stream alone, as many as are compared."""
    if "projection" in array.dims:
        return array.rename(block="layer").dropna("projection", how="all")
    return array.isel(leading=slice(0, leading))


def _direction_angles(weights: xr.DataArray, beside: Mapping[str, xr.DataArray]) -> xr.DataArray:
    names = list(beside)
    angles = [
        _angles(_columns(weights.sel(projection=name).expand_dims(leading=1)), _columns(beside[name]))[:, 0]
        for name in names
    ]
    return xr.DataArray(np.stack(angles), {"projection": names}, ("projection", "layer"))


def _columns(array: xr.DataArray) -> Float[Tensor, "layer coordinate leading"]:
    return torch.from_numpy(array.transpose("layer", "coordinate", "leading").values.astype(np.float64))


def _angles(
    a: Float[Tensor, "layer coordinate k"], b: Float[Tensor, "layer coordinate m"]
) -> Float[np.ndarray, "layer angle"]:
    return geometry.principal_angles(a, b).numpy()
