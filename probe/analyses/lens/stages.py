"""The analysis of the lens: its stages in their order, its Dataset, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from probe.analyses.lens import claims, figures, work
from probe.analyses.lens.config import Config
from probe.analyses.lens.schema import DIRECTIONS, LENSES, PARTS, PREDICTORS, SCHEMA
from probe.analyses.lens.subject import LensSubject
from probe.analysis import Analysis, Claim, Figure, Run, Stage, Task
from probe.analysis.subject import OWN


class Lens(Analysis[Config]):
    """A Jacobian lens: how stable it is, what it reads, and what of it is learned."""

    name = "lens"
    config = Config
    schema = SCHEMA

    def subject(self, config: Config) -> LensSubject:
        """Make models and texts of a run."""
        return LensSubject(config)

    def stages(self, subject: LensSubject) -> list[Stage]:
        """List the matrices of every document, then what follows from them, then what is read on other documents."""
        config = subject.config
        variants = [OWN, *config.controls]
        fitted = {OWN: range(len(subject.fitted))} | dict.fromkeys(config.controls, subject.controlled)
        documents = [
            Task("documents", {"variant": variant, "fitted": place})
            for variant in variants
            for place in fitted[variant]
        ]
        quartics = [
            Task("quartics", {"variant": variant, "source": layer}) for variant in variants for layer in subject.sources
        ]
        windows = [{"window": window} for window in range(subject.held.n_windows)]
        same = [Task("same", {"fitted": place}) for place in subject.places("first") if "same" in subject.predictors]
        translators = [Task("translators")] if config.affine else []
        return [
            Stage("documents", work.document, documents, "Jacobians of documents"),
            Stage("same", work.same_position, same, "the same without later positions"),
            Stage("grams", work.grams, _by_layer(subject, "grams"), "distances of documents"),
            Stage("quartics", work.quartics, quartics, "participation ratios of means"),
            Stage("edges", work.edges, _by_layer(subject, "edges"), "a null of rank"),
            Stage("translators", work.translators, translators, "affine and tuned lens"),
            Stage("reads", work.reads, [Task("reads", one) for one in windows], "held-out documents, by every lens"),
            Stage("own", work.own, [Task("own", one) for one in windows], "the context's own Jacobian"),
            Stage("steer", work.steer, [Task("steer", one) for one in windows], "steering"),
        ]

    def coordinates(self, subject: LensSubject) -> Mapping[str, Any]:
        """Name documents, layers, variants, lenses and the tokens that are read."""
        decode = subject.model.tokenizer.decode
        return subject.token_coordinates(subject.held, subject.positions) | {
            "source": subject.sources,
            "fitted": np.arange(len(subject.fitted)),
            "fitted_other": np.arange(len(subject.fitted)),
            "group": ("fitted", [group for group, _ in subject.fitted]),
            "controlled": ("fitted", np.isin(np.arange(len(subject.fitted)), subject.controlled)),
            "pair": np.arange(len(work.pairs_of(len(subject.controlled)))),
            "pair_other": np.arange(len(work.pairs_of(len(subject.controlled)))),
            "variant": [OWN, *subject.config.controls],
            "part": list(PARTS),
            "lens": list(LENSES),
            "predictor": list(PREDICTORS),
            "direction": list(DIRECTIONS),
            "steered": subject.steered,
            "steered_text": ("steered", [decode([token]) for token in subject.steered]),
            "index": np.arange(subject.model.d_model),
        }

    def finish(self, data: xr.Dataset, subject: LensSubject, run: Run) -> xr.Dataset:
        """Add what the run was made of."""
        other = {} if subject.other is None else {"other_text": subject.other.name}
        counts = {f"n_{group}": len(subject.places(group)) for group in subject.fits}
        return data.assign_attrs(
            subject.attributes(subject.held)
            | counts
            | other
            | {"targets": subject.config.targets, "strength": subject.config.strength}
        )

    def claims(self, data: xr.Dataset, config: Config, *, resamples: int = 1000) -> list[Claim]:
        """Judge what is said of lenses.

        Args:
            data: The Dataset.
            config: The options, with the thresholds.
            resamples: Of the documents, for each interval.

        Returns:
            The claims.
        """
        return claims.claims(data, config, resamples=resamples)

    def figures(self, data: xr.Dataset, config: Config) -> list[Figure]:
        """Draw stability, readouts and controls over depth."""
        return figures.figures(data, config)

    def title(self, config: Config) -> str:
        """Name the report."""
        return f"The Jacobian lens of {config.model}"


def _by_layer(subject: LensSubject, stage: str) -> list[Task]:
    return [Task(stage, {"source": layer}) for layer in subject.sources]


analysis = Lens()
run, plan = analysis.run, analysis.plan
