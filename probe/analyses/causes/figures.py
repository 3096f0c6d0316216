"""The figures of a run on causes: panels put together, with captions that say what was trained.

A figure is left out where the run holds none of its cells.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from scipy import stats

from probe.analyses.causes import panels
from probe.analyses.causes.cells import GRID, Cell, plain
from probe.analyses.causes.config import Config
from probe.analyses.causes.panels import ACTIVATION_STYLES, NORM_STYLES
from probe.analyses.causes.table import Grid
from probe.inference import benjamini_hochberg, seed_interval
from probe.plots.pages import outer_labels, panel_rows, titled
from probe.plots.style import Style
from probe.report import Figure
from probe.report.page import interval_text
from probe.training.names import ACTIVATIONS, NORMS

LINES = "Lines are means over seeds, bands their 95 % t intervals."
KINDS = ("W", "ΔW")
READERS = ("q", "k", "v", "gate", "up")
WRITERS = ("o", "down")


def figures(data: xr.Dataset, config: Config) -> list[Figure]:
    """List all figures that a run's cells allow, in the order of the report.

    Args:
        data: The Dataset of the analysis.
        config: The run's configuration.

    Returns:
        The figures; nothing is drawn before `Figure.draw` is called.
    """
    made = [
        _continuity(data),
        _coherence(data),
        _scatter(data),
        _grid(data),
        _concentration(data),
        _learning(data),
        _drift(data),
        _arms(data),
        _arm_learning(data),
    ]
    return [figure for figure in made if figure is not None]


def _styles(data: xr.Dataset, make: Callable[[str], Cell]) -> dict[str, Style]:
    """The style of each activation's cell, of those that were trained."""
    named = {make(name).name: ACTIVATION_STYLES[name] for name in ACTIVATIONS}
    return {name: style for name, style in named.items() if name in data["cell"].values}


def _families(data: xr.Dataset) -> dict[str, dict[str, Style]]:
    """Families of cells that differ by their activation, by title."""
    families = {
        "stream form": _styles(data, Cell),
        "branch form": _styles(data, lambda name: Cell(name, "branch")),
        "no residual": _styles(data, lambda name: plain(Cell(name))),
        "stream form, linear teacher": _styles(data, lambda name: Cell(name, teacher="linear")),
    }
    return {title: cells for title, cells in families.items() if cells}


def _continuity(data: xr.Dataset) -> Figure | None:
    families = _families(data)

    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled(f"{title}, {kind}", panels.through_training, data, "cosine", cells, weights=kind)
            for title, cells in families.items()
            for kind in KINDS
        ]
        return outer_labels(panel_rows(drawn, 2, height=2.1, share_y="all", legend=3))

    return _if(
        families,
        "continuity",
        "Continuity through training, by activation",
        "Mean over neighbouring layers of |v₁(l) · v₁(l+1)|, of W and of ΔW = W − W₀, from which the random start is "
        f"taken away. Dotted: random directions, {data.attrs['haar_cosine']:.3f}; grey: their 99 % band. {LINES} "
        f"{_where(data)}",
        draw,
        table=partial(contrasts, data),
        alt="Line charts of continuity over training steps for seven activations, by form, for W and for its change.",
    )


def contrasts(data: xr.Dataset) -> pd.DataFrame:
    """Compare continuity at the end of training between pairs of cells, with Benjamini–Hochberg adjusted p values.

    Args:
        data: The Dataset of the analysis.

    Returns:
        A row a contrast: difference with its interval, t and p of the paired t test over seeds.
    """
    grid: Grid = Grid(data, None, 0)  # type: ignore[arg-type]  # no thresholds are read
    pairs = [(Cell("gelu"), Cell(name)) for name in ACTIVATIONS if name != "gelu"]
    pairs += [(Cell(name), plain(Cell(name))) for name in ACTIVATIONS]
    pairs += [(Cell("gelu"), Cell("gelu", norm=norm)) for norm in NORMS[1:]]
    there = set(data["cell"].values.tolist())
    rows: list[dict[str, Any]] = []
    for one, other in pairs:
        if {one.name, other.name} <= there:
            for weights in KINDS:
                a, b = grid.continuity(one, weights), grid.continuity(other, weights)
                rows.append({"contrast": f"{one.name} − {other.name}", "of": weights} | _paired(a, b))
    table = pd.DataFrame(rows, columns=["contrast", "of", "difference", "t", "p"])
    table["p, adjusted"] = benjamini_hochberg(table.pop("p").to_numpy(dtype=np.float64))
    for name in ("t", "p, adjusted"):
        table[name] = [f"{value:.2g}" if np.isfinite(value) else "–" for value in table[name]]
    return table


