"""Exact Jacobians of blocks, at chosen positions of a real context.

In a causal model the state at one position after block l depends on the state at that position before it by
J_l(t) = ∂h_{l+1}(t)/∂h_l(t), d × d, and

- the end-to-end Jacobian at one position is the product J_{b−1}(t) ⋯ J_a(t), exactly;
- the spectrum of the whole-sequence Jacobian is the union of the same-position spectra. (Its singular values are not:
  they depend on the blocks between positions, `cross_jacobian`.)
"""

from probe.jacobian.block import block_jacobian, iter_block_jacobians, recorded_jacobian
from probe.jacobian.operators import operator
from probe.jacobian.options import MEMORY, Options, method_of
from probe.jacobian.products import MeanJacobian, cumulative_jacobian, mean_jacobian
from probe.jacobian.sites import cross_jacobian, site_jacobian

__all__ = [
    "MEMORY",
    "MeanJacobian",
    "Options",
    "block_jacobian",
    "cross_jacobian",
    "cumulative_jacobian",
    "iter_block_jacobians",
    "mean_jacobian",
    "method_of",
    "operator",
    "recorded_jacobian",
    "site_jacobian",
]
