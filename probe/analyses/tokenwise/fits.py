"""The stage that fits: one layer's tokenwise maps, their geometry on held-out tokens, and the residuals to replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe import geometry, maps, replay
from probe.analyses.tokenwise import work
from probe.analyses.tokenwise.config import Config
from probe.analysis.subject import model_of
from probe.runs import Run
from probe.runs.engine import Unit, gather

SUBSPACE_SIZES = (1, 4, 8)
CENTRINGS = ("centred", "uncentred", "no_outliers")
VECTORS = ("update", "fit", "residual", "other")
CONTROLS = ("random", "other", "covariance")
LOCAL_KINDS: dict[str, Literal["low_rank", "diagonal", "orthogonal"]] = {
    "local": "low_rank",
    "local_diagonal": "diagonal",
    "local_orthogonal": "orthogonal",
}
PERMUTED_FITS = ("linear", "local")
FLOOR_FITS = ("mean", "diagonal", "linear", "low_rank", "local")
SHARE_FITS = ("mean", "linear", "low_rank", "local", "mlp", "mlp_random")
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
        """At most `n` of the tokens, drawn without replacement."""
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]]


def fit_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Fits one layer's maps on the first half of the fitting documents and measures them at the scored positions."""
    layer = unit.arguments["layer"]
    first, second = _halves(_fitting_tokens(config, run, layer, "fit"))
    validation = _fitting_tokens(config, run, layer, "validation").sample(VALIDATION_TOKENS, config.seed)
    queries, writes = _query_tokens(config, run, layer)
    bank = first.sample(config.bank_tokens, config.seed)
    predictors = {fit: _predictor(fit, config, layer, first, bank, validation) for fit in work.classes_of(config)}
    fitted = {fit: predict(queries.state, queries.document) for fit, predict in predictors.items()}
    stacked = torch.stack(list(fitted.values()))  # (fit, query, d)
    found = _geometry(stacked, queries)
    if share_fits(config):
        found |= _shares(config, predictors, fitted, queries, bank.sample(BASIS_TOKENS, config.seed + 1))
    found |= _overlaps(queries.update - stacked, writes)
    if permuted_fits(config):
        found |= _permuted(config, layer, first, bank, queries)
    independent = _predictor("linear", config, layer, second, second)
    found["error_independent"] = geometry.relative_error(queries.update, independent(queries.state, queries.document))
    if config.floor and floor_fits(config):
        found |= _floor(config, layer, bank, queries)
    if config.sweep and "local" in config.classes:
        found |= _sweep(config, bank, second.sample(config.bank_tokens, config.seed), queries)
    if config.replacement != "none":
        found |= _residuals(config, layer, fitted, queries)
    if config.replacement == "both":
        found["residual_whole"] = _whole_residuals(config, run, layer, predictors)
    found["mlp_flat"] = torch.tensor([getattr(predict, "flat", True) for predict in predictors.values()])
    return found


def _fitting_tokens(config: Config, run: Run, layer: int, part: str) -> Tokens:
    units = [unit for unit in work.units(config)["states"] if unit.arguments["part"] == part]
    names = [f"state_{layer}", f"state_{layer + 1}", "document", "window"]
    before, after, document, window = gather(run, units, names).values()
    return Tokens(before.float(), after.float() - before.float(), document, window)


def _query_tokens(config: Config, run: Run, layer: int) -> tuple[Tokens, dict[str, Tensor]]:
    """The scored tokens of a layer, and what the block's mixing wrote there."""
    units = work.units(config)["queries"]
    names = [f"state_{layer}", f"state_{layer + 1}"]
    before, after = (value.float() for value in gather(run, units, names).values())
    windows, chosen = work.query_positions(config).shape
    window = torch.arange(windows).repeat_interleave(chosen)
    document = work.windows_of(config, "scored").document[window]
    writes = {
        name: gather(run, units, [f"{key}_{layer}"])[f"{key}_{layer}"].float()
        for name, key in (("attention", "write"), ("offposition", "off_position"))
    }
    return Tokens(before, after - before, document, window), writes


def _halves(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Tokens of every second document, and of the others: two halves that share no document."""
    documents = tokens.document.unique()
    first = torch.isin(tokens.document, documents[::2])
    return tokens[first], tokens[~first]


def _predictor(
    fit: str, config: Config, layer: int, tokens: Tokens, bank: Tokens, validation: Tokens | None = None
) -> Predictor:
    """A fitted class; local ones look for neighbours in `bank`, ridges without validation are cross-validated."""
    if fit in ("alone", "mlp_alone"):
        model = model_of(config)
        return lambda state, _: replay.alone(model, layer, state, attention=fit == "alone") - state
    if fit.startswith("local"):
        local = maps.LocalMap(config.neighbours, config.rank, LOCAL_KINDS[fit], memory_budget=LOCAL_MEMORY)
        local.fit(bank.state, bank.update, groups=bank.document)
        # outlier coordinates leave some neighbourhoods in most blocks ill-conditioned, which float32 finds out too late
        return lambda state, document: local.predict(state.double(), groups=document).float()
    held_out = None if validation is None else (validation.state, validation.update)
    return _Fitted(_unfitted(fit, config, layer).fit(tokens.state, tokens.update, validation=held_out))


@dataclass(frozen=True)
class _Fitted:
    """A map that needs no documents, as a predictor."""

    map: maps.Map

    @property
    def flat(self) -> bool:
        """Whether an MLP's validation curve was flat at the end; True for maps without one."""
        return bool(getattr(self.map, "flat_", True))

    def __call__(self, state: Tensor, _document: Tensor) -> Tensor:
        return self.map.predict(state)


def _unfitted(fit: str, config: Config, layer: int) -> maps.Map:
    match fit:
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
    config: Config, predictors: dict[str, Predictor], fitted: dict[str, Tensor], queries: Tokens, basis_tokens: Tokens
) -> dict[str, Tensor]:
    """Shares ‖V_kᵀx‖²/‖x‖² in the dominant subspace of each fit's training updates and of u; the deciding fit's V."""
    outliers = geometry.outlier_coordinates(basis_tokens.state)
    other = queries.update[_derangement(len(queries), config.seed)]
    own = _shares_in(_bases(basis_tokens.update, outliers), queries.update, outliers)
    found, by_fit = {"share_of_update": own, "n_outliers": outliers.sum()}, list[Tensor]()
    for fit in share_fits(config):
        bases = _bases(predictors[fit](basis_tokens.state, basis_tokens.document), outliers)
        vectors = (queries.update, fitted[fit], queries.update - fitted[fit], other)  # in the order of VECTORS
        by_fit.append(torch.stack([_shares_in(bases, x, outliers) for x in vectors], 1))  # (centring, vector, k, query)
        if fit == config.deciding:
            found["directions"] = bases[CENTRINGS.index("centred")]
    return found | {"share": torch.stack(by_fit)}


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


