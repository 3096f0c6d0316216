"""The claims on the dynamics of the residual stream (arXiv 2605.14258), computed from a run's Dataset.

Every statistic is recomputed on resampled documents, a claim about depth with its whole curve: the median over
positions by layer, then the statistic of the curve. A contrast rests on the tokens at which the control was measured,
and the documents of these are counted. Where a control is drawn from seeds, its value is the mean over seeds, and
`crossed` joins the errors over documents and over seeds. "Ends out" leaves out the first and the last of
the measured blocks, which are often outliers; both are shown by themselves.

Cost: a few seconds a claim at 30 layers, 48 positions and 1,000 resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import xarray as xr
from jaxtyping import Float

from probe.analyses.dynamics.config import Config, Thresholds
from probe.claims import Claim, Condition, Criterion, Evidence, Sentence, enough_units, line
from probe.claims.evidence import (
    AbsentError,
    Finding,
    Floats,
    Row,
    Table,
    Typical,
    Weights,
    claims_of,
    crossed,
    each,
    number,
)
from probe.inference import Interval, Ranking, spearman

__all__ = ["ROWS", "Thresholds", "claims"]

PAPER = "arXiv 2605.14258"
SCORES = {"henrici_departure": "Henrici departure of K", "antisymmetric_fraction": "antisymmetric fraction of K"}
CONTROLS = {"init": "fresh initialisation", "shuffled": "shuffled weights"}
ALL = ("draw", "depth", "query")
Runs: TypeAlias = Table[Thresholds]
Curve: TypeAlias = Float[np.ndarray, "... layer"]


class Depth:
    """Medians over positions by layer, of a resample given by weights.

    Args:
        values: Scores, (..., layer, query).
    """

    def __init__(self, values: Floats) -> None:
        self._ranking = Ranking(values)

    def __call__(self, weights: Weights) -> Curve:
        """The depth curve."""
        return np.asarray(self._ranking.median(weights))


def gradient(table: Runs) -> Finding:
    """Correlate layer and score, ends out: the larger ρ of the two scores of K must lie below the threshold."""
    curves = {score: Depth(table.get(score, variant="model", matrix="K")) for score in SCORES}
    beside = {
        score: Depth(values)
        for score in SCORES
        if (values := table.find(score, variant="model", matrix="J")) is not None
    }
    layers = len(table.data["layer"]) - 2
    if layers < 3:
        raise AbsentError(f"a gradient over depth needs five layers or more: this run measured {layers + 2}")
    bound = _falling_bound(layers)

    def statistic(weights: Weights) -> dict[str, float]:
        inner = {score: curve(weights)[1:-1] for score, curve in curves.items()}
        rho = {score: _trend(curve) for score, curve in inner.items()}
        falling = min(float((np.diff(curve) < 0).mean()) for curve in inner.values())
        state = {f"J {score}": _trend(curve(weights)[1:-1]) for score, curve in beside.items()}
        return {"ρ": max(rho.values()), "Δ": falling - bound, "falling": falling} | rho | state

    found = {
        name: _within(interval, -1.0, 1.0) if name != "Δ" else interval
        for name, interval in table.intervals(statistic).items()
    }
    whole = {score: curve(np.ones(len(table.documents))) for score, curve in curves.items()}
    ends = {
        f"{words}, {name} block": number(float(whole[score][place]))
        for score, words in SCORES.items()
        for name, place in (("first", 0), ("last", -1))
    }
    return Finding(
        Evidence(
            [Criterion("ρ(layer, score)", found["ρ"], table.thresholds.threshold_gradient, "below")],
            [Criterion("share of falling steps less what a random order reaches", found["Δ"], 0.0)],
        ),
        f"larger of Spearman's ρ(layer, Henrici departure of K) and ρ(layer, antisymmetric fraction of K) over the "
        f"medians by layer, {layers} blocks, ends out",
        line("share of falling steps that a random order reaches (one-sided, two standard deviations)", number(bound)),
        {f"ρ, {words}": found[score] for score, words in SCORES.items()}
        | {"share of falling steps, the smaller of the two": found["falling"]}
        | {f"ρ, {SCORES[score][:-1]}J (does not decide)": found[f"J {score}"] for score in beside}
        | ends,
    )


def late_symmetric(table: Runs) -> Finding:
    """Average the antisymmetric fraction of K in the last quarter of the blocks."""
    layers = len(table.data["layer"])
    late = slice(layers - max(1, layers // 4), layers)
    fresh = _controls(table, "init")
    controlled = table.measured(_stacked(table, "antisymmetric_fraction", fresh))
    curve, own = (Depth(one.get("antisymmetric_fraction", variant="model", matrix="K")) for one in (table, controlled))
    control = Depth(_stacked(controlled, "antisymmetric_fraction", fresh))

    def statistic(weights: Weights) -> dict[str, float]:
        measured = curve(weights)
        value = {"θ": float(measured[late].mean()), "last": float(measured[-1])}
        if late.stop - late.start > 1:
            value["without last"] = float(measured[late][:-1].mean())
        return value

    def contrast(weights: Weights) -> dict[str, Floats | float]:
        init = control(weights)[:, late].mean(axis=-1)
        return {"Δ": float(own(weights)[late].mean()) - init, "init": float(init.mean())}

    found = table.intervals(statistic) | crossed(controlled, contrast)
    shown = {"fresh initialisation": found["init"], "last block by itself": found["last"]}
    if "without last" in found:
        shown["last quarter without the last block"] = found["without last"]
    return Finding(
        Evidence(
            [Criterion("antisymmetric fraction", found["θ"], table.thresholds.threshold_late_symmetric, "below")],
            [Criterion("Δ to fresh initialisation", found["Δ"], 0.0, "below")],
            preconditions=[_enough_seeds(table, fresh)],
        ),
        f"‖K − Kᵀ‖/(2‖K‖), median over positions by layer, mean over the last {late.stop - late.start} of {layers} "
        "measured blocks",
        line("a random K", number(0.5**0.5)),
        shown,
        "documents × seeds",
    )


def bottleneck(table: Runs) -> Finding:
    """Count the directions that the product of all blocks' Jacobians leaves: its participation ratio, over d."""
    width = float(table.data.attrs["d_model"])
    fresh = _controls(table, "init")
    parts = {"θ": Typical(_whole_product(table, "model") / width)}
    effective = table.find("product_effective_rank", dims=("depth", "query"), variant="model")
    if effective is not None:
        parts["effective rank of the product, over d"] = Typical(effective[-1] / width)
    identity = table.find("product_identity_share", dims=("depth", "query"), variant="model")
    if identity is not None:
        parts["share of ‖C‖² that the identity has"] = Typical(identity[-1])
    controlled = table.measured(np.stack([_whole_product(table, name) for name in fresh]))
    logs, *init = (Typical(np.log(_whole_product(controlled, name))) for name in ("model", *fresh))
    repeated = table.measured(_null(table, "norm_matched"))
    random = _log_null(repeated, "norm_matched")
    against = {"Δ norm": Typical(np.log(_whole_product(repeated, "model")) - random)}
    nulls = {"null": Typical(np.exp(random) / width)}
    if table.find("null_participation_ratio", dims=ALL, null="shuffled_depth") is not None:
        nulls["shuffled depth"] = Typical(np.exp(_log_null(repeated, "shuffled_depth")) / width)

    def contrast(weights: Weights) -> dict[str, Floats | float]:
        seeds = np.array([one(weights) for one in init])
        return {"Δ init": logs(weights) - seeds, "init": float(np.exp(seeds.mean()) / width)}

    found = table.intervals(each(parts)) | crossed(controlled, contrast) | repeated.intervals(each(against | nulls))
    shown = [name for name in (*nulls, *parts) if name not in {"θ", "null"}]
    return Finding(
        Evidence(
            [Criterion("participation ratio / d", found["θ"], table.thresholds.threshold_bottleneck, "below")],
            [
                Criterion("Δ log to fresh initialisation", found["Δ init"], 0.0, "below"),
                Criterion("Δ log to norm-matched random updates", found["Δ norm"], 0.0, "below"),
            ],
            preconditions=[_enough_seeds(table, fresh)],
        ),
        f"median over positions of (Σσ²)²/Σσ⁴ of C = J_L ⋯ J_1 over d = {width:.0f}, {len(table.data['depth'])} blocks",
        line("norm-matched random updates", found["null"]),
        {"fresh initialisation": found["init"]} | {name: found[name] for name in shown},
        "documents × seeds",
    )


