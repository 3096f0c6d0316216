r"""The claims on the Jacobian lens, computed from a run's Dataset.

- Distances of fits follow from the inner products of documents' matrices; their intervals are jackknife intervals over
  documents, since a mean of resampled documents has twice the noise of the mean itself, and a distance of two such
  means more than the distance that is asked about.
- What is read on held-out documents is resampled by document, as in every analysis.
- A participation ratio of a mean of documents is recomputed for each resample, from fourth-order inner products.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import stats

from probe.analyses.lens.config import Config, Thresholds
from probe.analyses.lens.work import pairs_of
from probe.claims import Claim, Criterion, Evidence, Sentence, enough_units, line
from probe.claims.evidence import (
    AbsentError,
    Finding,
    Floats,
    Row,
    Table,
    Typical,
    Weights,
    claims_of,
    each,
    joined,
    number,
)
from probe.inference import Interval, bootstrap, seed_interval

__all__ = ["ROWS", "Thresholds", "claims"]

SOURCE = "ours; the lens is that of Gurnee et al. (2026), transformer-circuits.pub/2026/workspace"
CONTROLS = {
    "init": "fresh initialisation",
    "shuffled": "shuffled weights",
    "blocks": "fresh blocks with the model's own embedding and head",
}
PERMUTATIONS = 999


def jackknife(
    statistic: Callable[[Floats], Floats | float], groups: Sequence[Sequence[int]], level: float = 0.95
) -> Interval:
    """Estimate the interval of a smooth statistic of several independent groups, leaving out one document at a time.

    The squared standard error is Σ over groups of ``(n − 1)/n Σ_i (θ_(i) − θ̄)²``; the interval is a t interval with
    n − (number of groups) degrees of freedom over all.

    Args:
        statistic: Of weights, one for each document.
        groups: The documents of each group, by index.
        level: Nominal coverage.

    Returns:
        The interval.

    Source: Efron and Stein (1981), "The jackknife estimate of variance", Annals of Statistics 9(3).
    """
    count = 1 + max(max(group) for group in groups)
    whole = np.zeros(count)
    for group in groups:
        whole[list(group)] = 1.0
    estimate, variance = float(statistic(whole)), 0.0
    for group in groups:
        left = []
        for document in group:
            weights = whole.copy()
            weights[document] = 0.0
            left.append(float(statistic(weights)))
        variance += (len(group) - 1) / len(group) * float(np.square(np.array(left) - np.mean(left)).sum())
    n = sum(map(len, groups))
    reach = float(stats.t.ppf(0.5 + level / 2, n - len(groups)) * np.sqrt(variance))
    return Interval(estimate, estimate - reach, estimate + reach, n, "documents, jackknife", level)


class Distances:
    """Distances of means of documents, from the inner products of their matrices.

    Args:
        gram: Inner products, (source, fitted, fitted).
    """

    def __init__(self, gram: Floats) -> None:
        self.gram = gram

    def product(self, one: Weights, other: Weights) -> Float[np.ndarray, " source"]:
        """Inner product of two weighted means, by layer."""
        found: Floats = np.einsum("a,lab,b->l", one / one.sum(), self.gram, other / other.sum())
        return found

    def between(self, one: Weights, other: Weights) -> Float[np.ndarray, " source"]:
        """‖A − B‖ / sqrt(‖A‖ ‖B‖) of two weighted means, by layer."""
        own, theirs, both = self.product(one, one), self.product(other, other), self.product(one, other)
        distance: Floats = np.sqrt(np.maximum(own + theirs - 2 * both, 0.0)) / (own * theirs) ** 0.25
        return distance


def _groups(table: Table[Thresholds], *names: str) -> list[list[int]]:
    groups = table.data["group"].values
    found = [np.flatnonzero(groups == name).tolist() for name in names]
    for name, group in zip(names, found, strict=True):
        if len(group) < 2:
            raise AbsentError(f"this run has {len(group)} documents of the {name} fit, and 2 are needed")
    return found


def _gram(table: Table[Thresholds], part: str) -> Distances:
    return Distances(table.get("gram", dims=("source", "fitted", "fitted_other"), part=part))


def _masked(weights: Floats, group: Sequence[int]) -> Floats:
    found: Floats = np.zeros_like(weights)
    found[list(group)] = weights[list(group)]
    return found


def curve(distances: Distances, one: Sequence[int], other: Sequence[int]) -> tuple[list[int], Floats]:
    """Compute the distance of two fits as the number of documents grows, mean over layers.

    Args:
        distances: Of documents.
        one: Documents of the first fit, in the order in which they are added.
        other: Of the second.

    Returns:
        Numbers of documents, doubled from one to the next and the whole last, and distances.
    """
    largest = min(len(one), len(other))
    sizes = sorted({*(2**power for power in range(largest.bit_length()) if 2**power <= largest), largest})
    size = len(distances.gram[0])
    found = []
    for count in sizes:
        weights = [_masked(np.ones(size), group[:count]) for group in (one, other)]
        found.append(float(distances.between(*weights).mean()))
    return sizes, np.array(found)


def stable(table: Table[Thresholds]) -> Finding:
    """Compare two fits on disjoint documents."""
    first, second = _groups(table, "first", "second")
    distances, whole = _gram(table, "M"), _gram(table, "J")

    def statistic(found: Distances) -> Callable[[Floats], float]:
        return lambda weights: float(found.between(_masked(weights, first), _masked(weights, second)).mean())

    interval = jackknife(statistic(distances), [first, second])
    sizes, values = curve(distances, first, second)
    slope = float(np.polyfit(np.log(sizes), np.log(values), 1)[0]) if len(sizes) > 1 else float("nan")
    share = table.find("identity_share", dims=("source",), variant="model")
    shown = {"J itself": jackknife(statistic(whole), [first, second]), "slope of log distance on log n": number(slope)}
    if share is not None:
        shown["share of ‖J‖² that the identity has"] = number(float(share.mean()))
    fewest = min(len(first), len(second))
    return Finding(
        Evidence(
            [Criterion("distance", interval, table.thresholds.threshold_stable, "below")],
            preconditions=[enough_units(fewest, table.thresholds.threshold_documents, "documents in a fit")],
        ),
        f"‖M₁ − M₂‖ / √(‖M₁‖ ‖M₂‖), M = J − α I, fits of {len(first)} and {len(second)} documents, mean over "
        f"{len(distances.gram)} layers",
        line("slope where documents are independent and the mean is small beside them", number(-0.5)),
        shown,
    )


def reads(table: Table[Thresholds]) -> Finding:
    """Compare how far the logit lens and the lens are from the output, over the first two thirds of the layers."""
    layers = len(table.data["source"])
    early = slice(0, max(1, 2 * layers // 3))
    kl = {
        name: values
        for name in map(str, table.data["lens"].values)
        if (values := table.find("kl", dims=("source", "query"), lens=name)) is not None
    }
    for needed in ("logit", "jacobian"):
        if needed not in kl:
            raise AbsentError(f"this run holds no kl (lens {needed})")

    def mean(values: Floats) -> Callable[[Weights], float]:
        rows = values[early]
        return lambda weights: float((rows @ weights / weights.sum()).mean())

    parts = {"θ": mean(kl["logit"] - kl["jacobian"])}
    names = {"displaced": "J of another layer", "blocks": "J of fresh blocks with the model's own embedding and head"}
    parts |= {f"Δ {name}": mean(kl[name] - kl["jacobian"]) for name in names if name in kl}
    parts |= {name: mean(values) for name, values in kl.items()}
    found = table.intervals(each(parts))
    contrasts = [
        Criterion(f"KL by {words} less KL by the lens", found.get(f"Δ {name}"), 0.0) for name, words in names.items()
    ]
    return Finding(
        Evidence([Criterion("KL difference", found["θ"], table.thresholds.threshold_reads)], contrasts),
        f"KL(output ‖ logit lens) − KL(output ‖ lens), nat, held-out documents, mean over the first {early.stop} of "
        f"{layers} layers",
        line("logit lens", found["logit"]),
        {f"KL, {name}": found[name] for name in kl},
    )


def own_context(table: Table[Thresholds]) -> Finding:
    """Compare the context's own Jacobian with the mean one as predictors of a small change."""
    own, first, second = (
        table.get("cosine", dims=("source", "query"), predictor=name) for name in ("own", "first", "second")
    )
    gain, refit = Typical(own - first), Typical(second - first)
    parts: dict[str, Callable[[Weights], float]] = {
        "θ": gain,
        "Δ": lambda weights: gain(weights) - abs(refit(weights)),
        "refit": lambda weights: abs(refit(weights)),
        "own": Typical(own),
        "mean": Typical(first),
    }
    found = table.intervals(each(parts))
    limits = table.thresholds
    return Finding(
        Evidence(
            [Criterion("gain in cosine", found["θ"], limits.threshold_own_context)],
            [Criterion("gain beyond the refit floor", found["Δ"], limits.margin_own_context)],
        ),
        "cos(own J v, Δh) − cos(mean J v, Δh), median over positions, mean over layers; v the token's own update, "
        "0.01 ‖h‖ long, Δh the measured change of the final state",
        line("difference of two mean fits", found["refit"]),
        {"cosine by the context's own Jacobian": found["own"], "cosine by the mean one": found["mean"]},
    )


