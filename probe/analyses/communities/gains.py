"""How much the block's Jacobian amplifies each unit, and each community, on the half of the text without the graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import graphs, replay, spectra
from probe.analyses.communities.config import Config
from probe.analyses.communities.partitions import algorithm_of, load_graph, resolution_of
from probe.analyses.communities.work import Half, bases_of, basis_of, scored_positions, scored_windows
from probe.analyses.dynamics.kept import Kept
from probe.analysis.subject import fingerprint, model_of, variant_of
from probe.jacobian import Options, mlp_unit_gain, recorded_jacobian
from probe.runs import Run
from probe.runs.engine import Unit
from probe.spectra.amplification import Amplification, PooledOperator, partition_amplification, z_scores

MEASURES = tuple(field.name for field in fields(Amplification))
LARGEST = 24  # communities whose amplification is kept: the largest ones
DRAWS = 100  # random sets that stand beside a community's numerical abscissa


def jacobians_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Squared gains of the units at the scored positions, and what the block does to whole communities.

    Args:
        config: The run's configuration.
        unit: Which model and layer.
        run: Where the communities are.

    Returns:
        `square_gain.VIEW` (token, unit): of the model all tokens, of a control those at the first position of each
        window. Of the model also `antisymmetric_fraction` and `rotation_fraction` of K (token,); of residual units
        `J.MEASURE`, `K.MEASURE` (community,) and their z-scores `z.J.MEASURE`, `z.K.MEASURE`; and `jacobian_labels`,
        the communities of |K| + |K|ᵀ (unit,).
    """
    view, layer = unit.arguments["view"], unit.arguments["layer"]
    if view != "model":
        return {f"square_gain.{view}": square_gains(config, view, layer, "half_b", columns=1)}
    found: dict[str, list[Tensor]] = {}
    pooled = {"J": PooledOperator(), "K": PooledOperator()}
    for J, recalled in _jacobians(config, layer):
        K = J - torch.eye(J.shape[-1])
        for name, values in _measured(config, K, recalled).items():
            found.setdefault(name, []).append(values)
        pooled["J"].update(J)
        pooled["K"].update(K)
    arrays = {name: torch.cat(parts) for name, parts in found.items()}
    if config.nodes == "mlp":
        return arrays | {"square_gain.model": square_gains(config, view, layer, "half_b")}
    return arrays | _of_communities(config, run, layer, pooled)


def square_gains(
    config: Config, view: str, layer: int, half: Half, *, columns: int | None = None
) -> Float[Tensor, "token unit"]:
    """Squared gain of each unit: ‖K e_i‖², or of an MLP's unit the squared norm of its term in K.

    Args:
        config: The run's configuration.
        view: The model or a fresh initialisation.
        layer: Which block.
        half: Of the text.
        columns: How many of each window's positions; all by default.

    Returns:
        Windows first, then positions.
    """
    recorded = _recorded(config, view, half)
    recorded = recorded.select(slice(None), slice(columns))
    if config.nodes == "mlp":
        return mlp_unit_gain(recorded, layer).flatten(0, 1).double().square().cpu()
    parts = []
    for window in range(len(recorded.tokens)):
        one = recorded.select(slice(window, window + 1), slice(None))
        K = recorded_jacobian(one, layer, Options(context=config.context, of="update"))
        parts.append(K[0].double().square().sum(-2).cpu())
    return torch.cat(parts)


def _measured(config: Config, K: Float[Tensor, "chosen d d"], recalled: list[float | None]) -> dict[str, Tensor]:
    """What is kept of the matrices of one window."""
    rotation = [
        spectra.rotation_fraction(matrix) if known is None else torch.tensor(known, dtype=torch.float64)
        for matrix, known in zip(K, recalled, strict=True)
    ]
    found = {"antisymmetric_fraction": spectra.antisymmetric_fraction(K), "rotation_fraction": torch.stack(rotation)}
    if config.nodes == "mlp":
        return found
    exact = K.double()
    found["square_gain.model"] = exact.square().sum(-2)
    first = exact[:1]
    found["square_gain.symmetrised"] = ((first + first.mT) / 2).square().sum(-2)
    for view in bases_of(config):
        found[f"square_gain.{view}"] = (first @ basis_of(config, view, K.shape[-1]).double()).square().sum(-2)
    return found


def _of_communities(config: Config, run: Run, layer: int, pooled: dict[str, PooledOperator]) -> dict[str, Tensor]:
    """Amplification of the largest communities, raw and against random sets, and the communities of |K| itself."""
    _, labels, _ = load_graph(run, "model", layer)
    kept = torch.from_numpy(labels).long()
    kept = torch.where(kept < LARGEST, kept, -1)
    generator = torch.Generator().manual_seed(config.seed)
    arrays = {}
    for name, operator in pooled.items():
        raw, z = partition_amplification(operator, kept), z_scores(operator, kept, generator, DRAWS)
        for measure in MEASURES:
            arrays[f"{name}.{measure}"] = getattr(raw, measure)
            arrays[f"z.{name}.{measure}"] = getattr(z, measure)
    size = pooled["K"].mean_square.sqrt()
    coupled = graphs.from_matrix(size, top_k=min(config.neighbours, len(size) - 1))
    own = algorithm_of(config, fast=True).run(coupled, resolution_of(run, layer), config.seed)
    return arrays | {"jacobian_labels": torch.from_numpy(own)}


def _jacobians(config: Config, layer: int) -> Iterator[tuple[Float[Tensor, "chosen d d"], list[float | None]]]:
    """J of the scored positions, a window at a time, and what a dynamics run knows of K's rotation fraction there."""
    kept, windows = _kept(config), scored_windows(config)
    options = Options(context=config.context)
    for window, positions in enumerate(scored_positions(config).tolist()):
        places = [kept.find(windows.tokens[window], position) if kept else None for position in positions]
        found = [kept.jacobian(place, layer) if kept and place else None for place in places]
        scores = [kept.score("rotation_fraction", place, layer) if kept and place else None for place in places]
        if all(matrix is not None for matrix in found):
            yield torch.stack([matrix for matrix in found if matrix is not None]), scores
        else:
            one = _recorded(config, "model", "half_b").select(slice(window, window + 1), slice(None))
            yield recorded_jacobian(one, layer, options)[0].cpu(), scores


@lru_cache(maxsize=2)
def _recorded(config: Config, view: str, half: Half) -> replay.Context:
    """The scored windows of a half, recorded once for all layers."""
    tokens: Int[Tensor, "window position"] = scored_windows(config, half).tokens
    return replay.record(model_of(variant_of(config, view)), tokens, scored_positions(config, half))


@lru_cache(maxsize=1)
def _kept(config: Config) -> Kept | None:
    """The dynamics run whose matrices are used where they fit, if one is named."""
    if config.dynamics is None:
        return None
    model = model_of(config)
    marks = fingerprint(model, scored_windows(config))
    return Kept(config.dynamics, marks, model.n_layers, config.context)
