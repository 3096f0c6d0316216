"""The figures of a run of the lens: drawn put together, with captions that say what was measured on what.

A figure is left out where the run holds none of its variables.
"""

from __future__ import annotations

from functools import partial

import pandas as pd
import xarray as xr

from probe.analyses.lens import panels
from probe.analyses.lens.config import Config
from probe.plots import captions
from probe.plots.pages import panel_rows, titled
from probe.report import Figure


def figures(data: xr.Dataset, config: Config) -> list[Figure]:
    """List the figures that a run's variables allow, in the order of the report.

    Args:
        data: The Dataset of the analysis.
        config: The run's configuration, for the claims' thresholds.

    Returns:
        The figures; nothing is drawn before `Figure.draw` is called.
    """
    limits = config.thresholds
    made = [
        _stable(data, limits.threshold_stable),
        _reads(data),
        _own(data),
        _ranks(data),
        _spectrum(data),
        _learned(data),
        _causal(data),
        _corpora(data, limits.threshold_corpus),
    ]
    return [figure for figure in made if figure is not None]


def _stable(data: xr.Dataset, threshold: float) -> Figure | None:
    if "gram" not in data:
        return None
    return Figure(
        "stable",
        "How far two fits on disjoint documents are apart",
        "‖A₁ − A₂‖_F over the geometric mean of the norms, for A = J and M = J − α I, α = tr(J)/d; means over layers "
        f"(band: their range). Null, dotted: noise falls as n^−½. {_fitted(data)}",
        partial(panel_rows, [partial(panels.refits, data, threshold)], height=3.2, legend=4),
        alt="Distance of two fits against the number of documents, with a line of slope minus one half.",
    )


def _reads(data: xr.Dataset) -> Figure | None:
    if "kl" not in data:
        return None
    return Figure(
        "reads",
        "What the lenses read, layer by layer",
        "Means over positions of held-out documents, bands 95 % intervals, documents resampled: KL divergence from the "
        f"output, and how often the first token is the output's. Null: the logit lens, J = I. {_read(data)}",
        partial(
            panel_rows, [partial(panels.by_lens, data, name) for name in ("kl", "agrees")], 2, height=3.0, legend=4
        ),
        alt="KL divergence from the output and agreement with it over depth, for every lens.",
    )


def _own(data: xr.Dataset) -> Figure | None:
    if "cosine" not in data:
        return None
    return Figure(
        "own-context",
        "Does a context's own Jacobian predict better than a mean one?",
        "Cosine of predicted and measured change of the final state, for steps of 0.01 ‖h‖ along the token's update; "
        f"medians over positions, documents resampled. Null: the second fit beside the first. {_read(data)}",
        partial(panel_rows, [partial(panels.cosines, data)], height=3.0, legend=4),
        alt="Cosine of predicted and measured change over depth, for the context's own Jacobian and means.",
    )


def _ranks(data: xr.Dataset) -> Figure | None:
    if "singular_value" not in data:
        return None

    def table() -> pd.DataFrame:
        shares = data["identity_share"].sel(variant="model").values
        ratios = panels.participation(data).sel(variant="model").values
        columns = {
            "block": data["source"].values,
            "identity's share of ‖J‖²": [f"{share:.1%}" for share in shares],
            "participation ratio of M": [f"{ratio:.3g}" for ratio in ratios],
        }
        if "noise_edge" in data:
            columns["singular values of M above noise"] = panels.rank_above_noise(data).values
        return pd.DataFrame(columns)

    drawn = [
        titled("a  identity", panels.identity_by_layer, data),
        titled("b  directions", panels.participation_by_layer, data),
    ]
    return Figure(
        "ranks",
        "How many directions a lens has, and how much of it is the identity",
        "(a) share of ‖J‖² that α I has, α = tr(J)/d. (b) (Σσ²)²/Σσ⁴ of M = J − α I. Null: controls, means and ranges "
        f"over seeds. {captions.model_on_text(data)}, mean of {_controlled(data)} documents.",
        partial(panel_rows, drawn, 2, height=3.0, legend=4),
        table=table,
        alt="Identity's share of J and participation ratio of M over depth, with controls.",
    )


def _spectrum(data: xr.Dataset) -> Figure | None:
    if "noise_edge" not in data:
        return None
    return Figure(
        "spectrum",
        "Which singular values stand above the noise of documents",
        "Leading singular values of M = J − α I over their null, dotted: the largest of documents about their mean "
        "with random signs. In the legend the identity's share of J, which is not in M. "
        f"{captions.model_on_text(data)}, mean of {_controlled(data)} documents.",
        partial(panel_rows, [partial(panels.spectrum_of_mean, data)], height=3.0, legend=2),
        alt="Singular values over the edge of noise, for a few blocks.",
    )


def _learned(data: xr.Dataset) -> Figure | None:
    if "singular_value" not in data or data.sizes["variant"] < 2:
        return None
    return Figure(
        "learned",
        "What training does to the number of directions",
        "ln of the participation ratio of M = J − α I, trained less control, by layer; means and ranges over seeds. "
        f"Null: 0. {captions.model_on_text(data)}, {_controlled(data)} documents. {_identity(data)}",
        partial(panel_rows, [partial(panels.learned_by_layer, data)], height=3.0, legend=3),
        alt="Difference of log participation ratios over depth, for three kinds of control.",
    )


def _causal(data: xr.Dataset) -> Figure | None:
    if "predicted" not in data:
        return None
    strength = data.attrs["strength"]
    return Figure(
        "causal",
        "Do the directions of a lens move the output as they say?",
        f"Steps of {strength:g} ‖h‖ along directions of {data.sizes['steered']} tokens. (a) changes of their logits, "
        "dotted: as predicted. (b) Spearman's ρ inside a document, means over documents, which are resampled. Null: "
        f"random directions of that length. {_read(data)}",
        partial(
            panel_rows,
            [
                titled("a  logits", panels.steering, data),
                titled("b  by layer", panels.steering_by_layer, data),
            ],
            2,
            height=3.0,
            legend=3,
        ),
        alt="Measured against predicted changes of logits, and their rank correlation over depth.",
    )


def _corpora(data: xr.Dataset, threshold: float) -> Figure | None:
    if "gram" not in data or "other" not in data["group"].values:
        return None
    first, second, other = panels.groups(data, "first", "second", "other")
    return Figure(
        "corpora",
        "How much the corpus matters",
        f"σ²(corpora) / (σ²(corpora) + σ²(documents)) of M = J − α I, debiased: {len(first) + len(second)} documents "
        f"of {data.attrs['text']} and {len(other)} of {data.attrs['other_text']}; band: jackknife over documents. "
        f"Null, grey: documents exchanged between corpora, 99 permutations. {captions.model(data)}.",
        partial(panel_rows, [partial(panels.corpora, data, threshold)], height=3.0, legend=3),
        alt="Share of variance between two corpora over depth, with the band of permuted documents.",
    )


def _controlled(data: xr.Dataset) -> int:
    return int(data["controlled"].sum())


def _identity(data: xr.Dataset) -> str:
    share = data["identity_share"].sel(variant="model").mean()
    return f"The identity's share of ‖J‖², which is not in M: {float(share):.0%}, mean over layers."


def _fitted(data: xr.Dataset) -> str:
    first, second = panels.groups(data, "first", "second")
    return f"{captions.model_on_text(data)}: {len(first)} and {len(second)} documents."


def _read(data: xr.Dataset) -> str:
    return f"{captions.model_on_text(data)}: {data.sizes['query']} positions of {captions.documents(data)} documents."
