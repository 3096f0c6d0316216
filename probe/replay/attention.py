r"""Attention of chosen positions over a recorded past, linear in their own queries, keys and values.

At the primal point (q₀, k₀, v₀), with probabilities p_j, output o = Σ_j p_j v_j and slopes c_j of the scores (1 without
a soft cap), the function

.. math::

   o + M (q - q_0) + \sum_i p_i\,[(v_{0i} - o)\, s c_i\, q_0\cdot(k_i - k_{0i}) + (v_i - v_{0i})],
   \qquad M = s \sum_j p_j c_j (v_j - o)\, k_j^\top

(i over the live keys, j over all keys) has the value and the derivative of the attention itself. A derivative through
it costs d_head² a head, whatever the length of the past; one through the softmax costs d_head · T. `M` is formed once
for each position, at d_head² · T a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from probe import display
from probe.errors import InputError
from probe.model import Reached

LINEARISED = "probe-linearised"
DETACHED = "probe-detached"
"""Names under which the two attention functions are registered with transformers."""


@dataclass(frozen=True, repr=False)
class AttentionPrimal(display.Shown):
    """Attention of n chosen positions at the primal point; heads are ordered (key head g, its query heads r).

    Attributes:
        query: Queries q₀.
        value: Values v₀ of the live positions.
        output: The output o.
        query_map: The matrix M; None if only the values count (`detached`).
        live: Probabilities of the live keys, zero where a live key is masked.
        slope: Slopes s · c of the live keys' scores.
    """

    query: Float[Tensor, "window g r n d_head"]
    value: Float[Tensor, "window g 1 n d_value"]
    output: Float[Tensor, "window g r n d_value"]
    query_map: Float[Tensor, "window g r n d_value d_head"] | None
    live: Float[Tensor, "window g r n n"]
    slope: Float[Tensor, "window g r n n"]

    def at(
        self,
        query: Float[Tensor, "window head n d_head"],
        key: Float[Tensor, "window g n d_head"],
        value: Float[Tensor, "window g n d_value"],
    ) -> Float[Tensor, "window g r n d_value"]:
        """Evaluate the linear function at queries, live keys and live values.

        Args:
            query: Queries q.
            key: Live keys k; their value is the k₀ of the primal point, so that only their derivative counts.
            value: Live values v.

        Returns:
            The attention's output, by key head and query head.
        """
        output: Tensor = self.output + self.live @ (value[:, :, None] - self.value)
        if self.query_map is None:
            return output
        moved = query.unflatten(1, (key.shape[1], -1)) - self.query
        scores = self.live * self.slope * (self.query @ (key - key.detach())[:, :, None].mT)
        output = output + _mapped(moved, self.query_map.mT)
        return output + scores @ self.value - scores.sum(-1, keepdim=True) * self.output


def attention_primal(
    query: Float[Tensor, "window head n d_head"],
    keys: Float[Tensor, "window g key d_head"],
    values: Float[Tensor, "window g key d_value"],
    mask: Float[Tensor, "#window _ n key"],
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " head"] | None = None,
    detached: bool = False,
) -> AttentionPrimal:
    """Compute the attention of n positions over all keys, the last n of them live, and the matrix M of their queries.

    Args:
        query: Queries q₀.
        keys: Recorded keys, then the live ones k₀.
        values: Recorded values, then the live ones v₀.
        mask: Additive mask over recorded and live keys, of one head for all or of each.
        scale: Factor s of the scores.
        softcap: Soft cap of the scores.
        sinks: Logits of the heads' sinks.
        detached: True if the probabilities are held fixed, so that M is not needed.

    Returns:
        The attention at the primal point.
    """
    n, groups = query.shape[2], keys.shape[1]
    query = query.unflatten(1, (groups, -1))  # (W, g, r, n, d_head)
    scores = scale * _by_group(query, keys.mT)
    slope = torch.full((), scale, dtype=scores.dtype, device=scores.device).expand_as(scores)
    if softcap is not None:
        capped = torch.tanh(scores / softcap)
        scores, slope = softcap * capped, slope * (1 - capped.square())
    scores = scores + (mask[:, :, None] if mask.shape[1] == 1 else mask.unflatten(1, (groups, -1)))
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, groups, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
    shares = scores.softmax(-1)[..., : keys.shape[2]]
    output = _by_group(shares, values)
    query_map = None if detached else _query_map(shares * slope, keys, values, output)
    live_values = values[:, :, None, -n:]
    return AttentionPrimal(query, live_values, output, query_map, shares[..., -n:], slope[..., -n:])


def _by_group(
    rows: Float[Tensor, "window g r n m"], matrix: Float[Tensor, "window g m k"]
) -> Float[Tensor, "window g r n k"]:
    """The product `rows @ matrix`, without a copy of the matrix for each of the r heads that share it."""
    return (rows.flatten(2, 3) @ matrix).reshape(*rows.shape[:4], matrix.shape[-1])


def _query_map(
    weights: Float[Tensor, "window g r n key"],
    keys: Float[Tensor, "window g key d_head"],
    values: Float[Tensor, "window g key d_value"],
    output: Float[Tensor, "window g r n d_value"],
) -> Float[Tensor, "window g r n d_value d_head"]:
    """Σ_j w_j (v_j − o) k_jᵀ, one position at a time, so that temporary memory does not grow with their number."""
    # Values are taken relative to their mean, which is near o: that changes the rounding only.
    centre = values.mean(2, keepdim=True)
    deviations = (values - centre).mT.contiguous()[:, :, None]  # (W, g, 1, d_value, key)
    query_map = output.new_empty((*output.shape, keys.shape[-1]))
    for position in range(output.shape[3]):
        query_map[:, :, :, position] = _by_group(deviations * weights[:, :, :, position, None], keys)
    query_map -= (output - centre[:, :, None])[..., None] * _by_group(weights, keys)[..., None, :]
    return query_map


class _Mapped(torch.autograd.Function):
    """xᵀ A with A constant: one product for a batch of cotangents, where vmap's own rule copies A for each of them."""

    @staticmethod
    def forward(vectors: Tensor, matrices: Tensor) -> Tensor:
        return (vectors[..., None, :] @ matrices)[..., 0, :]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (matrices,) = ctx.saved_tensors
        return _mapped(gradients[0], matrices.mT), None

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int, None], vectors: Tensor, matrices: Tensor) -> tuple[Tensor, int]:
        return vectors.movedim(in_dims[0], -2) @ matrices, vectors.ndim - 2


