"""Amplification: the growth of vectors in a set of coordinates or a subspace under an operator, and their leak.

For an operator A (a block's Jacobian ``J``, or ``K = J − I``) and the orthogonal projector P onto a subspace of
dimension s, for coordinates the diagonal matrix that keeps them:

- `gain` ``‖A P‖_F / √s``: root-mean-square length of A v over unit vectors v inside
- `self_gain` ``‖P A P‖_F / √s``: the part of it that stays inside
- `leak` ``‖(I − P) A P‖_F / √s``: the part that leaves; ``gain² = self_gain² + leak²``
- `divergence` ``tr(P A P) / s``: the signed mean rate of growth inside, meant for K
- `numerical_abscissa` ``λ_max(P (A + Aᵀ) P / 2)`` inside: the fastest growth of a vector inside, meant for K

`gain²` is a mean of squared column norms and so holds no interaction inside the set; `self_gain` and the abscissa do.

The measures of a set of coordinates are large or small only beside random sets of its size. `random_set_moments` gives
their mean and variance in closed form, over all sets of s of the d coordinates; `z_scores` compares.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import display
from probe.errors import InputError, renamed
from probe.geometry import haar_frame
from probe.spectra import numerical_abscissa
from probe.spectra.factors import real

__all__ = [
    "Amplification",
    "PooledOperator",
    "coordinate_gain",
    "partition_amplification",
    "random_set_moments",
    "random_subspaces",
    "subspace_amplification",
    "z_scores",
]

Operator: TypeAlias = Float[Tensor, "*batch d d"]


@dataclass(frozen=True, eq=False, repr=False)
class Amplification(display.Shown):
    """The five measures of one or several sets; every field has the same shape.

    Attributes:
        gain: Root-mean-square growth of a unit vector inside, (...).
        self_gain: The part that stays inside.
        leak: The part that leaves.
        divergence: Signed mean rate of growth inside.
        numerical_abscissa: Fastest growth inside.
    """

    gain: Float[Tensor, "*set"]
    self_gain: Float[Tensor, "*set"]
    leak: Float[Tensor, "*set"]
    divergence: Float[Tensor, "*set"]
    numerical_abscissa: Float[Tensor, "*set"]


class PooledOperator(display.Shown):
    """The root-mean-square operator over many tokens, streamed: ``mean A`` and the mean square of each of its entries.

    Gains of it are root mean squares over the tokens of the tokens' gains, exactly; its divergence is their mean; its
    numerical abscissa is that of ``mean A``, which is at most the mean of theirs.

    Attributes:
        count: Number of operators so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum: Float[Tensor, "d d"] | float = 0.0
        self._square: Float[Tensor, "d d"] | float = 0.0

    def update(self, operators: Operator) -> PooledOperator:
        """Add operators, one for each token.

        Args:
            operators: Matrices of one size, (..., d, d).

        Returns:
            The pooled operator itself.
        """
        rows = operators.reshape(-1, *operators.shape[-2:])
        self.count += len(rows)
        self._sum = self._sum + rows.sum(0, dtype=torch.float64)
        self._square = self._square + rows.double().square().sum(0)
        return self

    @property
    def mean(self) -> Float[Tensor, "d d"]:
        """Mean operator, float64, (d, d)."""
        return self._share(self._sum)

    @property
    def mean_square(self) -> Float[Tensor, "d d"]:
        """Mean square of each entry, float64, (d, d)."""
        return self._share(self._square)

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"count": self.count}
        return facts | ({"width": len(self._sum)} if isinstance(self._sum, Tensor) else {})

    def _share(self, total: Float[Tensor, "d d"] | float) -> Float[Tensor, "d d"]:
        if not isinstance(total, Tensor):
            raise InputError("a pooled operator needs at least one matrix, got none: update it first")
        return total / self.count


def coordinate_gain(operator: Operator | PooledOperator) -> Float[Tensor, "*batch d"]:
    """Compute the gain of each single coordinate, ``‖A e_i‖``: the column norms.

    Args:
        operator: A, (..., d, d), or pooled over tokens; its transpose gives the receptivity of the coordinates.

    Returns:
        Values ≥ 0, float64, (..., d).
    """
    return _parts(operator)[1].sum(-2).sqrt()


