r"""The claims on the Jacobian lens, computed from a run's Dataset.

- What is said of fits rests on the fitted documents: jackknife intervals, from inner products of their matrices (see
  `probe.analyses.lens.means`).
- What is read on held-out documents is resampled by document, as in every analysis.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import xarray as xr

from probe.analyses.lens.config import Config, Thresholds
from probe.analyses.lens.means import Distances, Participation, between_share, curve, jackknife, masked
from probe.claims import Claim, Criterion, Evidence, Sentence, enough_units, line
from probe.claims.evidence import (
    AbsentError,
    Finding,
    Floats,
    Row,
    Sample,
    Table,
    Typical,
    Weights,
    claim_of,
    each,
    joined,
    number,
)
from probe.inference import Interval, bootstrap, seed_interval, spearman

__all__ = ["ROWS", "Thresholds", "claims"]

SOURCE = "ours; the lens is that of Gurnee et al. (2026), transformer-circuits.pub/2026/workspace"
CONTROLS = {
    "init": "fresh initialisation",
    "shuffled": "shuffled weights",
    "blocks": "fresh blocks with the model's own embedding and head",
}
PERMUTATIONS = 999
Runs: TypeAlias = Table[Thresholds]


class Fits(Runs):
    """A run as the claims on its fits read it, which rest on the documents that were fitted."""

    @property
    def sample(self) -> Sample:
        """The fitted documents."""
        return Sample("documents", len(self.data["fitted"]), self.thresholds.threshold_documents)


def _groups(table: Runs, *names: str) -> list[list[int]]:
    groups = table.data["group"].values
    found = [np.flatnonzero(groups == name).tolist() for name in names]
    for name, group in zip(names, found, strict=True):
        if len(group) < 2:
            raise AbsentError(f"this run has {len(group)} documents of the {name} fit, and 2 are needed")
    return found


def _gram(table: Runs, part: str) -> Distances:
    return Distances(table.get("gram", dims=("source", "fitted", "fitted_other"), part=part))


def stable(table: Runs) -> Finding:
    """Compare two fits on disjoint documents."""
    first, second = _groups(table, "first", "second")
    distances, whole = _gram(table, "M"), _gram(table, "J")

    def statistic(found: Distances) -> Callable[[Floats], float]:
        return lambda weights: float(found.between(masked(weights, first), masked(weights, second)).mean())

    count = len(distances.gram[0])
    interval = jackknife(statistic(distances), [first, second], count)
    sizes, values = curve(distances, first, second)
    slope = float(np.polyfit(np.log(sizes), np.log(values.mean(axis=1)), 1)[0]) if len(sizes) > 1 else float("nan")
    shown = {
        "J itself": jackknife(statistic(whole), [first, second], count),
        "slope of log distance on log n": number(slope),
    }
    fewest = min(len(first), len(second))
    return Finding(
        Evidence(
            [Criterion("distance", interval, table.thresholds.threshold_stable, "below")],
            preconditions=[enough_units(fewest, table.thresholds.threshold_documents, "documents in a fit")],
        ),
        f"‖M₁ − M₂‖ / √(‖M₁‖ ‖M₂‖), M = J − α I, fits of {len(first)} and {len(second)} documents, mean over "
        f"{len(distances.gram)} layers",
        line("slope where documents are independent, and their noise is small beside the mean", number(-0.5)),
        shown | _identity(table),
    )


def _identity(table: Runs) -> dict[str, Interval]:
    """The identity's share, which stands beside every rank and every distance."""
    share = table.find("identity_share", dims=("source",), variant="model")
    return {} if share is None else {"share of ‖J‖² that the identity has": number(float(share.mean()))}


def reads(table: Runs) -> Finding:
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


