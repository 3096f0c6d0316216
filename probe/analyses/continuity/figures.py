"""The figures of a continuity run: panels put together, with captions that say what was measured on what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from scipy import stats

from probe import plots, weights
from probe.analyses.continuity.config import Config
from probe.analyses.continuity.interactive import trajectories
from probe.inference import benjamini_hochberg
from probe.plots.style import WIDTH
from probe.plots.weights import sides_of
from probe.report import Figure

SIDES = ("input", "output")
GAP = "A leading vector means something only where σ₁/σ₂ is well above 1"
RATE = 0.05  # false discoveries among the pairs that a table counts


def figures(data: xr.Dataset, config: Config) -> list[Figure]:
    """All figures that a run's variables allow, in the order of the report.

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
    def draw() -> matplotlib.figure.Figure:
        figure, axes = plots.new_figure(2, 1, height=2.7)
        for side, ax in zip(SIDES, axes[:, 0], strict=True):
            plots.continuity_summary(data, side, ax=ax)
        plots.shared_legend(figure, columns=3)
        return figure

    return Figure(
        "summary",
        "Which projections carry on, and in which space",
        "Mean |cos| of neighbouring blocks' leading singular vectors; full colour where the space is the residual "
        f"stream, pale where it lies inside the block. Bars: 95 % over depth of this one model (circular blocks of "
        f"{config.block_length} pairs). Black lines, the null: random directions. Under each name the median σ₁/σ₂. "
        f"{GAP}. {_where(data)}",
        draw,
        table=partial(_summary_table, data),
        alt="Bar charts of mean continuity by projection in input and output space, with controls.",
    )


def _summary_table(data: xr.Dataset) -> pd.DataFrame:
    """By projection and space: mean, null, and how many pairs lie above random directions after Benjamini-Hochberg."""
    rows, p_values = [], []
    for name in (str(name) for name in data["projection"].values):
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
        names = [str(name) for name in data["projection"].values]
        return _panels([_titled(plots.continuity_by_depth, data, name) for name in names], labels=True)

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

    def draw() -> matplotlib.figure.Figure:
        figure, axes = plots.new_figure(1, 2, height=3.4)
        for side, ax in zip(SIDES, axes[0], strict=True):
            plots.lag_curves(data, side, ax=ax)
        plots.shared_legend(figure, columns=6)
        return figure

    return Figure(
        "lags",
        "A path, or one direction that all blocks share?",
        "Mean |cos| of leading vectors of blocks l and l + m. A path decays with the lag m; one shared direction does "
        "not. The nulls: dotted, random directions; thin lines, the same vectors with the blocks in random order, "
        f"which keep what is shared and lose what is adjacent. Long lags rest on few pairs. {_where(data)}",
        draw,
        alt="Line charts of mean cosine against the lag between blocks.",
    )


def _maps(data: xr.Dataset) -> Figure:
    chosen = _stream(data)

    def draw() -> matplotlib.figure.Figure:
        figure, places = _grid(len(chosen), columns=4, height=1.9)
        for ax, (name, side) in zip(places, chosen, strict=True):
            plots.cosine_map(data, name, side, ax=ax, bar=False)
        figure.colorbar(places[0].images[0], ax=places, label="|cos|", location="bottom", shrink=0.5, aspect=40)
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
    chosen = _stream(data)

    def draw() -> matplotlib.figure.Figure:
        figure, places = _grid(len(chosen), columns=3, height=2.3, projection="3d")
        for ax, (name, side) in zip(places, chosen, strict=True):
            plots.trajectory_path(data, name, side, ax)
        depth = data["block"].values
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(depth[0], depth[-1]), "viridis")
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

    def draw() -> matplotlib.figure.Figure:
        return _panels([partial(plots.continuity_controls, data, side) for side in SIDES], columns=2, height=3.0)

    share = f"{config.outlier_share:.1%}"
    return Figure(
        "controls",
        "What is left under controls",
        "Mean |cos| of neighbours where the space is the residual stream: with the norms' gains folded in, without the "
        f"{share} of coordinates that hold most of the leading vectors, with every matrix's entries shuffled, and at "
        f"fresh initialisation (a mark a seed). Dotted, the null: random directions. {_where(data)}",
        draw,
        alt="Dot chart of mean continuity by projection under controls.",
    )


def _subspaces(data: xr.Dataset) -> Figure | None:
    if data.sizes["k"] < 2:
        return None

    def draw() -> matplotlib.figure.Figure:
        return _panels([partial(plots.subspace_continuity, data, side) for side in SIDES], columns=2, height=3.0)

    return Figure(
        "subspaces",
        "Leading subspaces",
        "Mean squared cosine of the principal angles of neighbouring blocks' leading k-subspaces, mean over pairs: "
        "where it rises with k, directions change their rank; where it falls, continuity sits in the first. Dotted, "
        f"the null: k/d. {_where(data)}",
        draw,
        alt="Line charts of subspace overlap against the dimension of the subspace.",
    )


