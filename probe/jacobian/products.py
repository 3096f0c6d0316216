"""Products of block Jacobians through depth, and their means over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe import display, plots, replay
from probe.boundary import filled, public
from probe.errors import InputError
from probe.jacobian.block import jacobians_by_layer
from probe.jacobian.options import MEMORY, ContextName, JacobianOptions, MethodName, OutputName
from probe.jacobian.parts import PartName
from probe.model import LanguageModel
from probe.text import Given, Which, as_rows


@public
def cumulative_jacobian(
    model: LanguageModel,
    tokens: Given,
    from_layer: int,
    to_layer: int,
    positions: Which,
    *,
    context: ContextName = "sequence",
    method: MethodName = "auto",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "window chosen d d"]:
    r"""Multiply the block Jacobians at one position from one depth to another, in float64.

    .. math:: \partial h_b(t) / \partial h_a(t) = J_{b-1}(t) \cdots J_a(t), \qquad a = \mathrm{from}, b = \mathrm{to}

    In a causal model this is the exact Jacobian: earlier states do not depend on h_a(t). With `context="alone"` the
    product is formal, as no network runs from one block's one-token input to the next.

    Args:
        model: The model.
        tokens: As in `probe.block_jacobian`.
        from_layer: a, the block whose input is varied.
        to_layer: b; `model.n_layers` means the stream after the last block.
        positions: As in `probe.block_jacobian`.
        context: As in `probe.block_jacobian`.
        method: As in `probe.block_jacobian`.
        chunk: As in `probe.block_jacobian`.
        memory: As in `probe.block_jacobian`.
        dtype: The dtype of the block Jacobians and of the result.

    Returns:
        The product, (W, P, d, d); the identity for a = b.

    Raises:
        InputError: If the layers are not 0 ≤ a ≤ b ≤ L.
    """
    if not 0 <= from_layer <= to_layer <= model.n_layers:
        raise InputError(
            f"a cumulative Jacobian needs 0 ≤ from_layer ≤ to_layer ≤ {model.n_layers}, got {from_layer} and "
            f"{to_layer}: choose two depths in this order"
        )
    options = JacobianOptions(context=context, method=method, chunk=chunk, memory=memory, dtype=dtype)
    if context != "alone":
        replay.require_chain(model, from_layer, to_layer)
    product: Tensor | None = None
    for _, block in jacobians_by_layer(model, tokens, range(from_layer, to_layer), positions, options):
        product = block.double() if product is None else block.double() @ product
    if product is None:
        shape = (*as_rows(model, tokens, argument="tokens").positions(positions).shape, model.d_model, model.d_model)
        product = torch.eye(model.d_model, device=model.device).expand(shape)
    return product.to(dtype)


@dataclass(frozen=True, repr=False)
class MeanJacobian(display.Shown):
    """Mean and spread of block Jacobians over tokens.

    A mean of matrices is smoother than the matrices: its scores are not the means of their scores.

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
        """Size of a token's deviation relative to the mean, sqrt(mean ‖J − J̄‖_F²) / ‖J̄‖_F."""
        spread: Tensor = torch.linalg.matrix_norm(self.deviation) / torch.linalg.matrix_norm(self.mean)
        return spread

    @public
    def plot(self, layer: int | None = None, **options: Any) -> plots.Picture:
        """Draw the spread of the tokens' Jacobians about their mean, by block; or the mean of one block.

        Args:
            layer: A block of `layers`: its mean is drawn by `probe.plots.jacobian`. None draws the spread of all.
            **options: Of `probe.plots.jacobian` or `probe.plots.by_depth`, such as `width`. Of the Jacobians of updates
                pass `of="state"`: there is no identity to take away.

        Returns:
            The picture.

        Raises:
            InputError: If the layer is none of those.
        """
        if layer is None:
            return plots.by_depth(
                self.spread, **({"layers": self.layers, "label": "spread, relative to ‖J̄‖"} | options)
            )
        if layer not in self.layers:
            known = ", ".join(map(str, self.layers))
            raise InputError(f"layer must be one of those averaged ({known}), got {layer}: choose one of them")
        return plots.jacobian(self.mean[self.layers.index(layer)], **options)

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"layers": self.layers, "width": self.mean.shape[-1], "tokens": self.count}
        return facts | {"spread": self.spread.tolist()}


@public(layers=filled)
def mean_jacobian(
    model: LanguageModel,
    tokens: Given,
    layers: Sequence[int] | None,
    positions: Which,
    *,
    batch_size: int | None = 8,
    context: ContextName = "sequence",
    part: PartName = "block",
    of: OutputName = "state",
    method: MethodName = "auto",
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> MeanJacobian:
    """Average block Jacobians over windows and positions, streamed: 2 · layers · d² float64 numbers are held.

    Args:
        model: The model.
        tokens: As in `probe.block_jacobian`.
        layers: Indices of the blocks; None: all.
        positions: As in `probe.block_jacobian`.
        batch_size: Windows in a forward pass.
        context: As in `probe.block_jacobian`.
        part: As in `probe.block_jacobian`.
        of: As in `probe.block_jacobian`.
        method: As in `probe.block_jacobian`.
        chunk: As in `probe.block_jacobian`.
        memory: As in `probe.block_jacobian`.
        dtype: The dtype of the single Jacobians.

    Returns:
        Mean and deviation, N = W · P.
    """
    options = JacobianOptions(context=context, part=part, of=of, method=method, chunk=chunk, memory=memory, dtype=dtype)
    chosen = tuple(range(model.n_layers) if layers is None else layers)
    sums = {layer: _Moments() for layer in chosen}
    for layer, jacobian in jacobians_by_layer(model, tokens, chosen, positions, options, batch_size):
        for matrix in jacobian.flatten(0, 1):
            sums[layer].add(matrix.double())
    mean, deviation = (torch.stack(parts) for parts in zip(*(sums[layer].moments() for layer in chosen), strict=True))
    return MeanJacobian(chosen, mean, deviation, sums[chosen[0]].count)


class _Moments:
    """Running mean and sum of squared deviations (Welford 1962), free of the cancellation in a sum of squares."""

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
