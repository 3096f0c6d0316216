"""The communities analysis: its stages in their order, its Dataset, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from probe import graphs
from probe.analyses.communities import claims, coupling, figures, gains, partitions, work
from probe.analyses.communities.config import NODE_NAMES, Config
from probe.analyses.communities.schema import SCHEMA
from probe.analyses.communities.work import CommunitySubject
from probe.analysis import Analysis, Claim, Figure, Stage, Task
from probe.jacobian import JacobianOptions
from probe.plots import style
from probe.runs import Run


class Communities(Analysis[Config]):
    """Graphs of coordinates, their communities, and the coupling of a place among these and its gain.

    Attributes:
        grid_permutations: Permutations of places under every other choice.
        draws: Random sets that stand beside a community's numerical abscissa.
    """

    name = "communities"
    config = Config
    schema = SCHEMA
    compared: ClassVar = {"antisymmetric_fraction": {}, "rotation_fraction": {}}
    grid_permutations = coupling.GRID_PERMUTATIONS
    draws = gains.DRAWS

    def subject(self, config: Config) -> CommunitySubject:
        """Make the model, its controls and the halves of the text."""
        return CommunitySubject(config)

    def stages(self, subject: CommunitySubject) -> list[Stage]:
        """List the stages: states, graphs, gains, the coupling of both, other choices, drawings."""
        # both refuse what cannot be done, before there is a run directory
        JacobianOptions(context=subject.config.context).resolved(subject.model)
        subject.scored_windows()
        views, controls = subject.views, subject.config.controls
        others = ["half_b", *(view for view in views if view not in {"model", "symmetrised"})]

        def by_layer(stage: str, **arguments: int) -> list[Task]:
            return [Task(stage, {"layer": layer}, arguments) for layer in subject.layers]

        def by_view(stage: str, chosen: Sequence[str]) -> list[Task]:
            return [Task(stage, {"view": view, "layer": layer}) for view in chosen for layer in subject.layers]

        halves = [("model", "half_a"), ("model", "half_b"), *((view, "half_a") for view in controls)]
        states = [Task("states", {"view": view, "half": half}) for view, half in halves]
        jacobians = by_layer("jacobians", draws=self.draws)
        grid = {"permutations": self.grid_permutations}
        ablation = [Task("ablation", {"ablated": layer}, grid) for layer in subject.ablated]
        drawings = [Task("drawings", {"drawn": layer}) for layer in subject.drawn]
        return [
            Stage("states", work.keep_states, states, "states of both halves"),
            Stage("graphs", partitions.find_communities, by_layer("graphs"), "graphs and communities"),
            Stage("views", partitions.find_in_view, by_view("views", others), "other views of them"),
            Stage("resamples", partitions.resample_documents, by_layer("resamples"), "resampled documents"),
            Stage("jacobians", gains.measure_jacobians, jacobians, "gains on the other half"),
            Stage("controls", gains.measure_control, by_view("controls", controls), "gains of fresh weights"),
            Stage("coupling", coupling.measure_coupling, by_view("coupling", views), "permuted places"),
            Stage("ablation", coupling.vary_choices, ablation, "other choices", coupling.choices_seconds),
            Stage("drawings", partitions.draw_graph, drawings, "drawings"),
        ]

    def coordinates(self, subject: CommunitySubject) -> Mapping[str, Any]:
        """Name scored tokens, layers and views."""
        tokens = subject.token_coordinates(subject.scored_windows(), subject.scored_positions())
        return tokens | {"layer": subject.layers, "view": subject.views}

    def finish(self, data: xr.Dataset, subject: CommunitySubject, run: Run) -> xr.Dataset:
        """Add the agreement of layers, the tokens of the drawings, and attributes."""
        config = subject.config
        between = graphs.pairwise_ami(data["community"].sel(view="model").values)
        data["layer_ami"] = SCHEMA.entry("layer_ami", between)
        windows, other = (subject.graph_windows(half) for half in work.HALVES)
        tokens = windows.tokens.gather(1, subject.graph_positions("half_a")).flatten()
        if subject.drawn:
            words = np.array([subject.model.tokenizer.decode([token]) for token in tokens.tolist()], dtype=object)
            largest = torch.stack([
                run.piece("drawings", ["largest"], drawn=layer)["largest"] for layer in subject.drawn
            ])
            data["largest_token"] = SCHEMA.entry("largest_token", words[largest.numpy()])
        data.attrs |= subject.attributes(subject.scored_windows()) | {
            "context": config.context,
            "nodes": config.nodes,
            "n_nodes": data.sizes["node"],
            "n_graph_tokens": len(tokens),
            "n_graph_documents": windows.n_documents,
            "n_other_documents": other.n_documents,
        }
        return data

    def claims(self, data: xr.Dataset, config: Config, *, resamples: int = claims.RESAMPLES) -> Sequence[Claim]:
        """Judge the sentences of arXiv 2605.14258."""
        return claims.claims(data, config, resamples=resamples)

    def figures(self, data: xr.Dataset, config: Config, *, resamples: int = style.RESAMPLES) -> Sequence[Figure]:
        """Draw graphs, coupling, controls, other choices and the communities themselves."""
        return figures.figures(data, config, resamples=resamples)

    def title(self, config: Config) -> str:
        """Name the nodes and the model."""
        return f"Communities of {NODE_NAMES[config.nodes]}s in {config.model}"


analysis = Communities()
run, plan = analysis.run, analysis.plan