def _gaps(data: xr.Dataset) -> Figure:
    names = [str(name) for name in data["projection"].values]
    stored, extra = (
        [name for name in names if (name in weights.COMPOSITES) == composite] for composite in (False, True)
    )

    def draw() -> matplotlib.figure.Figure:
        groups = [group for group in (stored, extra) if group]
        return _panels([partial(plots.gap_by_depth, data, group) for group in groups], columns=2, height=3.0)

    return Figure(
        "gaps",
        "The gap behind every leading vector",
        f"σ₁/σ₂ of every block. {GAP}; dotted: 1.05, below which it is taken for arbitrary. No further null: fresh "
        f"initialisations lie below it, at a median of {_fresh_gap(data)}. {_where(data)}",
        draw,
        alt="Line charts of the ratio of the first two singular values over depth.",
    )


def _participation(data: xr.Dataset) -> Figure:
    def draw() -> matplotlib.figure.Figure:
        return _panels([partial(plots.participation_by_depth, data, side) for side in SIDES], columns=2, height=3.0)

    return Figure(
        "participation",
        "On how many coordinates the directions live",
        "Participation ratio 1/Σv⁴ of the leading vector over the width. Near 1/d it is one coordinate, and continuity "
        f"would be trivial; dotted, the null: a third, a random direction. {_where(data)}",
        draw,
        alt="Line charts of the participation ratio of leading vectors over depth.",
    )


def _heads(data: xr.Dataset) -> Figure | None:
    if "input_heads" not in data:
        return None

    def draw() -> matplotlib.figure.Figure:
        figure, axes = plots.new_figure(1, 2, height=2.8, share_y="row")
        for ax, name in zip(axes[0], data["composite"].values.tolist(), strict=False):
            plots.head_continuity(data, name, ax=ax)
            ax.set_title(f"{name}, head by head", loc="left")
        plots.shared_legend(figure, columns=3)
        return figure

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

    def draw() -> matplotlib.figure.Figure:
        return _panels([partial(plots.docs_by_depth, data)], height=3.0)

    return Figure(
        "docs",
        "Another view: DOCS of neighbouring blocks",
        "Location of a Gumbel distribution fitted to the largest |cos| of each column with the columns of the next "
        "block's matrix, both ways (Min & Wang). Columns are as long as the output space; no null line is drawn, as it "
        f"depends on the number of columns. {_where(data)}",
        draw,
        alt="Line chart of the DOCS similarity of neighbouring blocks over depth.",
    )


def _stream(data: xr.Dataset) -> list[tuple[str, str]]:
    """Every projection in the spaces in which it is shown."""
    return [(str(name), side) for name in data["projection"].values for side in sides_of(str(name))]


def _fresh_gap(data: xr.Dataset) -> str:
    fresh = [name for name in data["variant"].values if str(name).startswith("init-")]
    return f"{float(data['block_gap'].sel(variant=fresh).median()):.3f}" if fresh else "about 1.01"


def _titled(panel: Callable[..., Axes], data: xr.Dataset, name: str) -> Callable[..., Axes]:
    def draw(ax: Axes) -> Axes:
        panel(data, name, ax=ax).set_title(name, loc="left")
        return ax

    return draw


def _grid(
    count: int, *, columns: int, height: float, projection: str | None = None
) -> tuple[matplotlib.figure.Figure, list[Axes]]:
    """A figure of page width with as many panels as are needed, in rows."""
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (WIDTH, height * rows)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    places = [figure.add_subplot(rows, columns, place + 1, projection=projection) for place in range(count)]
    return figure, places


def _panels(
    panels: Sequence[Callable[..., Axes]], *, columns: int = 3, height: float = 2.1, labels: bool = False
) -> matplotlib.figure.Figure:
    """Panels in rows with one legend; with `labels`, axes are labelled at the edge of the page only."""
    figure, places = _grid(len(panels), columns=columns, height=height)
    columns = min(columns, len(panels))
    for number, (panel, ax) in enumerate(zip(panels, places, strict=True)):
        panel(ax=ax)
        if labels and number % columns:
            ax.set_ylabel("")
        if labels and number + columns < len(panels):
            ax.set_xlabel("")
    plots.shared_legend(figure, columns=5)
    return figure


def _where(data: xr.Dataset) -> str:
    """Model and blocks, as every caption ends."""
    attrs = data.attrs
    described = f" ({attrs['description']})" if attrs.get("description") else ""
    return f"{attrs.get('model', 'model')}{described}, {data.sizes['block']} blocks, d = {attrs['d_model']}."
