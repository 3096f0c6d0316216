"""The claims on layer updates (arXiv 2604.02459), computed from a run's Dataset.

Every statistic is recomputed on resampled documents. Unless a row says otherwise it is the median over the scored
tokens of a layer, averaged over layers (and over draws of a control); where two quantities are compared token by
token, the median of their difference. Missing values are left out token by token; a layer without any value is left
out, and the statistic's text says how many layers it holds.

Cost: seconds a claim at 30 layers, 2,048 tokens and 1,000 resamples; about half a minute for the rank correlations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import xarray as xr

from probe.analyses.tokenwise.config import Config, Thresholds
from probe.claims import Claim, Condition, Criterion, Evidence, Sentence, line
from probe.claims import evidence as table
from probe.claims.evidence import AbsentError, Finding, Floats, Row, Typical, Weights, claims_of, each, number
from probe.inference import Ranking, fisher_mean, partial_spearman, spearman

__all__ = ["Kind", "Thresholds", "claims", "universal"]

Kind: TypeAlias = Literal["transformer", "state-space", "control"]

PAPER = "arXiv 2604.02459"
# Below this a KL or an error is rounding noise; the logarithm is taken of at least this.
FLOOR = 1e-12
DRAWN = ("draw", "layer", "query")
MATCHED = ("covariance", "random")  # residuals of the same norm that decide
COVARIATES = ("update_norm", "state_norm", "entropy", "position", "frequency")
UNIVERSAL = Sentence(
    "updates.universal", "The same holds for Transformers and for state-space models.", f"{PAPER}, abstract"
)


@dataclass(frozen=True)
class Table(table.Table[Thresholds]):
    """A run's Dataset with what the claims on layer updates share."""

    @property
    def map(self) -> str:
        """The map that decides."""
        return str(self.data.attrs.get("deciding_fit", "local"))


def alignment(table: Table) -> Finding:
    """Judge cos(u, û) on held-out tokens against permuted targets and the mean baseline."""
    parts = {
        "fit": Typical(table.get("cos_update_fit", map=table.map, target="update")),
        "permuted": Typical(table.get("cos_permuted", map=table.map)),
        "mean": Typical(table.get("cos_update_fit", map="mean", target="update")),
        "bound": Typical(_cosine_bound(table.get("relative_error", map=table.map, target="update"))),
    }

    def statistic(weights: Weights) -> dict[str, float]:
        value = each(parts)(weights)
        return value | {name: value["fit"] - value[control] for name, control in (("Δp", "permuted"), ("Δm", "mean"))}

    found = table.intervals(statistic)
    return Finding(
        Evidence(
            [Criterion("median cos(u, û)", found["fit"], table.thresholds.threshold_alignment)],
            [
                Criterion("Δ to targets permuted within windows", found["Δp"], 0.0),
                Criterion("Δ to the mean baseline", found["Δm"], table.thresholds.threshold_alignment_over_mean),
            ],
        ),
        f"median over held-out tokens of cos(u, û), class {table.map}, mean over {parts['fit'].layers} layers",
        line("target permuted within windows", found["permuted"]),
        {
            "mean baseline": found["mean"],
            "cosine that the relative error alone guarantees (fixed by the error)": found["bound"],
        },
    )


def alignment_next_state(table: Table) -> Finding:
    """Judge cos(h', ĥ'), which the error fixes: mechanical where it is high, never supported."""
    error = table.get("relative_error", map=table.map, target="state")
    parts = {
        "fit": Typical(table.get("cos_update_fit", map=table.map, target="state")),
        "error": Typical(error),
        "bound": Typical(_cosine_bound(error)),
    }
    unchanged = table.find("cos_update_fit", map="zero", target="state")
    if unchanged is not None:
        parts["zero"] = Typical(unchanged)
    found = table.intervals(each(parts))
    identity = (
        f"fixed by the error: a relative error of {found['error'].estimate:.3g} alone gives a cosine of at least "
        f"{found['bound'].estimate:.3g}, because the state that enters dominates the state that leaves"
    )
    return Finding(
        Evidence(
            [Criterion("median cos(next state, its fit)", found["fit"], table.thresholds.threshold_alignment)],
            fixed_by=identity,
        ),
        f"median over held-out tokens of the cosine of h + u and h + û, class {table.map}, "
        f"mean over {parts['fit'].layers} layers",
        line("cosine that the relative error alone guarantees", found["bound"]),
        {"state left unchanged (û = 0)": found["zero"]} if "zero" in found else {},
    )


