"""Nulls of continuity: random directions by formula and by simulation, and permuted orders of blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special, stats
from torch import Tensor

from probe.boundary import at_least, public, within
from probe.geometry import haar_frame
from probe.inference import PermutationNull, permutation_null
from probe.weights.curves import assigned


@public
def haar_cosine(n: int) -> float:
    """Compute the mean |cosine| of two random directions, ``Γ(n/2) / (√π Γ((n+1)/2))``, about ``sqrt(2 / (π n))``.

    Args:
        n: Dimension.

    Returns:
        The mean.
    """
    return float(np.exp(special.gammaln(n / 2) - special.gammaln((n + 1) / 2)) / np.sqrt(np.pi))


@public(level=within(0, 1))
def haar_quantile(n: int, level: float) -> float:
    """Compute a quantile of the |cosine| of two random directions, whose square has the law Beta(1/2, (n − 1)/2).

    Args:
        n: Dimension, at least 2.
        level: In [0, 1]; for 0.99 the quantile is about 2.58 / √n.

    Returns:
        The quantile.
    """
    return float(np.sqrt(stats.beta.ppf(level, 0.5, (n - 1) / 2)))


@public(levels=within(0, 1), draws=at_least(1), seed=at_least(0))
def haar_mean_quantiles(
    pairs: Mapping[int, int], levels: Float[np.ndarray, " level"], *, draws: int = 20_000, seed: int = 0
) -> Float[np.ndarray, " level"]:
    """Simulate quantiles of the mean |cosine| over many pairs of random directions.

    Along a chain of independent random directions the cosines of neighbours are independent of each other.

    Args:
        pairs: Number of pairs by dimension.
        levels: In [0, 1].
        draws: Number of draws of the whole mean.
        seed: Seed of the draws.

    Returns:
        One quantile a level.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    for n, count in pairs.items():
        for _ in range(count):
            total += np.sqrt(generator.beta(0.5, (n - 1) / 2, size=draws))
    return np.asarray(np.quantile(total / sum(pairs.values()), levels))


@public
def haar_best_match(n: int, others: int) -> float:
    """Compute the mean of the largest |cosine| of a random direction to some others, ``∫ 1 − F(x)^others dx``.

    Args:
        n: Dimension.
        others: Number of independent random directions that it is compared with.

    Returns:
        The mean.
    """
    x = np.linspace(0, 1, 20_001)
    below = stats.beta.cdf(x**2, 0.5, (n - 1) / 2) ** others
    return float(np.trapezoid(1 - below, x))


@public(n=at_least(1), count=at_least(1), draws=at_least(1))
def haar_matched(n: int, count: int, *, draws: int = 20, seed: int = 0) -> float:
    """Simulate the mean |cosine| of some random directions with as many others, assigned so that their sum is largest.

    Args:
        n: Dimension.
        count: Number of directions on each side.
        draws: Number of draws of both sides.
        seed: Seed of the draws.

    Returns:
        The mean over directions and draws.
    """
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(draws):
        one, other = torch.randn(2, count, n, generator=generator, dtype=torch.float64)
        cosines = torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(other, dim=1).mT
        total += float(assigned(cosines.abs().numpy())[0].mean())
    return total / draws


@public(n=at_least(1), draws=at_least(1))
def simulated_cosines(n: int, draws: int, generator: torch.Generator) -> Float[Tensor, " draw"]:
    """Draw pairs of random directions and return their |cosine|, to check the formulas above.

    Args:
        n: Dimension.
        draws: Number of pairs.
        generator: Source of the directions.

    Returns:
        Values in [0, 1], (draws,).
    """
    frames = (haar_frame(n, 1, generator, dtype=torch.float64)[:, 0] for _ in range(2 * draws))
    vectors = torch.stack(list(frames)).unflatten(0, (draws, 2))
    cosines: Tensor = (vectors[:, 0] * vectors[:, 1]).sum(-1)
    return cosines.abs()


@public(permutations=at_least(1), seed=at_least(0))
def permuted_order(
    cosines: Float[np.ndarray, "projection block block"],
    statistic: Callable[[Float[np.ndarray, "projection block block"]], float],
    *,
    permutations: int = 999,
    seed: int = 0,
    greater: bool = True,
) -> PermutationNull:
    """Permute the order of the blocks, one order for all projections, and recompute a statistic of |cosine|.

    It tells whether blocks are alike because they are neighbours, or because all share one direction, which survives
    every order.

    Args:
        cosines: |v(l) · v(m)| of each projection, L × L.
        statistic: Function of such an array, for example the mean of the first off-diagonals.
        permutations: Number of orders.
        seed: Seed of the orders.
        greater: True: large values are extreme; False: small ones.

    Returns:
        The observed value, the null values and the p value.
    """

    def reordered(order: Int[np.ndarray, " row"]) -> float:
        return statistic(cosines[:, order[:, None], order[None, :]])

    alternative: Literal["greater", "less"] = "greater" if greater else "less"
    return permutation_null(reordered, cosines.shape[-1], permutations=permutations, seed=seed, alternative=alternative)
