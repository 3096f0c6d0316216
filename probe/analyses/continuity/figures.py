"""The figures of a continuity run: drawn put together, with captions that say what was measured on what."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import matplotlib.figure
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from scipy import stats

from probe import weights
from probe.analyses.continuity import panels
from probe.analyses.continuity.config import Config
from probe.analyses.continuity.interactive import trajectories
from probe.analyses.continuity.panels import shown_spaces
from probe.inference import benjamini_hochberg
from probe.plots import captions
from probe.plots.pages import Panel, new_grid, outer_labels, panel_rows, titled
from probe.plots.style import of_kind
from probe.report import Figure

SIDES = ("input", "output")
GAP = "A leading vector means something only where σ₁/σ₂ is well above 1"
RATE = 0.05  # false discoveries among the pairs that a table counts


def figures(data: xr.Dataset, config: Config) -> list[Figure]:
    """Make all figures that a run's variables allow, in the order of the report.

    Args:
        data: The Dataset of the analysis.
        config: The run's configuration.

    Returns:
        The figures; nothing is drawn before `Figure.draw` is called.
    """
    made = [
        _summary(data, config),
        _depth(data),
        _lags(data),
        _maps(data),
        _trajectories(data),
        _controls(data, config),
        _subspaces(data),
        _gaps(data),
        _participation(data),
        _heads(data),
        _docs(data),
    ]
    return [figure for figure in made if figure is not None]


def _summary(data: xr.Dataset, config: Config) -> Figure:
    return Figure(
        "summary",
        "Which projections carry on, and in which space",
        f"Mean |cos| of neighbouring blocks' leading singular vectors; full colour where the space is the residual "
        f"stream, pale where it lies inside the block. Whiskers: 95 % over depth of this one model (circular blocks of "
        f"{config.block_length} pairs), where it has enough pairs for an interval. Black lines, the null: random "
        f"directions. Under each name the median σ₁/σ₂. {GAP}. {_where(data)}",
        _both_spaces(panels.continuity_summary, data, 1, height=2.7, legend=3),
        table=partial(_summary_table, data),
        alt="Bar charts of mean continuity by projection in input and output space, with controls.",
    )


def _summary_table(data: xr.Dataset) -> pd.DataFrame:
    """By projection and space: mean, null, and how many pairs lie above random directions after Benjamini-Hochberg."""
    rows, p_values = [], []
    for name in data["projection"].values.tolist():
        for side in SIDES:
            values = data[f"{side}_continuity"].sel(variant="model", projection=name).values
            width = int(data[f"{side}_width"].sel(projection=name))
            p_values.append(stats.beta.sf(values**2, 0.5, (width - 1) / 2))
            gap = float(data["gap"].sel(variant="model", projection=name).median())
            null = float(data[f"{side}_haar"].sel(projection=name))
            rows.append([name, side, f"{np.mean(values):.3f}", f"{null:.3f}", f"{gap:.3f}"])
    adjusted = benjamini_hochberg(np.concatenate(p_values)).reshape(len(rows), -1)
    table = pd.DataFrame(rows, columns=["projection", "space", "mean |cos|", "random", "median σ₁/σ₂"])
    found = (adjusted <= RATE).sum(axis=1)
    return table.assign(**{f"pairs above random, of {adjusted.shape[1]}": found})


def _depth(data: xr.Dataset) -> Figure:
    def draw() -> matplotlib.figure.Figure:
        names = data["projection"].values.tolist()
        drawn = [titled(name, panels.continuity_by_depth, data, name) for name in names]
        return outer_labels(panel_rows(drawn, 3, height=2.1, legend=5))

    return Figure(
        "depth",
        "Continuity through depth",
        "|cos| of the leading right (v₁) and left (u₁) singular vectors of block l and l + 1. Pale bands, the null: "
        "99 % of random directions stay below. Hollow markers: σ₁/σ₂ of one of the two blocks is below 1.05, so that "
        f"its leading vector is arbitrary. q k v gate up read the stream (v₁ lies in it), o and down write to it "
        f"(u₁). {_where(data)}",
        draw,
        alt="Line charts of continuity over depth for every projection in both spaces.",
    )


def _lags(data: xr.Dataset) -> Figure | None:
    if data.sizes["lag"] < 3:
        return None

    return Figure(
        "lags",
        "A path, or one direction that all blocks share?",
        "Mean |cos| of leading vectors of blocks l and l + m. A path decays with the lag m; one shared direction does "
        "not. The nulls: dotted, random directions; thin lines, the same vectors with the blocks in random order, "
        f"which keep what is shared and lose what is adjacent. Long lags rest on few pairs. {_where(data)}",
        _both_spaces(panels.lag_curves, data, height=3.4, legend=6),
        alt="Line charts of mean cosine against the lag between blocks.",
    )


def _maps(data: xr.Dataset) -> Figure:
    def draw() -> matplotlib.figure.Figure:
        drawn = [partial(panels.cosine_map, data, name, side, bar=False) for name, side in shown_spaces(data)]
        figure = panel_rows(drawn, 4, height=1.9)
        image = figure.axes[0].images[0]
        figure.colorbar(image, ax=figure.axes, label="|cos|", location="bottom", shrink=0.5, aspect=40)
        return figure

    return Figure(
        "maps",
        "All pairs of blocks",
        "|cos| of the leading vectors of block l (across) and m (up), in the spaces that are the residual stream. A "
        "path is a band along the diagonal, one direction shared by many blocks a filled square; the null is dark: "
        f"{float(data['input_haar'].isel(projection=0)):.3f} on average in the stream. {_where(data)}",
        draw,
        alt="Heat maps of cosines for all pairs of blocks, one for each projection.",
    )


def _trajectories(data: xr.Dataset) -> Figure | None:
    if data.sizes["block"] < 4:
        return None

    def draw() -> matplotlib.figure.Figure:
        chosen = shown_spaces(data)
        figure, places = new_grid(len(chosen), 3, height=2.3, projection="3d")
        for ax, (name, side) in zip(places, chosen, strict=True):
            panels.trajectory_path(data, name, side, ax)
        depth = data["block"].values
        scale = ScalarMappable(Normalize(depth[0], depth[-1]), "viridis")
        figure.colorbar(scale, ax=places, label="block", location="bottom", shrink=0.5, aspect=40)
        return figure

    return Figure(
        "trajectories",
        "Paths of the leading directions",
        "The leading vector of every block in its three main principal components, signs aligned along depth; ringed: "
        "the first block. The share of the variance stands at each axis. The null is a jumble: independent directions "
        f"spread over all {data.sizes['block'] - 1} components evenly. The chart below can be turned. {_where(data)}",
        draw,
        interactive=partial(trajectories, data),
        alt="Three-dimensional paths of the leading singular vectors through depth.",
    )


def _controls(data: xr.Dataset, config: Config) -> Figure | None:
    if data.sizes["variant"] < 2:
        return None

    share = f"{config.outlier_share:.1%}"
    return Figure(
        "controls",
        "What is left under controls",
        "Mean |cos| of neighbours where the space is the residual stream: with the norms' gains folded in, without the "
        f"{share} of coordinates that hold most of the leading vectors, with every matrix's entries shuffled, and at "
        f"fresh initialisation (a mark a seed). Dotted, the null: random directions. {_where(data)}",
        _both_spaces(panels.continuity_controls, data),
        alt="Dot chart of mean continuity by projection under controls.",
    )


def _subspaces(data: xr.Dataset) -> Figure | None:
    if data.sizes["k"] < 2:
        return None

    return Figure(
        "subspaces",
        "Leading subspaces",
        "Mean squared cosine of the principal angles of neighbouring blocks' leading k-subspaces, mean over pairs: "
        "where it rises with k, directions change their rank; where it falls, continuity sits in the first. Dotted, "
        f"the null: k/d. {_where(data)}",
        _both_spaces(panels.subspace_continuity, data),
        alt="Line charts of subspace overlap against the dimension of the subspace.",
    )


def _gaps(data: xr.Dataset) -> Figure:
    names = data["projection"].values.tolist()
    stored = [name for name in names if name not in weights.heads.COMPOSITES]
    composites = [name for name in names if name in weights.heads.COMPOSITES]
    drawn = [partial(panels.gap_by_depth, data, group) for group in (stored, composites) if group]
    return Figure(
        "gaps",
        "The gap behind every leading vector",
        f"σ₁/σ₂ of every block. {GAP}; dotted: 1.05, below which it is taken for arbitrary. No further null: fresh "
        f"initialisations lie below it, at a median of {_fresh_gap(data)}. {_where(data)}",
        partial(panel_rows, drawn, 2, height=3.0, legend=5),
        alt="Line charts of the ratio of the first two singular values over depth.",
    )


def _participation(data: xr.Dataset) -> Figure:
    return Figure(
        "participation",
        "On how many coordinates the directions live",
        "Participation ratio 1/Σv⁴ of the leading vector over the width. Near 1/d it is one coordinate, and continuity "
        f"would be trivial; dotted, the null: a third, a random direction. {_where(data)}",
        _both_spaces(panels.participation_by_depth, data),
        alt="Line charts of the participation ratio of leading vectors over depth.",
    )


def _heads(data: xr.Dataset) -> Figure | None:
    if "input_heads" not in data:
        return None

    def draw() -> matplotlib.figure.Figure:
        names = data["composite"].values.tolist()
        drawn = [titled(f"{name}, head by head", panels.head_continuity, data, name) for name in names]
        return panel_rows(drawn, 2, height=2.8, share_y="row", legend=3)

    return Figure(
        "heads",
        "Single heads",
        "Heads of different blocks have no order in common: for the leading vector of each head's W_O W_V and W_Qᵀ W_K "
        "the best |cos| to a head of the next block, mean over heads. Dotted, the null: the best of as many random "
        f"directions. {_where(data)}",
        draw,
        alt="Line charts of the best cosine between heads of neighbouring blocks.",
    )


def _docs(data: xr.Dataset) -> Figure | None:
    if "docs" not in data:
        return None

    return Figure(
        "docs",
        "Another view: DOCS of neighbouring blocks",
        "Location of a Gumbel distribution fitted to the largest |cos| of each column with the columns of the next "
        "block's matrix, both ways (Min & Wang). Columns are as long as the output space; no null line is drawn, as it "
        f"depends on the number of columns. {_where(data)}",
        partial(panel_rows, [partial(panels.docs_by_depth, data)], height=3.0, legend=5),
        alt="Line chart of the DOCS similarity of neighbouring blocks over depth.",
    )


def _both_spaces(
    panel: Panel, data: xr.Dataset, columns: int = 2, *, height: float = 3.0, legend: int = 5
) -> Callable[[], matplotlib.figure.Figure]:
    return partial(panel_rows, [partial(panel, data, side) for side in SIDES], columns, height=height, legend=legend)


def _fresh_gap(data: xr.Dataset) -> str:
    fresh = of_kind(data["variant"], "init")
    return f"{float(data['block_gap'].sel(variant=fresh).median()):.3f}" if fresh else "about 1.01"


def _where(data: xr.Dataset) -> str:
    """Model and blocks, as every caption ends."""
    return f"{captions.model(data)}, {data.sizes['block']} blocks, d = {data.attrs['d_model']}."
