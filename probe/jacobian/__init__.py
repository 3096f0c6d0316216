"""Exact Jacobians of blocks, at chosen positions of a real context.

In a causal model the state at one position after block l depends on the state at that position before it by
J_l(t) = ∂h_{l+1}(t)/∂h_l(t), d × d, and

- the end-to-end Jacobian at one position is the product J_{b−1}(t) ⋯ J_a(t), exactly;
- the spectrum of the whole-sequence Jacobian is the union of the same-position spectra. (Its singular values are not:
  they depend on the blocks between positions, `cross_jacobian`.)

The table shows the method that `method="auto"` takes (`method_of`), and how many times faster a position is than with
`torch.func.jacrev` on the block's call with the whole sequence. Random weights, d = 256, T = 128, 8 positions, CPU time
of one thread; `benchmarks/test_jacobian.py` measures it again:

==========================================================  ========  =========
architecture                                                method    times
==========================================================  ========  =========
blocks of attention and an MLP or experts, with a row       analytic  160 – 220
Mamba                                                       frozen    900
Mamba 2                                                     frozen    80
Qwen 3.5, OLMo hybrid, LFM 2 (carried states)               frozen    190 – 320
Bamba, Falcon-H1 (carried states)                           frozen    45 – 70
other blocks that run at single positions                   frozen    –
all other code, such as a TransformerBridge                 jacrev    1
==========================================================  ========  =========

Frozen Jacobians of whole blocks are composed too, of what lies between the matrices, where one product a call agrees
(`probe.jacobian.sections`).

A composed Jacobian is proved once a block, against a backward pass through the block's own code; a block that fails the
proof takes the next method. Rows are in `probe.model.architectures`.

In a mixture of experts the choice of a position's experts is constant, and `routing_margin` says how far it is from
another one: at a tie there is no derivative.

The ratio grows with d: on SmolLM2-135M (d = 576) it was 299.
"""

from probe.errors import renamed
from probe.jacobian.block import (
    block_jacobian,
    iter_block_jacobians,
    mlp_neuron_gain,
    norm_gains,
    recorded_jacobian,
)
from probe.jacobian.detached import detached_tail
from probe.jacobian.later import later_jacobians
from probe.jacobian.margins import routing_margin
from probe.jacobian.operators import operator
from probe.jacobian.options import MEMORY, JacobianOptions, method_of
from probe.jacobian.products import MeanJacobian, cumulative_jacobian, mean_jacobian
from probe.jacobian.pushing import push_forward
from probe.jacobian.sites import cross_jacobian, site_jacobian

__all__ = [
    "MEMORY",
    "JacobianOptions",
    "MeanJacobian",
    "block_jacobian",
    "cross_jacobian",
    "cumulative_jacobian",
    "detached_tail",
    "iter_block_jacobians",
    "later_jacobians",
    "mean_jacobian",
    "method_of",
    "mlp_neuron_gain",
    "norm_gains",
    "operator",
    "push_forward",
    "recorded_jacobian",
    "routing_margin",
    "site_jacobian",
]


def __dir__() -> list[str]:
    return __all__


__getattr__ = renamed(__name__, {"Options": "JacobianOptions", "mlp_unit_gain": "mlp_neuron_gain"})
