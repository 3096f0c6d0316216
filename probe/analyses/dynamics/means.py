"""The mean matrix of every block, its scores and its product over depth, with one document left out at a time.

A mean of matrices is smoother than its terms: its scores are not the mean of their scores, and the product of averages
is not the average of products. Their intervals come from the jackknife over documents.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.linalg import matrix_norm

from probe.analyses.dynamics import work
from probe.analyses.dynamics.config import Config
from probe.analysis.subject import model_of
from probe.runs import Run
from probe.runs.engine import Unit
from probe.spectra.singular import leading_triplets

CHUNK = 4  # matrices scored at once, two a core
LEADING = 8  # singular vectors of the mean that are kept


def measured_windows(config: Config) -> int:
    """Windows whose matrices enter the mean, at one position each."""
    return min(config.control_windows, work.windows_of(config).n_windows)


def means_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Scores of one block's mean Jacobian, of all documents and of all but one.

    Args:
        config: The run's configuration.
        unit: Which block.
        run: Not used.

    Returns:
        For each score (1 + document, matrix); the first row is of all documents. `spread` (): the root-mean-square of
        ‖J − J̄‖ over ‖K̄‖. `input` and `output` (d, k): leading right and left singular vectors of K̄, what it reads
        and where it writes.
    """
    rows = slice(0, measured_windows(config))
    ((_, J),) = work.jacobians(config, rows, layers=[unit.arguments["layer"]])
    means = left_out_means(J[:, 0].double(), work.windows_of(config).document[rows])
    parts = [work.scores(part[:, None]) for part in means.split(CHUNK)]
    K = means[0] - torch.eye(means.shape[-1], dtype=means.dtype)
    spread = matrix_norm(J[:, 0] - means[0]).square().mean().sqrt() / matrix_norm(K)
    leading = leading_triplets(K, min(LEADING, len(K)))
    found = {name: torch.cat([part[name][:, 0] for part in parts]) for name in work.SCORES}
    return found | {"spread": spread, "input": leading.right, "output": leading.left}


def mean_products_unit(config: Config, unit: Unit, run: Run) -> dict[str, Tensor]:
    """Participation ratio of the product of averages and of the average of products, by depth.

    Args:
        config: The run's configuration.
        unit: The only one.
        run: Not used.

    Returns:
        `product_of_averages` and `average_of_products`, each (depth, 1 + document); the first is of all documents.
    """
    rows = slice(0, measured_windows(config))
    document = work.windows_of(config).document[rows]
    of_averages = singles = torch.eye(model_of(config).d_model, dtype=torch.float64)
    found: dict[str, list[Tensor]] = {"product_of_averages": [], "average_of_products": []}
    for _, matrices in work.jacobians(config, rows):
        J = matrices[:, 0].double()
        of_averages = left_out_means(J, document) @ of_averages
        of_averages = of_averages / matrix_norm(of_averages)[:, None, None]
        singles = J @ singles
        singles = singles / matrix_norm(singles).amax()  # one factor for all: their sizes are their weights
        found["product_of_averages"].append(_participation(of_averages))
        found["average_of_products"].append(_participation(left_out_means(singles, document)))
    return {name: torch.stack(values) for name, values in found.items()}


def left_out_means(matrices: Float[Tensor, "window d d"], document: Int[Tensor, " window"]) -> Float[Tensor, "row d d"]:
    """The mean of all matrices, then for each document, ascending, the mean of those of the others."""
    total, n = matrices.sum(0), len(matrices)
    rows = [total / n]
    groups = document.unique().tolist()
    for group in groups:
        own = document == group
        rest = n - int(own.sum())
        if rest:
            rows.append((total - matrices[own].sum(0)) / rest)
    return torch.stack(rows)


def _participation(product: Float[Tensor, "row d d"]) -> Float[Tensor, " row"]:
    """``(Σσ²)²/Σσ⁴ = ‖C‖⁴/‖CᵀC‖²``."""
    unit = product / matrix_norm(product)[:, None, None]
    ratio: Tensor = matrix_norm(unit.mT @ unit).square().reciprocal()
    return ratio