def _paired(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    interval = seed_interval(a, b)
    varies = len(a) > 1 and bool(np.ptp(a - b) > 0)
    test = stats.ttest_rel(a, b) if varies else None
    ends = (float(interval.estimate), float(interval.low), float(interval.high))
    return {
        "difference": interval_text(*ends),
        "t": float(test.statistic) if test else np.nan,
        "p": float(test.pvalue) if test else np.nan,
    }


def _coherence(data: xr.Dataset) -> Figure | None:
    families = {title: cells for title, cells in _families(data).items() if "linear" not in title}

    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled(title, panels.through_training, data, "gradient_coherence", cells, space="output")
            for title, cells in families.items()
        ]
        return outer_labels(panel_rows(drawn, len(families), share_y="all", legend=3))

    return _if(
        families,
        "coherence",
        "Coherence of neighbouring layers' gradients",
        "cos(vec G_l, vec G_{l+1}), mean over neighbouring layers and over held-out batches; the null, unrelated "
        f"gradients, is 0. {LINES} {_where(data)}",
        draw,
        alt="Line charts of gradient coherence over training steps, with and without residual connections.",
    )


def _scatter(data: xr.Dataset) -> Figure | None:
    drawn = [partial(panels.coherence_against_continuity, data, kind) for kind in KINDS]
    return _if(
        data.sizes["cell"] > 1,
        "cells",
        "Coherence at the start against continuity at the end, over all cells",
        f"A point for each of {data.sizes['cell']} cells, mean over seeds; open without a residual connection. Dotted: "
        f"random directions. {_where(data)}",
        partial(panel_rows, drawn, 2, height=3.0, share_y="all", legend=3),
        alt="Scatter plots of gradient coherence at step 0 and continuity at the end.",
    )


def _grid(data: xr.Dataset) -> Figure | None:
    there = [name for name in GRID if Cell(name, decay=1.0).name in data["cell"].values]

    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled(f"{_short(name)}, {kind}", panels.decay_against_start, data, name, kind)
            for kind in KINDS
            for name in there
        ]
        figure = outer_labels(panel_rows(drawn, len(there), height=2.3, share_y="all"))
        scale = ScalarMappable(Normalize(0, 1), cmap="viridis")
        figure.colorbar(scale, ax=figure.axes, label="continuity |cos v₁|", shrink=0.7, aspect=30)
        return figure

    return _if(
        there,
        "grid",
        "For which weight decay and start does it hold?",
        "Continuity at the end (mean over the last fifth of the steps, neighbouring layers and seeds) over weight "
        "decay and the scale of the start, stream form. In brackets: the arm did not learn. Random directions have "
        f"{data.attrs['haar_cosine']:.3f}. {_where(data)}",
        draw,
        alt="Heat maps of continuity over weight decay and scale of the start for four activations.",
    )


def _short(activation: str) -> str:
    return ACTIVATION_STYLES[activation].label.removeprefix("rotation-preserving, ")


def _concentration(data: xr.Dataset) -> Figure | None:
    norms = {
        "identity": {Cell("identity", norm=norm).name: NORM_STYLES[norm] for norm in NORMS},
        "GELU": {Cell("gelu", norm=norm).name: NORM_STYLES[norm] for norm in NORMS},
    }
    there = {title: cells for title, cells in norms.items() if set(cells) & set(data["cell"].values.tolist())}

    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled(f"{title}, {kind}", panels.matches, data, cells, kind)
            for kind in KINDS
            for title, cells in there.items()
        ]
        return outer_labels(panel_rows(drawn, len(there), height=2.3, share_y="row", legend=3))

    return _if(
        there,
        "concentration",
        "Concentrated in one direction, or spread over several?",
        "m_i², the squared cosine of the i-th leading direction and its best match among the eight of the next layer, "
        f"less what random frames have ({float(data['null_match'][0]):.3f}), late in training; stream form. {LINES} "
        f"{_where(data)}",
        draw,
        alt="Line charts of the excess of best matches over rank, by norm, for identity and GELU.",
    )


