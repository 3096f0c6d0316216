"""The product over depth under nulls and interventions, at one position of a window.

What makes a bottleneck? Products of random maps collapse by themselves, so the product of the Jacobians is set beside
products in which one thing at a time is changed: updates replaced by Gaussian ones of the same norm, the order of the
blocks permuted, the non-normal part of every update shuffled or removed, every Jacobian made symmetric.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import matrix_norm

from probe import replay, spectra
from probe.analyses.dynamics.config import Config
from probe.analyses.dynamics.schema import NULLS
from probe.analyses.dynamics.subject import ALONE, JACOBIAN_MEMORY, DynamicsSubject
from probe.analysis import Task
from probe.jacobian import JacobianOptions, recorded_jacobian
from probe.runs import Piece, Run
from probe.spectra import lapack
from probe.spectra.products import block_coupling

CHUNK = 4  # blocks whose Schur forms are computed at once, two a core
COUPLING = 10  # singular vectors whose coupling between layers is measured


class Product:
    """A product of matrices along depth, multiplied out at norm 1, for several draws at once.

    Enough for participation ratio and effective rank, which the singular values that drown in rounding (σ_i/σ₁ below
    1e-8, for they are read from CᵀC) do not touch; `probe.spectra.cumulative_spectra` keeps these, at a higher cost.
    A singular value decomposition of C would take thirty times as long as one of a matrix that has not collapsed:
    LAPACK then works on subnormal numbers.

    Args:
        width: Width d of the stream.
    """

    def __init__(self, width: int) -> None:
        self._product = torch.eye(width, dtype=torch.float64)
        self._participation: list[Tensor] = []
        self._rank: list[Tensor] = []

    def step(self, J: Float[Tensor, "draw d d"]) -> None:
        """Multiply the next block's matrices on the left.

        Args:
            J: One matrix a draw.
        """
        product = J @ self._product
        self._product = product / matrix_norm(product)[:, None, None]
        gram = self._product.mT @ self._product
        self._participation.append(matrix_norm(gram).square().reciprocal())  # Σσ² = 1, Σσ⁴ = ‖CᵀC‖²
        share = lapack.eigvalsh(gram[0]).clamp(min=0).sqrt()
        share /= share.sum()
        self._rank.append(torch.special.entr(share).sum().exp())

    def spectrum(self) -> tuple[Float[Tensor, "draw depth"], Float[Tensor, " depth"]]:
        """Read what was multiplied so far.

        Returns:
            Participation ratio of each draw, and effective rank of the first, by depth.
        """
        return torch.stack(self._participation, dim=1), torch.stack(self._rank)


def products(subject: DynamicsSubject, task: Task, run: Run) -> Piece:
    """Multiply the blocks under each null, and couple their singular vectors, at the first position of a window.

    Args:
        subject: Models and text.
        task: Its window.
        run: Not used.

    Returns:
        `null_participation_ratio`, `null_effective_rank`, `null_antisymmetric_fraction` where a null changes the update
        block by block, and `coupling`.
    """
    window, config = task["window"], subject.config
    rows = slice(window, window + 1)
    J = subject.stacked(rows)[:, 0].double()
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + window)
    found: dict[str, Product] = {}
    antisymmetric: dict[str, list[Tensor]] = {}
    for start in range(0, len(J), CHUNK):
        blocks = J[start : start + CHUNK]
        for null, changed in _changed(config, blocks, window, generator).items():
            product = found.setdefault(null, Product(J.shape[-1]))
            for block in range(len(blocks)):
                product.step(changed[:, block])
            fraction = spectra.antisymmetric_fraction(changed - _identity(J))
            antisymmetric.setdefault(null, []).append(fraction.mean(dim=0))
    found["shuffled_depth"] = _shuffled_depth(J, config.draws, generator)
    if config.symmetrised_ov:
        found["symmetrised_ov"], antisymmetric["symmetrised_ov"] = _symmetrised_ov(subject, rows)
    names = [name for name in NULLS if name in found]
    unchanged = torch.full((len(subject.layers),), torch.nan, dtype=torch.float64)
    ratios, ranks, fractions = list[Tensor](), list[Tensor](), list[Tensor]()
    for name in names:
        ratio, rank = found[name].spectrum()
        missing = ratio.new_full((config.draws - len(ratio), ratio.shape[1]), torch.nan)  # where nothing is drawn
        ratios.append(torch.cat([ratio, missing]))
        ranks.append(rank)
        fractions.append(torch.cat(antisymmetric[name])[subject.layers] if name in antisymmetric else unchanged)
    arrays = {
        "null_participation_ratio": torch.stack(ratios),
        "null_effective_rank": torch.stack(ranks),
        "null_antisymmetric_fraction": torch.stack(fractions),
        "coupling": block_coupling(J - _identity(J), min(COUPLING, J.shape[-1])),
    }
    return Piece(arrays, {"null": names, "layer": subject.layers, "query": subject.queries(rows)[0]})


def _changed(
    config: Config, J: Float[Tensor, "layer d d"], window: int, generator: torch.Generator
) -> dict[str, Float[Tensor, "draw layer d d"]]:
    """The blocks' Jacobians under each null that changes them one by one."""
    identity = _identity(J)
    state = spectra.decompose(J)
    state.schur(vectors=True)  # once, before the update asks for it
    update = state.update
    K = update.matrices
    gaussian = torch.randn(config.draws, *K.shape, generator=generator, dtype=K.dtype)
    gaussian *= (matrix_norm(K) / matrix_norm(gaussian))[..., None, None]
    changed = {
        "norm_matched": gaussian,
        "schur_shuffle": spectra.schur_shuffle(update, generator, config.draws),
        "schur_normal": spectra.schur_normal(update)[None],
        "schur_normal_matched": spectra.schur_normal(update, match="frobenius")[None],
        "symmetrised": spectra.symmetrised(state)[None] - identity,
    }
    if window < config.order_windows:
        rotation, _ = torch.linalg.qr(torch.randn(K.shape[-2:], generator=generator, dtype=K.dtype))
        rotated = spectra.schur_normal(rotation.mT @ K @ rotation, match="frobenius")
        changed["schur_normal_rotated"] = (rotation @ rotated @ rotation.mT)[None]
        changed["schur_normal_transposed"] = spectra.schur_normal(K.mT, match="frobenius").mT[None]
    return {null: changed_update + identity for null, changed_update in changed.items()}


