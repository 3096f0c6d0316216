"""DOCS: similarity of two weight matrices by their columns (Min & Wang, arXiv 2501.16650)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from probe.boundary import filled, finite, public

CHUNK = 2**26  # entries of the matrix of cosines at a time


@public(x=(filled, finite), y=(filled, finite))
def docs_similarity(x: Float[Tensor, "out i"], y: Float[Tensor, "out j"]) -> float:
    """Compute DOCS, ``(u_X + u_Y) / 2``.

    ``u_X`` is the location of the Gumbel distribution fitted (by maximum likelihood) to the largest |cosine| of each
    column of X with the columns of Y, and ``u_Y`` the same with X and Y exchanged. Unlike CKA and similar measures it
    tells orthogonal matrices apart. A column of zeros has no direction and is left out.

    Args:
        x: (out, i).
        y: (out, j).

    Returns:
        A value in about [0, 1], symmetric in x and y. O(out · i · j).
    """
    x, y = _unit_columns(x), _unit_columns(y)
    rows = max(1, CHUNK // y.shape[1])
    of_x, of_y = [], x.new_zeros(y.shape[1])
    for part in x.mT.split(rows):
        cosines = (part @ y).abs()
        of_x.append(cosines.amax(1))
        of_y = torch.maximum(of_y, cosines.amax(0))
    return (_location(torch.cat(of_x)) + _location(of_y)) / 2


def _unit_columns(matrix: Float[Tensor, "out i"]) -> Float[Tensor, "out j"]:
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=0)
    return matrix[:, norms > 0] / norms[norms > 0]


def _location(maxima: Float[Tensor, " i"]) -> float:
    values = maxima.double().cpu().numpy()
    if values.max() - values.min() < 1e-12:
        return float(values[0])  # no spread to fit: X and Y share all their columns
    location, _ = stats.gumbel_r.fit(values)
    return float(location)