def corpus(table: Table[Thresholds]) -> Finding:
    """Divide the variance of M into that between two corpora and that between documents."""
    first, second, other = _groups(table, "first", "second", "other")
    own, distances = first + second, _gram(table, "M")

    def share(weights: Floats, one: Sequence[int] = own, two: Sequence[int] = other) -> float:
        return float(between_share(distances.gram, weights, one, two).mean())

    interval = jackknife(lambda weights: share(weights), [own, other])
    generator, everyone = np.random.default_rng(table.seed), np.array(own + other)
    whole, beyond = np.zeros(len(distances.gram[0])), 0.0
    whole[everyone] = 1.0
    for _ in range(PERMUTATIONS):
        drawn = generator.permutation(everyone)
        beyond += float(share(whole, drawn[: len(own)].tolist(), drawn[len(own) :].tolist()) >= interval.estimate)
    p = (beyond + 1) / (PERMUTATIONS + 1)
    limits = table.thresholds
    different = "different" if p < limits.threshold_corpus_p else "not told apart"
    fewest = min(len(own), len(other))
    return Finding(
        Evidence(
            [Criterion("share between corpora", interval, limits.threshold_corpus, "below")],
            preconditions=[enough_units(fewest, limits.threshold_documents, "documents of a corpus")],
        ),
        f"σ²(corpora) / (σ²(corpora) + σ²(documents)) of M, debiased, {len(own)} and {len(other)} documents, mean over "
        f"layers; by {PERMUTATIONS} permutations of documents the corpora are {different}",
        line("p of corpora permuted over documents", number(p)),
    )


