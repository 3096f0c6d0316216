"""The analysis of causes: its stages, what follows from their pieces, and what a report says beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from probe.analyses.causes import work
from probe.analyses.causes.claims import claims
from probe.analyses.causes.config import Config
from probe.analyses.causes.figures import figures
from probe.analyses.causes.schema import SCHEMA
from probe.analyses.causes.work import Trainings
from probe.analysis import Analysis, Claim, Figure, Stage
from probe.runs import Run
from probe.training import Size
from probe.training.measures import haar_matches
from probe.training.transformer import ARM_OF, PROJECTIONS
from probe.training.watch import SPACES
from probe.weights.nulls import haar_cosine, haar_mean_quantiles


class Causes(Analysis[Config]):
    """Toys and small transformers in which each suspected cause of continuity is switched on and off."""

    name = "causes"
    config = Config
    schema = SCHEMA

    def subject(self, config: Config) -> Trainings:
        """Name what is trained."""
        return Trainings(config)

    def stages(self, subject: Trainings) -> Sequence[Stage]:
        """List the toys, then the arms of the transformer."""
        return [
            Stage("toys", work.train_toy, subject.toys, "toys", work.toy_seconds),
            Stage("transformers", work.train_arm, subject.arms, "transformers", work.arm_seconds),
        ]

    def coordinates(self, subject: Trainings) -> Mapping[str, Any]:
        """Give the cells with what they are made of, the arms where some were trained, and the axes of both."""
        chosen, arms = subject.cells, subject.config.trained_arms
        found: dict[str, Any] = {"cell": [cell.name for cell in chosen], **subject.axes}
        found |= {name: ("cell", [getattr(cell, name) for cell in chosen]) for name in asdict(chosen[0])}
        if arms:
            found |= {"arm": list(arms), "arm_label": ("arm", [ARM_OF[arm].label for arm in arms]), **subject.arm_axes}
        return found

    def finish(self, data: xr.Dataset, subject: Trainings, run: Run) -> xr.Dataset:
        """Add what random directions and constant guesses have."""
        config = subject.config
        data["null_match"] = SCHEMA.entry("null_match", haar_matches(config.width, data.sizes["k"]))
        data.attrs |= {
            "model": "toys",
            "description": "trained by probe",
            "text": subject.windows("fit").name if config.reads_text else "",
            "width": config.width,
            "haar_band": float(haar_mean_quantiles({config.width: config.blocks - 1}, np.array([0.99]))[0]),
            "haar_cosine": haar_cosine(config.width),
        }
        if config.trained_arms:
            data["arm_null_cosine"] = SCHEMA.entry("arm_null_cosine", arm_nulls(config))
            data.attrs["arm_guess"] = _unigram_loss(subject)
        return data

    def claims(self, data: xr.Dataset, config: Config) -> Sequence[Claim]:
        """Judge the sentences on causes."""
        return claims(data, config)

    def figures(self, data: xr.Dataset, config: Config) -> Sequence[Figure]:
        """List the figures that the run's cells allow."""
        return figures(data, config)

    def title(self, config: Config) -> str:
        """Give the report's heading."""
        return "Why neighbouring layers' leading directions are alike"

    def notes(self, config: Config) -> Sequence[str]:
        """Say what a run without a text, or of few seeds, lacks."""
        notes = []
        if not config.reads_text:
            notes.append("No text was given, so that no transformer was trained: give --text FILE or --dataset.")
        if config.seeds < config.thresholds.threshold_seeds:
            notes.append(f"{config.seeds} seeds decide nothing: {config.thresholds.threshold_seeds} are needed.")
        return notes


def arm_nulls(config: Config) -> Float[np.ndarray, "projection space"]:
    """Compute the mean |cos| of random directions in each space of a transformer's projections.

    Args:
        config: The transformer's sizes.

    Returns:
        A value for each projection and space.
    """
    size = Size(config.arm_width, config.arm_blocks, config.arm_heads)
    wide = {("gate", "output"), ("up", "output"), ("down", "input")}
    widths = [[size.hidden if (name, space) in wide else size.width for space in SPACES] for name in PROJECTIONS]
    return np.array([[haar_cosine(n) for n in row] for row in widths])


def _unigram_loss(subject: Trainings) -> float:
    """Cross-entropy of the held-out bytes under the frequencies of the learned ones, each begun at one."""
    learned, held_out = (subject.windows(part).tokens.flatten() for part in ("fit", "scored"))
    counts = torch.bincount(learned, minlength=256).double() + 1
    return float(-(counts / counts.sum()).log()[held_out].mean())


analysis = Causes()
run, plan = analysis.run, analysis.plan
