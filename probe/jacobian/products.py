"""Products of block Jacobians through depth, and their means over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.errors import InputError
from probe.jacobian.block import Positions, iter_block_jacobians, positions_of
from probe.jacobian.options import MEMORY
from probe.model import LanguageModel


def cumulative_jacobian(
    model: LanguageModel,
    tokens: Int[Tensor, "window position"],
    from_layer: int,
    to_layer: int,
    positions: Positions,
    *,
    context: str = "sequence",
    method: str = "auto",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "window chosen d d"]:
    r"""The Jacobian at one position from one depth to another: the product of the blocks' own, multiplied in float64.

    .. math:: \partial h_b(t) / \partial h_a(t) = J_{b-1}(t) \cdots J_a(t), \qquad a = \mathrm{from}, b = \mathrm{to}

    In a causal model this is exact: earlier states do not depend on h_a(t). With `context="alone"` the product is
    formal, as no network was run from one block's one-token input to the next.

    Args:
        model: The model.
        tokens: Int64 (W, T).
        from_layer: a, the block whose input is varied.
        to_layer: B; `model.n_layers` means the stream behind the last block.
        positions: (P,) or (W, P), as in `probe.block_jacobian`.
        context: As in `probe.block_jacobian`.
        method: As in `probe.block_jacobian`.
        chunk: As in `probe.block_jacobian`.
        memory: As in `probe.block_jacobian`.
        dtype: Of the blocks' Jacobians and of the result.

    Returns:
        The product, (W, P, d, d); the identity for a = b.

    Raises:
        InputError: If the layers are not 0 ≤ a ≤ b ≤ L.
    """
    if not 0 <= from_layer <= to_layer <= model.n_layers:
        raise InputError(
            f"a cumulative Jacobian needs 0 ≤ from_layer ≤ to_layer ≤ {model.n_layers}, got {from_layer} and {to_layer}"
        )
    blocks = iter_block_jacobians(
        model,
        tokens,
        range(from_layer, to_layer),
        positions,
        context=context,
        method=method,
        chunk=chunk,
        memory=memory,
        dtype=dtype,
    )
    product: Tensor | None = None
    for _, block in blocks:
        product = block.double() if product is None else block.double() @ product
    if product is None:
        shape = (*positions_of(tokens, positions).shape, model.d_model, model.d_model)
        product = torch.eye(model.d_model, device=model.device).expand(shape)
    return product.to(dtype)


@dataclass(frozen=True)
class MeanJacobian:
    """Mean and spread of block Jacobians over tokens.

    A mean of matrices is smoother than the matrices: its scores are not the mean of theirs.

    Attributes:
        layers: The blocks.
        mean: Float64, J̄.
        deviation: Float64, the standard deviation of each entry over tokens (divided by N).
        count: N, the number of tokens.
    """

    layers: tuple[int, ...]
    mean: Float[Tensor, "layer d d"]
    deviation: Float[Tensor, "layer d d"]
    count: int

    @property
    def spread(self) -> Float[Tensor, " layer"]:
        """sqrt(mean ‖J − J̄‖_F²) / ‖J̄‖_F, the size of a token's deviation relative to the mean."""
        spread: Tensor = torch.linalg.matrix_norm(self.deviation) / torch.linalg.matrix_norm(self.mean)
        return spread


def mean_jacobian(
    model: LanguageModel,
    tokens: Int[Tensor, "window position"],
    layers: Sequence[int] | None,
    positions: Positions,
    *,
    batch_size: int | None = 8,
    context: str = "sequence",
    part: str = "block",
    of: str = "state",
    method: str = "auto",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> MeanJacobian:
    """The mean block Jacobian over windows and positions, and its spread, streamed: 2 · layers · d² float64 are held.

    Args:
        model: The model.
        tokens: Int64 (W, T).
        layers: Which blocks; None: all.
        positions: (P,) or (W, P), as in `probe.block_jacobian`.
        batch_size: Windows a forward pass.
        context: As in `probe.block_jacobian`.
        part: As in `probe.block_jacobian`.
        of: As in `probe.block_jacobian`.
        method: As in `probe.block_jacobian`.
        chunk: As in `probe.block_jacobian`.
        memory: As in `probe.block_jacobian`.
        dtype: Of the single Jacobians.

    Returns:
        Mean and deviation, N = W · P.
    """
    chosen = tuple(range(model.n_layers) if layers is None else layers)
    sums = {layer: _Moments() for layer in chosen}
    for layer, jacobian in iter_block_jacobians(
        model,
        tokens,
        chosen,
        positions,
        batch_size=batch_size,
        context=context,
        part=part,
        of=of,
        method=method,
        chunk=chunk,
        memory=memory,
        dtype=dtype,
    ):
        for matrix in jacobian.flatten(0, 1):
            sums[layer].add(matrix.double())
    mean, deviation = (torch.stack(parts) for parts in zip(*(sums[layer].moments() for layer in chosen), strict=True))
    return MeanJacobian(chosen, mean, deviation, sums[chosen[0]].count)


class _Moments:
    """Running mean and sum of squared deviations (Welford 1962), which does not cancel as a sum of squares does."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, value: Tensor) -> None:
        self.count += 1
        if self.count == 1:
            self.mean, self.squares = value.clone(), torch.zeros_like(value)
            return
        before = value - self.mean
        self.mean += before / self.count
        self.squares += before * (value - self.mean)

    def moments(self) -> tuple[Tensor, Tensor]:
        return self.mean, (self.squares / self.count).sqrt()
