r"""What follows for means of documents from inner products of the documents' matrices, without the matrices.

Any weighted mean has its norm, its distance from another one and its participation ratio in the inner products that a
run keeps: fits of fewer documents, and of all but one. Intervals are jackknife intervals over documents: a mean of
documents drawn with replacement has twice the noise of the mean itself, and the distance of two such means, or the
number of their directions, is not that which is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from probe.analyses.lens.work import pairs_of
from probe.claims.evidence import Floats, Weights
from probe.inference import Interval


def jackknife(
    statistic: Callable[[Floats], Floats | float], groups: Sequence[Sequence[int]], count: int, level: float = 0.95
) -> Interval:
    """Estimate the interval of a smooth statistic of independent groups, leaving out one document at a time.

    The squared standard error is Σ over groups of ``(n − 1)/n Σ_i (θ_(i) − θ̄)²``; the interval is a t interval with
    n − (number of groups) degrees of freedom over all. Unlike `probe.inference.jackknife` it keeps the estimate: a
    distance without its first-order bias would be one of fits of more documents than there are.

    Args:
        statistic: Of weights, one for each document: a float, or an array of fixed shape.
        groups: The documents of each group, by index.
        count: Number of all documents, those of no group among them, whose weight is 0.
        level: Nominal coverage.

    Returns:
        The interval, of the statistic's shape.

    Source: Efron and Stein (1981), "The jackknife estimate of variance", Annals of Statistics 9(3).
    """
    whole = np.zeros(count)
    for group in groups:
        whole[list(group)] = 1.0
    estimate = np.asarray(statistic(whole), dtype=np.float64)
    variance = np.zeros_like(estimate)
    for group in groups:
        left = []
        for document in group:
            weights = whole.copy()
            weights[document] = 0.0
            left.append(np.asarray(statistic(weights), dtype=np.float64))
        variance += (len(group) - 1) / len(group) * np.square(np.array(left) - np.mean(left, axis=0)).sum(axis=0)
    n = sum(map(len, groups))
    reach = stats.t.ppf(0.5 + level / 2, n - len(groups)) * np.sqrt(variance)
    middle, low, high = (end if end.ndim else end.item() for end in (estimate, estimate - reach, estimate + reach))
    return Interval(middle, low, high, n, "documents, jackknife", level)


def masked(weights: Floats, group: Sequence[int]) -> Floats:
    """Keep the weights of a group's documents, and set the others to 0."""
    found: Floats = np.zeros_like(weights)
    found[list(group)] = weights[list(group)]
    return found


class Distances:
    """Distances of means of documents, from the inner products of their matrices.

    Args:
        gram: Inner products, (source, fitted, fitted).
    """

    def __init__(self, gram: Floats) -> None:
        self.gram = gram

    def product(self, one: Weights, other: Weights) -> Float[np.ndarray, " source"]:
        """Compute the inner product of two weighted means, by layer."""
        found: Floats = np.einsum("a,lab,b->l", one / one.sum(), self.gram, other / other.sum())
        return found

    def between(self, one: Weights, other: Weights) -> Float[np.ndarray, " source"]:
        """Compute ‖A − B‖ / sqrt(‖A‖ ‖B‖) of two weighted means, by layer."""
        own, theirs, both = self.product(one, one), self.product(other, other), self.product(one, other)
        distance: Floats = np.sqrt(np.maximum(own + theirs - 2 * both, 0.0)) / (own * theirs) ** 0.25
        return distance


def curve(
    distances: Distances, one: Sequence[int], other: Sequence[int]
) -> tuple[list[int], Float[np.ndarray, "count source"]]:
    """Compute the distance of two fits as the number of documents grows, by layer.

    Args:
        distances: Of documents.
        one: Documents of the first fit, in the order in which they are added.
        other: Of the second.

    Returns:
        Numbers of documents, doubled from one to the next and the whole last, and distances.
    """
    largest = min(len(one), len(other))
    sizes = sorted({*(2**power for power in range(largest.bit_length()) if 2**power <= largest), largest})
    size = len(distances.gram[0])
    found = []
    for count in sizes:
        weights = [masked(np.ones(size), group[:count]) for group in (one, other)]
        found.append(distances.between(*weights))
    return sizes, np.array(found)


def between_share(
    gram: Floats, weights: Floats, one: Sequence[int], other: Sequence[int]
) -> Float[np.ndarray, " source"]:
    """Compute the share of variance between two groups of documents, debiased for their numbers; at least 0.

    With m_g the mean of group g and s² the pooled variance inside groups, σ²(between) is
    (‖m_1 − m_2‖² − s² (1/n_1 + 1/n_2)) / 2.

    Args:
        gram: Inner products, (source, fitted, fitted).
        weights: 1 or 0 for each document.
        one: Documents of the first group.
        other: Of the second.

    Returns:
        The share, by layer.
    """
    found = Distances(gram)
    masks = [masked(weights, group) for group in (one, other)]
    counts = [mask.sum() for mask in masks]
    squares = np.zeros(len(gram))
    for mask, count in zip(masks, counts, strict=True):
        squares += np.einsum("laa,a->l", gram, mask) - count * found.product(mask, mask)
    inside = squares / (sum(counts) - 2)
    apart = found.product(masks[0], masks[0]) + found.product(masks[1], masks[1]) - 2 * found.product(*masks)
    between = np.maximum((apart - inside * sum(1 / count for count in counts)) / 2, 0.0)
    share: Floats = between / (between + inside)
    return share


class Participation:
    """Log participation ratio of the mean of documents' M by layer, for any weights of the documents.

    Args:
        quartic: ⟨S_ab, S_cd⟩, (source, pair, pair).
        trace: Traces tr S_ab, (source, pair).
    """

    def __init__(self, quartic: Floats, trace: Floats) -> None:
        self.quartic, self.trace = quartic, trace
        self.documents = int((np.sqrt(8 * len(quartic[0]) + 1) - 1) / 2)
        self._first, self._second = np.array(pairs_of(self.documents)).T

    def __call__(self, weights: Weights) -> Float[np.ndarray, " source"]:
        """Compute ln (Σσ²)²/Σσ⁴."""
        share = weights / weights.sum()
        pair = share[self._first] * share[self._second]
        found: Floats = 2 * np.log(self.trace @ pair) - np.log((self.quartic @ pair) @ pair)
        return found