def _shuffled_depth(J: Float[Tensor, "layer d d"], draws: int, generator: torch.Generator) -> Product:
    """The product of the same matrices in random orders."""
    orders = torch.stack([torch.randperm(len(J), generator=generator) for _ in range(draws)])
    product = Product(J.shape[-1])
    for step in range(len(J)):
        product.step(J[orders[:, step]])
    return product


def _symmetrised_ov(subject: DynamicsSubject, rows: slice) -> tuple[Product, list[Tensor]]:
    """The product, and the antisymmetric fraction of every block's K, with each head's W_O W_V symmetrised."""
    kind = subject.config.context
    context = replay.record(subject.model, subject.windows().tokens[rows], subject.positions[rows, :1])
    context = context.alone() if kind == ALONE else context
    options = JacobianOptions(context=kind, symmetrised_ov=True, memory=JACOBIAN_MEMORY)
    product, fractions = Product(subject.model.d_model), []
    for layer in range(subject.depth):
        J = recorded_jacobian(context, layer, options)[0].double().cpu()  # one position: one draw
        product.step(J)
        fractions.append(spectra.antisymmetric_fraction(J - _identity(J)))
    return product, fractions


def _identity(J: Float[Tensor, "*batch d d"]) -> Float[Tensor, "d d"]:
    return torch.eye(J.shape[-1], dtype=J.dtype)