def learned(table: Runs) -> Finding:
    """Compare drops over depth of both scores of K, and log participation ratio: trained less control."""
    fresh, shuffled = _controls(table, "init"), _controls(table, "shuffled")
    if len(table.data["layer"]) < 5:
        raise AbsentError(f"a drop over depth needs five layers or more: this run measured {len(table.data['layer'])}")
    for control in (*fresh, *shuffled):
        table = table.measured(_whole_product(table, control))
    own = Falls(table, ["model"])
    controls = {"init": Falls(table, fresh), "shuffled": Falls(table, shuffled)}

    def statistic(weights: Weights) -> dict[str, Floats | float]:
        measured = own(weights)
        values: dict[str, Floats | float] = {score: float(measured[score][0]) for score in SCORES}
        for kind, control in ((kind, falls(weights)) for kind, falls in controls.items()):
            values |= {f"{name} {kind}": measured[name] - control[name] for name in control}
            values |= {f"{score} of {kind}": float(control[score].mean()) for score in SCORES}
        return values

    found = crossed(table, statistic)
    bound = table.thresholds.threshold_learned

    def criteria(kind: str) -> list[Criterion]:
        less = f"trained − {CONTROLS[kind]}"
        drops = [Criterion(f"drop of {words}, {less}", found[f"{s} {kind}"], bound) for s, words in SCORES.items()]
        return [*drops, Criterion(f"log participation ratio, {less}", found[f"ratio {kind}"], -bound, "below")]

    return Finding(
        Evidence(criteria("init"), criteria("shuffled"), preconditions=[_enough_seeds(table, fresh)]),
        "drop = mean over the first third of the blocks less mean over the last third, ends out, of the medians by "
        f"layer; mean over {len(fresh)} fresh initialisations and {len(shuffled)} draws of shuffled weights",
        line("drop of Henrici departure of K at fresh initialisation", found["henrici_departure of init"]),
        {f"drop of {words}": found[score] for score, words in SCORES.items()}
        | {
            f"drop of {words}, {control}": found[f"{score} of {kind}"]
            for score, words in SCORES.items()
            for kind, control in CONTROLS.items()
        },
        "documents × seeds",
    )


