"""The units of a layer-update run: states of fitting text, states of scored text, replacements.

Three of the four stages of a run; the second, `fit`, stands in `fits.py`. Each unit is a plain function of
`(config, unit, run)` that returns named arrays; what an earlier stage found is read from the run directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from probe import patching, replay, stream
from probe.analyses.tokenwise.config import Config
from probe.analysis import subject as subjects
from probe.analysis.subject import layers_of, model_of
from probe.model import LanguageModel
from probe.runs import Run
from probe.runs.engine import Unit
from probe.text import Part, Windows

BATCH = 8


def windows_of(config: Config, part: Part) -> Windows:
    """The windows for fitting, validation or scoring: documents of the three never meet."""
    validation = max(1, config.fit_windows // 6)
    wanted = {"fit": config.fit_windows, "validation": validation, "scored": config.windows}
    return subjects.windows_of(config, wanted[part], part, at_most=part != "scored")


def classes_of(config: Config) -> list[str]:
    """The classes that are fitted: those asked for, less the MLP alone where the blocks have none."""
    absent = {"mlp_alone"} if model_of(config).recurrent else set()
    return [fit for fit in config.classes if fit not in absent]


def query_positions(config: Config) -> Int[Tensor, "window query"]:
    """The scored positions: a seeded draw from each window's counted positions that a token follows, sorted."""
    return subjects.draw_positions(
        windows_of(config, "scored"),
        config.positions_per_window,
        skip_first=config.skip_first,
        seed=config.seed,
        followed=True,  # the loss needs a next token
    )


def control_queries(config: Config) -> Int[Tensor, " query"]:
    """Rows of the queries that enter sweep, floor and permuted fits: a seeded draw from each window's."""
    windows, chosen = query_positions(config).shape
    drawn = torch.rand((windows, chosen), generator=torch.Generator().manual_seed(config.seed + 1))
    columns = drawn.topk(min(config.control_positions_per_window, chosen), dim=1).indices.sort(dim=1).values
    return (torch.arange(windows)[:, None] * chosen + columns).flatten()


def batches(config: Config, part: Part) -> Iterator[tuple[str, slice]]:
    """Batches of windows with their keys."""
    for start in range(0, windows_of(config, part).n_windows, BATCH):
        yield f"{part}-{start:05d}", slice(start, start + BATCH)


def units(config: Config) -> dict[str, list[Unit]]:
    """All units of a run by stage, in the order in which the stages follow each other."""

    def windows(stage: str, *parts: Part) -> list[Unit]:
        return [
            Unit(stage, key, {"part": part, "start": rows.start, "stop": rows.stop})
            for part in parts
            for key, rows in batches(config, part)
        ]

    return {
        "states": windows("states", "fit", "validation"),
        "queries": windows("queries", "scored"),
        "fit": [Unit("fit", f"layer-{layer:03d}", {"layer": layer}) for layer in layers_of(config)],
        "replace": [] if config.replacement == "none" else windows("replace", "scored"),
    }


def _needed_states(config: Config) -> list[int]:
    return sorted({layer + step for layer in layers_of(config) for step in (0, 1)})


def _site(model: LanguageModel, layer: int) -> str:
    """The site of the stream that enters block `layer`, or that leaves the last block."""
    return f"blocks.{layer}.hook_resid_pre" if layer < model.n_layers else f"blocks.{layer - 1}.hook_resid_post"


def states_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """The stream at the counted positions of a batch of fitting windows, `state_l` (token, d_model) for each layer."""
    model, windows = model_of(config), windows_of(config, unit.arguments["part"])
    rows = slice(unit.arguments["start"], unit.arguments["stop"])
    counted = windows.counted(config.skip_first)[rows]
    sites = {layer: _site(model, layer) for layer in _needed_states(config)}
    captured = stream.capture(model, windows.tokens[rows], sites=list(sites.values()), batch_size=BATCH)
    found = {f"state_{layer}": captured[site][counted] for layer, site in sites.items()}
    length = counted.shape[1]
    found["document"] = windows.document[rows, None].expand(-1, length)[counted]
    found["window"] = torch.arange(windows.n_windows)[rows, None].expand(-1, length)[counted]
    found["token"] = windows.tokens[rows][counted]
    return found