_mapped: Any = _Mapped.apply


@dataclass
class Recorder:
    """Keys and values that a block's attention function is handed, in the order of its calls.

    What comes from the attention function is what the block attends to: keys that were expanded from a cached latent,
    repeated, rotated or normed behind the cache.

    Attributes:
        pairs: Keys and values.
        module: The module that called.
    """

    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    module: nn.Module | None = None

    @contextmanager
    def stopping(self, block: nn.Module) -> Iterator[None]:
        """Stop a run of a block as soon as the module that called has ended: it may call more than once.

        Args:
            block: The block.

        Yields:
            None: A run inside the context ends there.
        """

        def after(module: nn.Module, *_: Any) -> None:
            if module is self.module:
                raise Reached

        handles = [module.register_forward_hook(after) for module in block.modules()]
        try:
            yield
        except Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class Replayed:
    """Recorded keys and values, which the attention function joins to live ones call by call, and its findings.

    Attributes:
        recorded: Keys and values of all positions of the windows.
        only_others: Leave the position's own value out of the output: p(t, t) v(t) is subtracted.
        primals: The primal point of each call.
    """

    recorded: Sequence[tuple[Tensor, Tensor]]
    only_others: bool = False
    primals: list[AttentionPrimal] = field(default_factory=list)


@dataclass(frozen=True)
class Continued:
    """A run of a block over its own cache, which joins recorded keys and values to the live ones itself."""


_AROUND: ContextVar[Recorder | Replayed | Continued | None] = ContextVar(
    "attention around the chosen positions", default=None
)


@contextmanager
def around(what: Recorder | Replayed | Continued) -> Iterator[None]:
    """Let the attention functions of this module, while the context lasts, record keys and values or join them.

    Args:
        what: Where to put them, what to join, or that the block joins them.

    Yields:
        None: The attention functions know of it.
    """
    token = _AROUND.set(what)
    try:
        yield
    finally:
        _AROUND.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    replayed: Replayed,
    *,
    detached: bool,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    calls = len(replayed.primals)
    if attention_mask is None or position_bias is not None or calls == len(replayed.recorded):
        raise InputError(
            f"linearised attention needs one call as it was recorded, with a mask and no position bias, and "
            f'{type(module).__name__} makes another: use method="jacrev"'
        )
    keys, values = (
        torch.cat([recorded.to(live.dtype), live.detach()], dim=2)
        for recorded, live in zip(replayed.recorded[calls], (key, value), strict=True)
    )
    primal = attention_primal(
        query.detach(),
        keys,
        values,
        _additive(attention_mask, query.dtype),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sinks=s_aux,
        detached=detached or replayed.only_others,
    )
    replayed.primals.append(primal)
    output = primal.at(query, key, value)
    if replayed.only_others:
        output = output - primal.live @ value[:, :, None]
    return output.flatten(1, 2).transpose(1, 2).contiguous(), None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _dispatched(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    detached: bool,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    what = _AROUND.get()
    if isinstance(what, Recorder):
        what.pairs.append((key.detach(), value.detach()))
        what.module = module
        return value.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[-1]), None
    if isinstance(what, Continued):
        count = query.shape[2]
        what = Replayed([(key[:, :, :-count].detach(), value[:, :, :-count].detach())])
        if attention_mask is None:
            attention_mask = query.new_zeros((1, 1, count, key.shape[2]))
        key, value = key[:, :, -count:], value[:, :, -count:]
    if what is not None:
        return _attend(module, query, key, value, attention_mask, what, detached=detached, **kwargs)
    if not detached:
        raise InputError(
            f"linearised attention runs at chosen positions of a recorded context, and {type(module).__name__} was run "
            "outside one: use `Context.linearised`"
        )
    length, scaling = query.shape[2], kwargs.get("scaling")
    before = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if attention_mask is not None:
        before = before & (attention_mask if attention_mask.dtype is torch.bool else attention_mask >= 0)
    scores = query.unflatten(1, (key.shape[1], -1)) @ key[:, :, None].mT
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    hidden = ~before.expand(len(query), 1, length, length)[:, :, None]
    shares = scores.masked_fill(hidden, -torch.inf).softmax(-1).detach()
    return (shares @ value[:, :, None]).flatten(1, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(LINEARISED, partial(_dispatched, detached=False))
AttentionInterface.register(DETACHED, partial(_dispatched, detached=True))
