"""How much the block's Jacobian amplifies each node, and each community, on the half of the text without the graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe import graphs, spectra
from probe.analyses.communities.partitions import algorithm_of, load_graph, resolution_of
from probe.analyses.communities.work import CommunitySubject, Half
from probe.analysis import Task
from probe.jacobian import JacobianOptions, mlp_neuron_gain, recorded_jacobian
from probe.runs import Piece, Run
from probe.spectra.amplification import Amplification, PooledOperator, partition_amplification, z_scores

MATRICES = ("J", "K")
MEASURES = tuple(field.name for field in fields(Amplification))
LARGEST = 24  # communities whose amplification is kept: the largest ones
DRAWS = 100  # random sets that stand beside a community's numerical abscissa


def measure_jacobians(subject: CommunitySubject, task: Task, run: Run) -> Piece:
    """Measure the model's squared gains at the scored positions, and what a block does to whole communities.

    Args:
        subject: The subject.
        task: Which `layer`; how many `draws` of random sets.
        run: Where the communities are.

    Returns:
        `squares.VIEW` (query, node): of the model at all tokens, of K symmetrised and in random bases at the first
        position of each window; `antisymmetric_fraction` and `rotation_fraction` of K (query,); of coordinates also
        amplification and z-score of the largest communities (matrix, amplification, largest), and `jacobian_ami`.
    """
    layer, parts = task["layer"], []
    pooled = {name: PooledOperator() for name in MATRICES}
    for J, recalled in _jacobians(subject, layer):
        K = J - torch.eye(J.shape[-1])
        parts.append(_measured(subject, K, recalled))
        pooled["J"].update(J)
        pooled["K"].update(K)
    arrays: dict[str, Tensor] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if subject.config.nodes == "mlp":
        return Piece({**arrays, "squares.model": square_gains(subject, "model", layer, "half_b")})
    amplified = _of_communities(subject, run, layer, pooled, task["draws"])
    return Piece({**arrays, **amplified}, {"matrix": MATRICES, "amplification": MEASURES})


def measure_control(subject: CommunitySubject, task: Task, run: Run) -> dict[str, Tensor]:
    """Measure the squared gains of a fresh initialisation at the first position of each window.

    Args:
        subject: The subject.
        task: Which `view` and `layer`.
        run: Not used.

    Returns:
        `squares` (query, node).
    """
    return {"squares": square_gains(subject, task["view"], task["layer"], "half_b", columns=1)}


def square_gains(
    subject: CommunitySubject, view: str, layer: int, half: Half, *, columns: int | None = None
) -> Float[Tensor, "token node"]:
    """Square the gain of each node: ‖K e_i‖², or of a neuron the squared norm of its term in K.

    Args:
        subject: The subject.
        view: The model or a fresh initialisation.
        layer: Which block.
        half: Of the text.
        columns: How many of each window's positions; all by default.

    Returns:
        Windows first, then positions.
    """
    recorded = subject.recorded(view, half).select(slice(None), slice(columns))
    if subject.config.nodes == "mlp":
        return mlp_neuron_gain(recorded, layer).flatten(0, 1).double().square().cpu()
    parts = []
    for window in range(len(recorded.tokens)):
        one = recorded.select(slice(window, window + 1), slice(None))
        K = recorded_jacobian(one, layer, JacobianOptions(context=subject.config.context, of="update"))
        parts.append(K[0].double().square().sum(-2).cpu())
    return torch.cat(parts)


def load_square_gains(run: Run, view: str, layer: int) -> Float[np.ndarray, "token node"]:
    """Read the squared gains of a view's nodes on the scored half, at the tokens where they were measured."""
    if view.startswith("init-"):
        return run.piece("controls", ["squares"], view=view, layer=layer).numpy("squares")
    name = f"squares.{'model' if view == 'no_outliers' else view}"
    return run.piece("jacobians", [name], layer=layer).numpy(name)


def _measured(
    subject: CommunitySubject, K: Float[Tensor, "chosen d d"], recalled: list[float | None]
) -> dict[str, Tensor]:
    """Scores and squared gains of the matrices of one window."""
    rotation = [
        spectra.rotation_fraction(matrix) if known is None else torch.tensor(known, dtype=torch.float64)
        for matrix, known in zip(K, recalled, strict=True)
    ]
    found = {"antisymmetric_fraction": spectra.antisymmetric_fraction(K), "rotation_fraction": torch.stack(rotation)}
    if subject.config.nodes == "mlp":
        return found
    exact = K.double()
    found["squares.model"] = exact.square().sum(-2)
    first = exact[:1]
    found["squares.symmetrised"] = ((first + first.mT) / 2).square().sum(-2)
    for view in subject.bases:
        found[f"squares.{view}"] = (first @ subject.basis(view, K.shape[-1]).double()).square().sum(-2)
    return found


def _of_communities(
    subject: CommunitySubject, run: Run, layer: int, pooled: Mapping[str, PooledOperator], draws: int
) -> dict[str, Tensor]:
    """Amplification of the largest communities, raw and against random sets, and the communities of |K| itself."""
    config = subject.config
    _, labels, _ = load_graph(run, "model", layer)
    largest = torch.from_numpy(labels).long()
    largest = torch.where(largest < LARGEST, largest, -1)
    generator = torch.Generator().manual_seed(config.seed)
    raw, z = torch.full((2, len(MATRICES), len(MEASURES), LARGEST), torch.nan, dtype=torch.float64)
    for row, operator in enumerate(pooled.values()):
        found = partition_amplification(operator, largest), z_scores(operator, largest, generator, draws)
        for array, amplification in zip((raw, z), found, strict=True):
            values = torch.stack([getattr(amplification, measure) for measure in MEASURES])
            array[row, :, : values.shape[1]] = values
    size = pooled["K"].mean_square.sqrt()
    coupled = graphs.from_matrix(size, top_k=min(config.neighbours, len(size) - 1))
    own = algorithm_of(config, fast=True).run(coupled, resolution_of(run, layer), config.seed)
    ami = torch.tensor(graphs.ami(labels, own), dtype=torch.float64)
    return {"community_amplification": raw, "community_z": z, "jacobian_ami": ami}


def _jacobians(
    subject: CommunitySubject, layer: int
) -> Iterator[tuple[Float[Tensor, "chosen d d"], list[float | None]]]:
    """J of the scored positions, a window at a time, and what a dynamics run knows of K's rotation fraction there."""
    kept, windows = subject.dynamics, subject.scored_windows()
    options = JacobianOptions(context=subject.config.context)
    for window, positions in enumerate(subject.scored_positions().tolist()):
        places = [kept.find(windows.tokens[window], position) if kept else None for position in positions]
        found = [kept.jacobian(place, layer) if kept and place else None for place in places]
        scores = [kept.score("rotation_fraction", place, layer) if kept and place else None for place in places]
        if all(matrix is not None for matrix in found):
            yield torch.stack([matrix for matrix in found if matrix is not None]), scores
        else:
            one = subject.recorded("model", "half_b").select(slice(window, window + 1), slice(None))
            yield recorded_jacobian(one, layer, options)[0].cpu(), scores
