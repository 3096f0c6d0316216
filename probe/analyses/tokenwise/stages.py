"""The analysis of layer updates: its stages in their order, its Dataset, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from probe.analyses.tokenwise import claims, figures, fits, work
from probe.analyses.tokenwise.config import Config
from probe.analyses.tokenwise.schema import SCHEMA
from probe.analyses.tokenwise.subject import UpdateSubject
from probe.analysis import Analysis, Claim, Figure, Stage, Task
from probe.report import Result
from probe.runs import Run


class LayerUpdates(Analysis[Config]):
    """Tokenwise maps of every block's update, their residuals, and what the output does without these."""

    name = "tokenwise"
    config = Config
    schema = SCHEMA
    compared: ClassVar = {"relative_error": {"target": "update"}, "cos_update_fit": {"target": "update"}, "kl": {}}

    def subject(self, config: Config) -> UpdateSubject:
        """Make model and text of a run."""
        return UpdateSubject(config)

    def stages(self, subject: UpdateSubject) -> list[Stage]:
        """List the stages: states of both texts, maps by layer, replacements."""
        replaced = subject.config.replacement != "none"
        return [
            Stage("states", work.states, [*subject.batches("states", "fit", "validation")], "states of fitting text"),
            Stage("queries", work.queries, [*subject.batches("queries", "scored")], "states of scored text"),
            Stage("fit", fits.fit, [Task("fit", {"layer": layer}) for layer in subject.layers], "maps by layer"),
            Stage(
                "replace",
                work.replace,
                [*subject.batches("replace", "scored")] if replaced else [],
                "replacements",
            ),
        ]

    def coordinates(self, subject: UpdateSubject) -> Mapping[str, Any]:
        """Give tokens, layers, maps, and what is varied."""
        coordinates = subject.token_coordinates(subject.scored, subject.positions) | {
            "layer": subject.layers,
            "map": subject.maps,
            "target": list(fits.TARGETS),
            "centring": list(fits.CENTRINGS),
            "vector": list(fits.VECTORS),
            "k": list(fits.SUBSPACE_SIZES),
            "control": list(fits.CONTROLS),
        }
        if subject.config.sweep:
            neighbours, ranks = subject.sweep_grid
            coordinates |= {"neighbours": neighbours, "rank": ranks}
        return coordinates

    def finish(self, data: xr.Dataset, subject: UpdateSubject, run: Run) -> xr.Dataset:
        """Add frequencies, shares of the writes, regimes and attributes."""
        token_ids = torch.cat([
            run.piece("states", ["token_id"], part=part)["token_id"] for part in ("fit", "validation")
        ])
        counts = torch.bincount(token_ids, minlength=subject.model.n_vocab)
        frequency = torch.log1p(counts[subject.scored.tokens.gather(1, subject.positions)].double())
        data["frequency"] = SCHEMA.entry("frequency", frequency.flatten().numpy())
        for write in ("attention", "offposition"):
            if f"residual_{write}_cosine" in data:
                share = data[f"residual_{write}_cosine"].values ** 2
                data[f"residual_{write}_share"] = SCHEMA.entry(f"residual_{write}_share", share)
        deciding = data["relative_error"].sel(map=subject.config.deciding, target="update")
        for name, values in (("regime", data["error_independent"]), ("regime_own", deciding)):
            data[name] = SCHEMA.entry(name, _terciles(values, "query"))
        data["regime_layer"] = SCHEMA.entry("regime_layer", _terciles(deciding.mean("query"), "layer"))
        fitting = subject.part("fit")
        data.attrs |= subject.attributes(subject.scored) | {
            "deciding_fit": subject.config.deciding,
            "n_fit_windows": fitting.n_windows,
            "n_fit_tokens": len(token_ids),
            "n_fit_documents": fitting.n_documents,
        }
        return data

    def claims(self, data: xr.Dataset, config: Config) -> Sequence[Claim]:
        """Judge the sentences of arXiv 2604.02459."""
        return claims.claims(data, config)

    def figures(self, data: xr.Dataset, config: Config) -> Sequence[Figure]:
        """Draw geometry, functional effects, sweeps and regimes."""
        return figures.figures(data, config)

    def title(self, config: Config) -> str:
        """Name the model."""
        return f"Layer updates of {config.model}"

    def across(self, results: Sequence[Result]) -> list[Claim]:
        """Judge whether Transformers and state-space models are alike, of one result a model."""
        names = [f"{result.data.attrs['model']} ({result.directory.name})" for result in results]
        judged = {name: result.claims for name, result in zip(names, results, strict=True)}
        kinds = {name: result.data.attrs["kind"] for name, result in zip(names, results, strict=True)}
        return [claims.universal(judged, kinds)]


def _terciles(values: xr.DataArray, axis: str) -> np.ndarray:
    """0, 1, 2 for the low, middle and high third along an axis."""
    cuts = values.quantile([1 / 3, 2 / 3], dim=axis)
    thirds = sum((values > cuts.isel(quantile=place, drop=True)).astype(np.int8) for place in (0, 1))
    return np.asarray(thirds)


analysis = LayerUpdates()
run, plan = analysis.run, analysis.plan
