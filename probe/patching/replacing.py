"""Effect on the model's output of replacing one block's output.

There are two modes. *One position*: the stream that leaves block l is replaced at one position. The outcome is read
there (`one_position`, by `probe.replay`: exact, at about the cost of the remaining blocks on that position alone), or
there and at every later position (`one_position_later`, on whole sequences). *All positions*: the stream is replaced at
all counted positions of a window at once (`all_positions`), which mixes in the errors that earlier tokens pass on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.boundary import filled, public
from probe.errors import InputError
from probe.model import LanguageModel, require_layer
from probe.replay import Context

__all__ = [
    "OUTCOMES",
    "all_positions",
    "compare_outputs",
    "following_tokens",
    "kl_divergence",
    "one_position",
    "one_position_later",
]


def __dir__() -> list[str]:
    return __all__


OUTCOMES = ("kl", "loss_change", "logit_distance", "logit_cosine", "top1")
"""Measures of a change of the output, float32:

- `kl`: KL(p_original ‖ p_replaced) in nats
- `loss_change`: change of the next token's loss, log p_original − log p_replaced, in nats; NaN without a next token
- `logit_distance`: ‖z_replaced − z_original‖₂
- `logit_cosine`: cosine of the two logit vectors
- `top1`: 1 where the most probable token is the same, else 0
"""


@public
def kl_divergence(
    log_p: Float[Tensor, "*batch vocab"], log_q: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Compute the Kullback-Leibler divergence KL(p ‖ q) = Σ p (log p − log q), in nats.

    Args:
        log_p: Log-probabilities of the reference distribution, float32.
        log_q: Log-probabilities of the other distribution, float32.

    Returns:
        The divergence; rounding below zero is clamped to zero.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0)


@public
def compare_outputs(
    model: LanguageModel,
    original: Float[Tensor, "row d_model"],
    replaced: Float[Tensor, "alternative row d_model"],
    next_tokens: Int[Tensor, " row"],
    *,
    measures: Sequence[str] = OUTCOMES,
    rows_at_once: int = 256,
) -> dict[str, Float[Tensor, "alternative row"]]:
    """Measure how the output changes when the stream that enters the final norm changes from `original` to `replaced`.

    Args:
        model: The model whose final norm and head turn states into logits.
        original: States entering the final norm.
        replaced: Several alternatives to these rows.
        next_tokens: The token that follows each row in the text; negative if there is none.
        measures: Names from `OUTCOMES`.
        rows_at_once: Rows whose logits are held at a time; memory is about 5 · rows · vocabulary · 4 bytes.

    Returns:
        Each measure, (alternative, row), on the CPU.

    Raises:
        InputError: If there is no such measure.
    """
    if unknown := [name for name in measures if name not in OUTCOMES]:
        raise InputError(f"measures= must be of {', '.join(OUTCOMES)}, got {unknown[0]!r}: choose among them")
    outcomes = {name: torch.empty(replaced.shape[:2]) for name in measures}
    for start in range(0, len(original), rows_at_once):
        rows = slice(start, start + rows_at_once)
        logits = model.unembed(original[rows]).float()
        for alternative, states in enumerate(replaced[:, rows]):
            changed = model.unembed(states).float()
            for name, values in _outcomes(logits, changed, next_tokens[rows], measures).items():
                outcomes[name][alternative, rows] = values.cpu()
    return outcomes


def _outcomes(logits: Tensor, changed: Tensor, next_tokens: Tensor, measures: Sequence[str]) -> dict[str, Tensor]:
    outcomes = {}
    log_p, log_q = logits.log_softmax(-1), changed.log_softmax(-1)
    if "kl" in measures:
        outcomes["kl"] = kl_divergence(log_p, log_q)
    if "loss_change" in measures:
        picked = next_tokens.clamp_min(0)[:, None]
        change = (log_p.gather(1, picked) - log_q.gather(1, picked))[:, 0]
        outcomes["loss_change"] = change.masked_fill(next_tokens < 0, torch.nan)
    if "logit_distance" in measures:
        outcomes["logit_distance"] = (changed - logits).norm(dim=-1)
    if "logit_cosine" in measures:
        outcomes["logit_cosine"] = torch.cosine_similarity(changed, logits, dim=-1)
    if "top1" in measures:
        outcomes["top1"] = (changed.argmax(-1) == logits.argmax(-1)).float()
    return outcomes


@public
def following_tokens(tokens: Int[Tensor, "window position"]) -> Int[Tensor, "window position"]:
    """Return the token after each position; −1 at a window's last position."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], dim=1)