def between_share(
    gram: Floats, weights: Floats, one: Sequence[int], other: Sequence[int]
) -> Float[np.ndarray, " source"]:
    """Compute the share of variance between two groups of documents, debiased for their numbers; at least 0.

    With m_g the mean of group g and s² the pooled variance inside groups, σ²(between) is
    (‖m_1 − m_2‖² − s² (1/n_1 + 1/n_2)) / 2.

    Args:
        gram: Inner products, (source, fitted, fitted).
        weights: 1 or 0 for each document.
        one: Documents of the first group.
        other: Of the second.

    Returns:
        The share, by layer.
    """
    found = Distances(gram)
    masks = [_masked(weights, group) for group in (one, other)]
    counts = [mask.sum() for mask in masks]
    squares = np.zeros(len(gram))
    for mask, count in zip(masks, counts, strict=True):
        squares += np.einsum("laa,a->l", gram, mask) - count * found.product(mask, mask)
    inside = squares / (sum(counts) - 2)
    apart = found.product(masks[0], masks[0]) + found.product(masks[1], masks[1]) - 2 * found.product(*masks)
    between = np.maximum((apart - inside * sum(1 / count for count in counts)) / 2, 0.0)
    share: Floats = between / (between + inside)
    return share


class Participation:
    """Log participation ratio of the mean of documents' M by layer, for any weights of the documents.

    Args:
        quartic: ⟨S_ab, S_cd⟩, (source, pair, pair).
    """

    def __init__(self, quartic: Floats) -> None:
        self.quartic = quartic
        pairs = len(quartic[0])
        self.documents = int((np.sqrt(8 * pairs + 1) - 1) / 2)
        self.first, self.second = np.array(pairs_of(self.documents)).T
        diagonal = np.flatnonzero(self.first == self.second)
        self.diagonal = diagonal

    def __call__(self, weights: Weights, trace: Floats) -> Float[np.ndarray, " source"]:
        """Compute ln (Σσ²)²/Σσ⁴; `trace` holds tr S_ab."""
        share = weights / weights.sum()
        pair = share[self.first] * share[self.second]
        fourth = np.einsum("a,lab,b->l", pair, self.quartic, pair)
        second = trace @ pair
        found: Floats = 2 * np.log(second) - np.log(fourth)
        return found


def learned(table: Table[Thresholds]) -> Finding:
    """Compare the log participation ratio of M with that of each kind of control."""
    controls = {kind: table.repeats(kind) for kind in CONTROLS}
    logs = {name: _participation(table, name) for name in ["model", *itertools.chain(*controls.values())]}
    documents = next(iter(logs.values())).documents

    def means(name: str, weights: Weights) -> float:
        return float(logs[name](weights).mean())

    found: dict[str, Interval] = {}
    for kind, names in controls.items():
        if not names:
            continue

        def differences(rows: np.ndarray, names: list[str] = names) -> float:
            weights = np.bincount(rows, minlength=documents).astype(float)
            return means("model", weights) - float(np.mean([means(name, weights) for name in names]))

        interval = bootstrap(differences, np.arange(documents), resamples=table.resamples, seed=table.seed)
        whole = np.ones(documents)
        if len(names) > 1:
            by_seed = np.array([means("model", whole) - means(name, whole) for name in names])
            interval = joined(interval, seed_interval(by_seed))
        found[kind] = interval
    for kind in CONTROLS:
        if kind not in found:
            raise AbsentError(f"this run has no control of the kind {CONTROLS[kind]}")
    limits = table.thresholds
    parts = [
        Criterion(f"ln PR, trained less {CONTROLS[kind]}", found[kind], limits.threshold_learned, "below")
        for kind in CONTROLS
    ]
    whole = np.ones(documents)
    ratio = {name: float(np.exp(means(name, whole))) for name in ("model", *(names[0] for names in controls.values()))}
    share = table.find("identity_share", dims=("source",), variant="model")
    shown = {f"participation ratio, {name}": number(value) for name, value in ratio.items()}
    if share is not None:
        shown["share of ‖J‖² that the identity has"] = number(float(share.mean()))
    enough = [
        enough_units(len(names), limits.threshold_seeds, f"seeds of {CONTROLS[kind]}")
        for kind, names in controls.items()
    ]
    return Finding(
        Evidence(parts, preconditions=[*enough, enough_units(documents, limits.threshold_documents, "documents")]),
        f"ln (Σσ²)²/Σσ⁴ of M = J − α I, {documents} documents, trained less control, mean over layers",
        line("no difference", number(0.0)),
        shown,
        "documents × seeds",
    )