def own_context(table: Runs) -> Finding:
    """Compare the context's own Jacobian with the mean one as predictors of a small change."""
    own, first, second = (
        table.get("cosine", dims=("source", "query"), predictor=name) for name in ("own", "first", "second")
    )
    # two fits may be exchanged: the median of their signed difference is 0 however far they are apart
    gain, refit = Typical(own - first), Typical(np.abs(second - first))
    parts: dict[str, Callable[[Weights], float]] = {
        "θ": gain,
        "Δ": lambda weights: gain(weights) - refit(weights),
        "refit": refit,
        "own": Typical(own),
        "mean": Typical(first),
    }
    summed = table.data.attrs["targets"] == "later"
    if summed:
        same = table.get("cosine", dims=("source", "query"), predictor="same")
        parts |= {"Δ same": Typical(own - same), "same": Typical(same)}
    found = table.intervals(each(parts))
    limits = table.thresholds
    contrasts = [Criterion("gain beyond the refit floor", found["Δ"], limits.margin_own_context)]
    shown = {"cosine by the context's own Jacobian": found["own"], "cosine by the mean one": found["mean"]}
    if summed:
        name = "gain over the mean Jacobian at the source's own position"
        contrasts.append(Criterion(name, found["Δ same"], limits.margin_own_context))
        shown["cosine by the mean one at the source's own position"] = found["same"]
    return Finding(
        Evidence([Criterion("gain in cosine", found["θ"], limits.threshold_own_context)], contrasts),
        "cos(own J v, Δh) − cos(mean J v, Δh), median over positions, mean over layers; v the token's own update, "
        "0.01 ‖h‖ long, Δh the measured change of the final state at its position",
        line("median |difference| of two mean fits", found["refit"]),
        shown,
    )


def corpus(table: Runs) -> Finding:
    """Divide the variance of M into that between two corpora and that between documents."""
    first, second, other = _groups(table, "first", "second", "other")
    own, distances = first + second, _gram(table, "M")

    def share(weights: Floats, one: Sequence[int] = own, two: Sequence[int] = other) -> float:
        return float(between_share(distances.gram, weights, one, two).mean())

    interval = jackknife(lambda weights: share(weights), [own, other], len(distances.gram[0]))
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


def learned(table: Runs) -> Finding:
    """Compare the log participation ratio of M with that of each kind of control."""
    controls = {kind: table.repeats(kind) for kind in CONTROLS}
    logs = {name: _participation(table, name) for name in ["model", *itertools.chain(*controls.values())]}
    documents = logs["model"].documents
    whole = np.ones(documents)
    found: dict[str, Interval] = {}
    for kind, names in controls.items():
        if not names:
            raise AbsentError(f"this run holds no {kind} control ({CONTROLS[kind]}): give --{kind}-seeds")

        def differences(weights: Weights, names: list[str] = names) -> Floats:
            return np.array([float((logs["model"](weights) - logs[name](weights)).mean()) for name in names])

        def mean(weights: Weights, of: Callable[[Weights], Floats] = differences) -> float:
            return float(of(weights).mean())

        found[kind] = jackknife(mean, [range(documents)], documents)
        if len(names) > 1:
            found[kind] = joined(found[kind], seed_interval(differences(whole)))
    limits = table.thresholds
    parts = [
        Criterion(f"ln PR, trained less {CONTROLS[kind]}", found[kind], limits.threshold_learned, "below")
        for kind in CONTROLS
    ]
    shown = {
        f"participation ratio, {words}": number(float(np.exp(np.mean([logs[name](whole).mean() for name in names]))))
        for words, names in (("the model", ["model"]), *((CONTROLS[kind], names) for kind, names in controls.items()))
    } | _identity(table)
    enough = [
        enough_units(len(names), limits.threshold_seeds, f"seeds of {CONTROLS[kind]}")
        for kind, names in controls.items()
    ]
    return Finding(
        Evidence(parts, preconditions=enough),
        f"ln (Σσ²)²/Σσ⁴ of M = J − α I, {documents} documents, trained less control, mean over layers",
        line("no difference", number(0.0)),
        shown,
        "documents × seeds",
    )


def _participation(table: Runs, variant: str) -> Participation:
    return Participation(
        table.get("quartic", dims=("source", "pair", "pair_other"), variant=variant),
        table.get("pair_trace", dims=("source", "pair"), variant=variant),
    )


def causal(table: Runs) -> Finding:
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


def _correlations(table: Runs, direction: str) -> Floats:
    dims = ("source", "steered", "query")
    predicted, measured = (table.get(name, dims=dims, direction=direction) for name in ("predicted", "measured"))
    found = []
    for document in np.unique(table.documents):
        rows = table.documents == document
        found.append(float(spearman(predicted[..., rows].ravel(), measured[..., rows].ravel())))
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
    arguments = (data, config.thresholds, config.seed, resamples)
    read, fitted = Runs(*arguments), Fits(*arguments)
    return [claim_of(fitted if row.compute in (stable, corpus, learned) else read, row) for row in ROWS]
