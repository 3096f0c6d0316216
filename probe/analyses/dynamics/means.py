"""The mean matrix of every block, its scores and its product over depth, with one document left out at a time.

A mean of matrices is smoother than its terms: its scores are not the mean of their scores, and the product of averages
is not the average of products. Their intervals come from the jackknife over documents.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.linalg import matrix_norm

from probe import spectra
from probe.analyses.dynamics.schema import BOUNDS, SCORES, SIDES
from probe.analyses.dynamics.subject import DynamicsSubject
from probe.analyses.dynamics.work import scores
from probe.analysis import Task
from probe.inference import jackknife
from probe.runs import Piece, Run
from probe.spectra.singular import leading_triplets

CHUNK = 4  # matrices scored at once, two a core
LEADING = 8  # singular vectors of the mean that are kept


def means(subject: DynamicsSubject, task: Task, run: Run) -> Piece:
    """Score the mean of one block's Jacobians, with intervals.

    Args:
        subject: Models and text.
        task: Its layer.
        run: Not used.

    Returns:
        `mean_*`; `mean_spread`, the root-mean-square of ‖J − J̄‖ over ‖K̄‖; and `directions`, the leading right and left
        singular vectors of K̄: what it reads and where it writes.
    """
    rows = slice(0, subject.control_windows)
    ((_, J),) = subject.jacobians(rows, layers=[task["layer"]])
    averages = left_out_means(J[:, 0].double(), subject.windows().document[rows])
    parts = [scores(spectra.decompose(part)) for part in averages.split(CHUNK)]
    K = averages[0] - torch.eye(averages.shape[-1], dtype=averages.dtype)
    leading = leading_triplets(K, min(LEADING, len(K)))
    arrays = {f"mean_{name}": jackknifed(torch.cat([part[name] for part in parts], dim=1).T) for name in SCORES}
    vectors = {
        "mean_spread": matrix_norm(J[:, 0] - averages[0]).square().mean().sqrt() / matrix_norm(K),
        "directions": torch.stack([leading.right, leading.left]),
    }
    return Piece(arrays | vectors, {"bound": BOUNDS, "side": SIDES})


def mean_products(subject: DynamicsSubject, task: Task, run: Run) -> Piece:
    """Count the directions of the product of averages and of the average of products, by depth, with intervals.

    Args:
        subject: Models and text.
        task: The only one.
        run: Not used.

    Returns:
        `product_of_averages` and `average_of_products`.
    """
    rows = slice(0, subject.control_windows)
    document = subject.windows().document[rows]
    of_averages = singles = torch.eye(subject.model.d_model, dtype=torch.float64)
    found: dict[str, list[Tensor]] = {"product_of_averages": [], "average_of_products": []}
    for _, matrices in subject.jacobians(rows):
        J = matrices[:, 0].double()
        of_averages = left_out_means(J, document) @ of_averages
        of_averages = of_averages / matrix_norm(of_averages)[:, None, None]
        singles = J @ singles
        singles = singles / matrix_norm(singles).amax()  # one factor for all: their sizes are their weights
        found["product_of_averages"].append(_participation(of_averages))
        found["average_of_products"].append(_participation(left_out_means(singles, document)))
    arrays = {name: np.exp(jackknifed(torch.stack(ratios, dim=1).log())) for name, ratios in found.items()}
    return Piece(arrays, {"bound": BOUNDS})


def left_out_means(matrices: Float[Tensor, "window d d"], document: Int[Tensor, " window"]) -> Float[Tensor, "row d d"]:
    """Average matrices, leaving one document out at a time.

    Args:
        matrices: One of each window.
        document: That each window is from.

    Returns:
        The mean of all, then for each document, ascending, the mean of those of the others.
    """
    total, n = matrices.sum(0), len(matrices)
    rows = [total / n]
    groups = document.unique().tolist()
    for group in groups:
        own = document == group
        rest = n - int(own.sum())
        if rest:
            rows.append((total - matrices[own].sum(0)) / rest)
    return torch.stack(rows)


def jackknifed(rows: Float[Tensor, "row ..."]) -> Float[np.ndarray, "bound ..."]:
    """Bound a value by what it is with one document left out.

    Args:
        rows: Of all documents, then of all but one.

    Returns:
        The value of all documents and the ends of its interval, NaN of a single document.
    """
    # the jackknife's own estimate, which corrects a bias of first order, may leave the range of a bounded score
    whole, left_out = rows[0].numpy(), rows[1:].numpy()
    n = len(left_out)
    if n < 2:
        return np.stack([whole, np.full_like(whole, np.nan), np.full_like(whole, np.nan)])

    def statistic(index: np.ndarray) -> np.ndarray:
        absent = np.setdiff1d(np.arange(n), index)
        return left_out[absent[0]] if len(absent) else whole

    interval = jackknife(statistic, np.arange(n))
    half = (np.asarray(interval.high) - np.asarray(interval.low)) / 2
    return np.stack([whole, whole - half, whole + half])


def _participation(product: Float[Tensor, "row d d"]) -> Float[Tensor, " row"]:
    """``(Σσ²)²/Σσ⁴ = ‖C‖⁴/‖CᵀC‖²``."""
    unit = product / matrix_norm(product)[:, None, None]
    ratio: Tensor = matrix_norm(unit.mT @ unit).square().reciprocal()
    return ratio
