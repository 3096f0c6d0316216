"""The figures of a dynamics run: drawn put together, with captions that say what was measured on what.

A figure is left out where the run holds none of its variables.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import matplotlib.figure
import numpy as np
import pandas as pd
import xarray as xr

from probe.analyses.dynamics import panels
from probe.analyses.dynamics.config import Config
from probe.analyses.dynamics.interactive import clouds
from probe.analyses.dynamics.panels.depth import NULL_STYLES
from probe.analyses.dynamics.panels.spectral import LABELS, VARIANT_STYLES, random_matrix
from probe.analysis.subject import spread
from probe.plots import captions
from probe.plots.pages import legend_below, outer_labels, panel_rows, shared_legend, titled
from probe.plots.style import geometric_mean, null_line, of_kind
from probe.report import Figure

LINES = "Lines are medians over positions, bands their 95 % intervals, documents resampled; for fresh initialisations "
LINES += "the mean and the range over the seeds."
DEPTH_SCORES = ("henrici_departure", "antisymmetric_fraction", "rotation_fraction", "complex_fraction")
SIZE_SCORES = ("frobenius_norm", "numerical_abscissa", "effective_rank", "participation_ratio")
MORE_SCORES = ("commutator_norm", "spectral_abscissa", "spectral_radius", "stable_rank")
CONTEXTS = {"alone": "of the token alone", "detached": "with norms, softmax and gates frozen"}
INTERVENTIONS = tuple(null for null in NULL_STYLES if null.startswith(("schur", "symmetrised")))


def figures(data: xr.Dataset, config: Config) -> list[Figure]:
    """List the figures that a run's variables allow, in the order of the report.

    Args:
        data: The Dataset of the analysis.
        config: The run's configuration, for the claims' thresholds.

    Returns:
        The figures; nothing is drawn before `Figure.draw` is called.
    """
    made = [
        _depth(data, "K", "depth", "Non-normality and rotation of every block", DEPTH_SCORES),
        _depth(data, "J", "depth-state", "The same of the state's Jacobian J = I + K", DEPTH_SCORES),
        _clouds(data),
        _bottleneck(data, config),
        _interventions(data),
        _directions(data),
        _perturbation(data),
        _range(data),
        _pseudospectra(data),
        _coupling(data),
        _depth(data, "K", "size", "Size and rank of every block's update", SIZE_SCORES),
        _depth(data, "K", "more", "Further scores of K", MORE_SCORES),
        _means(data),
        _eigenvectors(data),
    ]
    return [figure for figure in made if figure is not None]


def _depth(data: xr.Dataset, matrix: Literal["J", "K"], name: str, title: str, scores: tuple[str, ...]) -> Figure:
    words = {
        "K": "Scores of K = J − I, the Jacobian of each block's update, on which the claims are read",
        "J": "Where the update is small against the stream, J → I and all scores of J fall, whatever K does: a fall of "
        "J alone proves nothing, and fresh initialisations show it too",
    }
    identity = "" if name == "depth" else _identity(data)
    null = "" if name in ("size", "more") else " Dotted: a large random matrix."
    return Figure(
        name,
        title,
        f"{words[matrix]}.{null}{identity} First and last block are often outliers and do not enter claims over depth. "
        f"{LINES} "
        f"{_where(data)}",
        partial(panel_rows, [partial(panels.score_by_depth, data, score, matrix) for score in scores], 2, legend=3),
        table=partial(_ends_table, data, matrix, scores),
        alt=f"Line charts over depth of {', '.join(LABELS[score] for score in scores)} of {matrix}.",
    )


def _ends_table(data: xr.Dataset, matrix: str, scores: tuple[str, ...]) -> pd.DataFrame:
    """Medians of the first and the last block, named apart, and of the blocks between them."""
    rows: list[list[object]] = []
    for score in scores:
        values = data[score].sel(matrix=matrix)
        for kind, style in VARIANT_STYLES.items():
            names = of_kind(data["variant"], kind)
            by_layer = values.sel(variant=names).median("query").mean("variant").values
            if names and np.isfinite(by_layer).any():
                inner = float(np.median(by_layer[1:-1])) if len(by_layer) > 2 else np.nan
                rows.append([LABELS[score], style.label, by_layer[0], inner, by_layer[-1]])
    numbers = ["first block", "median of the others", "last block"]
    table = pd.DataFrame(rows, columns=["score", "model", *numbers])
    table[numbers] = table[numbers].map(lambda value: "–" if np.isnan(value) else f"{value:.3g}")
    return table


def _clouds(data: xr.Dataset) -> Figure | None:
    if not data.sizes.get("cloud"):
        return None
    complex_share = random_matrix("complex_fraction", int(data.attrs["d_model"]))
    chosen = spread(data["layer"].values.tolist(), 9)

    return Figure(
        "clouds",
        "Eigenvalues of K through depth",
        f"All eigenvalues of K at {data.sizes['cloud']} positions of as many windows, for {len(chosen)} blocks; the "
        "chart below has every block. Real numbers lie on the horizontal line; the null for a random matrix is a "
        f"disc that is uniformly filled, {complex_share:.1%} of it off the line.{_identity(data)} {_where(data)}",
        partial(panel_rows, [partial(panels.eigenvalue_cloud, data, layer) for layer in chosen], 3, height=2.4),
        interactive=partial(clouds, data),
        alt="Scatter plots of eigenvalues in the complex plane for nine blocks.",
    )


def _bottleneck(data: xr.Dataset, config: Config) -> Figure:
    shown = ("norm_matched", "shuffled_depth")

    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled("a  participation ratio", panels.bottleneck, data, shown),
            titled("b  effective rank", panels.effective_rank_of_product, data, shown),
        ]
        figure = panel_rows(drawn, 2, height=3.0)
        bound = config.thresholds.threshold_bottleneck
        null_line(figure.axes[0], bound, f"the claim's threshold, {bound:g}")
        shared_legend(figure, columns=3)
        return figure

    return Figure(
        "bottleneck",
        "Into how many directions all blocks together funnel a perturbation",
        "Participation ratio (Σσ²)²/Σσ⁴ and effective rank of the product of Jacobians J_l ⋯ J_1, over d. Products of "
        "random maps collapse by themselves, so the null lines decide: every K replaced by a Gaussian matrix of the "
        "same norm (black), the blocks multiplied in random order (grey), fresh initialisations."
        f"{_identity(data, 'product_identity_share')}{_formal(data)} {LINES} {_where(data)}",
        draw,
        alt="Participation ratio and effective rank of the cumulative product over depth, with controls and nulls.",
    )


def _interventions(data: xr.Dataset) -> Figure | None:
    if "null_participation_ratio" not in data:
        return None

    panel = partial(panels.bottleneck, data, ("norm_matched", *INTERVENTIONS), variants=False)
    measured = data["null_participation_ratio"].notnull().any(("draw", "depth")).sum("query")
    few, many = int(measured.min()), int(measured.max())
    return Figure(
        "interventions",
        "The bottleneck without structured non-normality",
        "The product with one thing changed in every block. schur_shuffle keeps eigenvalues, Schur vectors and the "
        "size of the non-normal part of K and shuffles its entries; schur_normal removes that part and scales to the "
        "same ‖K‖ (which scales the eigenvalues), from the Schur form of K, of Kᵀ and of a rotated K, for it depends "
        f"on their order (the latter two at {few} positions); with its own, smaller ‖K‖ it shows little. The null line "
        f"(black): random K of the same norm. Products at {many} positions. {LINES} {_where(data)}",
        partial(panel_rows, [panel], height=3.6, legend=3),
        alt="Participation ratio of the product over depth under interventions on the update's Jacobian.",
    )


def _directions(data: xr.Dataset) -> Figure | None:
    if "lyapunov_exponent" not in data or data.sizes["depth"] < 2:
        return None

    def draw() -> matplotlib.figure.Figure:
        drawn = [
            titled("a  Lyapunov exponents", panels.lyapunov, data),
            titled("b  top input directions", panels.subspace_overlap, data),
            titled("c  growth", panels.singular_growth, data),
        ]
        figure = panel_rows(drawn, 3, height=2.9)
        for ax, columns in zip(figure.axes, (2, 2, 1), strict=True):
            legend_below(ax, columns)
        return figure

    return Figure(
        "directions",
        "How fast directions grow, and whether they stay the same",
        "(a) finite-depth Lyapunov exponents ln σ_i(J_l ⋯ J_1)/l; 0: neither growth nor decay. (b) overlap of the "
        "top-k right singular subspace (inputs that grow most) with that one block before; dotted, the null: k/d. "
        "(c) root-mean-square growth of a random direction; 1: length kept."
        f"{_identity(data, 'product_identity_share')}{_formal(data)} {LINES} {_where(data)}",
        draw,
        alt="Lyapunov exponents, subspace overlaps and growth of the cumulative product over depth.",
    )


def _perturbation(data: xr.Dataset) -> Figure | None:
    if "perturb_error" not in data:
        return None
    horizons = [name for name in ("1", "4", "all") if bool(data["perturb_error"].sel(horizon=name).notnull().any())]

    def draw() -> matplotlib.figure.Figure:
        words = {"1": "1 block on", "4": "4 blocks on", "all": "at the end"}
        drawn = [
            titled(words[horizon] if measure == "error" else "", panels.perturbation, data, measure, horizon)
            for measure in ("error", "cosine")
            for horizon in horizons
        ]
        return outer_labels(panel_rows(drawn, len(horizons), height=2.5, legend=3))

    return Figure(
        "perturbation",
        "Does the product of Jacobians predict the network?",
        "A step of ε times the window's median ‖u‖ before a block, at one position, run on by the real network: "
        "relative error ‖Δ − Cεδ‖/‖Δ‖ and cosine of its change Δ and the linear prediction, medians over positions, "
        f"mean over {data.sizes['start']} blocks. Dotted: the 10 % at which the claim reads ε. The null is 0 error, a "
        f"linear network; at the smallest ε float32 rounding shows. {_where(data)}",
        draw,
        alt="Relative error and cosine of the linear prediction against the size of the step.",
    )


def _range(data: xr.Dataset) -> Figure | None:
    if "epsilon_at_tenth" not in data:
        return None

    def table() -> pd.DataFrame:
        typical = geometric_mean(data["epsilon_at_tenth"], "direction").median("query")
        values = typical.transpose("start", "horizon").values
        table = pd.DataFrame(values, columns=[f"{name} on" for name in data["horizon"].values.tolist()])
        shown = table.map(lambda value: "–" if np.isnan(value) else f"{value:.3g}")
        shown.insert(0, "block", data["start"].values)
        return shown

    return Figure(
        "linear-range",
        "How large a step is the Jacobian good for, through depth?",
        "ε, in units of the window's median ‖u‖, at which the linear prediction is 10 % off, by the block before which "
        "the step is made and the number of blocks to the comparison; geometric mean over the directions. "
        f"Lines are medians over positions, bands their 95 % intervals, documents resampled. {_where(data)}",
        partial(panel_rows, [partial(panels.linear_range, data)], height=2.8, legend=3),
        table=table,
        alt="Line chart of the size of the step at 10 % error over depth, for several horizons.",
    )


def _pseudospectra(data: xr.Dataset) -> Figure | None:
    if "pseudospectrum_sigma_min" not in data:
        return None
    layers = data["chosen"].values.tolist()

    def table() -> pd.DataFrame:
        columns = {"block": layers, "Kreiss constant of K, at least": data["kreiss_constant"].values}
        columns |= {"numerical abscissa": data["chosen_numerical_abscissa"].values}
        columns |= {"spectral abscissa": data["chosen_spectral_abscissa"].values}
        shown = pd.DataFrame(columns)
        return shown.assign(**{name: [f"{value:.3g}" for value in shown[name]] for name in shown.columns[1:]})

    return Figure(
        "pseudospectra",
        "Pseudospectra and Kreiss constants",
        "Level lines of σ_min(zI − K) around the eigenvalues (black) of K, at one position: inside the line of ε lie "
        "the eigenvalues of all matrices within ε of K. The null, a normal matrix, has circles of radius ε. The Kreiss "
        "constant (half-plane form on K − αI, a lower bound) is 1 for it; numerical less spectral abscissa is "
        f"transient growth. {_where(data)}",
        partial(panel_rows, [partial(panels.pseudospectrum, data, layer) for layer in layers], 2, height=2.8),
        table=table,
        alt="Contour plots of pseudospectra of the update's Jacobian for a few blocks.",
    )


def _coupling(data: xr.Dataset) -> Figure | None:
    if "coupling" not in data:
        return None

    measured = int(data["coupling"].notnull().any(("block", "other_block")).sum())
    return Figure(
        "coupling",
        "Do blocks share their singular vectors?",
        "How far K of block i is from diagonal in the 10 leading singular vectors of block j (Aubry et al. 2024); the "
        "diagonal, 0 by definition, is left out. 0 would be perfect coupling, and the null, unrelated blocks, gives "
        f"about 1. Medians over {measured} positions. {_where(data)}",
        partial(panel_rows, [partial(panels.coupling, data)], height=4.0),
        alt="Heat map over pairs of blocks of the distance from coupling.",
    )


def _means(data: xr.Dataset) -> Figure | None:
    if "mean_henrici_departure" not in data:
        return None

    drawn = [partial(panels.mean_score_by_depth, data, score) for score in DEPTH_SCORES[:3]]
    drawn.append(partial(panels.mean_products, data))
    apart = float(np.median(data["mean_spread"].values))
    return Figure(
        "means",
        "Scores of the mean matrix, which the paper uses",
        f"A mean of matrices is smoother than its terms: scores of K̄ over {int(data.attrs['n_mean_windows'])} windows "
        "(black, delete-one jackknife over documents) beside the median of the scores. Single matrices lie "
        f"{apart:.2g} times ‖K̄‖ away from the mean (median over blocks). Last panel: the product of averages is not "
        f"the average of products. No null line: two ways to average are compared. {LINES} {_where(data)}",
        partial(panel_rows, drawn, 2, legend=3),
        alt="Scores of the mean Jacobian and medians of scores over depth; participation ratios of mean products.",
    )


def _eigenvectors(data: xr.Dataset) -> Figure | None:
    if "eigenvector_condition" not in data:
        return None

    return Figure(
        "eigenvectors",
        "Condition of the eigenvectors, and rotation of J's polar factor",
        f"At one position of {data.sizes['eigenvector_window']} windows, a thin line each, and their median. The null "
        "of the condition number is 1, a normal matrix; that of the polar rotation 0, no rotation. Absent where J is "
        f"too near singular for its polar factor to be known. {_where(data)}",
        partial(panel_rows, [partial(panels.eigenvector_condition, data), partial(panels.polar_rotation, data)], 2),
        alt="Condition number of the eigenvectors of K and polar rotation of J over depth.",
    )


def _identity(data: xr.Dataset, variable: str = "identity_share") -> str:
    """The identity's share of what a rank or spectrum is of; empty for a run that did not measure it."""
    if variable not in data:
        return ""
    shares = data[variable].sel(variant="model")
    if variable == "identity_share":
        return f" α I, α = tr(J)/d, has {float(shares.median()):.1%} of ‖J‖² (median)."
    whole = float(shares.isel(depth=-1).median())
    return f" α I, α = tr(C)/d, has {whole:.1%} of ‖C‖² of the product C of all blocks (median)."


def _formal(data: xr.Dataset) -> str:
    """Products of the token alone multiply blocks that never ran after one another."""
    if "alone" not in data["variant"].values:
        return ""
    return " Of the token alone the product is formal: no network was run so."


def _where(data: xr.Dataset) -> str:
    """Model, text, documents and positions, as every caption ends."""
    context = CONTEXTS.get(str(data.attrs.get("context")), "in context")
    few = ""
    if data.sizes["variant"] > 1:
        other = data["henrici_departure"].isel(variant=1, matrix=0).notnull().any("layer")
        few = f"; controls at {int(other.sum())}"
    positions = f"{data.sizes['query']} positions of {captions.documents(data)} documents"
    return f"{captions.model_on_text(data)}, Jacobians {context}: {positions}{few}."
