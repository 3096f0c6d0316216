"""Results as netCDF: what it cannot hold is written in words, or refused by name before a run begins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from probe.errors import InputError
from probe.runs.tasks import Schema

BESIDE = "analysis", "provenance"
"""Attributes that every run's results have."""


def encoded(data: xr.Dataset) -> bytes:
    """Write a Dataset as netCDF (by h5netcdf).

    Text may hold anything: NUL characters, which netCDF cannot hold, are written as "␀", and lone surrogates as
    backslash escapes. Truth values of attributes become 0 and 1, and paths text.

    Args:
        data: The Dataset.

    Returns:
        The bytes of the file.

    Raises:
        InputError: If a name, an attribute or a coordinate is of a kind that netCDF does not have.
    """
    data = data.assign_attrs({name: _held(value) for name, value in data.attrs.items()})
    for name, variable in data.variables.items():
        values = variable.values
        if values.dtype.kind in "OU" and values.size:
            values = np.vectorize(_held, otypes=[object])(values)
        plain = variable.copy(data=values)
        plain.attrs = {key: _held(value) for key, value in variable.attrs.items()}
        data[name] = plain
    try:
        return _written(data)
    except (TypeError, ValueError, UnicodeError) as error:
        fault = next(_faults(data), f"the whole ({_line(error)})")
        raise InputError(
            f"results must be of what netCDF can hold (text, real numbers and lists of one kind of them, under "
            f"names without '/'), got {fault}: change it in the analysis; finished tasks are kept"
        ) from error


def require_encodable(schema: Schema, coordinates: Mapping[str, Any]) -> None:
    """Refuse names of variables and coordinates that the results of a run could not be written with.

    Args:
        schema: The variables.
        coordinates: Of the Dataset, as `xarray.Dataset` takes them.

    Raises:
        InputError: If netCDF has no form for one of them.
    """
    try:
        data = xr.Dataset(coords=dict(coordinates))
    except (TypeError, ValueError, UnicodeError) as error:  # of ValueError are xarray's own
        raise InputError(f"coordinates must be what xarray.Dataset takes, got {_line(error)}: change them") from error
    for name in schema:
        if name in ("", ".") or "/" in name or "\0" in name:
            raise InputError(f"the variables of results must have names that netCDF takes, got {name!r}: give another")
    encoded(data)


def _held(value: Any) -> Any:
    """A value as netCDF holds it, where it has a plain form."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return value.replace("\0", "␀").encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, bool | np.bool_):
        return int(value)
    return [_held(part) for part in value] if isinstance(value, list | tuple) else value


def _faults(data: xr.Dataset) -> Iterator[str]:
    """Name each part that cannot be written by itself."""
    for name, value in data.attrs.items():
        if name not in BESIDE and not _writes(xr.Dataset(attrs={name: value})):
            yield f"the attribute {name!r} = {_short(value)}"
    for name, variable in data.variables.items():
        bare = xr.Variable(variable.dims, variable.values)
        for key, value in variable.attrs.items():
            if not _writes(xr.Dataset(attrs={key: value})):
                yield f"the attribute {key!r} = {_short(value)} of {name!r}"
        if not _writes(xr.Dataset({name: bare})):
            if _writes(xr.Dataset({"values": xr.Variable(list("abcdefgh"[: bare.ndim]), bare.values)})):
                yield f"the name {name!r}"
            yield f"{name!r} = {_short(variable.values.tolist())}"


def _written(data: xr.Dataset) -> bytes:
    if any(np.iscomplexobj(value) for value in data.attrs.values()):
        raise ValueError("an attribute is complex")
    for name, variable in data.variables.items():
        if variable.dtype.kind == "c" or any(np.iscomplexobj(value) for value in variable.attrs.values()):
            raise ValueError(f"{name!r} is complex, which h5netcdf alone reads")
        # h5netcdf would cut the name there, and write "" for None
        if "\0" in str(name) or (
            variable.dtype == object and any(value is None or value != value for value in variable.values.flat)
        ):
            raise ValueError(f"{name!r} has a NUL in its name, or labels are missing")
    return bytes(data.to_netcdf(engine="h5netcdf"))


def _writes(data: xr.Dataset) -> bool:
    try:
        _written(data)
    except (TypeError, ValueError, UnicodeError):
        return False
    return True


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:60]}…"


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