def partition_amplification(operator: Operator | PooledOperator, labels: Int[Tensor, " d"]) -> Amplification:
    """Measure the amplification of every community of a partition of the coordinates.

    Args:
        operator: A, (..., d, d), or pooled over tokens.
        labels: The community 0, 1, … of each coordinate, none of them empty; −1 for no community, (d,).

    Returns:
        Five measures, float64, (..., community).

    Raises:
        InputError: If a community is empty, or there is not one label for each coordinate.

    Cost: O(d²) an operator, and an eigenvalue problem of its size for each community's abscissa.
    """
    matrix, square = _parts(operator)
    if len(labels) != matrix.shape[-1]:
        raise InputError(f"each of {matrix.shape[-1]} coordinates needs a label, got {len(labels)}: pass one for each")
    labels = labels.to(matrix.device)
    size = torch.bincount(labels[labels >= 0])
    if not len(size) or bool((size == 0).any()):
        raise InputError(f"labels must be 0, 1, … without gaps, got sizes {size.tolist()}: use graphs.canonical_labels")
    member = (labels[:, None] == torch.arange(len(size), device=labels.device)).to(matrix.dtype)  # (d, community)
    gain = square.sum(-2) @ member / size
    inside = (member * (square @ member)).sum(-2) / size
    blocks = [_block(matrix, torch.nonzero(labels == c)[:, 0]) for c in range(len(size))]
    return Amplification(
        gain=gain.sqrt(),
        self_gain=inside.sqrt(),
        leak=(gain - inside).clamp(min=0).sqrt(),
        divergence=matrix.diagonal(dim1=-2, dim2=-1) @ member / size,
        numerical_abscissa=torch.stack([numerical_abscissa(block) for block in blocks], dim=-1),
    )


def subspace_amplification(operator: Operator, basis: Float[Tensor, "*#batch d s"]) -> Amplification:
    """Measure the amplification of a subspace.

    Args:
        operator: A, (..., d, d).
        basis: Columns that span the subspace, of full rank, (..., d, s).

    Returns:
        Five measures, float64, (...).
    """
    q: Tensor = torch.linalg.qr(real(basis)).Q
    image = real(operator) @ q
    inside = q.mT @ image
    outside = image - q @ inside
    root = q.shape[-1] ** 0.5
    return Amplification(
        gain=torch.linalg.matrix_norm(image) / root,
        self_gain=torch.linalg.matrix_norm(inside) / root,
        leak=torch.linalg.matrix_norm(outside) / root,
        divergence=inside.diagonal(dim1=-2, dim2=-1).mean(-1),
        numerical_abscissa=numerical_abscissa(inside),
    )


def random_set_moments(
    operator: Operator | PooledOperator, size: int
) -> dict[str, tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]]:
    """Compute mean and variance, over all sets of s coordinates, of the measures that are sums over the set.

    These are the *squares* of the gains, and the divergence. Each is ``1/s · Σ_{i∈C} t_i + 1/s · Σ_{i≠j∈C} h_ij``. With
    t and h centred, r the row sums of h, and ``p_m = s(s−1)⋯ / d(d−1)⋯`` (m factors) the chance that m coordinates are
    all drawn, the variance of the sum is

        (p₁ − p₂) Σt² + 4 (p₂ − p₃) Σ t r + 2 (p₂ − 2p₃ + p₄) Σh² + 4 (p₃ − p₄) Σr²

    Args:
        operator: A, (..., d, d), or pooled over tokens.
        size: Number of coordinates s, 1 ≤ s ≤ d.

    Returns:
        ``gain_squared``, ``self_gain_squared``, ``leak_squared``, ``divergence`` → mean and variance, float64, (...).

    Raises:
        InputError: If the size is not in 1 … d.
    """
    matrix, square = _parts(operator)
    d = matrix.shape[-1]
    if not 1 <= size <= d:
        raise InputError(f"size must lie in 1 … {d} coordinates, got {size}: choose a size in this range")
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    between = (square + square.mT) / 2
    column, none = square.sum(-2), torch.zeros_like(square)
    return {
        "gain_squared": _moments(column, none, size),
        "self_gain_squared": _moments(diagonal, between, size),
        "leak_squared": _moments(column - diagonal, -between, size),
        "divergence": _moments(matrix.diagonal(dim1=-2, dim2=-1), none, size),
    }


def random_subspaces(operator: Operator, size: int, generator: torch.Generator, draws: int = 200) -> Amplification:
    """Measure the amplification of Haar-random subspaces, the null of `subspace_amplification`.

    In the mean over subspaces ``gain² = ‖A‖_F² / d`` and ``divergence = tr A / d``.

    Args:
        operator: A, (..., d, d).
        size: Dimension s of the subspaces.
        generator: Source of the frames.
        draws: Number of subspaces.

    Returns:
        Five measures of each draw, float64, (draws, ...).
    """
    d = operator.shape[-1]
    frames = (haar_frame(d, size, generator, dtype=torch.float64) for _ in range(draws))
    found = [subspace_amplification(operator, frame) for frame in frames]
    return Amplification(**{
        measure.name: torch.stack([getattr(one, measure.name) for one in found]) for measure in fields(Amplification)
    })


