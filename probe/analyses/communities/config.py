"""The options of a communities run, with the thresholds of its claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from probe.analysis.config import AtLeast, TextConfig
from probe.analysis.contract import control_names
from probe.errors import InputError

NODE_NAMES = {"residual": "coordinate", "mlp": "neuron"}
"""What a node of the graphs is called, by the option `nodes`."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Bounds that each statistic must clear; the defaults were fixed before any model was measured.

    Attributes:
        threshold_exist: AMI of the communities of two halves of the text, mean over layers.
        threshold_coupling: √A, A = mean over layers of ρ² less what permuted places reach.
        threshold_sign: Spearman's ρ over layers of the coupling and the antisymmetric fraction of K.
        threshold_learned: What A must exceed that of fresh initialisations by.
        threshold_learned_init: √A of fresh initialisations that still counts as none.
        threshold_robust: Share of choices that must agree with the default ones.
        threshold_fragile: Share at and below which the finding is an artefact of choices.
        threshold_excess: Stability above that of the null from which a layer has communities at all.
        threshold_layers: Fewer layers with communities than this decide nothing.
        threshold_signed_layers: Layers with a significant coupling that each sign must have.
        threshold_documents: Fewer documents than this decide nothing.
        threshold_seeds: Fewer fresh initialisations than this decide nothing.
    """

    threshold_exist: float = 0.2
    threshold_coupling: float = 0.1
    threshold_sign: float = 0.0
    threshold_learned: float = 0.0
    threshold_learned_init: float = 0.1
    threshold_robust: float = 0.8
    threshold_fragile: float = 0.5
    threshold_excess: float = 0.2
    threshold_layers: int = 5
    threshold_signed_layers: int = 3
    threshold_documents: int = 12
    threshold_seeds: int = 5


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Do coordinates of the residual stream form communities, and does a coordinate's place there predict its gain?

    Graphs are made from one half of the documents, Jacobians are taken on the other half.

    Raises:
        InputError: If the resolution is not positive, or Louvain cannot do what is asked for.
    """

    examples: ClassVar[Mapping[str, str]] = {
        "--dataset sample --layers 5,15,25 --init-seeds 1 --basis-draws 1": "a first look at three blocks",
        "--text my-text.txt --dynamics runs/dynamics/MODEL-KEY": "with the scores of a dynamics run",
        "--dataset sample --nodes mlp --layers 5": "neurons of the MLP instead of the stream's coordinates",
    }

    windows: Annotated[int, AtLeast(1)] = 24
    """Windows of the second half of the documents on which Jacobians are taken."""
    skip_first: int = 16
    """Positions at the start of each window that are left out: attention sinks dominate every correlation there."""
    positions_per_window: Annotated[int, AtLeast(1)] = 2
    """Positions of each window at which the trained model's Jacobians are taken; one for every control."""
    context: Literal["sequence", "detached"] = "sequence"
    """The rest of the text held fixed; or norms, softmax and gates frozen (another operator)."""
    nodes: Literal["residual", "mlp"] = "residual"
    """Nodes of the graphs: coordinates of the stream that enters a block, or the neurons of its MLP."""
    edges: Literal["signed", "absolute", "partial"] = "signed"
    """Weights of the graph: signed or absolute correlation, or partial correlation from a shrunk covariance."""
    neighbours: Annotated[int, AtLeast(1)] = 30
    """Neighbours that a node keeps, those with the largest |r|."""
    graph_windows: Annotated[int, AtLeast(1)] = 64
    """Windows of each half of the documents from which graphs are made."""
    graph_positions: Annotated[int, AtLeast(1)] = 64
    """Positions of each of these windows."""
    method: Literal["leiden", "louvain", "infomap", "spectral"] = "leiden"
    """Algorithm that finds communities."""
    objective: Literal["cpm", "modularity"] = "cpm"
    """What Leiden and Louvain maximise."""
    seeds: Annotated[int, AtLeast(3)] = 10
    """Runs of the algorithm from which a consensus is taken."""
    resolution: float | None = None
    """In units of the mean |w| (CPM) or of 1 (modularity); by default chosen in each layer as the most stable."""
    profile_seeds: Annotated[int, AtLeast(3)] = 4
    """Runs at each resolution while the resolution is chosen."""
    profile_draws: Annotated[int, AtLeast(1)] = 2
    """Null graphs at each resolution while it is chosen."""
    null_graphs: Annotated[int, AtLeast(1)] = 20
    """Null graphs (the states in a random orthogonal basis) whose quality a layer's must exceed."""
    graph_resamples: Annotated[int, AtLeast(0)] = 20
    """Resamples of the documents on which graph and communities are made anew, for their intervals."""
    permutations: Annotated[int, AtLeast(1)] = 500
    """Permutations of the nodes' places within degree deciles."""
    basis_draws: Annotated[int, AtLeast(0)] = 2
    """Random orthogonal bases of the stream in which everything is repeated."""
    init_seeds: Annotated[int, AtLeast(0)] = 5
    """Fresh initialisations that serve as controls (at least 5 for a verdict)."""
    ablation_layers: Annotated[int, AtLeast(0)] = 6
    """Layers, evenly spread, on which algorithm, resolution, k, edges and half are varied; 0 for none."""
    drawn_layers: Annotated[int, AtLeast(0)] = 3
    """Layers, evenly spread, whose graph is drawn."""
    dynamics: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Run directory of the dynamics analysis whose scores, and Jacobians if kept, are used where they fit."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    """Thresholds and margins of the claims."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution is not None and not self.resolution > 0:
            raise InputError(f"resolution= must be positive, got {self.resolution}: it is in units of the mean |w|")
        if self.method == "louvain" and self.objective == "modularity" and self.edges != "absolute":
            raise InputError(
                "Louvain cannot do signed modularity: pass objective='cpm', edges='absolute' or method='leiden'"
            )

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the fresh initialisations."""
        return control_names("init", self.init_seeds, self.random_init)