def _permuted(config: Config, layer: int, tokens: Tokens, bank: Tokens, queries: Tokens) -> dict[str, Tensor]:
    """The same classes fitted to updates that are permuted within windows: what no relation to the state gives."""
    rows = work.control_queries(config)
    some = queries[rows]
    tokens, bank = (_permute_within_windows(part, config.seed) for part in (tokens, bank))
    fitted = torch.stack([
        _predictor(fit, config, layer, tokens, bank)(some.state, some.document) for fit in permuted_fits(config)
    ])
    return {
        "cos_permuted": _at_rows(geometry.cosine(some.update, fitted), rows, len(queries)),
        "relative_error_permuted": _at_rows(geometry.relative_error(some.update, fitted), rows, len(queries)),
    }


def permuted_fits(config: Config) -> list[str]:
    """The classes that are also fitted to permuted updates."""
    return [fit for fit in PERMUTED_FITS if fit in config.classes]


def share_fits(config: Config) -> list[str]:
    """The classes whose dominant subspace is measured."""
    return [fit for fit in work.classes_of(config) if fit in SHARE_FITS]


def floor_fits(config: Config) -> list[str]:
    """The classes that are also fitted to blocks run on tokens alone."""
    return [fit for fit in FLOOR_FITS if fit in config.classes]


def _permute_within_windows(tokens: Tokens, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(tokens), generator=generator)
    grouped = tokens.window.argsort(stable=True)
    donors = shuffled[tokens.window[shuffled].argsort(stable=True)]
    update = torch.empty_like(tokens.update)
    update[grouped] = tokens.update[donors]
    return Tokens(tokens.state, update, tokens.document, tokens.window)


def _floor(config: Config, layer: int, bank: Tokens, queries: Tokens) -> dict[str, Tensor]:
    """The error of the same classes on the block run on each token alone, where the true map is tokenwise."""
    rows, model = work.control_queries(config), model_of(config)

    def without_context(part: Tokens) -> Tokens:
        update = replay.alone(model, layer, part.state) - part.state
        return Tokens(part.state, update, part.document, part.window)

    bank, some = without_context(bank), without_context(queries[rows])
    errors = torch.stack([
        geometry.relative_error(some.update, _predictor(fit, config, layer, bank, bank)(some.state, some.document))
        for fit in floor_fits(config)
    ])
    return {"floor": _at_rows(errors, rows, len(queries))}


def sweep_grid(config: Config) -> tuple[list[int], list[int]]:
    """The values of k and r in the sweep, ascending."""
    return sorted(config.sweep_neighbours), sorted(config.sweep_ranks)


def _sweep(config: Config, first: Tokens, second: Tokens, queries: Tokens) -> dict[str, Tensor]:
    """Errors of the local class over k and r, held out and in sample, and how far two disjoint banks disagree."""
    neighbours, ranks = sweep_grid(config)
    rows, n_queries = work.control_queries(config), len(queries)
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
    """What is left out of the next state when it is replaced: residuals r, and controls r′ of the same norms."""
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
        "residual": torch.stack([queries.update - fitted[fit] for fit in config.replaced]),
        "control": torch.stack(control),
    }


def _whole_residuals(config: Config, run: Run, layer: int, predictors: dict[str, Predictor]) -> Tensor:
    """Residuals of the replaced classes at every position of the first `all_windows` windows, (fit, window, T, d)."""
    units = [unit for unit in work.units(config)["queries"] if unit.arguments["start"] < config.all_windows]
    names = [f"whole_{layer}", f"whole_{layer + 1}"]
    before, after = (value.float() for value in gather(run, units, names).values())
    document = work.windows_of(config, "scored").document[: len(before), None].expand(-1, before.shape[1]).flatten()
    update = after - before
    return torch.stack([
        update - predictors[fit](before.flatten(0, 1), document).reshape(update.shape) for fit in config.replaced
    ])


def _derangement(n: int, seed: int) -> Int[Tensor, " n"]:
    """A random cyclic permutation: no element stays where it was."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    target = torch.empty_like(order)
    target[order] = order.roll(1)
    return target
