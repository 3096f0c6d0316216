"""The claims on communities of units (arXiv 2605.14258), computed from a run's Dataset.

The coupling of a layer is a partial Spearman correlation over units; documents of the half that the graphs have not
seen are resampled, the partition fixed. Pooled over the layers that have stable communities (where these are too few
for a verdict, over all layers),

    A = mean over layers of ρ² − the same with places permuted within degree deciles,

the share of the ranks' variance that a unit's place explains beyond its degree. A permutation p value enters as a
contrast without width: how far the observed value lies beyond the quantile of the null that it must pass.

Where a single community holds all units, every unit has the same place, and nothing can follow from it: ρ is 0 there.

Cost: about a minute for 1,000 resamples of 30 layers, 576 units and ten views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from probe.analyses.communities.thresholds import Thresholds
from probe.claims import Claim, Condition, Criterion, Evidence, Sentence, enough_units, line
from probe.inference import (
    Interval,
    Ranking,
    benjamini_hochberg,
    bootstrap_interval,
    fisher_mean,
    partial_spearman,
    spearman,
)
from probe.table import AbsentError, Finding, Floats, Row, Table, Weights, claim_of, crossed, number

__all__ = [
    "ROWS",
    "Coupling",
    "Thresholds",
    "adjusted_p",
    "agreement",
    "claims",
    "pooled",
    "pooled_layers",
    "stable_layers",
]

PAPER = "arXiv 2605.14258"
Runs: TypeAlias = Table[Thresholds]
LEVEL = 0.05  # false discovery rate over layers
COUPLING_P, SIGN_P = 0.01, 0.05


@runtime_checkable
class Settings(Protocol):
    """What the claims need to know of a configuration."""

    @property
    def thresholds(self) -> Thresholds:
        """What each statistic must clear."""

    @property
    def seed(self) -> int:
        """Of the resamples."""


class Coupling:
    """The coupling of a view by layer, of a resample of its tokens given by weights.

    Args:
        data: the Dataset.
        view: which view.
        layers: which rows of `layer`.
    """

    def __init__(self, data: xr.Dataset, view: str, layers: Bool[np.ndarray, " layer"]) -> None:
        if view not in data["view"].values:
            raise AbsentError(f"this run holds no view {view}")
        own = data.sel(view=view).isel(layer=np.flatnonzero(layers))
        self._place = Ranking(own["participation"].values.astype(np.float64))
        given = np.moveaxis(own["covariate"].values, 1, 0)  # (covariate, layer, unit)
        self._given = [Ranking(one) for one in given]
        self._square = own["square_gain"].values.astype(np.float64)
        self._measured = np.isfinite(self._square).any(axis=(0, 1))
        self._square[..., ~self._measured] = 0.0
        self.permuted = np.nan_to_num(own["permuted_rho"].values)  # (layer, permutation)

    def __call__(self, weights: Weights) -> Float[np.ndarray, " layer"]:
        """Partial Spearman correlation of place and root-mean-square gain, by layer; 0 where all places are one."""
        # the square root and the common denominator change no rank
        gain = self._square @ (weights * self._measured)
        return np.asarray(np.nan_to_num(partial_spearman(self._place, gain, self._given)))

    def strength(self, weights: Weights) -> float:
        """A: mean ρ² less its mean under permuted places."""
        return float(np.square(self(weights)).mean() - np.square(self.permuted).mean())

    def beyond(self, weights: Weights, quantile: float) -> float:
        """Mean ρ² less a quantile of it under permuted places."""
        return float(np.square(self(weights)).mean() - np.quantile(np.square(self.permuted).mean(axis=0), quantile))


def stable_layers(data: xr.Dataset, least: float) -> Bool[np.ndarray, " layer"]:
    """Layers that have communities: stable beyond their null by more than the least excess."""
    return np.asarray(data["excess"].values > least)


def adjusted_p(data: xr.Dataset, view: str = "model") -> Float[np.ndarray, " layer"]:
    """Two-sided permutation p of each layer's coupling, adjusted over layers (Benjamini and Hochberg)."""
    every = np.ones(data.sizes["layer"], dtype=bool)
    coupling = Coupling(data, view, every)
    rho = np.abs(coupling(np.ones(data.sizes["query"])))
    reached = (np.abs(coupling.permuted) >= rho[:, None]).sum(axis=1)
    return benjamini_hochberg((1 + reached) / (1 + coupling.permuted.shape[1]))