def queries_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """The stream, the mixing write and its off-position part at the scored positions of a batch of windows."""
    rows = slice(unit.arguments["start"], unit.arguments["stop"])
    model = model_of(config)
    mixing = "hook_mixer_out" if model.recurrent else "hook_attn_out"
    sites = [f"blocks.{layer}.{mixing}" for layer in layers_of(config)]
    context = _context(config, rows, sites)
    found = {f"state_{layer}": context.state(layer).flatten(0, 1) for layer in _needed_states(config)}
    every = torch.arange(len(context.tokens), device=context.tokens.device)[:, None]
    for layer, site in zip(layers_of(config), sites, strict=True):
        found[f"write_{layer}"] = context.seen[site][every, context.positions].flatten(0, 1)
        if context.past is not None:
            found[f"off_position_{layer}"] = context.off_position_write(layer).flatten(0, 1)
    whole = range(*rows.indices(config.all_windows if config.replacement == "both" else 0))
    for layer in _needed_states(config) if whole else ():
        found[f"whole_{layer}"] = context.states[layer][: len(whole)]
    log_p = model.unembed(context.state(model.n_layers).flatten(0, 1)).float().log_softmax(-1)
    following = patching.following_tokens(context.tokens).gather(1, context.positions).flatten()
    found["entropy"] = -(log_p.exp() * log_p).sum(-1)
    found["loss"] = -log_p.gather(1, following[:, None])[:, 0]
    return {name: value.cpu() for name, value in found.items()}


def replace_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """What the output does when a block's output is replaced, at the scored positions of a batch of windows.

    For each layer the block's output becomes h_{l+1} − r for each replaced class, and h_{l+1} − r′ for each control.

    Args:
        config: The run's configuration.
        unit: Which windows.
        run: Where the residuals of the fitted layers are.

    Returns:
        The measures of `patching` (layer, fit, query), and `kl_control` (layer, control, draw, query).
    """
    rows = slice(unit.arguments["start"], unit.arguments["stop"])
    context = _context(config, rows)
    windows, chosen = context.positions.shape
    queries = slice(rows.start * chosen, rows.start * chosen + windows * chosen)
    found: dict[str, list[Tensor]] = {}
    for layer in layers_of(config):
        fitted = run.load("fit", f"layer-{layer:03d}", _replacing_names(config))
        residuals = torch.cat([fitted["residual"], fitted["control"].flatten(0, 1)])[:, queries]
        after = context.state(layer + 1)[:, None]
        residuals = residuals.unflatten(1, (windows, chosen)).transpose(0, 1).to(after)
        fits = len(config.replaced)
        for name, values in patching.one_position(context, layer, after - residuals[:, :fits]).items():
            found.setdefault(name, []).append(values.flatten(1))
        control = patching.one_position(context, layer, after - residuals[:, fits:], measures=("kl",))["kl"]
        found.setdefault("kl_control", []).append(control.flatten(1).unflatten(0, fitted["control"].shape[:2]))
        if "residual_whole" in fitted:
            _replace_whole(config, context, layer, rows, fitted["residual_whole"], residuals, found)
    return {name: torch.stack(values) for name, values in found.items()}


def _replace_whole(
    config: Config,
    context: replay.Context,
    layer: int,
    rows: slice,
    whole: Tensor,
    residuals: Tensor,
    found: dict[str, list[Tensor]],
) -> None:
    """All counted positions at once, and one query followed to later positions, in the first `all_windows` windows."""
    windows, chosen = context.positions.shape
    inside = whole[:, rows].transpose(0, 1)  # (window, fit, position, d)
    together = torch.full((len(config.replaced), windows, chosen), torch.nan)
    later = torch.full_like(together, torch.nan)
    if n := len(inside):
        counted = windows_of(config, "scored").counted(config.skip_first)[rows][:n].to(inside.device)
        part = context.select(slice(0, n), slice(None))
        states = part.states[layer + 1][:, None] - inside.to(part.states[0])
        together[:, :n] = patching.all_positions(part, layer, states, counted, measures=("kl",))["kl"]
        one, fits = slice(chosen // 2, chosen // 2 + 1), len(config.replaced)
        single = part.select(slice(None), one)
        replaced = single.state(layer + 1)[:, None] - residuals[:n, :fits, one]
        later[:, :n, one] = patching.one_position_later(single, layer, replaced)
    found.setdefault("kl_all", []).append(together.flatten(1))
    found.setdefault("kl_later", []).append(later.flatten(1))


def _replacing_names(config: Config) -> list[str]:
    return ["residual", "control", *(["residual_whole"] if config.replacement == "both" else [])]


def _context(config: Config, rows: slice, sites: Sequence[str] = ()) -> replay.Context:
    tokens, positions = windows_of(config, "scored").tokens[rows], query_positions(config)[rows]
    return replay.record(model_of(config), tokens, positions, sites=sites)
