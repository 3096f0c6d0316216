r"""The Jacobian of one document that a lens averages: to later positions, to the same one, or up to a horizon.

With V the positions that count, from `skip_first` to the last but one, and h_l the stream behind block l:

- "later": mean over p ∈ V of Σ_{s ∈ V, s ≥ p} ∂h_b(s)/∂h_l(p), the estimator of Gurnee et al. (2026).
- "same": mean over p of ∂h_b(p)/∂h_l(p), the product of the block Jacobians at one position.
- a horizon k: mean over p of Σ_{s ∈ V, p ≤ s ≤ p + k} ∂h_b(s)/∂h_l(p); k = 0 is "same".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import replay
from probe.boundary import public
from probe.errors import InputError
from probe.jacobian import MEMORY, JacobianOptions, later_jacobians, recorded_jacobian
from probe.model import LanguageModel, undisturbed

Targets = Literal["later", "same"] | int
SKIP_FIRST = 16
"""Positions at the start of a document that do not count: attention sinks, as in the reference."""


@public
@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Average that a lens takes: targets, layers and positions.

    Attributes:
        targets: "later", "same", or a horizon: the number of positions behind the source that count too.
        layers: The source layers l, ascending; the stream behind block l.
        to_layer: The target layer b; the stream behind block b, before the final norm.
        skip_first: Positions at the start that count neither as source nor as target. The last one never counts.
        sources: Of "same" and a horizon, the number of source positions in a document, evenly spaced; None: all.
    """

    targets: Targets
    layers: tuple[int, ...]
    to_layer: int
    skip_first: int = SKIP_FIRST
    sources: int | None = None

    @classmethod
    @public
    def of(
        cls,
        model: LanguageModel,
        *,
        targets: Targets = "later",
        layers: int | Sequence[int] | None = None,
        to_layer: int | None = None,
        skip_first: int = SKIP_FIRST,
        sources: int | None = None,
    ) -> Estimator:
        """Check the choices against a model.

        Args:
            model: The model.
            targets: As above.
            layers: Source layers, negative ones from the end; None: all before the target.
            to_layer: The target layer, negative from the end; None: the last.
            skip_first: As above.
            sources: As above.

        Returns:
            The estimator.

        Raises:
            InputError: If a choice does not exist, or a source does not lie before the target.
        """
        last = model.n_layers - 1
        target = last if to_layer is None else _layer(model, to_layer, "to_layer")
        chosen = range(target) if layers is None else ([layers] if isinstance(layers, int) else layers)
        found = sorted({_layer(model, layer, "layers") for layer in chosen})
        if not found or found[-1] >= target:
            raise InputError(
                f"layers= must be at least one block before the target, to_layer={target}, got {layers!r}: a lens "
                "reads the stream behind earlier blocks"
            )
        horizon = isinstance(targets, int) and not isinstance(targets, bool)
        if not (targets in ("later", "same") or (horizon and int(targets) >= 0)):
            raise InputError(
                f'targets= must be "later", "same" or a number of later positions, got {targets!r}: choose one'
            )
        if skip_first < 0:
            raise InputError(f"skip_first= must be at least 0, got {skip_first}: leave it out for {SKIP_FIRST}")
        if sources is not None and (sources < 1 or targets == "later"):
            raise InputError(
                f'sources= must be at least 1 and is for targets="same" or a horizon, got {sources} with '
                f'targets={targets!r}: leave it out, as "later" costs the same for all positions'
            )
        return cls(
            targets="same" if horizon and targets == 0 else targets,
            layers=tuple(found),
            to_layer=target,
            skip_first=skip_first,
            sources=sources,
        )

    @property
    def least(self) -> int:
        """The smallest number of tokens of a document with a position that counts."""
        return self.skip_first + 2

    def facts(self) -> dict[str, Any]:
        """Return the choices as plain values, for files."""
        return {
            "targets": self.targets,
            "layers": list(self.layers),
            "to_layer": self.to_layer,
            "skip_first": self.skip_first,
            "sources": self.sources,
        }


def _layer(model: LanguageModel, layer: int, name: str) -> int:
    if not -model.n_layers <= layer < model.n_layers:
        raise InputError(
            f"{name}= must lie in 0 … {model.n_layers - 1} for {model.name}, got {layer}: choose a block of the model"
        )
    return layer % model.n_layers


