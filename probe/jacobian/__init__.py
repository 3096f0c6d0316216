"""Exact Jacobians of blocks, at chosen positions of a real context.

In a causal model the state at one position after block l depends on the state at that position before it by
J_l(t) = ∂h_{l+1}(t)/∂h_l(t), d × d, and

- the end-to-end Jacobian at one position is the product J_{b−1}(t) ⋯ J_a(t), exactly;
- the spectrum of the whole-sequence Jacobian is the union of the same-position spectra. (Its singular values are not:
  they depend on the blocks between positions, `cross_jacobian`.)
"""

from probe.jacobian.block import block_jacobian, iter_block_jacobians, recorded_jacobian
from probe.jacobian.options import MEMORY, Options, method_of

__all__ = ["MEMORY", "Options", "block_jacobian", "iter_block_jacobians", "method_of", "recorded_jacobian"]