def z_scores(
    operator: Operator | PooledOperator,
    labels: Int[Tensor, " d"],
    generator: torch.Generator,
    draws: int = 200,
) -> Amplification:
    """Compare each community with random sets of its size, in their standard deviations.

    Gains are compared by their squares and divergences as they are, with `random_set_moments`; the numerical abscissa,
    whose moments have no closed form, with sampled sets.

    Args:
        operator: A, (..., d, d), or pooled over tokens.
        labels: The community of each coordinate, as in `partition_amplification`.
        generator: Source of the sampled sets, on the device of the operator.
        draws: Number of sampled sets.

    Returns:
        z scores, (..., community); NaN where all sets of this size are alike.
    """
    found = partition_amplification(operator, labels)
    matrix, _ = _parts(operator)
    sizes = torch.bincount(labels[labels >= 0]).tolist()
    values = {
        "gain": found.gain.square(),
        "self_gain": found.self_gain.square(),
        "leak": found.leak.square(),
        "divergence": found.divergence,
        "numerical_abscissa": found.numerical_abscissa,
    }
    reference = {size: _reference(operator, matrix, size, generator, draws) for size in sorted(set(sizes))}
    return Amplification(**{
        name: torch.stack([_z(value[..., c], *reference[size][name]) for c, size in enumerate(sizes)], dim=-1)
        for name, value in values.items()
    })


def _reference(
    operator: Operator | PooledOperator, matrix: Tensor, size: int, generator: torch.Generator, draws: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of the five measures (gains squared) over random sets of a size."""
    moments = {name.removesuffix("_squared"): pair for name, pair in random_set_moments(operator, size).items()}
    d = matrix.shape[-1]
    drawn = [torch.randperm(d, generator=generator, device=matrix.device)[:size] for _ in range(draws)]
    abscissa = numerical_abscissa(torch.stack([_block(matrix, members) for members in drawn]))
    return moments | {"numerical_abscissa": (abscissa.mean(0), abscissa.var(0))}


def _z(value: Float[Tensor, "*batch"], mean: Float[Tensor, "*batch"], variance: Float[Tensor, "*batch"]) -> Tensor:
    # A variance of rounding errors counts as zero: all sets are alike.
    spread = variance > 1e-20 * mean.square()
    return torch.where(spread, (value - mean) / variance.clamp(min=0).sqrt(), torch.nan)


def _moments(
    t: Float[Tensor, "*batch d"], h: Float[Tensor, "*batch d d"], size: int
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Mean and variance of ``(Σ_{i∈C} t_i + Σ_{i≠j∈C} h_ij) / s`` over sets C of s; the diagonal of h is not used."""
    # Every set has s members and s(s − 1) pairs: centring moves the sum by a constant, and nothing cancels later.
    d = t.shape[-1]
    h = h - torch.diag_embed(h.diagonal(dim1=-2, dim2=-1))
    mean_t, mean_h = t.mean(-1), h.sum((-2, -1)) / max(d * (d - 1), 1)
    t = t - mean_t[..., None]
    h = h - mean_h[..., None, None] * (1 - torch.eye(d, dtype=h.dtype, device=h.device))
    r = h.sum(-1)
    p1, p2, p3, p4 = (_all_drawn(m, size, d) for m in (1, 2, 3, 4))
    variance = (
        (p1 - p2) * t.square().sum(-1)
        + 4 * (p2 - p3) * (t * r).sum(-1)
        + 2 * (p2 - 2 * p3 + p4) * h.square().sum((-2, -1))
        + 4 * (p3 - p4) * r.square().sum(-1)
    )
    return mean_t + (size - 1) * mean_h, variance.clamp(min=0) / size**2


def _all_drawn(m: int, size: int, d: int) -> float:
    """Chance that m given coordinates are all among ``size`` of d."""
    chance = 1.0
    for taken in range(m):
        chance *= (size - taken) / (d - taken) if d > taken else 0.0
    return chance


def _parts(operator: Operator | PooledOperator) -> tuple[Float[Tensor, "*batch d d"], Float[Tensor, "*batch d d"]]:
    """The operator and the squares of its entries, in float64; for a pooled one the means of both."""
    if isinstance(operator, PooledOperator):
        return operator.mean, operator.mean_square
    matrix = real(operator)
    return matrix, matrix.square()


def _block(matrix: Float[Tensor, "*batch d d"], members: Int[Tensor, " s"]) -> Float[Tensor, "*batch s s"]:
    return matrix[..., members, :][..., members]


__getattr__ = renamed(__name__, {"unit_gain": "coordinate_gain"})