def residual_distinct(table: Table) -> Finding:
    """Judge the share of the update less that of the residual in the leading directions of the tokenwise part."""

    def share(vector: str, k: int) -> Floats:
        return table.get("share", map=table.map, centring="no_outliers", vector=vector, k=k)

    parts = {
        "fit": Typical(share("update", 4) - share("residual", 4)),
        "other": Typical(share("update", 4) - share("other", 4)),
        "k1": Typical(share("update", 1) - share("residual", 1)),
        "k8": Typical(share("update", 8) - share("residual", 8)),
        "residual": Typical(share("residual", 4)),
    }

    def statistic(weights: Weights) -> dict[str, float]:
        value = each(parts)(weights)
        return value | {"Δ": value["fit"] - value["other"]}

    found = table.intervals(statistic)
    small, large = found["k1"].estimate, found["k8"].estimate
    same_sign = len({float(np.sign(value)) for value in (small, found["fit"].estimate, large)}) == 1
    width = table.data.attrs.get("d_model")
    return Finding(
        Evidence(
            [Criterion("share₄(u) − share₄(r)", found["fit"], table.thresholds.threshold_residual_distinct)],
            [Criterion("Δ to another token's update of the same norm", found["Δ"], 0.0)],
            conditions=[Condition(same_sign, f"its sign changes with k: {small:.3g} at k = 1, {large:.3g} at k = 8")],
        ),
        "median over tokens of ‖V₄ᵀu‖²/‖u‖² − ‖V₄ᵀr‖²/‖r‖², V₄ from training û, centred, outlier coordinates out, "
        f"mean over {parts['fit'].layers} layers",
        line("another token's update scaled to ‖r‖", found["other"]),
        {
            "the same at k = 1": found["k1"],
            "the same at k = 8": found["k8"],
            "share₄(r)": found["residual"],
        }
        | ({} if width is None else {"share of a random direction, k/d": number(4 / float(width))}),
    )


class ErrorAndEffect:
    """Rank correlations over tokens, by layer, of the relative error and what a replacement does to the output.

    They rest on the tokens at which the error and every replacement were measured, in layers with three of them.

    Args:
        table: The run.
    """

    def __init__(self, table: Table) -> None:
        error = table.get("relative_error", map=table.map, target="update")
        kl = table.get("kl", map=table.map)
        controls = {name: table.get("kl_control", dims=DRAWN, control=name) for name in MATCHED}
        other = table.find("kl_control", dims=DRAWN, control="other")
        self._effects = {"fit": kl[None]} | controls | ({} if other is None else {"other": other})
        covariates = [table.get(name) for name in COVARIATES[:2]]
        covariates += [table.get(name, dims=("query",))[None] for name in COVARIATES[2:]]
        measured = np.concatenate([error[None], *self._effects.values()])
        complete = np.isfinite(measured).all(axis=0)
        layers = complete.sum(axis=-1) >= 3
        if not layers.any():
            raise AbsentError("this run holds no layer with the relative error and the KL of three tokens")
        self.layers = int(layers.sum())
        self.error = np.where(complete, error, np.nan)[layers]
        self._error, self._kl = Ranking(self.error), Ranking(kl[layers])
        self._every = Ranking(np.concatenate([*self._effects.values()])[:, layers])
        self._covariates = [Ranking(value[layers] if len(value) == len(layers) else value) for value in covariates]

    def __call__(self, weights: Weights) -> dict[str, float]:
        """ρ by replacement and less that of each control, on Fisher's scale over layers and draws; "partial"."""
        ends = np.cumsum([len(effect) for effect in self._effects.values()])[:-1]
        rho = np.split(spearman(self._error, self._every, weights=weights), ends)
        value = {name: float(fisher_mean(one, axis=(0, 1))) for name, one in zip(self._effects, rho, strict=True)}
        partial = partial_spearman(self._error, self._kl, self._covariates, weights=weights)
        less = {f"Δ {name}": value["fit"] - value[name] for name in MATCHED}
        return value | less | {"partial": float(fisher_mean(partial))}