class Falls:
    """The falls over depth of some variants: of both scores of K, and of the directions that their product leaves.

    Args:
        table: The run.
        variants: The model, or all seeds of a control.
    """

    def __init__(self, table: Runs, variants: Sequence[str]) -> None:
        self._curves = {score: Depth(_stacked(table, score, variants)) for score in SCORES}
        self._ratios = [Typical(np.log(_whole_product(table, name))) for name in variants]

    def __call__(self, weights: Weights) -> dict[str, Float[np.ndarray, " variant"]]:
        """The drop of each score over depth, and "ratio", the log participation ratio of the whole product."""
        drops = {score: _drop(curve(weights)) for score, curve in self._curves.items()}
        return drops | {"ratio": np.array([ratio(weights) for ratio in self._ratios])}


INTERVENTIONS = {
    "schur_shuffle": "schur_shuffle (‖K‖, eigenvalues and size of the non-normal part kept)",
    "schur_normal_matched": "schur_normal at equal ‖K‖",
    "schur_normal_transposed": "schur_normal of Kᵀ at equal ‖K‖",
    "schur_normal_rotated": "schur_normal of a rotated K at equal ‖K‖",
    "schur_normal": "schur_normal, eigenvalues kept (its ‖K‖ is smaller)",
    "symmetrised": "J symmetrised at equal ‖J‖",
    "symmetrised_ov": "W_O W_V of each head symmetrised",
}


