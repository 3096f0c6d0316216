"""The uncertainty of a number: intervals over documents and seeds, permutation nulls, rank correlation.

- intervals: `bootstrap` (`resampled_rows`, `bootstrap_interval`), `circular_block_bootstrap`, `jackknife`,
  `seed_interval`
- nulls: `permutation_null`, `permutation_p_value`, `benjamini_hochberg`
- ranks: `Ranking`, `spearman`, `partial_spearman`, `fisher_mean`
"""

from __future__ import annotations

from probe.errors import renamed
from probe.inference.ranks import Ranking, fisher_mean, partial_spearman, spearman
from probe.inference.resampling import (
    Interval,
    PermutationNull,
    benjamini_hochberg,
    bootstrap,
    bootstrap_interval,
    circular_block_bootstrap,
    jackknife,
    permutation_null,
    permutation_p_value,
    resampled_rows,
    seed_interval,
)

__all__ = [
    "Interval",
    "PermutationNull",
    "Ranking",
    "benjamini_hochberg",
    "bootstrap",
    "bootstrap_interval",
    "circular_block_bootstrap",
    "fisher_mean",
    "jackknife",
    "partial_spearman",
    "permutation_null",
    "permutation_p_value",
    "resampled_rows",
    "seed_interval",
    "spearman",
]


def __dir__() -> list[str]:
    return __all__


__getattr__ = renamed(__name__, {"LARGEST_RHO": "ranks.LARGEST_RHO"})