def error_predicts_output(table: Table) -> Finding:
    """Judge Spearman's ρ of relative error and KL, layer by layer, against residuals of the same norm."""
    statistic = ErrorAndEffect(table)
    found = table.intervals(statistic)
    spread = float(np.median(np.nanstd(_log(statistic.error), axis=-1)))
    needed = table.thresholds.threshold_error_spread
    return Finding(
        Evidence(
            [Criterion("ρ(relative error, KL)", found["fit"], table.thresholds.threshold_error_predicts_output)],
            [
                Criterion("Δ to covariance-matched residuals", found["Δ covariance"], 0.0),
                Criterion("Δ to random residuals", found["Δ random"], 0.0),
                Criterion("partial ρ given update and state norm, entropy, position, frequency", found["partial"], 0.0),
            ],
            preconditions=[
                Condition(spread >= needed, f"the spread of the log error is {spread:.3g}: {needed:.3g} is needed")
            ],
        ),
        f"tanh of the mean over {statistic.layers} layers of atanh ρ(relative error, KL), Spearman over tokens, one "
        f"position replaced, class {table.map}",
        line("ρ of covariance-matched residuals of the same norm", found["covariance"]),
        {"ρ of random residuals of the same norm": found["random"]}
        | ({"ρ of another token's residual": found["other"]} if "other" in found else {})
        | {"spread (standard deviation) of the log relative error": number(spread)},
    )


def residual_matters(table: Table) -> Finding:
    """Judge KL of the residual over KL of a covariance-matched residual of the same norm."""
    log_kl = _log(table.get("kl", map=table.map))
    parts = {"fit": Typical(log_kl - _log(table.get("kl_control", dims=DRAWN, control="covariance")))}
    for name in ("random", "other"):
        control = table.find("kl_control", dims=DRAWN, control=name)
        if control is not None:
            parts[name] = Typical(log_kl - _log(control))
    found = table.intervals(each(parts))
    return Finding(
        Evidence([Criterion("median log KL(r)/KL(r′)", found["fit"], table.thresholds.threshold_residual_matters)]),
        "median over tokens of log KL(r)/KL(r′), r′ drawn from the covariance of the residuals at the norm of r, "
        f"mean over {parts['fit'].layers} layers and draws",
        line("equal effect", number(0.0)),
        {f"the same against {name} residuals": found[name] for name in parts if name != "fit"},
    )


