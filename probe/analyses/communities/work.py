"""The units of a communities run: which halves, models and views, and the stage that keeps the states of units.

A *view* is one way to look: the model itself, the same graph made from the other half of the text, without outlier
coordinates, in a random orthogonal basis, or a fresh initialisation. The resolution at which communities are looked for
is chosen once, for the model's own graph of a layer, and used in all views of that layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.analyses.communities.config import Config
from probe.analysis import subject as subjects
from probe.analysis.subject import layers_of, model_of, variant_of
from probe.errors import InputError
from probe.geometry import haar_frame
from probe.model import HuggingFaceModel, LanguageModel, Site, hooked
from probe.runs import Run
from probe.runs.engine import Unit
from probe.text import Windows

Half: TypeAlias = Literal["half_a", "half_b"]
BATCH = 8


def graph_windows(config: Config, half: Half) -> Windows:
    """The windows of a half from which graphs are made."""
    return subjects.windows_of(config, config.graph_windows, half, at_most=True)


def graph_positions(config: Config, half: Half) -> Int[Tensor, "window chosen"]:
    """Their positions, a seeded draw."""
    return subjects.draw_positions(
        graph_windows(config, half), config.graph_positions, skip_first=config.skip_first, seed=config.seed
    )


def scored_windows(config: Config, half: Half = "half_b") -> Windows:
    """The windows on which Jacobians are taken."""
    return subjects.windows_of(config, config.windows, half, at_most=half == "half_a")


def scored_positions(config: Config, half: Half = "half_b") -> Int[Tensor, "window chosen"]:
    """Their positions, a seeded draw; controls are measured at the first column."""
    return subjects.draw_positions(
        scored_windows(config, half), config.positions_per_window, skip_first=config.skip_first, seed=config.seed
    )


def bases_of(config: Config) -> list[str]:
    """Random orthogonal bases; units of an MLP have none, for its nonlinearity acts on each."""
    return [f"basis-{draw}" for draw in range(config.basis_draws)] if config.nodes == "residual" else []


def views_of(config: Config) -> list[str]:
    """The views in which the coupling is measured."""
    symmetrised = ["symmetrised"] if config.nodes == "residual" else []
    return ["model", *symmetrised, "no_outliers", *bases_of(config), *config.controls]


def ablated_of(config: Config) -> list[int]:
    """The layers whose choices are varied."""
    return subjects.spread(layers_of(config), config.ablation_layers)


def drawn_of(config: Config) -> list[int]:
    """The layers whose graph is drawn."""
    return subjects.spread(layers_of(config), config.drawn_layers)


def units(config: Config) -> dict[str, list[Unit]]:
    """All units of a run by stage, in the order in which the stages follow each other."""
    layers = layers_of(config)
    others = ["half_b", *(view for view in views_of(config) if view not in {"model", "symmetrised"})]

    def states(view: str, half: Half) -> Unit:
        return Unit("states", f"{view}-{half}", {"view": view, "half": half})

    def by_layer(stage: str, views: list[str], chosen: list[int] = layers) -> list[Unit]:
        return [
            Unit(stage, f"{view}-layer-{layer:03d}", {"view": view, "layer": layer})
            for view in views
            for layer in chosen
        ]

    return {
        "states": [
            states("model", "half_a"),
            states("model", "half_b"),
            *(states(view, "half_a") for view in config.controls),
        ],
        "graphs": by_layer("graphs", ["model"]),
        "views": by_layer("views", others),
        "resamples": by_layer("resamples", ["model"]),
        "jacobians": by_layer("jacobians", ["model", *config.controls]),
        "coupling": by_layer("coupling", views_of(config)),
        "ablation": by_layer("ablation", ["model"], ablated_of(config)),
        "drawings": by_layer("drawings", ["model"], drawn_of(config)),
    }


def states_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """What the units are at the drawn positions of a half: `state_l` (token, unit) of every layer, and `document`.

    Args:
        config: The run's configuration.
        unit: Which model and half.
        run: Not used.

    Returns:
        Float32 states, by layer; the document of each token.
    """
    half: Half = unit.arguments["half"]
    model = model_of(variant_of(config, unit.arguments["view"]))
    windows, positions = graph_windows(config, half), graph_positions(config, half)
    found: dict[str, list[Tensor]] = {}
    for start in range(0, windows.n_windows, BATCH):
        rows = slice(start, start + BATCH)
        for layer, states in _states(config, model, windows.tokens[rows]):
            every = torch.arange(len(states))[:, None]
            found.setdefault(f"state_{layer}", []).append(states[every, positions[rows]].flatten(0, 1))
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    return joined | {"document": windows.document.repeat_interleave(positions.shape[1])}


def _states(
    config: Config, model: LanguageModel, tokens: Int[Tensor, "window position"]
) -> Iterator[tuple[int, Float[Tensor, "window position unit"]]]:
    """The units of each layer in a batch of windows, float32 on the CPU."""
    sites = {site.name: layer for layer in layers_of(config) for site in [_site(config, model, layer)]}
    seen: dict[str, Tensor] = {}

    def keep(site: Site, tensor: Tensor) -> None:
        seen[site.name] = tensor.float().cpu().clone()

    with torch.no_grad(), hooked([_site(config, model, layer) for layer in sites.values()], keep):
        model.final_states(tokens.to(model.device))
    for name, layer in sites.items():
        yield layer, seen[name]


def _site(config: Config, model: LanguageModel, layer: int) -> Site:
    """Where a layer's units are: the stream that enters the block, or what enters the matrix `down` of its MLP."""
    if config.nodes == "residual":
        return model.site(f"blocks.{layer}.hook_resid_pre")
    down = model.layout.projections.get("down") if isinstance(model, HuggingFaceModel) else None
    if down is None:
        raise InputError(f"--nodes mlp needs blocks with an MLP, and {model.name} has none: pass --nodes residual")
    assert isinstance(model, HuggingFaceModel)
    block, place = model.blocks[layer], model.layout.places.get("hook_mlp_out")
    flat = block if place is not None and place.flat else None
    return Site(f"blocks.{layer}.mlp.hook_post", block.get_submodule(down.module), "input", layer, flat)


def states_of(config: Config, run: Run, view: str, layer: int) -> Float[Tensor, "token unit"]:
    """The states of a view's units; of `half_b` those of the other half, of a basis those turned into it."""
    half = "half_b" if view == "half_b" else "half_a"
    source = view if view.startswith("init-") else "model"
    states = run.load("states", f"{source}-{half}", [f"state_{layer}"])[f"state_{layer}"]
    return states @ basis_of(config, view, states.shape[1]) if view.startswith("basis-") else states


def basis_of(config: Config, view: str, width: int) -> Float[Tensor, "d d"]:
    """The random orthogonal basis of a view, in its columns."""
    draw = int(view.partition("-")[2])
    return haar_frame(width, width, torch.Generator().manual_seed(config.seed * 1_000_003 + draw))


def documents_of(run: Run, half: Half) -> Int[Tensor, " token"]:
    """The document of each token from which the graphs of a half are made."""
    return run.load("states", f"model-{half}", ["document"])["document"]
