"""The stages of the communities analysis in their order, and what they would take beforehand."""

from __future__ import annotations

import time

import numpy as np

from probe import graphs
from probe.analyses.communities import coupling, gains, partitions, work
from probe.analyses.communities.claims import claims
from probe.analyses.communities.config import Config
from probe.analyses.communities.figures import figures
from probe.analyses.communities.schema import assemble
from probe.analysis import subject as subjects
from probe.analysis.contract import Stage, require_at_least, staged
from probe.analysis.subject import notes
from probe.errors import InputError
from probe.jacobian import Options
from probe.runs import engine
from probe.runs.engine import Plan

__all__ = ["assemble", "claims", "figures", "fingerprint", "notes", "plan", "stages", "title"]

STAGES = {
    "states": (work.states_unit, "states of both halves"),
    "graphs": (partitions.graphs_unit, "graphs and communities"),
    "views": (partitions.views_unit, "other views of them"),
    "resamples": (partitions.resamples_unit, "resampled documents"),
    "jacobians": (gains.jacobians_unit, "gains on the other half"),
    "coupling": (coupling.coupling_unit, "permuted places"),
    "ablation": (coupling.ablation_unit, "other choices"),
    "drawings": (partitions.drawings_unit, "drawings"),
}
"""Function and description of each stage, in their order."""


def stages(config: Config) -> list[Stage]:
    """What is to be done, in order."""
    _check(config)
    # refuses what the model's blocks do not have
    Options(context=config.context).resolved(subjects.model_of(config))
    return staged(STAGES, work.units(config))


def fingerprint(config: Config) -> dict[str, str]:
    """The hashes of the weights and of the scored text."""
    return subjects.fingerprint(subjects.model_of(config), work.scored_windows(config))


def title(config: Config) -> str:
    """The report's heading."""
    return f"Communities of units in {config.model}"


def plan(config: Config) -> Plan:
    """What the stages would take on this machine: the timings and counts that stand below."""
    _check(config)
    model, units = subjects.model_of(config), work.units(config)
    rate, one = engine.flops_per_second(), _run_seconds(config)
    layers, width = len(subjects.layers_of(config)), model.d_model
    tokens = config.graph_windows * min(config.graph_positions, config.window_length - config.skip_first)
    forward = 2 * sum(p.numel() for block in model.blocks for p in block.parameters())
    jacobian = 12 * width**3 / rate
    scored = config.windows * config.positions_per_window
    profiled = 1 if config.resolution is not None else len(graphs.RESOLUTIONS)
    runs = profiled * config.profile_seeds * (1 + config.profile_draws) + config.seeds
    runs += partitions.NULL_SEEDS * (1 + config.null_graphs)
    cells = np.prod([len(choices) for choices in coupling.CHOICES])
    permutation = 60 * config.neighbours * width / 1e8
    seconds = {
        "states": len(units["states"]) * config.graph_windows * config.window_length * forward / rate,
        "graphs": layers * runs * one,
        "views": len(units["views"]) * config.seeds * one,
        "resamples": layers * config.graph_resamples * 2 * one,
        "jacobians": layers * (scored + config.init_seeds * config.windows) * jacobian * 2,
        "coupling": len(units["coupling"]) * config.permutations * permutation,
        "ablation": len(units["ablation"]) * cells * (3 * one + coupling.GRID_PERMUTATIONS * permutation),
        "drawings": len(units["drawings"]) * 20 * one,
    }
    recorded = 4 * config.windows * config.window_length * width * (model.n_layers + 1)
    memory = dict.fromkeys(STAGES, 16 * tokens * width)
    memory |= {"states": 8 * tokens * width * layers, "jacobians": recorded + 80 * width**2}
    memory["ablation"] += recorded
    return subjects.planned(config, units, seconds, memory)


def _run_seconds(config: Config) -> float:
    """What one short run of the algorithm takes here, from a graph of noise: the unit of the estimates of time."""
    width = subjects.model_of(config).d_model
    states = np.random.default_rng(0).standard_normal((2 * width, width))
    graph = graphs.correlation_graph(states, top_k=min(config.neighbours, width - 1))
    algorithm = partitions.algorithm_of(config, fast=True)
    algorithm.run(graphs.from_matrix(np.ones((3, 3))), 1.0, 0)  # imports the library
    start = time.perf_counter()
    algorithm.run(graph, 1.0, 0)
    return time.perf_counter() - start


def _check(config: Config) -> None:
    """Refuses options that contradict each other, before any work is done."""
    least = dict.fromkeys(("windows", "positions_per_window", "graph_windows", "graph_positions", "permutations"), 1)
    least |= {"neighbours": 1, "seeds": 3, "profile_seeds": 3, "profile_draws": 1, "null_graphs": 1}
    least |= dict.fromkeys(("graph_resamples", "basis_draws", "init_seeds", "ablation_layers", "drawn_layers"), 0)
    require_at_least(config, least)
    if config.resolution is not None and not config.resolution > 0:
        raise InputError(f"--resolution must be positive: got {config.resolution}; it is in units of the mean |w|")
    if config.method == "louvain" and config.objective == "modularity" and config.edges != "absolute":
        raise InputError(
            "Louvain cannot do signed modularity: pass --objective cpm, --edges absolute or --method leiden"
        )