def exist(table: Runs) -> Finding:
    """AMI of the communities of two halves of the text, and quality beyond that of null graphs."""
    data = table.data
    if "resample" not in data.dims or not data.sizes["resample"]:
        raise AbsentError("this run holds no resamples of its graphs: give --graph-resamples")
    quantile = np.quantile(data["null_quality"].values, 0.95, axis=1)
    parts = {
        "ami": (data["half_ami"].values, data["resampled_half_ami"].values),
        "quality": (data["run_quality"].values - quantile, data["resampled_quality"].values - quantile[:, None]),
    }
    n = min(int(data.attrs["n_graph_documents"]), int(data.attrs["n_other_documents"]))
    found = {
        name: bootstrap_interval(float(estimate.mean()), draws.mean(axis=0), n)
        for name, (estimate, draws) in parts.items()
    }
    stable = int(stable_layers(data, table.thresholds.threshold_excess).sum())
    above = int((data["run_quality"].values > quantile).sum())
    tokens, units = int(data.attrs["n_graph_tokens"]), data.sizes["unit"]
    return Finding(
        Evidence(
            [Criterion("AMI of two halves of the text", found["ami"], table.thresholds.threshold_exist)],
            [Criterion("quality less the 95 % point of null graphs", found["quality"], 0.0)],
            preconditions=[
                Condition(tokens >= 2 * units, f"only {tokens} tokens for {units} units: twice as many are needed")
            ],
        ),
        f"mean over {data.sizes['layer']} layers; null graphs: the same standardised states in a random orthogonal "
        f"basis, {data.sizes['null_draw']} a layer, each at its own mean weight",
        line("quality of null graphs, 95 % point, mean over layers", number(float(quantile.mean()))),
        {
            "quality of single runs, mean over layers": number(float(data["run_quality"].mean())),
            "layers whose quality lies above that point": number(float(above)),
            "layers whose communities are stable beyond the null": number(float(stable)),
            "AMI of seeds, mean over layers": number(float(data["stability"].mean())),
            "AMI of seeds in null graphs": number(float(data["null_stability"].mean())),
        },
    )


def coupling(table: Runs) -> Finding:
    """√A of the model, against permuted places and against random orthogonal bases."""
    layers, enough = pooled_layers(table)
    own = Coupling(table.data, "model", layers)
    # The basis of an MLP's units is given: its nonlinearity acts on each of them.
    bases = _views(table, "basis") if table.data.attrs.get("nodes") != "mlp" else []
    found = table.intervals(lambda w: {"√A": _root(own.strength(w)), "A": own.strength(w)})
    everywhere = np.ones(len(table.documents))
    contrasts = [
        Criterion(
            f"mean ρ² less the {1 - COUPLING_P:.0%} point of places permuted within degree deciles",
            _exactly(own.beyond(everywhere, 1 - COUPLING_P), found["A"]),
            0.0,
        )
    ]
    rho = own(everywhere)
    shown = {"A": found["A"]}
    if bases:
        others = pooled(table, layers, bases)
        contrasts.append(Criterion("Δ of A to random orthogonal bases", others["Δ"], 0.0))
        shown["A in random orthogonal bases"] = others["A"]
    for view, words in (("symmetrised", "with K's symmetric part"), ("no_outliers", "without outlier coordinates")):
        if view in table.data["view"].values:
            shown[f"A {words}"] = pooled(table, layers, [view])["A"]
    significant = adjusted_p(table.data)[layers] < LEVEL
    shown |= {
        "mean ρ on Fisher's scale": number(float(fisher_mean(rho))),
        "layers with a significant coupling (Benjamini–Hochberg, 5 %)": number(float(significant.sum())),
    }
    return Finding(
        Evidence(
            [Criterion("√A", found["√A"], table.thresholds.threshold_coupling)],
            contrasts,
            preconditions=[enough],
        ),
        f"A = mean ρ² − its mean under permuted places, over {int(layers.sum())} layers; ρ: "
        "partial Spearman over units of participation coefficient and root-mean-square ‖K e_i‖ given variance, |mean|, "
        "norm gains and outlier flag; graphs and gains from different documents",
        line("mean ρ² under permuted places", number(float(np.square(own.permuted).mean()))),
        shown,
    )


