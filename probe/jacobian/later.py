r"""Sums of Jacobians over later positions, pulled back through depth with all their rows at once.

With one cotangent at every position of the stream at depth b, a backward pass gives at each position p of depth a

    G_a(p) = Σ_{s ≥ p} ∂h_b(s)/∂h_a(p),

as no earlier position depends on a later one. Block by block, from the top:

- Through an MLP, which acts at each position alone, the d rows are multiplied by its Jacobian. To compose that takes
  2 d² d_ff FLOPs a position and to multiply by it 2 d³; a backward pass of d rows takes 6 d² d_ff, with a gate.
- Through attention, or whatever carries from one position to another, they go by backward passes of the block's own
  code, some rows at a time, as the batch of one graph. It runs on the positions that count alone, with everything
  before them as recorded.
- A block whose form is not known goes by backward passes as a whole, and so does the whole model where blocks are given
  more than the stream.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe import replay
from probe.boundary import public
from probe.errors import InputError
from probe.jacobian import analytic
from probe.jacobian.block import attention_of
from probe.jacobian.options import JacobianOptions, is_standard
from probe.jacobian.parts import PartOfBlock, Run, part_of_block
from probe.jacobian.primal import mlp_point
from probe.jacobian.proof import require_proved
from probe.jacobian.rows import units
from probe.model import HuggingFaceModel, ending_after, entering, first_tensor, undisturbed

logger = logging.getLogger("probe.jacobian")

Rows = Float[Tensor, "position row d"]
_AT_ONCE, _MATRICES = 8, 8
"""Rows in one backward pass; positions whose MLP is composed at a time."""


@public
@undisturbed()
def later_jacobians(
    recorded: replay.Context,
    start: int,
    depths: Collection[int],
    to_depth: int | None = None,
    options: JacobianOptions | None = None,
) -> Iterator[tuple[int, slice, Rows]]:
    r"""Sum the Jacobians from each position to all later ones, Σ_{s ≥ p} ∂h_b(s)/∂h_a(p), for many depths a.

    FLOPs: about 2 · d · params a position for attention, a fifth to a half of that for an MLP, whatever the number of
    depths. Memory: d² numbers a position, twice; where they exceed the options' memory, rows come in several parts.

    Args:
        recorded: A context of one window (`probe.replay.record`), which ends with the last target.
        start: The first position that counts, as source and as target.
        depths: The depths a of the sources, 0 … b; l is the stream that enters block l.
        to_depth: The depth b of the targets; None: behind the last block.
        options: Its `memory` and `dtype`, and `chunk`: rows in one backward pass.

    Yields:
        A depth, the rows, and G_a(p)[rows] at the positions from `start` on, (T − start, rows, d). Depths descend. The
        tensor is written to again afterwards.

    Raises:
        InputError: If there are several windows, a depth or position does not exist, or the blocks do not run again
            with gradients.
    """
    options = options or JacobianOptions()
    model, to_depth = recorded.model, recorded.model.n_layers if to_depth is None else to_depth
    length = recorded.tokens.shape[1]
    if len(recorded.tokens) != 1:
        raise InputError(f"later positions are summed in one window at a time, got {len(recorded.tokens)}: pass one")
    if not 0 <= start < length:
        raise InputError(f"the first position must lie in 0 … {length - 1}, got start={start}: choose one inside")
    if not depths or not 0 <= min(depths) <= max(depths) <= to_depth <= model.n_layers:
        raise InputError(
            f"depths must lie in 0 … to_depth, and that in 0 … {model.n_layers}, got {sorted(depths)} and "
            f"to_depth={to_depth}: choose others"
        )
    pulling = _Pulling(recorded, start, min(depths), to_depth, options)
    itemsize = torch.finfo(options.dtype).bits // 8
    stored = 2 if replay.is_chained(model) else 1 + to_depth - min(depths)
    panel = min(model.d_model, max(1, options.memory // (stored * itemsize * (length - start) * model.d_model)))
    for first in range(0, model.d_model, panel):
        rows = slice(first, min(model.d_model, first + panel))
        for depth, gradients in pulling.down(rows):
            if depth in depths:
                yield depth, rows, gradients


@dataclass(frozen=True)
class _Pulling:
    """Cotangents on their way down.

    Attributes:
        recorded: The context.
        start: The first position that counts.
        least: The lowest depth that is asked for.
        top: The depth of the targets.
        options: The options.
    """

    recorded: replay.Context
    start: int
    least: int
    top: int
    options: JacobianOptions

    def down(self, rows: slice) -> Iterator[tuple[int, Rows]]:
        """Yield the rows at each depth, from the top; one tensor, which is written to again."""
        recorded, d = self.recorded, self.recorded.model.d_model
        state = recorded.stream(self.top)
        one = units(rows.start, rows.stop, d, state.new_empty(0, dtype=self.options.dtype))
        gradients = one.repeat(state.shape[1] - self.start, 1, 1)
        yield self.top, gradients
        if self.least == self.top:
            return
        if not replay.is_chained(recorded.model):
            yield from self._through_the_model(gradients)
            return
        for layer in reversed(range(self.least, self.top)):
            self._through(layer, gradients)
            yield layer, gradients

    def _through(self, layer: int, gradients: Rows) -> None:
        """Pull rows through a block, in place."""
        standard = self._standard(layer) if 3 * gradients.shape[1] > gradients.shape[2] else None
        copy = replay.working_copy(self.recorded.model.blocks[layer], self.options.dtype)
        if standard is None:
            self._backward(layer, gradients, PartOfBlock(copy))
            return
        own = gradients.clone() if standard.parallel else gradients
        self._times_mlp(layer, standard, gradients, own)
        self._backward(layer, own, part_of_block(self.recorded.model, layer, copy, "attention"))
        if standard.parallel:
            gradients.add_(own)

    def _runs(self, layer: int, block: nn.Module) -> Iterator[Run]:
        """The runs of a working copy on the positions that count: over what was recorded, and on the whole sequence."""
        recorded, window = self.recorded, self.recorded.tokens.new_zeros(1)
        if recorded.suffix_way(layer, self.start) != "sequences":
            yield lambda states: recorded.replay_suffix(layer, self.start, states, window.expand(len(states)), block)
        before = recorded.stream(layer)[:, : self.start].to(self.options.dtype)

        def on_sequences(states: Tensor) -> Tensor:
            sequences = torch.cat([before.expand(len(states), -1, -1), states], dim=1)
            return recorded.block_on_sequences(layer, sequences, window.expand(len(states)), block)[:, self.start :]

        yield on_sequences

    def _standard(self, layer: int) -> analytic.StandardBlock | None:
        """The block whose MLP is composed, or None."""
        model, options = self.recorded.model, self.options
        if not isinstance(model, HuggingFaceModel) or not is_standard(model, layer):
            return None
        try:
            require_proved(self.recorded, layer, attention_of(self.recorded, layer, options))
            standard = analytic.StandardBlock.of(model, layer, options.dtype, None)
        except InputError as error:
            logger.info("block %d of %s is not composed: %s", layer, model.name, error)
            return None
        return None if standard.normed_residual or standard.scale != 1.0 else standard

    def _times_mlp(
        self,
        layer: int,
        standard: analytic.StandardBlock,
        gradients: Rows,
        before: Rows,
    ) -> None:
        """Multiply rows by I + M at each position (of a parallel block by M, into `gradients`)."""
        run = next(self._runs(layer, standard.cuts.block))
        primal = mlp_point(standard.cuts, self.recorded.stream(layer)[:, self.start :], run)
        for first in range(0, len(gradients), _MATRICES):
            where = slice(first, first + _MATRICES)
            update = analytic.update_jacobian(standard, primal, where, "mlp")
            if standard.parallel:
                torch.bmm(before[where], update, out=gradients[where])
            else:
                update.diagonal(dim1=-2, dim2=-1).add_(1.0)
                gradients[where] = torch.bmm(gradients[where], update)

    def _backward(self, layer: int, gradients: Rows, part: PartOfBlock) -> None:
        """Pull rows through a part of a block, some at a time, in place."""
        *cheaper, last = self._runs(layer, part.block)
        for run in cheaper:
            try:
                self._pulled(layer, gradients, part, run)
                return
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # a cache that is written in place; nothing has been pulled yet
                logger.info("block %d of %s goes back on whole sequences: %s", layer, self.recorded.model.name, error)
        try:
            self._pulled(layer, gradients, part, last)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"later Jacobians need blocks that run again with gradients, and block {layer} of "
                f"{self.recorded.model.name} does not ({type(error).__name__}): use a model of another family"
            ) from error

    def _pulled(self, layer: int, gradients: Rows, part: PartOfBlock, run: Run) -> None:
        count = gradients.shape[1]
        at_once = min(self.options.chunk or _AT_ONCE, count)
        states = self.recorded.stream(layer)[:, self.start :].to(self.options.dtype)
        point = states.detach().expand(at_once, -1, -1).clone().requires_grad_()
        with torch.enable_grad():
            after = part.leaving(point, run)
        cotangents = torch.zeros_like(after)
        for first in range(0, count, at_once):
            rows = slice(first, min(first + at_once, count))
            size = rows.stop - first
            cotangents[:size] = gradients[:, rows].transpose(0, 1)
            (pulled,) = torch.autograd.grad(after, point, cotangents, retain_graph=True)
            gradients[:, rows] = pulled[:size].transpose(0, 1)

    def _through_the_model(self, gradients: Rows) -> Iterator[tuple[int, Rows]]:
        """Pull rows through the model's own pass, whose blocks may read more than the stream."""
        model, tokens = self.recorded.model, self.recorded.tokens
        if model.dtype is not self.options.dtype:
            raise InputError(
                f"dtype must be that of {model.name}, {model.dtype}, as its blocks are given more than the stream, got "
                f"{self.options.dtype}: pass dtype={model.dtype}"
            )
        count = gradients.shape[1]
        at_once = min(self.options.chunk or _AT_ONCE, count)
        points: dict[int, Tensor] = {}

        def leaf(state: Tensor) -> Tensor:
            points[self.least] = state.detach().clone().requires_grad_()
            return points[self.least]

        with ExitStack() as stack:
            stack.enter_context(entering(model.blocks[self.least], leaf))
            for layer in range(self.least, self.top):

                def keep(_: nn.Module, __: Any, output: Any, depth: int = layer + 1) -> None:
                    points[depth] = first_tensor(output)

                stack.callback(model.blocks[layer].register_forward_hook(keep).remove)
            stack.enter_context(ending_after(model.blocks[self.top - 1]))
            model.final_states(tokens.expand(at_once, -1))
        after, sources = points.pop(self.top), [points[depth] for depth in range(self.least, self.top)]
        cotangents = torch.zeros_like(after)
        down = gradients.new_zeros((len(sources), *gradients.shape))
        for first in range(0, count, at_once):
            rows = slice(first, min(first + at_once, count))
            size = rows.stop - first
            cotangents[:size, self.start :] = gradients[:, rows].transpose(0, 1)
            for at, pulled in enumerate(torch.autograd.grad(after, sources, cotangents, retain_graph=True)):
                down[at, :, rows] = pulled[:size, self.start :].transpose(0, 1)
        for depth in reversed(range(self.least, self.top)):
            yield depth, down[depth - self.least]
