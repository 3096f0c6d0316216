"""How directions lie to the leading singular vectors and eigenvectors of matrices, such as block Jacobians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Complex, Float, Real
from scipy import stats
from scipy.linalg.lapack import dtrsen
from torch import Tensor

from probe import geometry, spectra
from probe.boundary import public
from probe.directions.vectors import Directions, GivenDirections, directions_of
from probe.errors import InputError
from probe.spectra.decomposition import Spectrum

RANKS = (1, 4, 16)
SUBSPACES = ("right", "left", "eigen")
_BATCH = {0: (), 1: ("matrix",), 2: ("window", "position")}
_INDEPENDENT = 1e-10
"""Singular value of unit directions, relative to the largest, below which their span does not grow."""


@dataclass(frozen=True)
class _Leading:
    """A leading subspace of one matrix.

    Attributes:
        basis: Orthonormal columns, (d, dimension).
        gap: The size of the last value inside over that of the first outside; infinite where nothing is outside.
    """

    basis: Float[Tensor, "d _"]
    gap: float


@public
def overlap(
    matrices: Real[Tensor, "*batch d d"] | Real[np.ndarray, "*batch d d"] | Spectrum,
    directions: GivenDirections,
    *,
    ranks: Sequence[int] = RANKS,
    dims: Sequence[str] | None = None,
) -> xr.Dataset:
    """Measure how much of each direction lies in the leading singular and eigenvectors of matrices.

    Three subspaces of each matrix A = U Σ Vᵀ and each rank k: "right", the first k columns of V, what A reads; "left",
    those of U, what it writes; "eigen", the real invariant subspace of the k eigenvalues of largest modulus, spanned by
    the real eigenvectors and by the real and imaginary parts of the complex ones, from a reordered real Schur form. A
    conjugate pair is never cut: where the k-th eigenvalue is the first of a pair, `dimension` is k + 1.

    J and K = J − I have the same eigenvectors, but not the same order of them, and different singular vectors.

    >>> import torch
    >>> A = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> found = overlap(A, torch.tensor([3.0, 4.0, 0.0]), ranks=[1, 2])
    >>> found["share"].sel(subspace="right").squeeze().values.round(6).tolist()
    [0.36, 1.0]

    Args:
        matrices: (..., d, d), for example of `probe.block_jacobian`; or a `probe.spectra.decompose` of them, which
            keeps its factorisations.
        directions: (d,) or (n, d), or `Directions`; of any length.
        ranks: The k, each in 1 … d − 1.
        dims: Names of the axes before the last two; by default ("window", "position") for two of them and ("matrix",)
            for one.

    Returns:
        Float64, over subspace, rank and the batch: `share` ‖Bᵀv‖²/‖v‖² with B the basis, by direction; `percentile`,
        the probability that a random direction has a smaller share, exactly uniform on [0, 1] for one (of the Beta
        distribution with dimension/2 and (d − dimension)/2); `principal_angle` between the span of all directions and
        the subspace, in degrees, increasing, NaN where there are fewer; `dimension`; `gap`, σ_k/σ_{k+1} or
        |λ_k|/|λ_{k+1}|: near 1 the subspace is arbitrary.

    Raises:
        InputError: If the matrices are not square or the directions do not fit, a rank is out of range, or `dims` does
            not name the axes.

    Cost: an SVD and a Schur form with vectors a matrix: 0.2 s at d = 576.
    """
    found = matrices if isinstance(matrices, Spectrum) else spectra.decompose(torch.as_tensor(matrices))
    shape = tuple(directions.vectors.shape if isinstance(directions, Directions) else directions.shape)
    if shape[-1:] != (found.d,):
        raise InputError(
            f"directions= must be as wide as matrices=, got {shape} and {tuple(found.matrices.shape)}: pass "
            "directions of "
            "this stream"
        )
    given, d = directions_of(directions, found.d), found.d
    if not ranks or not all(1 <= k < d for k in ranks):
        raise InputError(f"ranks must lie in 1 … {d - 1}, got {list(ranks)}: choose at least one")
    batch = found.matrices.shape[:-2]
    names = _BATCH.get(len(batch)) if dims is None else tuple(dims)
    if names is None or len(names) != len(batch):
        raise InputError(f"dims= must name {len(batch)} axes before the last two, got {dims}: name each")
    unit = given.vectors / given.vectors.norm(dim=-1, keepdim=True)
    span = _span(unit)
    angles = min(span.shape[1], max(ranks) + 1)
    sizes = (len(SUBSPACES), len(ranks), *batch)
    share = torch.empty(*sizes, len(given), dtype=torch.float64)
    principal = torch.full((*sizes, angles), torch.nan, dtype=torch.float64)
    dimension, gap = torch.empty(sizes, dtype=torch.int64), torch.empty(sizes, dtype=torch.float64)
    for where in np.ndindex(*batch):
        for row, leading in enumerate(_subspaces(found, where, ranks)):
            for column, one in enumerate(leading):
                at = (row, column, *where)
                share[at] = geometry.subspace_share(unit, one.basis)
                between = geometry.principal_angles(span, one.basis)
                principal[at][: len(between)] = between[:angles]
                dimension[at], gap[at] = one.basis.shape[1], one.gap
    below = stats.beta.cdf(share, dimension[..., None] / 2, (d - dimension[..., None]) / 2)
    axes = ("subspace", "rank", *names)
    return xr.Dataset(
        {
            "share": ((*axes, "direction"), share.numpy(), _meaning("‖Bᵀv‖² / ‖v‖²")),
            "percentile": ((*axes, "direction"), below, _meaning("probability of a smaller share, random direction")),
            "principal_angle": ((*axes, "angle"), principal.numpy(), _meaning("angles to the span", "degree")),
            "dimension": (axes, dimension.numpy(), _meaning("dimension of the subspace")),
            "gap": (axes, gap.numpy(), _meaning("last value inside over the first outside")),
        },
        {
            "subspace": list(SUBSPACES),
            "rank": list(ranks),
            "direction": list(given.names),
            "angle": np.arange(1, angles + 1),
        },
        {"d_model": d},
    )


def _meaning(long_name: str, units: str = "1") -> dict[str, Any]:
    return {"units": units, "long_name": long_name}


def _span(unit: Float[Tensor, "n d"]) -> Float[Tensor, "d m"]:
    """An orthonormal basis of the span of unit vectors."""
    left, values, _ = torch.linalg.svd(unit.mT, full_matrices=False)
    basis: Tensor = left[:, values > _INDEPENDENT * values[0]]
    return basis


def _subspaces(found: Spectrum, where: tuple[int, ...], ranks: Sequence[int]) -> list[list[_Leading]]:
    """The subspaces of one matrix, in the order of `SUBSPACES`, each for all ranks."""
    left, values, right = (part[where].cpu() for part in found.svd)
    gaps = [_ratio(float(values[k - 1]), float(values[k])) for k in ranks]
    columns = zip(ranks, gaps, strict=True)
    singular = [(_Leading(right[:k].mT, gap), _Leading(left[:, :k], gap)) for k, gap in columns]
    form = found.schur(vectors=True)
    assert form.Q is not None
    T, Q, eigenvalues = form.T[where].cpu(), form.Q[where].cpu(), form.eigenvalues[where].cpu()
    eigen = [_invariant(T, Q, eigenvalues, k) for k in ranks]
    return [[one for one, _ in singular], [other for _, other in singular], eigen]


def _invariant(T: Float[Tensor, "d d"], Q: Float[Tensor, "d d"], values: Complex[Tensor, " d"], k: int) -> _Leading:
    """The invariant subspace of the k eigenvalues of largest modulus, their conjugates with them."""
    sizes = values.abs().numpy()
    inside = np.zeros(len(sizes), dtype=bool)
    inside[np.argsort(-sizes, kind="stable")[:k]] = True
    pair = np.flatnonzero(values.imag.numpy() > 0)  # LAPACK puts the conjugate next
    inside[pair] = inside[pair + 1] = inside[pair] | inside[pair + 1]
    _, basis, *_, info = dtrsen(inside.astype(np.int32), T.numpy(), Q.numpy(), job="N")
    if info:
        raise InputError(
            f"eigenvalues must be apart to be put in order, and the {k} largest of a matrix are too close to others: "
            "choose other ranks"
        )
    outside = sizes[~inside].max(initial=0.0)
    return _Leading(torch.from_numpy(basis[:, : inside.sum()].copy()), _ratio(sizes[inside].min(), outside))


def _ratio(last: float, following: float) -> float:
    return float(last / following) if following > 0 else float("inf")
