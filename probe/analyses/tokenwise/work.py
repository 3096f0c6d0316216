"""The tasks of layer updates: states of fitting text, states of scored text, replacements.

Three of the four stages of a run; the second to last, `map`, stands in `fits.py`. A task's function takes
`(subject, task, run)` and returns a piece; what an earlier stage found is read from the run by label.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probe import patching, replay, stream
from probe.analyses.tokenwise.subject import BATCH, UpdateSubject
from probe.analysis import Task
from probe.model import LanguageModel
from probe.runs import Piece, Run


def _site(model: LanguageModel, layer: int) -> str:
    """The site of the stream that enters block `layer`, or that leaves the last block."""
    return f"blocks.{layer}.hook_resid_pre" if layer < model.n_layers else f"blocks.{layer - 1}.hook_resid_post"


def states(subject: UpdateSubject, task: Task, run: Run) -> Piece:
    """Capture the stream at the counted positions of a batch of fitting windows.

    Args:
        subject: Model and text.
        task: Which windows.
        run: Not used.

    Returns:
        `state` of every layer that is needed, with document, window and id of each token.
    """
    windows = subject.part(task["part"])
    counted = windows.counted(subject.config.skip_first)
    before, inside = int(counted[: task["start"]].sum()), counted[task.rows]
    sites = [_site(subject.model, layer) for layer in subject.states]
    captured = stream.capture(subject.model, windows.tokens[task.rows], sites=sites, batch_size=BATCH)
    length = counted.shape[1]
    arrays = {
        "state": torch.stack([captured[site][inside] for site in sites]),
        "token_document": windows.document[task.rows, None].expand(-1, length)[inside],
        "token_window": torch.arange(windows.n_windows)[task.rows, None].expand(-1, length)[inside],
        "token_id": windows.tokens[task.rows][inside],
    }
    return Piece(arrays, {"layer": subject.states, "token": range(before, before + int(inside.sum()))})


def queries(subject: UpdateSubject, task: Task, run: Run) -> Piece:
    """Record the stream, the mixing write and its off-position part at the scored positions of a batch of windows.

    Args:
        subject: Model and text.
        task: Which windows.
        run: Not used.

    Returns:
        `query_state`, `write`, `off_position`, `entropy`, `loss`; in the first windows also `whole`.
    """
    model, rows = subject.model, task.rows
    mixing = "hook_mixer_out" if model.recurrent else "hook_attn_out"
    sites = [f"blocks.{layer}.{mixing}" for layer in subject.layers]
    context = _context(subject, rows, sites)
    every = torch.arange(len(context.tokens), device=context.tokens.device)[:, None]
    written = [context.seen[site][every, context.positions].flatten(0, 1) for site in sites]
    log_p = model.unembed(context.state(model.n_layers).flatten(0, 1)).float().log_softmax(-1)
    following = patching.following_tokens(context.tokens).gather(1, context.positions).flatten()
    arrays = {
        "query_state": torch.stack([context.state(layer).flatten(0, 1) for layer in subject.states]),
        "write": _at_layers(subject, written),
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "loss": -log_p.gather(1, following[:, None])[:, 0],
    }
    if all(context.at_positions(layer) for layer in subject.layers):
        off_position = [context.off_position_write(layer).flatten(0, 1) for layer in subject.layers]
        arrays["off_position"] = _at_layers(subject, off_position)
    whole = range(rows.start, min(rows.stop, len(subject.whole_windows)))
    if whole:
        arrays["whole"] = torch.stack([context.states[layer][: len(whole)] for layer in subject.states])
    labels = {"layer": subject.states, "query": subject.queries(rows), "whole_window": whole}
    return Piece(arrays, labels if whole else {axis: labels[axis] for axis in ("layer", "query")})


def _at_layers(subject: UpdateSubject, values: Sequence[Tensor]) -> Tensor:
    """Values of the layers that are looked at, among all layers whose state is needed: NaN at the others."""
    absent = torch.full_like(values[0], torch.nan)
    known = dict(zip(subject.layers, values, strict=True))
    return torch.stack([known.get(layer, absent) for layer in subject.states])


def replace(subject: UpdateSubject, task: Task, run: Run) -> Piece:
    """Measure what the output does when a block's output is replaced, at the scored positions of a batch of windows.

    For each layer the block's output becomes h_{l+1} − r for each replaced map, and h_{l+1} − r′ for each control.

    Args:
        subject: Model and text.
        task: Which windows.
        run: Where the residuals of the fitted layers are.

    Returns:
        The measures of `patching` by map and layer, and `kl_control` by control and draw.
    """
    config, rows = subject.config, task.rows
    context = _context(subject, rows)
    windows, chosen = context.positions.shape
    place = subject.queries(rows)
    found: dict[str, list[Tensor]] = {}
    for layer in subject.layers:
        fitted = run.piece("fit", _replacing(subject), layer=layer)
        controls = fitted["control_residual"]
        residuals = torch.cat([fitted["residual"], controls.flatten(0, 1)])[:, place.start : place.stop]
        after = context.state(layer + 1)[:, None]
        residuals = residuals.unflatten(1, (windows, chosen)).transpose(0, 1).to(after)
        maps = len(config.replaced)
        for name, values in patching.one_position(context, layer, after - residuals[:, :maps]).items():
            found.setdefault(name, []).append(values.flatten(1))
        control = patching.one_position(context, layer, after - residuals[:, maps:], measures=("kl",))["kl"]
        found.setdefault("kl_control", []).append(control.flatten(1).unflatten(0, controls.shape[:2]))
        if "residual_whole" in fitted:
            whole = fitted["residual_whole"]
            for name, values in _everywhere(subject, context, layer, rows, whole, residuals).items():
                found.setdefault(name, []).append(values)
    arrays = {name: torch.stack(values, dim=2 if name == "kl_control" else 1).cpu() for name, values in found.items()}
    return Piece(arrays, {"layer": subject.layers, "map": config.replaced, "query": place})


def _everywhere(
    subject: UpdateSubject, context: replay.Context, layer: int, rows: slice, whole: Tensor, residuals: Tensor
) -> dict[str, Tensor]:
    """All counted positions at once, and one query followed to later positions, in the first windows."""
    windows, chosen = context.positions.shape
    inside = whole[:, rows].transpose(0, 1)  # (window, map, position, d)
    together = torch.full((len(subject.config.replaced), windows, chosen), torch.nan)
    later = torch.full_like(together, torch.nan)
    if n := len(inside):
        counted = subject.scored.counted(subject.config.skip_first)[rows][:n].to(inside.device)
        part = context.select(slice(0, n), slice(None))
        states = part.states[layer + 1][:, None] - inside.to(part.states[layer + 1])
        together[:, :n] = patching.all_positions(part, layer, states, counted, measures=("kl",))["kl"]
        one, maps = slice(chosen // 2, chosen // 2 + 1), len(subject.config.replaced)
        single = part.select(slice(None), one)
        replaced = single.state(layer + 1)[:, None] - residuals[:n, :maps, one]
        later[:, :n, one] = patching.one_position_later(single, layer, replaced)
    return {"kl_all": together.flatten(1), "kl_later": later.flatten(1)}


def _replacing(subject: UpdateSubject) -> list[str]:
    return ["residual", "control_residual", *(["residual_whole"] if subject.config.replacement == "both" else [])]


def _context(subject: UpdateSubject, rows: slice, sites: Sequence[str] = ()) -> replay.Context:
    return replay.record(subject.model, subject.scored.tokens[rows], subject.positions[rows], sites=sites)