def mlp_helps(table: Table) -> Finding:
    """Judge the MLP's error against the linear map's, where an independent map's error is high."""
    gain = _log(table.get("relative_error", map="linear", target="update"))
    gain = gain - _log(table.get("relative_error", map="mlp_random", target="update"))
    regime = table.get("regime")
    parts = {name: Typical(np.where(regime == cut, gain, np.nan)) for name, cut in (("high", 2), ("low", 0))}
    parts["all"] = Typical(gain)
    own = table.find("regime_own")
    if own is not None:
        parts["own"] = Typical(np.where(own == 2, gain, np.nan))

    def statistic(weights: Weights) -> dict[str, float]:
        value = each(parts)(weights)
        return value | {"Δ": value["high"] - value["low"]}

    found = table.intervals(statistic)
    explained = table.get("explained_variance", dims=("layer",), map="mlp_random")
    learned = explained[np.isfinite(explained)] > 0
    flat = table.find("mlp_flat", dims=("layer",), map="mlp_random")
    marked = "" if flat is None else f"; curve not flat at the end in {int((flat == 0).sum())} layers"
    return Finding(
        Evidence(
            [Criterion("log e(linear)/e(MLP), high regime", found["high"], table.thresholds.threshold_mlp_helps)],
            [Criterion("Δ to the low regime", found["Δ"], 0.0)],
            preconditions=[
                Condition(
                    bool(learned.mean() > 0.5),
                    f"the MLP did not learn: it explains variance in {int(learned.sum())} of {len(learned)} layers",
                )
            ],
        ),
        "median over tokens of log e(linear) − log e(MLP from a random start) in the tercile of high error by an "
        f"independent fit, mean over {parts['high'].layers} layers{marked}",
        line("low-error regime", found["low"]),
        {"all tokens": found["all"]}
        | ({"high regime cut by the fit itself (biased)": found["own"]} if "own" in found else {}),
    )


def low_dimensional(table: Table) -> Finding:
    """Judge whether the error falls from rank 4 to 64, and two banks agree better with 256 neighbours than with 32."""
    parts = {
        "rank": Typical(
            _log(table.get("sweep_error", neighbours=256, rank=4))
            - _log(table.get("sweep_error", neighbours=256, rank=64))
        ),
        "steady": Typical(
            _log(table.get("instability", neighbours=32)) - _log(table.get("instability", neighbours=256))
        ),
    }
    found = table.intervals(each(parts))
    threshold = table.thresholds.threshold_low_dimensional
    curve = [table.find("sweep_error_in_sample", dims=("layer",), neighbours=256, rank=rank) for rank in (4, 64)]
    in_sample = None if curve[0] is None or curve[1] is None else float(np.nanmean(_log(curve[0]) - _log(curve[1])))
    return Finding(
        Evidence([
            Criterion("log e(rank 4)/e(rank 64)", found["rank"], threshold),
            Criterion("log instability(k = 32)/instability(k = 256)", found["steady"], threshold),
        ]),
        "median over tokens of log e(r = 4) − log e(r = 64) at k = 256, held out, and of the log ratio of the "
        f"disagreement of two disjoint banks, mean over {parts['rank'].layers} layers",
        line("no change", number(0.0)),
        {} if in_sample is None else {"log e(rank 4)/e(rank 64) in sample": number(in_sample)},
    )


# In the order in which they are printed.
ROWS = (
    Row(
        Sentence(
            "updates.alignment",
            "The full update is almost aligned with its tokenwise part.",
            f"{PAPER}, abstract and Figure 3",
        ),
        "threshold_alignment",
        alignment,
    ),
    Row(
        Sentence(
            "updates.alignment_next_state",
            "The next state is almost aligned with its tokenwise prediction (fixed by the error).",
            f"{PAPER}, Figure 3 if its error is relative to the next state",
        ),
        "threshold_alignment",
        alignment_next_state,
    ),
    Row(
        Sentence(
            "updates.residual_distinct",
            "The residual is geometrically distinct: it projects less on the dominant tokenwise subspace.",
            f"{PAPER}, abstract and Figure 4",
        ),
        "threshold_residual_distinct",
        residual_distinct,
    ),
    Row(
        Sentence(
            "updates.error_predicts_output",
            "The approximation error predicts the change of the output.",
            f"{PAPER}, abstract and Figure 2",
        ),
        "threshold_error_predicts_output",
        error_predicts_output,
    ),
    Row(
        Sentence(
            "updates.residual_matters",
            "The residual carries function beyond its size.",
            f"ours; implied by {PAPER}, abstract",
        ),
        "threshold_residual_matters",
        residual_matters,
    ),
    Row(
        Sentence(
            "updates.mlp_helps",
            "An MLP fits at least as well as a linear map, and helps most where the error is high.",
            f"{PAPER}, table of regimes",
        ),
        "threshold_mlp_helps",
        mlp_helps,
    ),
    Row(
        Sentence(
            "updates.low_dimensional",
            "The error falls with the rank of the local map and steadies with the number of neighbours.",
            f"{PAPER}, Figure 5",
        ),
        "threshold_low_dimensional",
        low_dimensional,
    ),
)
FIRST_THREE = ("updates.alignment", "updates.residual_distinct", "updates.error_predicts_output")


