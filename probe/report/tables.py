"""Tidy tables of a result: variables along their own axes, and claims."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from probe.claims import Claim
from probe.errors import InputError

LONG = ("context",)
"""Labels that tables leave out: text that is as long as the rest of a row."""
CLAIM_COLUMNS = (
    *("id", "statement", "verdict", "estimate", "ci_low", "ci_high", "direction", "threshold"),
    *("unit", "n_units", "null_estimate", "reason", "statistic", "source"),
)


def table(data: xr.Dataset, names: Sequence[str], *, missing: bool = False) -> pd.DataFrame:
    """Tabulate variables of the same axes, one row for each place where one of them has a value.

    Args:
        data: The Dataset.
        names: The variables.
        missing: Keep places without a value.

    Returns:
        Labels of the axes, labels that stand along these axes, then the values.

    Raises:
        InputError: If a variable is unknown, or the axes differ.
    """
    arrays = [variable(data, name) for name in dict.fromkeys(names)]
    first = arrays[0]
    for other in arrays[1:]:
        if set(other.dims) != set(first.dims):
            raise InputError(
                f"variables of one table have the same axes, but {first.name} has {_axes(first)} and {other.name} has "
                f"{_axes(other)}: make a table of each, and merge them with pandas"
            )
    values = [array.transpose(*first.dims).values.reshape(-1) for array in arrays]
    held = np.ones(first.size, dtype=bool) if missing else np.any([~pd.isna(one) for one in values], axis=0)
    rows = np.flatnonzero(held)
    places = dict(zip(first.dims, np.unravel_index(rows, first.shape), strict=True)) if first.dims else {}
    columns = {str(dim): _labels(first, str(dim))[place] for dim, place in places.items()}
    for name, label in first.coords.items():
        if name not in columns and name not in LONG and label.dims and set(label.dims) <= set(first.dims):
            columns[str(name)] = label.values[tuple(places[dim] for dim in label.dims)]
    return pd.DataFrame(columns | {str(array.name): one[rows] for array, one in zip(arrays, values, strict=True)})


def variables_table(data: xr.Dataset) -> pd.DataFrame:
    """Tabulate the variables of a Dataset.

    Args:
        data: The Dataset.

    Returns:
        One row a variable: its name, its axes with their lengths, its unit, how many values it holds, and its meaning.
    """
    rows = [
        {
            "variable": name,
            "axes": _axes(array),
            "unit": array.attrs.get("units", ""),
            "values": int((~pd.isna(array.values)).sum()),
            "meaning": array.attrs.get("long_name", ""),
        }
        for name, array in data.data_vars.items()
    ]
    return pd.DataFrame(rows, columns=["variable", "axes", "unit", "values", "meaning"])


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Tabulate claims.

    Args:
        claims: The claims.

    Returns:
        One row a claim, numbers as numbers.
    """
    rows = [{**claim.to_dict(), "null_estimate": claim.null.get("estimate")} for claim in claims]
    found = pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))
    numbers = ["estimate", "ci_low", "ci_high", "threshold", "null_estimate"]
    return found.astype(dict.fromkeys(numbers, "float64"))


def variable(data: xr.Dataset, name: str) -> xr.DataArray:
    """Find a variable by its name.

    Args:
        data: The Dataset.
        name: Its name.

    Returns:
        The variable.

    Raises:
        InputError: If there is none of this name.
    """
    if name not in data.data_vars:
        close = difflib.get_close_matches(str(name), map(str, data.data_vars), n=3)
        meant = f"perhaps {' or '.join(close)}" if close else "table() lists them"
        label = " is a label, which the tables of variables hold;" if name in data.coords else ""
        raise InputError(f"the name of a variable must be one that the run measured, got {name!r}:{label} {meant}")
    return data[name]


def _labels(array: xr.DataArray, dim: str) -> np.ndarray:
    return array[dim].values  # 0, 1, 2 … along an axis without labels


def _axes(array: xr.DataArray) -> str:
    return " × ".join(f"{dim} {length}" for dim, length in array.sizes.items()) or "none"