@public
@undisturbed()
def document_jacobian(
    model: LanguageModel,
    tokens: Int[Tensor, " position"],
    estimator: Estimator,
    *,
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "layer d d"]:
    """Compute the matrix of each source layer for one document, exactly.

    FLOPs for "later" on standard blocks: about 12 d³ a layer and position that counts (a one-hot backward pass takes
    2 · params, some 21 d³, at every position); for "same" about 12 d³ a source; for a horizon k about 12 (k + 1) d³.

    Args:
        model: The model.
        tokens: Token ids, (T,).
        estimator: What is averaged.
        chunk: Rows in one backward pass; by default 8.
        memory: Bytes to use beside the result and the recorded context.
        dtype: Of the arithmetic and the result, `torch.float32` or `torch.float64`.

    Returns:
        (layers, d, d), in the order of `estimator.layers`.

    Raises:
        InputError: If the document has no position that counts, or the model does not differentiate.
    """
    if len(tokens) < estimator.least:
        raise InputError(
            f"a document must have at least {estimator.least} tokens, skip_first + 2, got {len(tokens)}: pass a longer "
            "one, or a smaller skip_first="
        )
    options = JacobianOptions(chunk=chunk, memory=memory, dtype=dtype)
    d = model.d_model
    found = torch.zeros(len(estimator.layers), d, d, dtype=dtype, device=model.device)
    depths = {layer + 1: index for index, layer in enumerate(estimator.layers)}
    if estimator.targets == "later":
        for depth, rows, gradients in _later(model, tokens[:-1], estimator.skip_first, depths, estimator, options):
            found[depths[depth], rows] = gradients.mean(0)
        return found
    sources = _sources(len(tokens), estimator)
    if estimator.targets == "same":
        for depth, products in same_position(model, tokens[:-1], sources, depths, estimator.to_layer + 1, options):
            found[depths[depth]] += products.sum(0) / len(sources)
        return found
    for source in sources.tolist():
        end = min(source + int(estimator.targets) + 1, len(tokens) - 1)
        for depth, rows, gradients in _later(model, tokens[:end], source, depths, estimator, options):
            found[depths[depth], rows] += gradients[0] / len(sources)
    return found


def _later(
    model: LanguageModel,
    tokens: Tensor,
    start: int,
    depths: dict[int, int],
    estimator: Estimator,
    options: JacobianOptions,
) -> Iterator[tuple[int, slice, Tensor]]:
    blocks = range(min(depths), estimator.to_layer + 1)
    recorded = replay.record(model, tokens[None], torch.arange(start, len(tokens)), layers=blocks)
    yield from later_jacobians(recorded, start, depths, estimator.to_layer + 1, options)


def _sources(length: int, estimator: Estimator) -> Int[Tensor, " source"]:
    every = torch.arange(estimator.skip_first, length - 1)
    if estimator.sources is None or estimator.sources >= len(every):
        return every
    return every[torch.linspace(0, len(every) - 1, estimator.sources).round().long()]


def same_position(
    model: LanguageModel,
    tokens: Int[Tensor, " position"],
    positions: Int[Tensor, " chosen"],
    depths: dict[int, int] | set[int],
    to_depth: int,
    options: JacobianOptions,
) -> Iterator[tuple[int, Float[Tensor, "chosen d d"]]]:
    """Multiply the block Jacobians at chosen positions down from the target, some positions at a time.

    Args:
        model: The model.
        tokens: One document, up to the last position that is asked for or beyond.
        positions: The positions.
        depths: The depths of the sources.
        to_depth: The depth of the target.
        options: Options of the block Jacobians.

    Yields:
        A depth and ∂h_b(p)/∂h_a(p) at some of the positions, in their order; depths descend, then come those of the
        next positions. The tensor is written to again afterwards.
    """
    d, itemsize = model.d_model, torch.finfo(options.dtype).bits // 8
    at_once = max(1, options.memory // (3 * d * d * itemsize))
    for part in positions.split(at_once):
        recorded = replay.record(model, tokens[None], part, layers=range(min(depths), to_depth))
        replay.require_chain(model, min(depths), to_depth)
        product: Tensor | None = None
        for layer in reversed(range(min(depths), to_depth)):
            block = recorded_jacobian(recorded, layer, options)[0]
            product = block if product is None else torch.bmm(product, block)
            if layer in depths:
                yield layer, product