class _Logs:
    """Log participation ratios of one variant, by layer, for any weights of documents."""

    def __init__(self, quartic: Floats, trace: Floats) -> None:
        self._of, self._trace = Participation(quartic), trace
        self.documents = self._of.documents

    def __call__(self, weights: Weights) -> Floats:
        return self._of(weights, self._trace)


def _participation(table: Table[Thresholds], variant: str) -> _Logs:
    quartic = table.get("quartic", dims=("source", "pair", "pair_other"), variant=variant)
    trace = table.get("pair_trace", dims=("source", "pair"), variant=variant)
    return _Logs(quartic, trace)


def causal(table: Table[Thresholds]) -> Finding:
    """Correlate predicted and measured change of logits inside each document."""
    ranks = {name: _correlations(table, name) for name in ("lens", "logit", "random")}
    documents = np.unique(table.documents)
    values = np.stack([ranks["lens"], ranks["logit"], ranks["random"]])

    def statistic(rows: np.ndarray) -> Floats:
        lens, logit, random = np.nanmean(values[:, rows], axis=1)
        return np.array([lens, lens - logit, lens - random, logit, random])

    interval = bootstrap(statistic, documents, resamples=table.resamples, seed=table.seed)
    limits = table.thresholds
    return Finding(
        Evidence(
            [Criterion("ρ(predicted, measured)", interval[0], limits.threshold_causal)],
            [
                Criterion("ρ less that along logit-lens directions", interval[1], 0.0),
                Criterion("ρ less that along random directions", interval[2], limits.margin_causal),
            ],
        ),
        "Spearman's ρ over (token, layer, position) of predicted and measured logit change, inside a document, mean "
        "over documents",
        line("random directions of the same norm", interval[4]),
        {"ρ along logit-lens directions": interval[3]},
    )


def _correlations(table: Table[Thresholds], direction: str) -> Floats:
    dims = ("source", "token", "query")
    predicted, measured = (table.get(name, dims=dims, direction=direction) for name in ("predicted", "measured"))
    found = []
    for document in np.unique(table.documents):
        rows = table.documents == document
        pair = predicted[..., rows].ravel(), measured[..., rows].ravel()
        finite = np.isfinite(pair[0]) & np.isfinite(pair[1])
        found.append(float(stats.spearmanr(pair[0][finite], pair[1][finite]).statistic) if finite.sum() > 2 else np.nan)
    return np.array(found)


ROWS = [
    Row(
        Sentence("lens.stable", "A lens is a property of the model, not of the prompts.", SOURCE),
        "threshold_stable",
        stable,
        "below",
    ),
    Row(Sentence("lens.reads", "The lens reads what the logit lens does not.", SOURCE), "threshold_reads", reads),
    Row(
        Sentence("lens.own_context", "A context's own Jacobian predicts better than the mean one.", SOURCE),
        "threshold_own_context",
        own_context,
    ),
    Row(
        Sentence("lens.corpus", "The text that it is fitted on does not matter.", SOURCE),
        "threshold_corpus",
        corpus,
        "below",
    ),
    Row(Sentence("lens.learned", "Its structure is learned.", SOURCE), "threshold_learned", learned, "below"),
    Row(Sentence("lens.causal", "Lens directions move the output as they say.", SOURCE), "threshold_causal", causal),
]


def claims(data: xr.Dataset, config: Config, *, resamples: int = 1000) -> list[Claim]:
    """Compute the verdicts of one run.

    Args:
        data: The Dataset of `probe.analyses.lens`.
        config: Its options, with the thresholds.
        resamples: Of the documents, for each interval.

    Returns:
        The claims.
    """
    return claims_of(Table(data, config.thresholds, config.seed, resamples), ROWS)
