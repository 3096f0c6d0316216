"""Medians, ranks and rank correlations of many weighted resamples, from values that are sorted once.

A weighted median or rank then costs a cumulative sum, not a sort. A row that is not finite has weight zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from probe.boundary import public
from probe.errors import InputError

Floats: TypeAlias = Float[np.ndarray, "..."]
Ints: TypeAlias = Int[np.ndarray, "..."]
Value: TypeAlias = float | Floats

# |ρ| = 1 has no finite atanh; this bounds what one layer can add to a mean of atanh ρ.
LARGEST_RHO = 1.0 - 1e-12


class Ranking:
    """Values sorted once along their last axis, for medians and ranks of many weighted resamples.

    A weight is how often a row occurs in a resample; weights broadcast against the values. Rows that are not finite
    have weight zero.

    Args:
        values: (..., row); each leading index (layer, draw) is sorted separately.
    """

    @public
    def __init__(self, values: Num[np.ndarray, "*lead row"]) -> None:
        self.finite: Bool[np.ndarray, "*lead row"] = np.isfinite(values)
        self._complete = bool(self.finite.all())
        self._order = np.argsort(values, axis=-1, kind="stable")
        self._sorted = np.take_along_axis(values, self._order, axis=-1)
        self._first, self._last = self._ties()
        self._tied = bool((self._last - self._first > 1).any())

    @public
    def median(self, weights: Num[np.ndarray, "... row"]) -> Floats:
        """Take the median of the rows, each counted by its weight: (...,), NaN where all weights are zero."""
        cumulated = self._cumulated(weights)
        half = cumulated[..., -1:] / 2
        middle = [np.argmax(cumulated[..., 1:] >= half, axis=-1), np.argmax(cumulated[..., 1:] > half, axis=-1)]
        lower, upper = (_gather(self._sorted, index[..., None])[..., 0] for index in middle)
        return np.where(cumulated[..., -1] > 0, (lower + upper) / 2, np.nan)

    @public
    def midranks(self, weights: Num[np.ndarray, "... row"]) -> Floats:
        """Rank each row among all rows of the resample, from 1, ties by their mean; as if rows were repeated."""
        cumulated = self._cumulated(weights)
        below = _gather(cumulated, self._first)
        if self._tied:
            return np.asarray((below + _gather(cumulated, self._last) + 1) / 2)
        return np.asarray(below + (self._present(weights) + 1) / 2)

    def _cumulated(self, weights: Num[np.ndarray, "... row"]) -> Floats:
        """Weight of the rows before each sorted position, with the total at the end: (..., row + 1)."""
        if weights.shape[-1:] != self._order.shape[-1:]:
            raise InputError(
                f"weights= must have one for each of {self._order.shape[-1]} rows, got {weights.dtype} of shape "
                f"{weights.shape}: pass as many"
            )
        in_order = _gather(self._present(weights), self._order)
        cumulated = np.zeros((*in_order.shape[:-1], in_order.shape[-1] + 1))
        np.cumsum(in_order, axis=-1, out=cumulated[..., 1:])
        return cumulated

    def _present(self, weights: Num[np.ndarray, "... row"]) -> Num[np.ndarray, "... row"]:
        return weights if self._complete else weights * self.finite

    def _ties(self) -> tuple[Ints, Ints]:
        """For each row, the sorted positions at which its group of equal values begins and ends."""
        n = self._sorted.shape[-1]
        position = np.broadcast_to(np.arange(n), self._sorted.shape)
        edge = np.ones((*self._sorted.shape[:-1], 1), dtype=bool)
        differs = np.concatenate([edge, self._sorted[..., 1:] != self._sorted[..., :-1], edge], axis=-1)
        first_sorted = np.maximum.accumulate(np.where(differs[..., :-1], position, 0), axis=-1)
        last_sorted = np.minimum.accumulate(np.where(differs[..., 1:], position + 1, n)[..., ::-1], axis=-1)[..., ::-1]
        first, last = np.empty_like(self._order), np.empty_like(self._order)
        np.put_along_axis(first, self._order, first_sorted, axis=-1)
        np.put_along_axis(last, self._order, last_sorted, axis=-1)
        return first, last


@public
def spearman(
    a: Num[np.ndarray, "... row"] | Ranking,
    b: Num[np.ndarray, "... row"] | Ranking,
    *,
    weights: Num[np.ndarray, "... row"] | None = None,
) -> Floats:
    """Compute Spearman's ρ along the last axis: the correlation of the midranks.

    >>> float(spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0])))
    1.0

    Args:
        a: (..., row), or a `Ranking` of it, so that a bootstrap sorts once.
        b: (..., row) or a `Ranking`; leading axes broadcast.
        weights: Number of times that each row occurs; once by default.

    Returns:
        ρ, (...,); pairs with a value that is not finite are left out; NaN for fewer than three rows or a constant side.
    """
    first, second = _ranking(a), _ranking(b)
    weights = _joint_weights([first, second], weights)
    x, y = _centred_ranks(first, weights), _centred_ranks(second, weights)
    weighted = x * weights
    rho = _cosine_of(np.vecdot(weighted, y), np.vecdot(weighted, x), np.vecdot(y * weights, y))
    return np.where((weights > 0).sum(axis=-1) >= 3, rho, np.nan)


@public
def partial_spearman(
    a: Num[np.ndarray, "... row"] | Ranking,
    b: Num[np.ndarray, "... row"] | Ranking,
    covariates: Sequence[Num[np.ndarray, "... row"] | Ranking],
    *,
    weights: Num[np.ndarray, "... row"] | None = None,
) -> Floats:
    """Compute Spearman's ρ of a and b given covariates, from the residuals of linear fits on the covariates' ranks.

    ``S_ab − S_ac S_cc⁺ S_cb`` over the geometric mean of the two residual variances, S the covariance of midranks.

    Args:
        a: (..., row), or a `Ranking` of it.
        b: (..., row) or a `Ranking`.
        covariates: Each (..., row) or a `Ranking`; collinear and constant ones do no harm.
        weights: Number of times that each row occurs; once by default.

    Returns:
        Partial ρ, (...,); rows with any value that is not finite are left out; NaN where the covariates explain a or b
        entirely, or fewer than three rows remain.
    """
    rankings = [_ranking(a), _ranking(b), *map(_ranking, covariates)]
    weights = _joint_weights(rankings, weights)
    ranks = np.stack(np.broadcast_arrays(*(_centred_ranks(ranking, weights) for ranking in rankings)), axis=-2)
    covariance = (ranks * weights[..., None, :]) @ np.swapaxes(ranks, -1, -2)
    scale = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    scale = np.where(scale > 0, scale, 1.0)
    unit = covariance / (scale[..., :, None] * scale[..., None, :])
    pair, cross, given = unit[..., :2, :2], unit[..., :2, 2:], unit[..., 2:, 2:]
    left = pair - cross @ np.linalg.pinv(given, rcond=1e-10, hermitian=True) @ np.swapaxes(cross, -1, -2)
    undefined = (left[..., 0, 0] < 1e-10) | (left[..., 1, 1] < 1e-10) | ((weights > 0).sum(axis=-1) < 3)
    return np.where(undefined, np.nan, _cosine_of(left[..., 0, 1], left[..., 0, 0], left[..., 1, 1]))


@public
def fisher_mean(rho: Floats, axis: int | tuple[int, ...] = -1) -> Floats:
    """Average correlations on Fisher's scale: ``tanh(mean(atanh ρ))``.

    >>> round(float(fisher_mean(np.array([0.2, 0.8]))), 3)  # not 0.5: atanh stretches the ends
    0.572

    Args:
        rho: Correlations in [−1, 1]; |ρ| = 1 counts as 1 − 1e-12.
        axis: Axes to average over.

    Returns:
        The mean correlation; NaN where any ρ is NaN.

    Raises:
        InputError: If ρ has no such axis.
    """
    if any(not -rho.ndim <= each < rho.ndim for each in (axis if isinstance(axis, tuple) else (axis,))):
        raise InputError(f"axis= must be an axis of rho=, got {axis} for the shape {rho.shape}: choose another")
    return np.asarray(np.tanh(np.arctanh(np.clip(rho, -LARGEST_RHO, LARGEST_RHO)).mean(axis=axis)))


def _ranking(values: Num[np.ndarray, "... row"] | Ranking) -> Ranking:
    return values if isinstance(values, Ranking) else Ranking(values)


def _joint_weights(
    rankings: Sequence[Ranking], weights: Num[np.ndarray, "... row"] | None
) -> Num[np.ndarray, "... row"]:
    """Weights that are zero wherever any of the variables is missing."""
    joint = np.ones(rankings[0].finite.shape[-1]) if weights is None else weights
    for ranking in rankings:
        if not ranking.finite.all():
            joint = joint * ranking.finite
    return joint


def _centred_ranks(ranking: Ranking, weights: Num[np.ndarray, "... row"]) -> Floats:
    """Midranks less their mean, which is (total weight + 1) / 2."""
    return np.asarray(ranking.midranks(weights) - (weights.sum(axis=-1, keepdims=True) + 1) / 2)


def _cosine_of(product: Value, a: Value, b: Value) -> Floats:
    """``product / sqrt(a b)``, NaN where a or b is zero."""
    square = np.asarray(a * b)
    defined = square > 0
    return np.where(defined, product / np.sqrt(np.where(defined, square, 1.0)), np.nan)


def _gather(values: Shaped[np.ndarray, "... n"], index: Int[np.ndarray, "... m"]) -> Any:
    """``values[..., index]`` with leading axes broadcast."""
    if values.ndim == 1:
        return values[index]
    lead = np.broadcast_shapes(values.shape[:-1], index.shape[:-1])
    values, index = np.broadcast_to(values, (*lead, values.shape[-1])), np.broadcast_to(index, (*lead, index.shape[-1]))
    starts = np.arange(math.prod(lead)).reshape(*lead, 1) * values.shape[-1]
    return np.take(values.ravel(), index + starts)  # several times as fast as take_along_axis
