"""The subject of a communities run, and the stage that keeps the states of nodes.

A *node* of a graph is a coordinate of the residual stream or a neuron of an MLP. A *view* is one way to look: the model
itself, the same graph made from the other half of the text, without outlier coordinates, in a random orthogonal basis,
or a fresh initialisation. The resolution at which communities are looked for is chosen once, for the model's own graph
of a layer, and used in all views of that layer.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import replay
from probe.analyses.communities.config import Config
from probe.analyses.dynamics.kept import Kept
from probe.analysis import Subject, Task
from probe.analysis.subject import spread
from probe.errors import InputError
from probe.geometry import haar_frame
from probe.jacobian import norm_gains
from probe.model import HuggingFaceModel, LanguageModel, Seen, Site, hooked
from probe.runs import Piece, Run
from probe.text import Windows

Half: TypeAlias = Literal["half_a", "half_b"]
HALVES: tuple[Half, Half] = ("half_a", "half_b")
BATCH = 8


class CommunitySubject(Subject[Config]):
    """The model and its fresh initialisations, the two halves of the text, and the views."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._recorded: tuple[tuple[str, Half], replay.Context] | None = None

    def graph_windows(self, half: Half) -> Windows:
        """Draw the windows of a half from which graphs are made."""
        return self.windows(half, self.config.graph_windows, at_most=True)

    def graph_positions(self, half: Half) -> Int[Tensor, "window chosen"]:
        """Draw the positions of these windows."""
        return self.draw(self.graph_windows(half), self.config.graph_positions)

    def scored_windows(self, half: Half = "half_b") -> Windows:
        """Draw the windows on which Jacobians are taken."""
        return self.windows(half, at_most=half == "half_a")

    def scored_positions(self, half: Half = "half_b") -> Int[Tensor, "window chosen"]:
        """Draw the positions of these windows; all views but the model are measured at the first of each."""
        return self.draw(self.scored_windows(half), self.config.positions_per_window)

    def recorded(self, view: str, half: Half) -> replay.Context:
        """Record the scored windows of a half.

        Args:
            view: The model or a fresh initialisation.
            half: Of the text.

        Returns:
            The recording; the last one is kept, for the next layer.
        """
        if self._recorded is None or self._recorded[0] != (view, half):
            self._recorded = None  # freed before there is another
            tokens, positions = self.scored_windows(half).tokens, self.scored_positions(half)
            self._recorded = (view, half), replay.record(self.variant(view), tokens, positions)
        return self._recorded[1]

    def basis(self, view: str, width: int) -> Float[Tensor, "d d"]:
        """Draw the random orthogonal basis of a view, in its columns."""
        draw = int(view.partition("-")[2])

        def frame() -> Float[Tensor, "d d"]:
            return haar_frame(width, width, torch.Generator().manual_seed(self.config.seed * 1_000_003 + draw))

        return self.keep(("basis", view), frame)

    @cached_property
    def dynamics(self) -> Kept | None:
        """The dynamics run whose matrices are used where they fit, if one is named."""
        if self.config.dynamics is None:
            return None
        return Kept(self.config.dynamics, self.fingerprint, self.model.n_layers, self.config.context)

    @property
    def bases(self) -> list[str]:
        """Random orthogonal bases; there are none for neurons, for the nonlinearity acts on each."""
        return [f"basis-{draw}" for draw in range(self.config.basis_draws)] if self.config.nodes == "residual" else []

    @property
    def views(self) -> list[str]:
        """The views in which the coupling is measured."""
        symmetrised = ["symmetrised"] if self.config.nodes == "residual" else []
        return ["model", *symmetrised, "no_outliers", *self.bases, *self.config.controls]

    @property
    def ablated(self) -> list[int]:
        """The layers whose choices are varied."""
        return spread(self.layers, self.config.ablation_layers)

    @property
    def drawn(self) -> list[int]:
        """The layers whose graph is drawn."""
        return spread(self.layers, self.config.drawn_layers)


