"""The claims on communities of coordinates (arXiv 2605.14258), computed from a run's Dataset.

What a coupling is, and how it is pooled over layers, stands in `table`. A permutation p value enters as a contrast
without width: how far the observed value lies beyond the quantile of the null that it must pass.

Cost: about a minute for 1,000 resamples of 30 layers, 576 coordinates and ten views.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from probe.analyses.communities.config import NODE_NAMES, Config, Thresholds
from probe.analyses.communities.table import (
    COUPLING_P,
    Coupling,
    Layers,
    Runs,
    adjusted_p,
    agreement,
    pooled,
    pooled_layers,
    signed_root,
    stable_layers,
)
from probe.claims import Claim, Condition, Criterion, Evidence, Sentence, enough_units, line
from probe.claims.evidence import AbsentError, Finding, Floats, Row, Table, Weights, claims_of, number
from probe.inference import Interval, Ranking, bootstrap_interval, fisher_mean, permutation_p_value, spearman

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
LEVEL = 0.05  # false discovery rate over layers
SIGN_P = 0.05
RESAMPLES = 1000


def exist(table: Runs) -> Finding:
    """Compare the communities of two halves of the text, and their quality with that of null graphs."""
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
    tokens, nodes = int(data.attrs["n_graph_tokens"]), data.sizes["node"]
    enough = f"only {tokens} tokens for {nodes} {_nodes(data)}: twice as many are needed"
    return Finding(
        Evidence(
            [Criterion("AMI of two halves of the text", found["ami"], table.thresholds.threshold_exist)],
            [Criterion("quality less the 95 % point of null graphs", found["quality"], 0.0)],
            preconditions=[Condition(tokens >= 2 * nodes, enough)],
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
    """Compute √A of the model, against permuted places and against random orthogonal bases."""
    layers, enough = pooled_layers(table)
    own = Coupling(table.data, "model", layers)
    # The basis of an MLP's neurons is given: the nonlinearity acts on each of them.
    bases = _views(table, "basis") if table.data.attrs["nodes"] != "mlp" else []
    others = pooled(table, layers, bases) if bases else {}

    def statistic(weights: Weights) -> dict[str, float]:
        strength = own.strength(weights)
        return {"√A": float(signed_root(strength)), "A": strength}

    found = table.intervals(statistic)
    everywhere = np.ones(len(table.documents))
    permuted = Criterion(
        f"mean ρ² less the {1 - COUPLING_P:.0%} point of places permuted within degree deciles",
        _exactly(own.beyond(everywhere, 1 - COUPLING_P), found["A"]),
        0.0,
    )
    turned = [Criterion("Δ of A to random orthogonal bases", others["Δ"], 0.0)] if bases else []
    return Finding(
        Evidence(
            [Criterion("√A", found["√A"], table.thresholds.threshold_coupling)],
            [permuted, *turned],
            preconditions=[enough],
        ),
        f"A = mean ρ² − its mean under permuted places, over {int(layers.sum())} layers; ρ: "
        f"partial Spearman over {_nodes(table.data)} of participation coefficient and root-mean-square ‖K e_i‖ given "
        "variance, |mean|, norm gains and outlier flag; graphs and gains from different documents",
        line("mean ρ² under permuted places", number(float(np.square(own.permuted).mean()))),
        {"A": found["A"]}
        | ({"A in random orthogonal bases": others["A"]} if bases else {})
        | _varied(table, layers)
        | {
            "mean ρ on Fisher's scale": number(float(fisher_mean(own(everywhere)))),
            "layers with a significant coupling (Benjamini–Hochberg, 5 %)": number(
                float((adjusted_p(table.data)[layers] < LEVEL).sum())
            ),
        },
    )


def _varied(table: Runs, layers: Layers) -> dict[str, Interval]:
    """A where K, or the nodes that count, are varied."""
    words = {"symmetrised": "with K's symmetric part", "no_outliers": "without outlier coordinates"}
    held = [view for view in words if view in table.data["view"].values]
    return {f"A {words[view]}": pooled(table, layers, [view])["A"] for view in held}


def sign(table: Runs) -> Finding:
    """Correlate, over layers, the coupling and the antisymmetric fraction of K."""
    layers, enough = pooled_layers(table)
    own = Coupling(table.data, "model", layers)
    kinds = {"θ": Ranking(table.get("antisymmetric_fraction")[layers])}
    kinds["rotation"] = Ranking(table.get("rotation_fraction")[layers])

    def statistic(weights: Weights) -> dict[str, float]:
        rho = own(weights)
        return {name: float(spearman(rho, kind.median(weights))) for name, kind in kinds.items()}

    found = table.intervals(statistic)
    everywhere = np.ones(len(table.documents))
    rho = own(everywhere)
    p = _shifted_p(rho, kinds["θ"].median(everywhere))
    shifts = Criterion(
        f"p of circular shifts of the layers less {SIGN_P}", _exactly(p - SIGN_P, found["θ"]), 0.0, "below"
    )
    reachable = 1 / len(rho) < SIGN_P
    bound = table.thresholds.threshold_sign
    return Finding(
        Evidence(
            [Criterion("Spearman(coupling, antisymmetric fraction)", found["θ"], bound, "below")],
            [shifts] if reachable else [],
            preconditions=[enough, _both_signs(table, layers, rho)],
            conditions=[
                Condition(reachable, f"{len(rho)} layers are too few for circular shifts to reach p < {SIGN_P}")
            ],
        ),
        f"Spearman over {len(rho)} layers of ρ and the median antisymmetric fraction of K",
        line("p of circular shifts of the layers", number(p)),
        {"Spearman(coupling, rotation fraction)": found["rotation"]},
    )


def _shifted_p(rho: Floats, kind: Floats) -> float:
    """The share of circular shifts of the layers that correlate as negatively; of L layers at least 1/L."""
    shifted = np.array([float(spearman(np.roll(rho, shift), kind)) for shift in range(1, len(rho))])
    return permutation_p_value(float(spearman(rho, kind)), shifted, alternative="less")


def _both_signs(table: Runs, layers: Layers, rho: Floats) -> Condition:
    """The precondition that there is a sign to follow: layers of either sign that couple significantly."""
    significant = adjusted_p(table.data)[layers] < LEVEL
    needed = table.thresholds.threshold_signed_layers
    counts = [int((significant & (rho > 0)).sum()), int((significant & (rho < 0)).sum())]
    return Condition(
        min(counts) >= needed,
        f"{counts[0]} layers couple significantly with positive and {counts[1]} with negative sign: {needed} of each "
        "are needed",
    )


def learned(table: Runs) -> Finding:
    """Subtract A of fresh initialisations from A of the trained model."""
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
    """Count the other choices under which sign and significance of the pooled coupling are the same."""
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
        "below",
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


def claims(data: xr.Dataset, config: Config, *, resamples: int = RESAMPLES) -> list[Claim]:
    """Judge all claims on communities.

    Args:
        data: The Dataset of a run.
        config: Its options, with the thresholds.
        resamples: Resamples of its documents.

    Returns:
        The claims, in the order of `ROWS`.
    """
    return claims_of(Table(data, config.thresholds, config.seed, resamples), ROWS)


def _views(table: Runs, kind: str) -> list[str]:
    """The views of a kind of control that were measured."""
    names = table.repeats(kind, along="view")
    if not names:
        raise AbsentError(f"this run holds no {kind} control: give --{kind}-{'draws' if kind == 'basis' else 'seeds'}")
    return names


def _nodes(data: xr.Dataset) -> str:
    return f"{NODE_NAMES[data.attrs['nodes']]}s"


def _exactly(value: float, like: Interval) -> Interval:
    """A value without width whose sign decides, such as a distance from a quantile of a permutation null."""
    return Interval(value, value, value, like.n_units, "permutation")
