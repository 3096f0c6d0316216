"""Finished runs of an analysis of scored tokens, planted: every value is written here, no model is behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from probe.analysis import (
    Analysis,
    Claim,
    Criterion,
    Evidence,
    Schema,
    Sentence,
    Stage,
    Subject,
    TextConfig,
    Variable,
    bootstrap,
    decide,
    line,
)
from probe.runs import create_run

LAYERS, MAPS, WINDOWS, POSITIONS = (0, 1, 2), ("linear", "local"), 6, 4
SCHEMA = Schema({
    "kl": Variable("map layer query", "nat", "KL of the replaced output"),
    "loss_change": Variable("map layer query", "nat", "change of the loss"),
    "entropy": Variable("query", "nat", "entropy of the output"),
    "flat": Variable("map layer", "1", "whether the fit has ended"),
    "constant": Variable("", "1", "one number"),
    "path": Variable("layer axis", "1", "a path through depth"),
})


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    threshold_kl: float = 0.5
    threshold_documents: int = 3


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Planted tokens."""

    positions_per_window: int = POSITIONS
    thresholds: Thresholds = field(default_factory=Thresholds)


class Planted(Analysis[Config]):
    """Its claim: the mean KL lies below a threshold."""

    name = "planted"
    config = Config
    schema = SCHEMA
    compared: ClassVar = {"kl": {"map": "local"}, "entropy": {}}

    def stages(self, subject: Subject[Config]) -> Sequence[Stage]:
        raise AssertionError("nothing is run")

    def coordinates(self, subject: Subject[Config]) -> Mapping[str, Any]:
        raise AssertionError("nothing is run")

    def claims(self, data: xr.Dataset, config: Config) -> Sequence[Claim]:
        values = data["kl"].mean(("map", "layer")).values
        interval = bootstrap(lambda rows: float(np.nanmean(values[rows])), data["document"].values, resamples=50)
        evidence = Evidence([Criterion("mean KL", interval, config.thresholds.threshold_kl, "below")])
        sentence = Sentence("planted.small", "The KL is small.", "ours")
        return [decide(sentence, evidence, statistic="mean", unit="documents", null=line("zero", None))]


def dataset(seed: int = 0) -> xr.Dataset:
    """Six windows of four documents, four positions each; layer 2 of "local" is measured in two windows only."""
    generator = np.random.default_rng(seed)
    window = np.repeat(np.arange(WINDOWS), POSITIONS)
    position = np.tile(np.arange(1, 2 * POSITIONS, 2), WINDOWS)
    document = np.array([7, 3, 9, 5, 7, 3])[window]
    kl = generator.gamma(1.0, 0.2, (len(MAPS), len(LAYERS), len(window)))
    kl[1, 2, window > 1] = np.nan
    values = {
        "kl": kl,
        "loss_change": kl - 1,
        "entropy": generator.gamma(2.0, 1.0, len(window)),
        "flat": np.ones((len(MAPS), len(LAYERS)), dtype=bool),
        "constant": np.asarray(2.5),
        "path": np.arange(6.0).reshape(3, 2),
    }
    return xr.Dataset(
        {name: SCHEMA.entry(name, array) for name, array in values.items()},
        {
            "map": list(MAPS),
            "layer": list(LAYERS),
            "window": ("query", window),
            "position": ("query", position),
            "document": ("query", document),
            "title": ("query", [f"Article {one}" for one in document]),
            "token": ("query", [f" word{w}.{p}" for w, p in zip(window, position, strict=True)]),
            "context": ("query", [f"before word{w}.{p}" for w, p in zip(window, position, strict=True)]),
        },
        {"model": "planted", "text": "planted text", "kind": "control"},
    )


def finished(directory: Path, data: xr.Dataset | None = None, text: str = "0" * 8, **options: Any) -> Path:
    """Write a run directory as a finished run leaves it."""
    data, config = dataset() if data is None else data, Config(**({"dataset": "sample", "windows": WINDOWS} | options))
    with create_run(Planted.name, config, {"text": text}, out=directory) as run:
        run.write_results(data)
        run.write_claims(Planted().claims(data, config))
    return directory