def nonnormal_origin(table: Runs) -> Finding:
    """Find the share of the bottleneck beyond norm-matched random updates that a shuffled Schur form dissolves."""
    table = table.measured(_null(table, "norm_matched"))
    found = table.intervals(each({"raw": Typical(_excess(table))}))
    for name in INTERVENTIONS:
        if name == "schur_shuffle" or table.find("null_participation_ratio", dims=ALL, null=name) is not None:
            found |= _dissolved(table.measured(_null(table, name)), name)
    raw = found["raw"]
    return Finding(
        Evidence(
            [Criterion("1 − B(schur_shuffle)/B", found["schur_shuffle"], table.thresholds.threshold_nonnormal_origin)],
            preconditions=[
                Condition(
                    float(raw.low) > 0,
                    f"there is no bottleneck beyond norm-matched random updates to dissolve: B = {raw.estimate:.3g} "
                    f"[{raw.low:.3g}, {raw.high:.3g}] does not lie above 0",
                )
            ],
        ),
        "1 − B(control)/B(raw), B = median over positions of log(participation ratio of norm-matched random / "
        f"participation ratio), {table.data.sizes['draw']} draws; Henrici's gradient has no verdict here: under "
        "schur_normal it vanishes, and under schur_shuffle it stays, by definition",
        line("B(raw): the bottleneck itself", raw),
        {
            f"dissolved by {words}": found[name]
            for name, words in INTERVENTIONS.items()
            if name in found and name != "schur_shuffle"
        }
        | {
            f"ρ(layer, antisymmetric fraction of K) under {words}": found[f"ρ {name}"]
            for name, words in INTERVENTIONS.items()
            if f"ρ {name}" in found and np.isfinite(found[f"ρ {name}"].estimate)
        },
    )


def _dissolved(table: Runs, name: str) -> dict[str, Interval]:
    """1 − B(control)/B, and where the updates keep a rotation its trend over depth, at the tokens of the control."""
    raw, left = Typical(_excess(table)), Typical(_excess(table, name))
    fraction = table.find("null_antisymmetric_fraction", null=name)
    curve = None if fraction is None else Depth(fraction)

    def statistic(weights: Weights) -> dict[str, float]:
        value = {name: 1 - left(weights) / raw(weights)}
        return value if curve is None else value | {f"ρ {name}": _trend(curve(weights)[1:-1])}

    return table.intervals(statistic)


def linear_holds(table: Runs) -> Finding:
    """Find the ε over median ‖u‖ at which the linear prediction is 10 % off, one block on."""
    dims = ("direction", "start", "query")
    table = table.measured(table.get("epsilon_at_tenth", dims=dims, horizon="1"))
    epsilon = np.log(table.get("epsilon_at_tenth", dims=dims, horizon="1"))
    directions = [str(name) for name in table.data["direction"].values]
    parts = {"θ": Typical(epsilon.mean(axis=0))}
    parts |= {f"direction {name}": Typical(epsilon[place]) for place, name in enumerate(directions)}
    for horizon in table.data["horizon"].values[1:]:
        further = table.find("epsilon_at_tenth", dims=dims, horizon=horizon)
        if further is not None:
            parts[f"horizon {horizon}"] = Typical(np.log(further).mean(axis=0))
    found = table.intervals(lambda weights: {name: float(np.exp(part(weights))) for name, part in parts.items()})
    grid = table.data["epsilon"].values
    return Finding(
        Evidence([Criterion("ε at 10 % error", found["θ"], table.thresholds.threshold_linear_holds)]),
        "ε at which ‖Δ − Cεδ‖/‖Δ‖ passes 10 %, in units of the window's median ‖u‖, between the grid's points on a "
        f"logarithmic scale and within [{grid[0]:.3g}, {grid[-1]:.3g}]; median over positions, geometric mean over "
        f"{parts['θ'].layers} blocks and {len(directions)} directions, horizon 1",
        line("largest ε of the grid", number(float(grid[-1]))),
        {name: found[name] for name in parts if name != "θ"},
    )


