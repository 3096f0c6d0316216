"""`probe models --check NAME`: a model is loaded and a block of each kind is tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from probe.errors import InputError
from probe.jacobian import block_jacobian
from probe.model import HuggingFaceModel, load_model
from probe.model.architectures import ARCHITECTURES
from probe.model.hooks import evaluating, first_tensor, with_first_tensor
from probe.model.support import Support, spans, unconfirmed
from probe.model.tracing import probe_tokens

STEP = 1e-2
"""Step of the central difference, relative to the size of the state."""


@dataclass(frozen=True)
class Trial:
    """One block that was tried.

    Attributes:
        layers: The blocks of its kind.
        method: Method of its Jacobian; empty if it was refused.
        error: Distance of J v from a central difference of the model's own pass, relative to the latter; None if it was
            refused.
        refusal: Why there is no Jacobian; None if there is one.
        obstacle: Why the Jacobian is not composed of the matrices ("analytic", the fastest method); None if it is.
    """

    layers: tuple[int, ...]
    method: str
    error: float | None
    refusal: str | None
    obstacle: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Trials of a model's blocks, beside what is known of it.

    Attributes:
        support: What works and what is left out.
        trials: The blocks that were tried.
        unconfirmed: What the row of the architecture states and the model does not bear out.
    """

    support: Support
    trials: tuple[Trial, ...]
    unconfirmed: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [str(self.support), ""]
        for trial in self.trials:
            outcome = (
                f"refused: {trial.refusal}"
                if trial.error is None
                else f"{trial.method}, J v within {trial.error:.1e} of a central difference of the whole pass"
            )
            lines.append(f"tried blocks {spans(trial.layers)}: {outcome}")
            if trial.obstacle is not None:
                lines.append(f"  not analytic: {trial.obstacle}")
        lines += [f"the row of {self.support.architecture} does not hold: {phrase}" for phrase in self.unconfirmed]
        return "\n".join(lines)


def checked(name: str, *, trust_remote_code: bool = False) -> Outcome:
    """Load a model and try the Jacobian of a block of each kind.

    Args:
        name: Alias, hub id, directory or .gguf file.
        trust_remote_code: Run the code that comes with the model's repository.

    Returns:
        What works. The central difference is taken in the dtype of the weights (float32), so about three digits of it
        count.

    Raises:
        InputError: If the model cannot be loaded, in the words of the refusal.
    """
    model = load_model(name, trust_remote_code=trust_remote_code)
    assert isinstance(model, HuggingFaceModel)
    trials = [
        _tried(model, kind.layers)
        for kind in tqdm(model.support.blocks, desc="kinds of blocks", leave=False, disable=None)
    ]
    return Outcome(model.support, tuple(trials), unconfirmed(model))


def _tried(model: HuggingFaceModel, layers: tuple[int, ...]) -> Trial:
    layer, tokens = layers[0], probe_tokens(model.n_vocab)
    position = tokens.shape[1] - 2
    try:
        jacobian = block_jacobian(model, tokens, layer, [position])[0, 0]
    except InputError as refusal:
        return Trial(layers, "", None, str(refusal))
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(model.d_model, generator=generator).to(model.device)
    moved = _difference(model, tokens, layer, position, vector)
    error = float((jacobian @ vector - moved).norm() / moved.norm())
    method = model.method(layer)[0]
    return Trial(
        layers, method, error, None, None if method == "analytic" else _obstacle(model, tokens, layer, position)
    )


def _obstacle(model: HuggingFaceModel, tokens: Tensor, layer: int, position: int) -> str:
    """Say why the Jacobian of a block is not composed of its matrices."""
    if model.architecture not in ARCHITECTURES:
        return f"no row states the norms of {model.architecture} blocks"
    if model.at(layer).form is None:
        return f"the row of {model.architecture} states no form for these blocks"
    try:
        block_jacobian(model, tokens, layer, [position], method="analytic")
    except InputError as refusal:
        return str(refusal)
    return 'it works where it is asked for, by method="analytic"'


@torch.no_grad()
def _difference(model: HuggingFaceModel, tokens: Tensor, layer: int, position: int, vector: Tensor) -> Tensor:
    """Central difference of what leaves a block by what enters it, in the pass of the whole model."""
    block = model.blocks[layer]
    entering: list[Tensor] = []
    leaving: list[Tensor] = []

    def run(step: float) -> tuple[Tensor, Tensor]:
        def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            state = (arguments[0] if arguments else named["hidden_states"]).clone()
            entering.append(state[0, position].clone())
            state[0, position] += step * vector.to(state.dtype)
            return ((state, *arguments[1:]), named) if arguments else (arguments, named | {"hidden_states": state})

        def after(_: nn.Module, __: object, output: Tensor | tuple[object, ...]) -> object:
            leaving.append(first_tensor(output)[0, position].clone())
            return with_first_tensor(output, first_tensor(output))

        handles = [
            block.register_forward_pre_hook(before, with_kwargs=True),
            block.register_forward_hook(after),
        ]
        try:
            with evaluating(model.module):
                model.final_states(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return entering[-1], leaving[-1]

    state, _ = run(0.0)
    step = STEP * float(state.float().norm() / vector.norm())
    up, down = run(step)[1], run(-step)[1]
    difference: Tensor = (up.double() - down.double()) / (2 * step)
    return difference.float()
