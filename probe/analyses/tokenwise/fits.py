"""The stage that fits: one layer's tokenwise maps, their geometry on held-out tokens, and the residuals to replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe import geometry, maps, replay
from probe.analyses.tokenwise.config import Config
from probe.analyses.tokenwise.subject import UpdateSubject
from probe.analysis import Task
from probe.runs import Piece, Run
from probe.runs.pieces import Labels

SUBSPACE_SIZES = (1, 4, 8)
CENTRINGS = ("centred", "uncentred", "no_outliers")
VECTORS = ("update", "fit", "residual", "other")
CONTROLS = ("random", "other", "covariance")
LOCAL_KINDS: dict[str, Literal["low_rank", "diagonal", "orthogonal"]] = {
    "local": "low_rank",
    "local_diagonal": "diagonal",
    "local_orthogonal": "orthogonal",
}
TARGETS = ("update", "state")
IN_SAMPLE_TOKENS = 128
LOCAL_MEMORY = 2**30  # bytes
VALIDATION_TOKENS = 2048  # they choose ridges and stop MLPs: many times per fit
BASIS_TOKENS = 256  # training tokens whose fitted updates span the dominant tokenwise subspace

Predictor = Callable[[Tensor, Tensor], Tensor]
"""Takes states (n, d) and the documents they come from (n,), returns fitted updates (n, d)."""


@dataclass(frozen=True)
class Tokens:
    """States, updates and origin of some tokens at one layer."""

    state: Float[Tensor, "token d_model"]
    update: Float[Tensor, "token d_model"]
    document: Int[Tensor, " token"]
    window: Int[Tensor, " token"]

    def __getitem__(self, rows: Tensor) -> Tokens:
        return Tokens(self.state[rows], self.update[rows], self.document[rows], self.window[rows])

    def __len__(self) -> int:
        return len(self.state)

    def sample(self, n: int, seed: int) -> Tokens:
        """Draw at most `n` of the tokens without replacement."""
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]]


def fit(subject: UpdateSubject, task: Task, run: Run) -> Piece:
    """Fit one layer's maps on the first half of the fitting documents and measure them at the scored positions.

    Args:
        subject: Model and text.
        task: Which layer.
        run: Where the states are.

    Returns:
        Geometry of the maps, their controls, and the residuals that are to be replaced.
    """
    config, layer = subject.config, task["layer"]
    first, second = _halves(_fitting_tokens(run, layer, "fit"))
    validation = _fitting_tokens(run, layer, "validation").sample(VALIDATION_TOKENS, config.seed)
    queries, writes = _query_tokens(subject, run, layer)
    bank = first.sample(config.bank_tokens, config.seed)
    predictors = {name: _predictor(name, subject, layer, first, bank, validation) for name in subject.maps}
    fitted = {name: predict(queries.state, queries.document) for name, predict in predictors.items()}
    stacked = torch.stack(list(fitted.values()))  # (map, query, d)
    independent = _predictor("linear", subject, layer, second, second)
    error = geometry.relative_error(queries.update, independent(queries.state, queries.document))
    found = _geometry(stacked, queries) | _overlaps(queries.update - stacked, writes)
    found["error_independent"] = error
    found["mlp_flat"] = torch.tensor([getattr(predict, "flat", True) for predict in predictors.values()])
    if subject.share_maps:
        shares = _shares(subject, predictors, fitted, queries, bank.sample(BASIS_TOKENS, config.seed + 1))
        found.update(_over_maps(shares, ["share"], subject.share_maps, subject.maps))
    if subject.permuted_maps:
        permuted = _permuted(subject, layer, first, bank, queries)
        found.update(_over_maps(permuted, list(permuted), subject.permuted_maps, subject.maps))
    if config.floor and subject.floor_maps:
        floor = {"floor": _floor(subject, layer, bank, queries)}
        found.update(_over_maps(floor, ["floor"], subject.floor_maps, subject.maps))
    if config.sweep and "local" in config.classes:
        found.update(_sweep(subject, bank, second.sample(config.bank_tokens, config.seed), queries))
    if config.replacement != "none":
        found.update(_residuals(config, layer, fitted, queries))
    if config.replacement == "both":
        found["residual_whole"] = _whole_residuals(subject, run, layer, predictors)
    neighbours, ranks = subject.sweep_grid
    n_windows = len(subject.positions)
    labels: dict[str, Labels] = {"map": subject.maps, "target": TARGETS, "query": subject.queries(slice(0, n_windows))}
    labels |= {"centring": CENTRINGS, "vector": VECTORS, "k": SUBSPACE_SIZES, "control": CONTROLS}
    if config.sweep:
        labels |= {"neighbours": neighbours, "rank": ranks}
    return Piece(found, labels)


def _over_maps(
    values: dict[str, Tensor], names: Sequence[str], of: Sequence[str], maps: Sequence[str]
) -> dict[str, Tensor]:
    """The named arrays, whose first axis is of some maps, over all maps: NaN where a map has no value."""
    spread = dict(values)
    for name in names:
        spread[name] = values[name].new_full((len(maps), *values[name].shape[1:]), torch.nan)
        spread[name][[list(maps).index(one) for one in of]] = values[name]
    return spread


def _fitting_tokens(run: Run, layer: int, part: str) -> Tokens:
    names = ["state", "token_document", "token_window"]
    before, after = (run.piece("states", names, part=part, layer=at) for at in (layer, layer + 1))
    state = before["state"].float()
    return Tokens(state, after["state"].float() - state, before["token_document"], before["token_window"])


def _query_tokens(subject: UpdateSubject, run: Run, layer: int) -> tuple[Tokens, dict[str, Tensor]]:
    """The scored tokens of a layer, and what the block's mixing wrote there."""
    seen = run.piece("queries", ["query_state", "write", "off_position"], layer=layer)
    after = run.piece("queries", ["query_state"], layer=layer + 1)["query_state"].float()
    windows, chosen = subject.positions.shape
    window = torch.arange(windows).repeat_interleave(chosen)
    document = subject.scored.document[window]
    kinds = (("attention", "write"), ("offposition", "off_position"))
    writes = {name: seen[key].float() for name, key in kinds if key in seen}
    state = seen["query_state"].float()
    return Tokens(state, after - state, document, window), writes