def claims(data: xr.Dataset, config: Config, *, resamples: int = 1000) -> list[Claim]:
    """Judge all claims on layer updates from one model's run, documents resampled; `universal` needs several."""
    rows = claims_of(Table(data, config.thresholds, config.seed, resamples), ROWS)
    model = str(data.attrs.get("model", "this model"))
    return [*rows, universal({model: rows}, {model: data.attrs.get("kind", "transformer")})]


def universal(claims_by_model: Mapping[str, Sequence[Claim]], kinds: Mapping[str, Kind]) -> Claim:
    """Judge whether Transformers and state-space models are alike: the same verdicts on the first three claims.

    Supported if all pretrained models agree on each of the three, none inconclusive, among at least two Transformers
    and one state-space model; inconclusive otherwise.

    Args:
        claims_by_model: The claims of each model's run.
        kinds: Of each model; "control" (fresh or shuffled weights, our own small models) is left out.

    Returns:
        The claim; the estimate is the share of the three claims on which all models agree.
    """
    counted = [model for model in claims_by_model if kinds[model] != "control"]
    transformers = sum(kinds[model] == "transformer" for model in counted)
    verdicts = {
        row: {model: claim.verdict for model in counted for claim in claims_by_model[model] if claim.id == row}
        for row in FIRST_THREE
    }
    agreed = [
        len(by_model) == len(counted) and len(set(by_model.values())) == 1 and "inconclusive" not in by_model.values()
        for by_model in verdicts.values()
    ]
    enough = transformers >= 2 and len(counted) - transformers >= 1
    told = "; ".join(
        f"{row}: " + ", ".join(f"{model} {verdict}" for model, verdict in by_model.items())
        for row, by_model in verdicts.items()
    )
    if not enough:
        reason = (
            "needs at least 2 pretrained Transformers and 1 pretrained state-space model: there are "
            f"{transformers} and {len(counted) - transformers}"
        )
    else:
        same = "the same verdicts on every model" if all(agreed) else "the verdicts differ, or some are inconclusive"
        reason = f"{same}: {told}"
    return Claim(
        id=UNIVERSAL.id,
        statement=UNIVERSAL.statement,
        source=UNIVERSAL.source,
        statistic="share of the first three claims on which all pretrained models have the same, decided verdict",
        estimate=float(np.mean(agreed)) if enough else float("nan"),
        ci_low=float("nan"),
        ci_high=float("nan"),
        threshold=1 - 1 / len(FIRST_THREE),  # "more than all but one" is all of them
        direction=">",
        unit="models",
        n_units=len(counted),
        null={},
        controls=[{"name": row, "role": "verdicts", "verdicts": by_model} for row, by_model in verdicts.items()],
        verdict="supported" if enough and all(agreed) else "inconclusive",
        reason=reason,
    )


def _cosine_bound(error: Floats) -> Floats:
    """cos(y, ŷ) >= sqrt(1 − e²) for any ŷ with ‖y − ŷ‖ = e‖y‖, e <= 1; no bound (0) above."""
    return np.asarray(np.sqrt(np.maximum(1.0 - np.square(error), 0.0)))


def _log(values: Floats) -> Floats:
    """Natural logarithm of at least FLOOR; NaN stays NaN."""
    return np.asarray(np.log(np.maximum(values, FLOOR)))
