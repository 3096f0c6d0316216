"""What a drawing of a layer's graph needs: places of the units, strongest links, tokens at which each is largest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from probe.analyses.communities.config import Config
from probe.analyses.communities.partitions import load_graph
from probe.analyses.communities.work import states_of
from probe.engine import Unit
from probe.graphs import layout
from probe.runs import Run

LINKS = 1200  # drawn: the strongest ones
TOKENS = 3  # named for each unit


def drawings_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Places, strongest links and largest tokens of a layer's units.

    Args:
        config: the run's configuration.
        unit: which layer.
        run: where graph and states are.

    Returns:
        `place` (unit, 2); `link` (link, 2) and `link_weight` (link,), padded with −1 and 0; `largest` (unit, token),
        which of the tokens of the first half.
    """
    layer = unit.arguments["layer"]
    graph, labels, _ = load_graph(run, "model", layer)
    states = states_of(config, run, "model", layer)
    strongest = np.argsort(-np.abs(graph.weights), kind="stable")[:LINKS]
    link, weight = np.full((LINKS, 2), -1), np.zeros(LINKS)
    link[: len(strongest)], weight[: len(strongest)] = graph.edges[strongest], graph.weights[strongest]
    away = (states - states.mean(0)).abs()
    return {
        "place": torch.from_numpy(layout(graph, labels, seed=config.seed)),
        "link": torch.from_numpy(link),
        "link_weight": torch.from_numpy(weight),
        "largest": away.topk(min(TOKENS, len(away)), dim=0).indices.T,
    }