@public(states=filled)
@torch.no_grad()
def one_position(
    context: Context,
    layer: int,
    states: Float[Tensor, "window alternative chosen d_model"],
    *,
    measures: Sequence[str] = OUTCOMES,
) -> dict[str, Float[Tensor, "alternative window chosen"]]:
    """Replace the output of block `layer` at one position at a time and measure the outcome at that position.

    Args:
        context: The recorded windows with their chosen positions.
        layer: The block whose output is replaced.
        states: The states to put in its place, several alternatives for each chosen position.
        measures: Names from `OUTCOMES`.

    Returns:
        Each measure, (alternative, window, chosen).
    """
    require_layer(context.model, layer)
    return _at_chosen(context, context.run_on(layer + 1, states), measures)


@public(states=filled)
@torch.no_grad()
def one_position_later(
    context: Context, layer: int, states: Float[Tensor, "window alternative chosen d_model"]
) -> Float[Tensor, "alternative window chosen"]:
    """Replace as `one_position` does, and sum the KL divergence over the position and all later ones of its window.

    Args:
        context: The recorded windows with their chosen positions.
        layer: The block whose output is replaced.
        states: The states to put in its place.

    Returns:
        Σ_{s ≥ t} KL_s in nats, for each alternative and chosen position.
    """
    require_layer(context.model, layer)
    windows, alternatives, chosen, _ = states.shape
    total = torch.empty((alternatives, windows, chosen))
    last = context.states[context.model.n_layers]
    for window in range(windows):
        for column, position in enumerate(context.positions[window].tolist()):
            sequences = context.states[layer + 1][window].repeat(alternatives, 1, 1)
            sequences[:, position] = states[window, :, column]
            rows = torch.full((alternatives,), window, device=sequences.device)
            after = context.run_sequence(layer + 1, sequences, rows)[:, position:]
            following = following_tokens(context.tokens[window : window + 1])[0, position:]
            outcomes = compare_outputs(context.model, last[window, position:], after, following, measures=("kl",))
            total[:, window, column] = outcomes["kl"].sum(-1)
    return total


@public(states=filled)
@torch.no_grad()
def all_positions(
    context: Context,
    layer: int,
    states: Float[Tensor, "window alternative position d_model"],
    counted: Bool[Tensor, "window position"],
    *,
    measures: Sequence[str] = OUTCOMES,
) -> dict[str, Float[Tensor, "alternative window chosen"]]:
    """Replace the output of block `layer` at all counted positions at once and measure the outcome at the chosen ones.

    Args:
        context: The recorded windows with their chosen positions.
        layer: The block whose output is replaced.
        states: The states to put in its place, several alternatives for every position.
        counted: True at the positions that are replaced; the others keep the original state.
        measures: Names from `OUTCOMES`.

    Returns:
        Each measure, (alternative, window, chosen).
    """
    require_layer(context.model, layer)
    windows, alternatives, _, width = states.shape
    kept = context.states[layer + 1][:, None]
    mixed = torch.where(counted[:, None, :, None], states, kept).flatten(0, 1)
    rows = torch.arange(windows, device=mixed.device).repeat_interleave(alternatives)
    after = context.run_sequence(layer + 1, mixed, rows).unflatten(0, (windows, alternatives))
    columns = context.positions[:, None, :, None].expand(-1, alternatives, -1, width)
    return _at_chosen(context, after.gather(2, columns), measures)


def _at_chosen(
    context: Context, after: Float[Tensor, "window alternative chosen d_model"], measures: Sequence[str]
) -> dict[str, Float[Tensor, "alternative window chosen"]]:
    """The measures at the chosen positions for the given states entering the final norm."""
    windows, alternatives, chosen, width = after.shape
    replaced = after.transpose(0, 1).reshape(alternatives, windows * chosen, width)
    original = context.state(context.model.n_layers).flatten(0, 1)
    following = following_tokens(context.tokens).gather(1, context.positions).flatten()
    outcomes = compare_outputs(context.model, original, replaced, following, measures=measures)
    return {name: values.reshape(alternatives, windows, chosen) for name, values in outcomes.items()}
