"""The continuity analysis: its stages in their order, its Dataset, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from probe.analyses.continuity import work
from probe.analyses.continuity.claims import RESAMPLES, claims
from probe.analyses.continuity.config import Config
from probe.analyses.continuity.figures import figures
from probe.analyses.continuity.schema import SCHEMA
from probe.analyses.continuity.work import FOLDED, TRIMMED, Matrices
from probe.analysis import Analysis, Claim, Figure, Stage, Task
from probe.analysis.subject import OWN, model_attributes
from probe.model import device_named
from probe.runs import Run


class Continuity(Analysis[Config]):
    """Continuity of the leading singular vectors of weights over depth."""

    name = "continuity"
    config = Config
    schema = SCHEMA

    def subject(self, config: Config) -> Matrices:
        """Make what names the matrices of the model and of its controls."""
        return Matrices(config)

    def check(self, config: Config) -> None:
        """Refuse a device that is not here, before any work is done."""
        device_named(config.device)

    def stages(self, subject: Matrices) -> Sequence[Stage]:
        """List the stages: vectors block by block, then what follows from them, variant by variant."""

        def by_block(stage: str, *variants: str) -> list[Task]:
            return [
                Task(stage, {"variant": variant, "block": block})
                for variant in variants
                if variant in subject.variants
                for block in subject.layers
            ]

        trim = TRIMMED in subject.variants
        pairs = subject.layers[:-1] if subject.config.docs else []
        compared = [Task("compared", {"variant": variant}) for variant in subject.variants]
        return [
            Stage("vectors", work.decompose, by_block("vectors", OWN), "singular vectors of the model"),
            Stage("folded", work.decompose, by_block("folded", FOLDED), "with gains folded in"),
            Stage("coordinates", work.choose_coordinates, [Task("coordinates")] if trim else [], "outlier coordinates"),
            Stage("trimmed", work.decompose_trimmed, by_block("trimmed", TRIMMED), "without outlier coordinates"),
            Stage(
                "controls", work.decompose, by_block("controls", *subject.config.controls), "fresh and shuffled weights"
            ),
            Stage("docs", work.measure_docs, [Task("docs", {"layer": layer}) for layer in pairs], "DOCS"),
            Stage("compared", work.compare, compared, "neighbouring blocks"),
        ]

    def coordinates(self, subject: Matrices) -> dict[str, Any]:
        """Name variants, projections, pairs of blocks, and blocks; the pieces know the rest."""
        layers = subject.layers
        depth = {"layer": layers[:-1], "block": layers, "other_block": layers}
        return {"variant": subject.variants, "projection": subject.names} | depth

    def finish(self, data: xr.Dataset, subject: Matrices, run: Run) -> xr.Dataset:
        """Add the attributes."""
        config = subject.config
        own = {"block_length": config.block_length, "outlier_share": config.outlier_share}
        return data.assign_attrs(model_attributes(config, subject.own) | own)

    def claims(self, data: xr.Dataset, config: Config, *, resamples: int = RESAMPLES) -> list[Claim]:
        """Judge the three claims, with intervals over depth."""
        return claims(data, config, resamples=resamples)

    def figures(self, data: xr.Dataset, config: Config) -> list[Figure]:
        """Draw what the variables allow."""
        return figures(data, config)

    def title(self, config: Config) -> str:
        """Name the model whose weights are looked at."""
        return f"Continuity of the weights of {config.model}"


analysis = Continuity()
run, plan = analysis.run, analysis.plan
