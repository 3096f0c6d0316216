"""Does a unit's place among the communities predict how much the block amplifies it?

The coupling of a layer is the partial Spearman correlation, over units, of the participation coefficient in the graph
of one half of the text and the root-mean-square gain ``‖K e_i‖`` on the other, given what drives both: the unit's
variance and |mean|, the gains of the norms that read it, and being an outlier.

Its null deals out the units' places anew among units of like degree. To deal out the communities' labels and compute
the participation coefficients again is no null at its level: the places of all such draws are alike, because a unit's
links decide most of its place whatever the labels, so that in noise 12 % of layers pass at 5 %.
"""

from __future__ import annotations

from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import graphs
from probe.analyses.communities.config import Config
from probe.analyses.communities.gains import square_gains
from probe.analyses.communities.partitions import FAST, HALVES, load_covariates, load_graph, resolution_of
from probe.analyses.communities.work import states_of
from probe.graphs import Graph
from probe.inference import Ranking, partial_spearman, permutation_null
from probe.runs import Run
from probe.runs.engine import Unit

GRID_SEEDS, GRID_PERMUTATIONS = 3, 100
EDGES: tuple[Literal["signed", "partial"], ...] = ("signed", "partial")
NEIGHBOURS = (15, 30, 60)
METHODS: tuple[Literal["leiden", "louvain", "spectral", "infomap"], ...] = ("leiden", "louvain", "spectral", "infomap")
FACTORS = (0.5, 1.0, 2.0)
CHOICES = (HALVES, EDGES, NEIGHBOURS, METHODS, FACTORS)


def coupling_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """The place of each unit in a view, and the coupling when places are permuted.

    Args:
        config: The run's configuration.
        unit: Which view and layer.
        run: Where communities and gains are.

    Returns:
        `participation` (unit,), NaN for units that the view leaves out; `permuted_rho` (permutation,).
    """
    view, layer = unit.arguments["view"], unit.arguments["layer"]
    graph, labels, kept = load_graph(run, view, layer)
    gain = load_square_gains(run, view, layer).mean(axis=0)[kept]
    covariates = load_covariates(run, view, layer)[:, kept]
    place = graphs.participation(graph, labels)
    rho = permuted(graph, place, gain, covariates, config.permutations, config.seed)
    everywhere = np.full(len(kept), np.nan)
    everywhere[kept] = place
    return {"participation": torch.from_numpy(everywhere), "permuted_rho": torch.from_numpy(rho)}


def load_square_gains(run: Run, view: str, layer: int) -> Float[np.ndarray, "token unit"]:
    """Squared gains of a view's units on the scored half."""
    source = view if view.startswith("init-") else "model"
    name = f"square_gain.{'model' if view == 'no_outliers' else view}"
    return run.load("jacobians", f"{source}-layer-{layer:03d}", [name])[name].numpy()


def permuted(
    graph: Graph,
    place: Float[np.ndarray, " node"],
    gain: Float[np.ndarray, " node"],
    covariates: Float[np.ndarray, "covariate node"],
    permutations: int,
    seed: int,
) -> Float[np.ndarray, " permutation"]:
    """The coupling when the units' places are dealt out anew among units of like degree.

    Args:
        graph: The graph.
        place: Participation coefficient of each node.
        gain: Of each node.
        covariates: What is held fixed.
        permutations: How many.
        seed: Of the permutations.

    Returns:
        Partial Spearman correlations.
    """
    ranked, given = Ranking(gain), [Ranking(one) for one in covariates]

    def coupled(order: Int[np.ndarray, " node"]) -> float:
        return float(partial_spearman(place[order], ranked, given))

    strata = graphs.degree_deciles(graph)
    return permutation_null(coupled, len(place), groups=strata, permutations=permutations, seed=seed).values


def ablation_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """The coupling of a layer under every other choice of half, edges, neighbours, algorithm and resolution.

    Graphs of one half are always coupled with gains on the other.

    Args:
        config: The run's configuration.
        unit: Which layer.
        run: Where states, resolutions and gains are.

    Returns:
        `rho` (half, edges, neighbours, method, factor) and `permuted_rho`, the same with (…, permutation).
    """
    layer = unit.arguments["layer"]
    other = square_gains(config, "model", layer, "half_a").numpy()  # the graphs' own half is half B there
    rho, permuted_rho = list[float](), list[Float[np.ndarray, " permutation"]]()
    for view, gains in (("model", load_square_gains(run, "model", layer)), ("half_b", other)):
        states, gain = states_of(config, run, view, layer), gains.mean(axis=0)
        covariates = load_covariates(run, view, layer)
        for kind, neighbours in product(EDGES, NEIGHBOURS):
            graph = graphs.correlation_graph(states, kind=kind, top_k=min(neighbours, states.shape[1] - 1))
            for method, factor in product(METHODS, FACTORS):
                labels = graphs.communities(
                    graph,
                    method=method,
                    iterations=FAST,
                    resolution=factor * resolution_of(run, layer),
                    seeds=GRID_SEEDS,
                    seed=config.seed,
                ).labels
                place = graphs.participation(graph, labels)
                rho.append(float(partial_spearman(place, gain, list(covariates))))
                permuted_rho.append(permuted(graph, place, gain, covariates, GRID_PERMUTATIONS, config.seed))
    shape = [len(choices) for choices in CHOICES]
    return {
        "rho": torch.tensor(rho, dtype=torch.float64).reshape(shape),
        "permuted_rho": torch.from_numpy(np.stack(permuted_rho)).reshape(*shape, -1),
    }