def _learning(data: xr.Dataset) -> Figure | None:
    families = _families(data)

    def draw() -> matplotlib.figure.Figure:
        drawn = [titled(title, panels.learning, data, cells) for title, cells in families.items()]
        return outer_labels(panel_rows(drawn, 2, height=2.4, legend=3))

    return _if(
        families,
        "learning",
        "Learning curves",
        "Held-out loss over the variance of the targets; the null, a constant guess, is 1 (dotted). A contrast is read "
        "only where both arms learned; linear and rotation-preserving networks cannot fit the nonlinear teacher, so "
        f"that the linear teacher compares them at matched loss. {LINES} {_where(data)}",
        draw,
        alt="Line charts of held-out loss over training steps by activation.",
    )


def _drift(data: xr.Dataset) -> Figure | None:
    cells = _styles(data, Cell)

    def draw() -> matplotlib.figure.Figure:
        words = {"layer_angle": "a  from layer to layer", "step_angle": "b  from snapshot to snapshot"}
        drawn = [titled(title, panels.through_training, data, variable, cells) for variable, title in words.items()]
        return outer_labels(panel_rows(drawn, 2, legend=3))

    return _if(
        cells,
        "rotation",
        "How far frames turn",
        "Mean principal angle (of the orthogonal Procrustes rotation) of the frames of the eight leading right "
        "singular vectors of W: of neighbouring layers, and of a layer and itself at the snapshot before; stream form. "
        f"The snapshots early in training lie closer together. {LINES} {_where(data)}",
        draw,
        alt="Line charts of principal angles between layers and between snapshots over training.",
    )


def _arms(data: xr.Dataset) -> Figure | None:
    shown = [(name, "input") for name in READERS] + [(name, "output") for name in ("v", *WRITERS)]

    def draw() -> matplotlib.figure.Figure:
        vectors = {"input": "v₁", "output": "u₁"}
        drawn = [titled(f"{name}, {vectors[space]}", panels.arm_continuity, data, name, space) for name, space in shown]
        return outer_labels(panel_rows(drawn, 4, height=2.2, share_y="all", legend=4))

    return _if(
        "arm" in data.coords,
        "arms",
        "Continuity of the small transformers' projections, by arm",
        "Mean over neighbouring blocks of |cos| of the leading singular vectors: in input space for what reads the "
        "stream, in output space for what writes it, both for v. Dotted: random directions. "
        f"{LINES} {_arms_where(data)}",
        draw,
        alt="Line charts of continuity over training steps for each projection and arm.",
    )


def _arm_learning(data: xr.Dataset) -> Figure | None:
    def table() -> pd.DataFrame:
        ends = (data["arm_held_out_loss"].isel(arm_step=-1) / np.log(2)).transpose("arm", "seed").values
        intervals = [seed_interval(each.astype(np.float64)) for each in ends]
        texts = [interval_text(*(float(end) for end in (one.estimate, one.low, one.high))) for one in intervals]
        return pd.DataFrame({"arm": data["arm_label"].values, "held-out bits / byte at the end": texts})

    return _if(
        "arm" in data.coords,
        "arm-learning",
        "Learning curves of the small transformers",
        "Held-out loss in bits a byte. The null (dotted) knows the frequencies of single bytes. "
        f"{LINES} {_arms_where(data)}",
        partial(panel_rows, [partial(panels.arm_learning, data)], height=3.0, legend=3),
        table=table,
        alt="Line chart of held-out bits a byte over training steps by arm.",
    )


def _if(there: Any, name: str, title: str, caption: str, draw: Callable[[], Any], **more: Any) -> Figure | None:
    return Figure(name, title, caption, draw, **more) if there else None


def _where(data: xr.Dataset) -> str:
    """The toys that were trained, as every caption ends."""
    return (
        f"Toy MLPs of {data.sizes['layer']} blocks, d = {data.attrs['width']}, {int(data['step'][-1])} steps, "
        f"{data.sizes['seed']} seeds."
    )


def _arms_where(data: xr.Dataset) -> str:
    if "arm" not in data.coords:
        return ""
    return (
        f"Transformers of {data.sizes['arm_layer']} blocks on the bytes of {data.attrs['text']}, "
        f"{int(data['arm_step'][-1])} steps, {data.sizes['seed']} seeds."
    )