def sign(table: Runs) -> Finding:
    """Spearman over layers of the coupling and the antisymmetric fraction of K."""
    layers, enough = pooled_layers(table)
    own = Coupling(table.data, "model", layers)
    operator = Ranking(table.get("antisymmetric_fraction")[layers])
    rotation = Ranking(table.get("rotation_fraction")[layers])

    def statistic(weights: Weights) -> dict[str, float]:
        rho = own(weights)
        kinds = {"θ": operator, "rotation": rotation}
        return {name: float(spearman(rho, kind.median(weights))) for name, kind in kinds.items()}

    found = table.intervals(statistic)
    everywhere = np.ones(len(table.documents))
    rho, kind = own(everywhere), operator.median(everywhere)
    shifted = np.array([float(spearman(np.roll(rho, shift), kind)) for shift in range(1, len(rho))])
    p = (1 + (shifted <= float(spearman(rho, kind))).sum()) / (1 + len(shifted))
    reachable = 1 / len(rho) < SIGN_P
    significant = adjusted_p(table.data)[layers] < LEVEL
    needed = table.thresholds.threshold_signed_layers
    counts = [int((significant & (rho > 0)).sum()), int((significant & (rho < 0)).sum())]
    return Finding(
        Evidence(
            [
                Criterion(
                    "Spearman(coupling, antisymmetric fraction)", found["θ"], table.thresholds.threshold_sign, "below"
                )
            ],
            [
                Criterion(
                    f"p of circular shifts of the layers less {SIGN_P}", _exactly(p - SIGN_P, found["θ"]), 0.0, "below"
                )
            ]
            if reachable
            else [],
            preconditions=[
                enough,
                Condition(
                    min(counts) >= needed,
                    f"{counts[0]} layers couple significantly with positive and {counts[1]} with negative sign: "
                    f"{needed} of each are needed",
                ),
            ],
            conditions=[
                Condition(reachable, f"{len(rho)} layers are too few for circular shifts to reach p < {SIGN_P}")
            ],
        ),
        f"Spearman over {len(rho)} layers of ρ and the median antisymmetric fraction of K",
        line("p of circular shifts of the layers", number(float(p))),
        {"Spearman(coupling, rotation fraction)": found["rotation"]},
    )


def learned(table: Runs) -> Finding:
    """A of the trained model less A of fresh initialisations."""
    layers, enough = pooled_layers(table)
    fresh = _views(table, "init")
    others = pooled(table, layers, fresh)
    inside = [-Coupling(table.data, view, layers).beyond(np.ones(len(table.documents)), 0.95) for view in fresh]
    limit = table.thresholds.threshold_learned_init
    seeds = enough_units(len(fresh), table.thresholds.threshold_seeds, "fresh initialisations")
    return Finding(
        Evidence(
            [Criterion("A, trained − fresh initialisation", others["Δ"], table.thresholds.threshold_learned)],
            [
                Criterion("√A of fresh initialisations", others["√A"], limit, "below"),
                Criterion(
                    "95 % point of permuted places less mean ρ², fresh initialisations",
                    _exactly(float(np.mean(inside)), others["Δ"]),
                    0.0,
                ),
            ],
            preconditions=[enough, seeds],
        ),
        f"A as in communities.coupling, mean over {len(fresh)} fresh initialisations, each with its own graphs and "
        "gains, at the resolution of the trained model's layer",
        line("A of fresh initialisations", others["A"]),
        {},
        "documents × seeds",
    )


def robust(table: Runs) -> Finding:
    """Share of other choices under which sign and significance of the pooled coupling are the same."""
    data = table.data
    if "grid_rho" not in data:
        raise AbsentError("this run holds no other choices: give --ablation-layers")
    agreed = agreement(data)
    share = float(agreed.mean())
    bound, fragile = table.thresholds.threshold_robust, table.thresholds.threshold_fragile
    shown = {
        f"share that agrees, {dim} {label}": number(float(agreed.sel({dim: label}).mean()))
        for dim in agreed.dims
        for label in agreed[dim].values
    }
    return Finding(
        Evidence(
            [Criterion("share of choices that agree", Interval(share, share, share, int(agreed.size), "count"), bound)],
            preconditions=[
                Condition(
                    not fragile < share < bound, f"{share:.0%} of the choices agree: between {fragile} and {bound}"
                )
            ],
        ),
        f"share of {agreed.size} choices (half × edges × k × algorithm × γ) with the default's sign of the mean ρ over "
        f"{data.sizes['ablated']} layers, and on its side of p = {COUPLING_P} under permuted places",
        line("all choices", number(1.0)),
        shown,
        "choices",
    )


