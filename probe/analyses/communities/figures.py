"""The figures of a communities run: drawn put together, with captions that say what was measured on what.

A figure is left out where the run holds none of its variables.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TypeAlias

import matplotlib.figure
import numpy as np
import pandas as pd
import xarray as xr

from probe.analyses.communities import panels
from probe.analyses.communities.config import NODE_NAMES, Config
from probe.analyses.communities.interactive import network
from probe.analyses.communities.panels import partitions
from probe.analyses.communities.panels.communities import CONTROLS, PERMUTED, signed
from probe.analyses.communities.table import COUPLING_P, Coupling, Runs, pooled, pooled_layers, summarised
from probe.analysis.subject import spread
from probe.claims.evidence import Table
from probe.plots import captions, style
from probe.plots.networks import COMMUNITY_COLORS
from probe.plots.pages import legend_below, outer_labels, panel_rows, titled
from probe.report import Figure
from probe.report.page import interval_text

BANDS = "the grey band holds 95 % of the values under places permuted within degree deciles, the null"
FLOWS = 6  # layers between which nodes are followed
SCATTERS = 3
NODES = {"residual": "Coordinates of the stream that enters a block", "mlp": "Neurons of a block's MLP"}

Summary: TypeAlias = Callable[[], xr.Dataset]  # with the couplings, computed once for all figures


def figures(data: xr.Dataset, config: Config, *, resamples: int = style.RESAMPLES) -> list[Figure]:
    """Make all figures that a run's variables allow, in the order of the report.

    Args:
        data: The Dataset of the analysis.
        config: The run's configuration, for the claims' thresholds.
        resamples: Resamples of the documents, for the intervals.

    Returns:
        The figures; nothing is computed or drawn before a figure's `draw`, `table` or `interactive` is called.
    """
    summary = cache(lambda: summarised(data, config.thresholds, resamples=resamples))
    table = Table(data, config.thresholds, config.seed, resamples)
    made = [
        _graphs(data, summary),
        _coupling(data, summary),
        _scatter(data, summary),
        _controls(table),
        _choices(data, summary),
        _communities(data),
        _agreement(data),
        _flow(data),
        _amplification(data),
    ]
    return [figure for figure in made if figure is not None]


def _graphs(data: xr.Dataset, summary: Summary) -> Figure | None:
    if not data.sizes.get("drawn") or "place" not in data:
        return None
    layers = data["drawn"].values.tolist()

    links = int((data["link"].isel(end=0) >= 0).sum("link_index").max())
    return Figure(
        "graphs",
        f"Graphs of {_nodes(data)} and their communities",
        f"{NODES[data.attrs['nodes']]}; a link joins two whose states correlate (red: negative; the {links} "
        f"strongest are drawn). Colours: the {len(COMMUNITY_COLORS)} largest communities of each layer, the rest "
        f"grey; a colour means nothing across layers. Large: {_nodes(data)} that K = J − I amplifies much, on the "
        "other half of the text. A drawing pulls communities together, and is no test: noise has communities too, "
        f"which the null graphs of the figure on quality show. {_where(data)}",
        partial(panel_rows, [partial(panels.community_graph, data, layer) for layer in layers], 3, height=2.7),
        interactive=lambda: network(summary()),
        alt=f"Drawings of graphs of {_nodes(data)}, coloured by community and sized by gain.",
    )


def _coupling(data: xr.Dataset, summary: Summary) -> Figure:
    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled("a  coupling of place and gain", panels.rho_by_depth, summary()),
            titled("b  kind of operator", panels.operator_by_depth, data),
        ]
        figure = panel_rows(drawn, 2, height=3.9)
        for ax in figure.axes:
            legend_below(ax, columns=1)
        return figure

    return Figure(
        "coupling",
        f"Does a {_node(data)}'s place among the communities predict its gain?",
        f"(a) partial Spearman ρ over {_nodes(data)} of the participation coefficient (graphs of one half of the text) "
        "and the root-mean-square gain ‖K eᵢ‖ (the other half), given variance, |mean|, norm gains and outlier flag. "
        "Bands: 95 % intervals, documents resampled, partition fixed; of fresh initialisations and random bases the "
        f"range; {BANDS}. Rings: p < .05 after Benjamini–Hochberg over layers. (b) medians over tokens; dotted: the "
        f"antisymmetric fraction of a large random matrix. {_where(data)}",
        draw,
        table=lambda: _coupling_table(summary()),
        alt="Line charts over depth: coupling with controls and null band; antisymmetric and rotation fraction of K.",
    )


def _coupling_table(found: xr.Dataset) -> pd.DataFrame:
    """By layer: the coupling with its interval and p value, whether communities are stable, the kind of operator."""
    rho, bounds = found["rho"].sel(view="model").values, found["rho_bounds"].transpose("layer", "bound").values
    kind = found["antisymmetric_fraction"].median("query").values
    stable = found["stable"].values
    return pd.DataFrame({
        "block": found["layer"].values,
        "ρ": [interval_text(float(middle), *map(float, ends)) for middle, ends in zip(rho, bounds, strict=True)],
        "p, Benjamini–Hochberg": [f"{p:.2g}" for p in found["adjusted_p"].values],
        "stable communities": np.where(stable, "yes", "no"),
        "antisymmetric fraction": [f"{value:.3f}" for value in kind],
    })


def _scatter(data: xr.Dataset, summary: Summary) -> Figure:
    layers = spread(data["layer"].values.tolist(), SCATTERS)

    def draw() -> matplotlib.figure.Figure:
        drawn = [partial(panels.place_against_gain, summary(), layer) for layer in layers]
        return outer_labels(panel_rows(drawn, SCATTERS, height=2.8))

    return Figure(
        "place-gain",
        f"Place against gain, {_node(data)} by {_node(data)}",
        f"A point a {_node(data)}; colours as in the graphs. Participation coefficient: 0 where all of a "
        f"{_node(data)}'s links stay in one community. ρ is the partial Spearman correlation given the covariates, "
        "which the picture of the raw values need not show; below it, the null: 95 % of its values under permuted "
        f"places. {_where(data)}",
        draw,
        alt="Scatter plots of gain against participation coefficient for a few blocks.",
    )


def _controls(table: Runs) -> Figure:
    controls = cache(lambda: control_table(table))

    def draw() -> matplotlib.figure.Figure:
        return panel_rows([partial(panels.pooled_controls, controls())])

    def text() -> pd.DataFrame:
        shown = controls()
        texts = {
            name: [interval_text(*ends) for ends in shown[[name, f"{name}, low", f"{name}, high"]].to_numpy().tolist()]
            for name in ("A", "√A", "mean ρ")
        }
        return shown[["view", "number"]].assign(**texts)

    return Figure(
        "controls",
        "What remains of the coupling under every control",
        "√A with A's sign, A = mean over layers of ρ² less its mean under permuted places; mean ρ on Fisher's scale. "
        f"The null line: {1 - COUPLING_P:.0%} of the permutations stay below. 95 % intervals, documents resampled; of "
        "several seeds or draws their mean, its interval over documents and seeds. Bases: everything repeated in "
        f"random orthogonal bases of the stream. {_pooled(table)} {_where(table.data)}",
        draw,
        table=text,
        alt="Dot plot of the pooled coupling of the model and of every control, with intervals.",
    )


def control_table(table: Runs) -> pd.DataFrame:
    """Pool the coupling of the model and of every control that the run holds.

    Args:
        table: The run.

    Returns:
        A row a control: `view`, `number` of seeds or draws, and `A`, `√A`, `mean ρ`, each with `, low` and `, high`.
        The row of permuted places holds the point below which 99 % of the permutations lie.
    """
    layers, _ = pooled_layers(table)
    rows: list[dict[str, object]] = []
    for kind, label in CONTROLS.items():
        views = style.of_kind(table.data["view"], kind)
        if not views:
            continue
        row: dict[str, object] = {"view": label, "number": len(views)}
        found = pooled(table, layers, views)
        for name in ("A", "√A", "mean ρ"):
            one = found[name]
            row |= {name: one.estimate, f"{name}, low": one.low, f"{name}, high": one.high}
        rows.append(row)
        if kind == "model":
            own, ones = Coupling(table.data, "model", layers), np.ones(len(table.documents))
            point = own.strength(ones) - own.beyond(ones, 1 - COUPLING_P)
            null = {"A": point, "√A": float(np.sqrt(max(point, 0.0)))}
            rows.append({"view": PERMUTED, "number": own.permuted.shape[1]} | null)
    return pd.DataFrame(rows)


def _choices(data: xr.Dataset, summary: Summary) -> Figure | None:
    if "grid_rho" not in data:
        return None

    layers = ", ".join(map(str, data["ablated"].values.tolist()))

    def draw() -> matplotlib.figure.Figure:
        return panel_rows([partial(panels.choice_map, summary())], height=4.0)

    return Figure(
        "choices",
        "The coupling under other choices",
        f"Mean ρ, on Fisher's scale, of the layers {layers}; a layer in which one "
        f"community holds all {_nodes(data)} counts as 0. Crossed out: another sign than the default's mean ρ, or on "
        f"the other side of p = {COUPLING_P} under the null, places permuted within degree deciles. "
        "A, B: the half of the text from which the graph is made, gains always on the other; signed or partial "
        "correlations; neighbours kept. γ: the resolution that the default takes in each layer (of spectral "
        f"clustering and Infomap it sets what stands in its place). {_where(data)}",
        draw,
        table=lambda: _choice_table(summary()["agrees"], partitions.pooled_choices(data)),
        alt="Heat map of the pooled coupling over choices of half, edges, neighbours, algorithm and resolution.",
    )


def _choice_table(agrees: xr.DataArray, mean: xr.DataArray) -> pd.DataFrame:
    """By choice: how many of all choices that share it agree with the default, and their mean coupling."""
    rows = [
        [f"{dim} {label}", float(agrees.sel({dim: label}).mean()), float(mean.sel({dim: label}).mean())]
        for dim in agrees.dims
        for label in agrees[dim].values.tolist()
    ]
    rows.insert(0, ["all choices", float(agrees.mean()), float(mean.mean())])
    shown = pd.DataFrame(rows, columns=["choice", "agrees with the default", "mean ρ"])
    return shown.assign(**{
        "agrees with the default": [f"{share:.0%}" for share in shown["agrees with the default"]],
        "mean ρ": [signed(value) for value in shown["mean ρ"]],
    })


def _communities(data: xr.Dataset) -> Figure:
    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled("a  quality", panels.quality_by_depth, data),
            titled("b  stability by resolution", panels.resolution_profile, data),
        ]
        figure = panel_rows(drawn, 2, height=3.2)
        legend_below(figure.axes[0])
        return figure

    return Figure(
        "quality",
        "Are there communities at all?",
        "(a) the objective per link weight, of single runs; bands hold 95 % of the resamples of documents and of the "
        f"{data.sizes['null_draw']} null graphs: the same standardised states in a random orthogonal basis. (b) mean "
        f"AMI between seeds less that of null graphs; blank where one community holds all {_nodes(data)}; dots: the "
        "resolution that the layer takes, in units of its mean |w|, the coarsest with enough communities of those "
        f"about as good as the best. {_where(data)}",
        draw,
        alt="Quality of communities and of null graphs over depth; heat map of stability by layer and resolution.",
    )


def _agreement(data: xr.Dataset) -> Figure:
    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled("a  within a layer", panels.agreement_by_depth, data),
            titled("b  between layers", panels.layer_agreement, data),
        ]
        figure = panel_rows(drawn, 2, height=3.6)
        legend_below(figure.axes[0], columns=1)
        return figure

    return Figure(
        "agreement",
        "Do communities persist: between seeds, halves of the text, and layers?",
        "Adjusted mutual information: 1 for equal communities; the null is 0, what unrelated ones share. (a) bands: "
        "95 % of the null graphs, and of the resamples of both halves' documents (single runs, which agree less than "
        f"consensus partitions). (b) the diagonal, 1 by definition, is left out. {_where(data)}",
        draw,
        alt="Line chart of agreement over depth; heat map of agreement between every two layers.",
    )


def _flow(data: xr.Dataset) -> Figure | None:
    layers = spread(data["layer"].values.tolist(), FLOWS)
    if len(layers) < 2:
        return None

    return Figure(
        "flow",
        f"How {_nodes(data)} pass between communities through depth",
        f"Bars are the {len(COMMUNITY_COLORS)} largest communities of a layer from below, the rest in grey; bands, "
        f"in the colour they come from, are the {_nodes(data)} that two communities share. Under the null of unrelated "
        f"communities every bar sends to every other in proportion to its size. {_where(data)}",
        partial(panel_rows, [partial(panels.community_flow, data, layers)], height=3.4),
        alt=f"Alluvial chart of {_nodes(data)} between the communities of a few blocks.",
    )


def _amplification(data: xr.Dataset) -> Figure | None:
    if "community_z" not in data:
        return None
    measures = data["amplification"].values.tolist()

    return Figure(
        "amplification",
        "What a block does to whole communities",
        f"K over the {int(data['community_z'].notnull().any(('matrix', 'amplification', 'layer')).sum())} largest "
        f"communities of each layer, in standard deviations of the null, random sets of as many {_nodes(data)}. gain² "
        "= self gain² + leak², and gain holds no interaction inside the community; divergence is the signed rate; the "
        f"numerical abscissa the fastest growth. Of the root-mean-square operator over all tokens. {_where(data)}",
        partial(panel_rows, [partial(panels.amplification_map, data, measure) for measure in measures], 2, height=2.3),
        table=partial(_amplification_table, data),
        alt="Heat maps over layers and communities of z-scores of five measures of amplification.",
    )


def _amplification_table(data: xr.Dataset) -> pd.DataFrame:
    """By measure: its median over communities, and how many lie far from random sets of nodes."""
    z = data["community_z"].sel(matrix="K")
    raw = data["community_amplification"].sel(matrix="K")
    rows = []
    for measure in data["amplification"].values.tolist():
        every = z.sel(amplification=measure).values
        one = every[np.isfinite(every)]
        far = (
            [f"{np.median(one):+.2f}", f"{np.mean(one > 2):.0%}", f"{np.mean(one < -2):.0%}"] if len(one) else 3 * ["–"]
        )
        rows.append([measure.replace("_", " "), f"{float(raw.sel(amplification=measure).median()):.3g}", *far])
    return pd.DataFrame(rows, columns=["of K", "median", "median z", "z > 2", "z < −2"])


def _node(data: xr.Dataset) -> str:
    return NODE_NAMES[data.attrs["nodes"]]


def _nodes(data: xr.Dataset) -> str:
    return f"{_node(data)}s"


def _pooled(table: Runs) -> str:
    layers, enough = pooled_layers(table)
    words = f"Over {int(layers.sum())} layers"
    return f"{words} with stable communities." if enough.holds else f"{words}: {enough.otherwise}."


def _where(data: xr.Dataset) -> str:
    """Model, text, documents and positions, as every caption ends."""
    attrs = data.attrs
    return (
        f"{captions.model_on_text(data)}: graphs of {data.sizes['node']} {_nodes(data)} from "
        f"{attrs['n_graph_tokens']:,} tokens of {attrs['n_graph_documents']} documents, gains at {data.sizes['query']} "
        f"positions of {captions.documents(data)} others."
    )