def _halves(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Tokens of every second document, and of the others: two halves that share no document."""
    documents = tokens.document.unique()
    first = torch.isin(tokens.document, documents[::2])
    return tokens[first], tokens[~first]


def _predictor(
    name: str, subject: UpdateSubject, layer: int, tokens: Tokens, bank: Tokens, validation: Tokens | None = None
) -> Predictor:
    """A fitted map; local ones look for neighbours in `bank`, ridges without validation are cross-validated."""
    config = subject.config
    if name in ("alone", "mlp_alone"):
        model = subject.model
        return lambda state, _: replay.alone(model, layer, state, attention=name == "alone") - state
    if name.startswith("local"):
        local = maps.LocalMap(config.neighbours, config.rank, LOCAL_KINDS[name], memory_budget=LOCAL_MEMORY)
        local.fit(bank.state, bank.update, groups=bank.document)
        # outlier coordinates leave some neighbourhoods in most blocks ill-conditioned, which float32 finds out too late
        return lambda state, document: local.predict(state.double(), groups=document).float()
    held_out = None if validation is None else (validation.state, validation.update)
    return _Fitted(_unfitted(name, config, layer).fit(tokens.state, tokens.update, validation=held_out))


@dataclass(frozen=True)
class _Fitted:
    """A map that needs no documents, as a predictor."""

    map: maps.Map

    @property
    def flat(self) -> bool:
        """True if an MLP's validation curve was flat at the end, and for maps without one."""
        return bool(getattr(self.map, "flat_", True))

    def __call__(self, state: Tensor, _document: Tensor) -> Tensor:
        return self.map.predict(state)


def _unfitted(name: str, config: Config, layer: int) -> maps.Map:
    match name:
        case "zero":
            return maps.ZeroMap()
        case "mean":
            return maps.MeanMap()
        case "diagonal":
            return maps.DiagonalMap()
        case "linear":
            return maps.LinearMap()
        case "low_rank":
            return maps.ReducedRankMap(config.rank)
        case "mlp":
            return maps.MLPMap(width=config.mlp_width, steps=config.mlp_steps, init="ridge", seed=config.seed + layer)
        case _:
            return maps.MLPMap(width=config.mlp_width, steps=config.mlp_steps, init="random", seed=config.seed + layer)


def _geometry(fitted: Float[Tensor, "fit query d"], queries: Tokens) -> dict[str, Tensor]:
    """Errors, cosines and explained variance; targets: the update, and the next state."""
    residual = queries.update - fitted
    pairs = [(queries.update, fitted), (queries.state + queries.update, queries.state + fitted)]
    return {
        "relative_error": torch.stack([geometry.relative_error(y, y_hat) for y, y_hat in pairs], 1),
        "cos_update_fit": torch.stack([geometry.cosine(y, y_hat) for y, y_hat in pairs], 1),
        "cos_update_residual": torch.stack([geometry.cosine(y, residual) for y, _ in pairs], 1),
        "cos_fit_residual": torch.stack([geometry.cosine(y_hat, residual) for _, y_hat in pairs], 1),
        "explained_variance": torch.stack([geometry.explained_variance(queries.update, one) for one in fitted]),
        "update_norm": queries.update.norm(dim=-1),
        "state_norm": queries.state.norm(dim=-1),
    }


def _shares(
    subject: UpdateSubject,
    predictors: dict[str, Predictor],
    fitted: dict[str, Tensor],
    queries: Tokens,
    basis_tokens: Tokens,
) -> dict[str, Tensor]:
    """Shares ‖V_kᵀx‖²/‖x‖² in the dominant subspace of each map's training updates and of u; the deciding map's V."""
    outliers = geometry.outlier_coordinates(basis_tokens.state)
    config = subject.config
    other = queries.update[_derangement(len(queries), config.seed)]
    own = _shares_in(_bases(basis_tokens.update, outliers), queries.update, outliers)
    found, by_map = {"share_of_update": own, "n_outliers": outliers.sum()}, list[Tensor]()
    for name in subject.share_maps:
        bases = _bases(predictors[name](basis_tokens.state, basis_tokens.document), outliers)
        vectors = (queries.update, fitted[name], queries.update - fitted[name], other)  # in the order of VECTORS
        by_map.append(torch.stack([_shares_in(bases, x, outliers) for x in vectors], 1))  # (centring, vector, k, query)
        if name == config.deciding:
            found["directions"] = bases[CENTRINGS.index("centred")]
    return found | {"share": torch.stack(by_map)}


def _bases(vectors: Float[Tensor, "token d"], outliers: Bool[Tensor, " d"]) -> list[Float[Tensor, "d leading"]]:
    """The dominant subspaces of some vectors, in the order of `CENTRINGS`."""
    inside, largest = vectors.masked_fill(outliers, 0.0), SUBSPACE_SIZES[-1]
    return [
        geometry.dominant_subspace(vectors, largest, centred=True),
        geometry.dominant_subspace(vectors, largest, centred=False),
        geometry.dominant_subspace(inside, largest, centred=True),
    ]


def _shares_in(
    bases: Sequence[Float[Tensor, "d leading"]], x: Float[Tensor, "query d"], outliers: Bool[Tensor, " d"]
) -> Float[Tensor, "centring k query"]:
    """Shares of vectors in the leading directions of each basis; outlier coordinates are left out of the last."""
    kept = [x, x, x.masked_fill(outliers, 0.0)]
    return torch.stack([
        torch.stack([geometry.subspace_share(one, basis[:, :k]) for k in SUBSPACE_SIZES])
        for one, basis in zip(kept, bases, strict=True)
    ])


def _overlaps(residual: Float[Tensor, "fit query d"], writes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cosine of the residual with what the block's mixing wrote, and with the part that came from other positions."""
    return {f"residual_{name}_cosine": geometry.cosine(residual, write) for name, write in writes.items()}


def _permuted(subject: UpdateSubject, layer: int, tokens: Tokens, bank: Tokens, queries: Tokens) -> dict[str, Tensor]:
    """The same maps fitted to updates that are permuted within windows: what no relation to the state gives."""
    rows = subject.control_rows
    some = queries[rows]
    tokens, bank = (_permute_within_windows(part, subject.config.seed) for part in (tokens, bank))
    fitted = torch.stack([
        _predictor(name, subject, layer, tokens, bank)(some.state, some.document) for name in subject.permuted_maps
    ])
    return {
        "cos_permuted": _at_rows(geometry.cosine(some.update, fitted), rows, len(queries)),
        "relative_error_permuted": _at_rows(geometry.relative_error(some.update, fitted), rows, len(queries)),
    }


def _permute_within_windows(tokens: Tokens, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(tokens), generator=generator)
    grouped = tokens.window.argsort(stable=True)
    donors = shuffled[tokens.window[shuffled].argsort(stable=True)]
    update = torch.empty_like(tokens.update)
    update[grouped] = tokens.update[donors]
    return Tokens(tokens.state, update, tokens.document, tokens.window)


def _floor(subject: UpdateSubject, layer: int, bank: Tokens, queries: Tokens) -> Float[Tensor, "map query"]:
    """The error of the same maps on the block run on each token alone, where the true map is tokenwise."""
    rows, model = subject.control_rows, subject.model

    def without_context(part: Tokens) -> Tokens:
        update = replay.alone(model, layer, part.state) - part.state
        return Tokens(part.state, update, part.document, part.window)

    bank, some = without_context(bank), without_context(queries[rows])
    errors = torch.stack([
        geometry.relative_error(some.update, _predictor(name, subject, layer, bank, bank)(some.state, some.document))
        for name in subject.floor_maps
    ])
    return _at_rows(errors, rows, len(queries))


def _sweep(subject: UpdateSubject, first: Tokens, second: Tokens, queries: Tokens) -> dict[str, Tensor]:
    """Errors of the local class over k and r, held out and in sample, and how far two disjoint banks disagree."""
    config, (neighbours, ranks) = subject.config, subject.sweep_grid
    rows, n_queries = subject.control_rows, len(queries)
    queries = queries[rows]
    one, other = (
        maps.LocalMap(rank=config.rank, memory_budget=LOCAL_MEMORY).fit(bank.state, bank.update, groups=bank.document)
        for bank in (first, second)
    )
    states = queries.state.double()
    held_out = one.sweep_errors(
        states, queries.update.double(), groups=queries.document, neighbours=neighbours, ranks=ranks
    )
    inside = first.sample(IN_SAMPLE_TOKENS, config.seed)
    in_sample = one.sweep_errors(inside.state.double(), inside.update.double(), neighbours=neighbours, ranks=ranks)
    unstable = maps.instability(
        one, other, states, queries.update.double(), groups=queries.document, neighbours=neighbours
    )
    return {
        "sweep_error": _at_rows(held_out.float(), rows, n_queries),
        "sweep_error_in_sample": in_sample.nanmedian(-1).values.float(),
        "instability": _at_rows(unstable.float(), rows, n_queries),
    }


def _at_rows(values: Tensor, rows: Tensor, n: int) -> Tensor:
    """The values at their rows along the last axis, NaN elsewhere."""
    spread = values.new_full((*values.shape[:-1], n), torch.nan)
    spread[..., rows] = values
    return spread


def _residuals(config: Config, layer: int, fitted: dict[str, Tensor], queries: Tokens) -> dict[str, Tensor]:
    """Parts left out of the next state when it is replaced: residuals r, and controls r′ of the same norms."""
    residual = queries.update - fitted[config.deciding]
    norms, width = residual.norm(dim=-1), residual.shape[-1]
    generator = torch.Generator().manual_seed(config.seed + layer)
    shuffled = [residual[_derangement(len(residual), config.seed + layer + draw)] for draw in range(config.draws)]
    other = torch.nn.functional.normalize(torch.stack(shuffled), dim=-1) * norms[:, None]
    covariance = residual.T.cov()
    control = [
        geometry.random_directions(norms, width, generator, config.draws),
        other,
        geometry.covariance_matched(covariance, norms, generator, config.draws),
    ]
    return {
        "residual": torch.stack([queries.update - fitted[name] for name in config.replaced]),
        "control_residual": torch.stack(control),
    }


def _whole_residuals(
    subject: UpdateSubject, run: Run, layer: int, predictors: dict[str, Predictor]
) -> Float[Tensor, "replaced window position d"]:
    """Residuals of the replaced maps at every position of the first windows."""
    before, after = (run.piece("queries", ["whole"], layer=at)["whole"].float() for at in (layer, layer + 1))
    document = subject.scored.document[: len(before), None].expand(-1, before.shape[1]).flatten()
    update = after - before
    return torch.stack([
        update - predictors[name](before.flatten(0, 1), document).reshape(update.shape)
        for name in subject.config.replaced
    ])


def _derangement(n: int, seed: int) -> Int[Tensor, " n"]:
    """A random cyclic permutation: no element stays where it was."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    target = torch.empty_like(order)
    target[order] = order.roll(1)
    return target