# In the order in which they are printed.
ROWS = (
    Row(
        Sentence(
            "dynamics.gradient",
            "Non-normality and rotation fall monotonically with depth.",
            f"{PAPER}, abstract",
        ),
        "threshold_gradient",
        gradient,
        "below",
    ),
    Row(
        Sentence("dynamics.late_symmetric", "Late blocks are near-symmetric.", f"{PAPER}, abstract"),
        "threshold_late_symmetric",
        late_symmetric,
        "below",
    ),
    Row(
        Sentence(
            "dynamics.bottleneck",
            "Perturbations funnel into a small fraction of the effective dimensions.",
            f"{PAPER}, abstract",
        ),
        "threshold_bottleneck",
        bottleneck,
        "below",
    ),
    Row(
        Sentence(
            "dynamics.learned",
            "The gradient and the bottleneck are learned: both are absent at initialisation.",
            f"{PAPER}, abstract",
        ),
        "threshold_learned",
        learned,
    ),
    Row(
        Sentence(
            "dynamics.nonnormal_origin",
            "The bottleneck largely dissolves when structured non-normality is removed.",
            f"{PAPER}, abstract",
        ),
        "threshold_nonnormal_origin",
        nonnormal_origin,
    ),
    Row(
        Sentence(
            "dynamics.linear_holds",
            "The product of Jacobians predicts what the network does to a perturbation.",
            f"ours; implied by {PAPER}, and asked for by its referees",
        ),
        "threshold_linear_holds",
        linear_holds,
    ),
)


def claims(data: xr.Dataset, config: Config, *, resamples: int = 1000) -> list[Claim]:
    """Judge the claims on the dynamics of the residual stream.

    Args:
        data: One model's run.
        config: Its options, with the thresholds.
        resamples: Of the documents, for each interval.

    Returns:
        The claims.
    """
    return claims_of(Table(data, config.thresholds, config.seed, resamples), ROWS)


def _controls(table: Runs, kind: str) -> list[str]:
    """The variants of a kind of control that were measured."""
    names = table.repeats(kind)
    if not names:
        raise AbsentError(f"this run holds no {kind} control: give --{kind}-seeds")
    return names


def _stacked(table: Runs, score: str, controls: Sequence[str]) -> Floats:
    """A score of K of several controls, (control, layer, query)."""
    return np.stack([table.get(score, variant=name, matrix="K") for name in controls])


def _whole_product(table: Runs, variant: str) -> Floats:
    """Participation ratio of the product of all blocks, (query,)."""
    return np.asarray(table.get("product_participation_ratio", dims=("depth", "query"), variant=variant)[-1])


def _null(table: Runs, name: str) -> Floats:
    """Participation ratio of the whole product under a null, (draw, query); a null without draws has one."""
    values = table.get("null_participation_ratio", dims=ALL, null=name)[:, -1]
    return np.asarray(values[np.isfinite(values).any(axis=-1)])


def _log_null(table: Runs, name: str) -> Floats:
    """Log participation ratio of the whole product under a null, mean over draws, (query,)."""
    return np.asarray(np.log(_null(table, name)).mean(axis=0))


def _excess(table: Runs, null: str | None = None) -> Floats:
    """B at each position: how far norm-matched random updates leave the product above the model's, or a null's."""
    own = np.log(_whole_product(table, "model")) if null is None else _log_null(table, null)
    return np.asarray(_log_null(table, "norm_matched") - own)


def _trend(curve: Curve) -> float:
    """Spearman's ρ of layer and value; NaN for a constant curve."""
    return float(spearman(np.arange(curve.shape[-1], dtype=np.float64), curve))


def _within(interval: Interval, low: float, high: float) -> Interval:
    """The part of an interval in which the statistic can lie; a t interval may reach beyond."""
    return replace(interval, low=max(float(interval.low), low), high=min(float(interval.high), high))


def _drop(curve: Curve) -> Floats:
    """Mean of the first third less mean of the last third, ends out."""
    inner = curve[..., 1:-1]
    third = max(1, inner.shape[-1] // 3)
    return np.asarray(inner[..., :third].mean(axis=-1) - inner[..., -third:].mean(axis=-1))


def _falling_bound(layers: int) -> float:
    """The share of falling steps in a random order plus two standard deviations; descents vary by (n + 1)/12."""
    return float(0.5 + 2 * np.sqrt((layers + 1) / 12) / (layers - 1))


def _enough_seeds(table: Runs, controls: Sequence[str]) -> Condition:
    return enough_units(len(controls), table.thresholds.threshold_seeds, "fresh initialisations")