def keep_states(subject: CommunitySubject, task: Task, run: Run) -> Piece:
    """Keep the states of nodes at the drawn positions of a half, and the gains of the norms that read them.

    Args:
        subject: The subject.
        task: Which `view`, the model or a fresh initialisation, and `half`.
        run: Not used.

    Returns:
        `state` (layer, token, node), `token_document` and `norm_gain` (layer, norm, node).
    """
    half, model = task["half"], subject.variant(task["view"])
    windows, positions = subject.graph_windows(half), subject.graph_positions(half)
    batches = []
    for start in range(0, windows.n_windows, BATCH):
        rows = slice(start, start + BATCH)
        chosen = positions[rows]
        every = torch.arange(len(chosen))[:, None]
        states = _states(subject, model, windows.tokens[rows])
        batches.append(torch.stack([one[every, chosen].flatten(0, 1) for one in states]))
    state = torch.cat(batches, dim=1)
    arrays = {
        "state": state,
        "token_document": windows.document.repeat_interleave(positions.shape[1]),
        "norm_gain": _norm_gains(subject, model, state.shape[2]),
    }
    return Piece(arrays, {"layer": subject.layers})


def _states(
    subject: CommunitySubject, model: LanguageModel, tokens: Int[Tensor, "window position"]
) -> list[Float[Tensor, "window position node"]]:
    """The states of each layer's nodes in a batch of windows, float32 on the CPU."""
    sites = [_site(subject.config, model, layer) for layer in subject.layers]
    seen = Seen()

    def keep(site: Site, tensor: Tensor) -> None:
        seen[site.name] = tensor.float().cpu().clone()

    with torch.no_grad(), hooked(sites, keep):
        model.final_states(tokens.to(model.device))
    return [seen[site.name] for site in sites]


def _norm_gains(subject: CommunitySubject, model: LanguageModel, width: int) -> Float[Tensor, "layer norm node"]:
    """The gains of the norms that read the stream; none for neurons."""
    found = []
    for layer in subject.layers:
        gains = norm_gains(model, layer) if subject.config.nodes == "residual" else []
        none = torch.zeros((0, width), dtype=torch.float64)
        found.append(torch.stack([gain.double().cpu() for gain in gains]) if gains else none)
    return torch.stack(found)


def _site(config: Config, model: LanguageModel, layer: int) -> Site:
    """The place of a layer's nodes: the stream that enters the block, or what enters the matrix `down` of its MLP."""
    if config.nodes == "residual":
        return model.site(f"blocks.{layer}.hook_resid_pre")
    kind = model.at(layer) if isinstance(model, HuggingFaceModel) else None
    down = None if kind is None else kind.projections.get("down")
    if down is None:
        raise InputError(f"nodes='mlp' needs blocks with an MLP, and {model.name} has none: pass nodes='residual'")
    assert kind is not None
    block, output = model.blocks[layer], kind.sites.get("hook_mlp_out")
    flat = block if output is not None and output.flat else None
    return Site(f"blocks.{layer}.mlp.hook_post", block.get_submodule(down.module), "input", layer, flat)


def states_of(subject: CommunitySubject, run: Run, view: str, layer: int) -> Float[Tensor, "token node"]:
    """Read the states of a view's nodes; of `half_b` those of the other half, of a basis those turned into it."""
    half = "half_b" if view == "half_b" else "half_a"
    states = run.piece("states", ["state"], view=measured_as(view), half=half, layer=layer)["state"]
    return states @ subject.basis(view, states.shape[1]) if view.startswith("basis-") else states


def norm_gains_of(subject: CommunitySubject, run: Run, view: str, layer: int) -> Float[Tensor, "norm node"]:
    """Read the gains of the norms that read a view's nodes; of a basis, those of steps along its directions."""
    gains = run.piece("states", ["norm_gain"], view=measured_as(view), half="half_a", layer=layer)["norm_gain"]
    if view.startswith("basis-"):
        return (gains.square() @ subject.basis(view, gains.shape[1]).double().square()).sqrt()
    return gains


def measured_as(view: str) -> str:
    """Name the variant that is measured for a view: a fresh initialisation, or the model itself."""
    return view if view.startswith("init-") else "model"