def agreement(data: xr.Dataset) -> xr.DataArray:
    """Whether each choice has the default's sign and significance, (half, edges, neighbours, method, factor)."""
    rho, null = data["grid_rho"].fillna(0.0), data["grid_permuted_rho"].fillna(0.0)
    squares, permuted_squares = (rho**2).mean("ablated"), (null**2).mean("ablated")
    p = (1 + (permuted_squares >= squares).sum("grid_permutation")) / (1 + data.sizes["grid_permutation"])
    layers = np.isin(data["layer"].values, data["ablated"].values)
    own = Coupling(data, "model", layers)
    everywhere = np.ones(data.sizes["query"])
    observed, permuted = own(everywhere), np.square(own.permuted).mean(axis=0)
    default_p = (1 + (permuted >= np.square(observed).mean()).sum()) / (1 + len(permuted))
    mean = xr.DataArray(fisher_mean(rho.values, axis=0), squares.coords, squares.dims)
    same_sign = np.sign(mean) == np.sign(fisher_mean(observed))
    agreed: xr.DataArray = same_sign & ((p < COUPLING_P) == bool(default_p < COUPLING_P))
    return agreed


ROWS = (
    Row(
        Sentence("communities.exist", "Units of the residual stream form communities.", f"{PAPER}, section 4.3"),
        "threshold_exist",
        exist,
    ),
    Row(
        Sentence(
            "communities.coupling",
            "A unit's position among the communities predicts how much the block amplifies it.",
            f"{PAPER}, abstract",
        ),
        "threshold_coupling",
        coupling,
    ),
    Row(
        Sentence(
            "communities.sign",
            "The sign of the coupling follows the type of operator.",
            f"{PAPER}, abstract",
        ),
        "threshold_sign",
        sign,
    ),
    Row(
        Sentence("communities.learned", "The coupling is absent at initialisation.", f"{PAPER}, abstract"),
        "threshold_learned",
        learned,
    ),
    Row(
        Sentence(
            "communities.robust",
            "The coupling is no artefact of algorithm, resolution, neighbours, edges or half of the text.",
            "ours; asked for by the referees of " + PAPER,
        ),
        "threshold_robust",
        robust,
    ),
)


def claims(data: xr.Dataset, config: Settings, *, resamples: int = 1000) -> list[Claim]:
    """All claims on communities that one model's run can speak to.

    A claim whose variables are absent is inconclusive and says what is missing.

    Args:
        data: the Dataset of the communities analysis.
        config: thresholds, and the seed of the resamples.
        resamples: bootstrap resamples of documents.

    Returns:
        The claims in the order in which they are printed.
    """
    table = Table(data, config.thresholds, config.seed, resamples)
    return [claim_of(table, row) for row in ROWS]


def pooled_layers(table: Runs) -> tuple[Bool[np.ndarray, " layer"], Condition]:
    """The layers with stable communities, and that there are enough of them; all layers where there are not.

    Args:
        table: the run.

    Returns:
        Which layers are pooled, and the condition for a verdict.
    """
    stable = stable_layers(table.data, table.thresholds.threshold_excess)
    found, needed = int(stable.sum()), table.thresholds.threshold_layers
    enough = Condition(
        found >= needed, f"{found} of {len(stable)} layers have stable communities: {needed} are needed for a verdict"
    )
    return (stable if enough.holds else np.ones_like(stable)), enough


def _views(table: Runs, kind: str) -> list[str]:
    names = [str(name) for name in table.data["view"].values if str(name).startswith(f"{kind}-")]
    if not names:
        raise AbsentError(f"this run holds no {kind} control: give --{kind}-{'draws' if kind == 'basis' else 'seeds'}")
    return names


def pooled(table: Runs, layers: Bool[np.ndarray, " layer"], views: Sequence[str]) -> dict[str, Interval]:
    """The coupling of some views, their mean, at the tokens where they were measured.

    Args:
        table: the run.
        layers: which rows of `layer` are pooled.
        views: one view, or all seeds or draws of a control.

    Returns:
        `A`; `√A` with A's sign; `mean ρ` on Fisher's scale; `Δ`, the model's A less theirs. Documents are resampled,
        and seeds or draws where there are several.
    """
    measured = table.measured(
        np.asarray(table.data["square_gain"].sel(view=views[0]).values).reshape(-1, len(table.documents))
    )
    own, *others = (Coupling(measured.data, view, layers) for view in ("model", *views))

    def statistic(weights: Weights) -> dict[str, Floats | float]:
        values = np.array([other.strength(weights) for other in others])
        return {
            "A": values,
            "√A": np.sign(values) * np.sqrt(np.abs(values)),
            "mean ρ": np.array([float(fisher_mean(other(weights))) for other in others]),
            "Δ": own.strength(weights) - values,
        }

    return crossed(measured, statistic)


def _root(value: float) -> float:
    """The square root with the sign of the value."""
    return float(np.sign(value) * np.sqrt(abs(value)))


def _exactly(value: float, like: Interval) -> Interval:
    """A value whose sign decides, such as a distance from a quantile of a permutation null: no width."""
    return Interval(value, value, value, like.n_units, "permutation")
