"""The Jacobian of one or several blocks as a linear operator: products with vectors, no matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from probe import replay
from probe.boundary import public
from probe.errors import InputError
from probe.jacobian.block import attention_of, working_copy_of
from probe.jacobian.options import ContextName, JacobianOptions, OutputName
from probe.jacobian.parts import run_of
from probe.jacobian.rows import ForwardProducts, pulled
from probe.model import LanguageModel, undisturbed
from probe.text import Given, as_rows


def _run(recorded: replay.Context, layer: int, end: int, options: JacobianOptions) -> tuple[Tensor, Tensor]:
    """A leaf with the stream that enters block `layer`, and the stream that enters block `end`, with its graph."""
    point = state = recorded.state(layer).to(options.dtype).requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for between in range(layer, end):
            attention = attention_of(recorded, between, options)
            copy = working_copy_of(recorded, between, options, attention)
            state = run_of(recorded, between, copy, attention)(state)
    return point, state


class _Products:
    """Products with ∂output/∂point at one position, all in numpy."""

    def __init__(self, output: Tensor, point: Tensor, *, update: bool) -> None:
        self.output, self.point, self.update = output, point, update
        self.forward_products = ForwardProducts(output, point)

    def forward(self, vectors: NDArray[Any]) -> NDArray[Any]:
        return self._multiplied(vectors, self.forward_products)

    def backward(self, vectors: NDArray[Any]) -> NDArray[Any]:
        return self._multiplied(vectors, lambda rows: pulled(self.output, self.point, rows))

    @undisturbed()
    def _multiplied(self, vectors: NDArray[Any], multiply: Callable[[Tensor], Tensor]) -> NDArray[Any]:
        columns = torch.as_tensor(vectors, dtype=self.point.dtype).to(self.point.device).reshape(self.point.numel(), -1)
        product = multiply(columns.T.reshape(-1, *self.point.shape)).flatten(1).T
        if self.update:
            product = product - columns
        answer: NDArray[Any] = product.detach().cpu().numpy().reshape(vectors.shape)
        return answer


@public
@undisturbed()
def operator(
    model: LanguageModel,
    tokens: Given,
    layer: int,
    position: int,
    *,
    window: int = 0,
    to_layer: int | None = None,
    context: ContextName = "sequence",
    of: OutputName = "state",
    dtype: torch.dtype = torch.float32,
) -> LinearOperator[Any]:
    """Make the Jacobian at one position an operator, for Krylov methods and for widths where d × d is too much.

    A product costs about one (`rmatvec`) or two (`matvec`) backward passes of the position through the blocks,
    2 · params FLOPs each, whatever T; `matmat` and `rmatmat` take many vectors at once. The operator holds the graph of
    the blocks at this one position.

    Args:
        model: The model.
        tokens: As in `probe.block_jacobian`.
        layer: The block whose input is varied.
        position: Position in the window; negative ones count from the end.
        window: Index of the window.
        to_layer: Depth of the output; by default `layer + 1`, one block.
        context: "sequence", "alone" (one block only) or "detached", as in `probe.block_jacobian`.
        of: "state": J. "update": J − I.
        dtype: The dtype of the arithmetic.

    Returns:
        The operator, (d, d), with `matvec`, `rmatvec`, `matmat`, `rmatmat`.

    Raises:
        InputError: If an option, layer, window or position does not exist.
    """
    options = JacobianOptions(context=context, of=of, dtype=dtype)
    options.resolved(model)
    rows = as_rows(model, tokens, argument="tokens")
    end = layer + 1 if to_layer is None else to_layer
    if not 0 <= layer < end <= model.n_layers:
        raise InputError(
            f"an operator needs 0 ≤ layer < to_layer ≤ {model.n_layers}, got layer={layer} and to_layer={end}: choose "
            "two depths in this order"
        )
    if not 0 <= window < len(rows.ids):
        raise InputError(f"window must lie in 0 … {len(rows.ids) - 1}, got {window}: choose one of the windows")
    if context == "alone" and end > layer + 1:
        raise InputError(f'context="alone" runs one block on a one-token input, got to_layer={end}: leave it out')
    one = as_rows(model, rows.ids[window])
    replay.require_chain(model, layer, end)
    recorded = replay.record(model, one, [position], layers=range(layer, end))
    point, state = _run(recorded.alone() if context == "alone" else recorded, layer, end, options)
    products, d = _Products(state, point, update=of == "update"), model.d_model
    return LinearOperator(
        (d, d),
        matvec=products.forward,
        rmatvec=products.backward,
        matmat=products.forward,
        rmatmat=products.backward,
        dtype=np.dtype(str(dtype).removeprefix("torch.")),
    )
