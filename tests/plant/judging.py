"""What the tests of claims share: an answer is planted in a Dataset, a claim is judged, and what it shows is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from probe.claims import Claim
from probe.claims.evidence import Reading, Row, claim_of


def at(data: xr.Dataset, variable: str, **labels: object) -> np.ndarray:
    """A view of the variable's values at the labels: writing to it plants an answer."""
    array = data[variable]
    index = tuple(
        int(np.flatnonzero(array[dim].values == labels[dim])[0]) if dim in labels else slice(None) for dim in array.dims
    )
    return array.values[index]


def claim_named(table: Reading[Any], rows: Sequence[Row], name: str) -> Claim:
    """The claim of the row whose id ends in the name."""
    return next(claim_of(table, row) for row in rows if _ending(row.sentence.id) == name)


def by_name(claims: Iterable[Claim]) -> dict[str, Claim]:
    """Claims by the ends of their ids, in their order."""
    return {_ending(claim.id): claim for claim in claims}


def shown(claim: Claim, name: str) -> float:
    """The estimate of the first control whose name begins so."""
    return next(control["estimate"] for control in claim.controls if control["name"].startswith(name))


def _ending(identifier: str) -> str:
    return identifier.partition(".")[2]
