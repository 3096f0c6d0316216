"""A batch of matrices with its factorisations, each computed when it is first needed and then kept."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Complex, Float, Real
from torch import Tensor
from torch.linalg import matrix_norm

from probe.errors import InputError
from probe.spectra import lapack
from probe.spectra.lapack import SchurForm


def real(matrices: Any) -> Tensor:
    """Take what came as matrices: real tensors, as float64 and without their graph.

    Args:
        matrices: A tensor of any real dtype.

    Returns:
        The same numbers in float64.

    Raises:
        InputError: If it is no tensor, or complex.
    """
    require_real(matrices)
    found: Tensor = matrices.detach().double()
    return found


def require_real(matrices: Any) -> None:
    """Refuse what is no tensor, and complex tensors, whose imaginary part would be dropped.

    Args:
        matrices: What came as matrices.

    Raises:
        InputError: If it is no tensor, or complex.
    """
    if not isinstance(matrices, Tensor):
        raise InputError(
            f"matrices must be tensors of torch, got {type(matrices).__name__}: pass torch.as_tensor(matrices)"
        )
    if matrices.is_complex():
        raise InputError(
            f"the matrices must be real, got {str(matrices.dtype).removeprefix('torch.')}: pass A.real if nothing is "
            "lost, or [[A.real, −A.imag], [A.imag, A.real]], which has each singular value twice"
        )


def scale_of(A: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
    """Find the power of two at or below the largest entry, by which a division is exact.

    Args:
        A: Matrices in float64.

    Returns:
        Powers of two; 1 for a zero matrix and where an entry is not finite.
    """
    largest = A.abs().amax((-2, -1))
    scale = largest / (2 * torch.frexp(largest).mantissa)
    return torch.where((largest > 0) & largest.isfinite(), scale, 1.0)


def frobenius_norm(A: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
    """Compute ``‖A‖_F`` without squares that overflow or vanish.

    Args:
        A: Matrices in float64.

    Returns:
        The norms.
    """
    scale = scale_of(A)
    norm: Tensor = matrix_norm(A / scale[..., None, None]) * scale
    return norm


class Factors:
    """Square matrices in float64, and the factorisations that have been computed so far.

    The eigenvalues come from a Schur form without vectors, which costs a few per cent more than the eigenvalues alone
    and serves the departure from normality and the resolvent too; only where a GPU is faster at eigenvalues are they
    computed alone.

    Args:
        matrices: Finite matrices of any float dtype, (..., d, d).
        origin: The factors of ``matrices + I``; Schur form, eigenvalues and eigenvectors are then taken from there.

    Raises:
        InputError: If the matrices are not real tensors, not square, or of no rows.
    """

    def __init__(self, matrices: Float[Tensor, "*batch m n"], *, origin: Factors | None = None) -> None:
        matrices = real(matrices)
        if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
            raise InputError(f"the matrices must be square, got shape {tuple(matrices.shape)}: pass (..., d, d)")
        if not matrices.shape[-1]:
            raise InputError(f"the matrices must have at least one row, got shape {tuple(matrices.shape)}: pass others")
        self.matrices: Float[Tensor, "*batch d d"] = matrices
        self._origin = origin
        self._schur: SchurForm | None = None

    @property
    def d(self) -> int:
        """Width of the matrices."""
        return self.matrices.shape[-1]

    @cached_property
    def frobenius_norm(self) -> Float[Tensor, "*batch"]:
        """``‖A‖_F``, (...)."""
        return frobenius_norm(self.matrices)

    @cached_property
    def scale(self) -> Float[Tensor, "*batch"]:
        """The power of two below the largest entry, (...): squares of ``A / scale`` neither overflow nor vanish."""
        return scale_of(self.matrices)

    @cached_property
    def scaled(self) -> Float[Tensor, "*batch d d"]:
        """``A / scale``, (..., d, d), exact."""
        return self.matrices / self.scale[..., None, None]

    def schur(self, *, vectors: bool = False) -> SchurForm:
        """Compute the real Schur form once; once more if vectors are asked for and it has none.

        Args:
            vectors: True if Q is needed.

        Returns:
            The form; with ``vectors=False`` Q may be None.
        """
        if self._origin is not None:
            T, Q, values = self._origin.schur(vectors=vectors)
            return SchurForm(T - torch.eye(self.d, dtype=T.dtype, device=T.device), Q, values - 1)
        if self._schur is None or (vectors and self._schur.Q is None):
            # LAPACK scales what is near the ends of float64 too, but then the eigenvalues come in another order.
            T, Q, values = lapack.schur(self.scaled, vectors=vectors)
            scale = self.scale[..., None]
            self._schur = SchurForm(T * scale[..., None], Q, values * scale)
        return self._schur

    @cached_property
    def eigenvalues(self) -> Complex[Tensor, "*batch d"]:
        """Eigenvalues, complex128, (..., d)."""
        if self._origin is not None:
            return self._origin.eigenvalues - 1
        if self._schur is None and lapack.device_policy("eigvals", self.d).type != "cpu":
            return lapack.eigvals(self.matrices)
        return self.schur().eigenvalues

    @cached_property
    def eigenvectors(self) -> Complex[Tensor, "*batch d d"]:
        """Right eigenvectors in columns of length 1, (..., d, d)."""
        return self._origin.eigenvectors if self._origin is not None else lapack.eig(self.matrices)[1]

    @cached_property
    def svd(self) -> tuple[Float[Tensor, "*batch d d"], Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """U, the decreasing singular values and Vᵀ."""
        left, values, right = lapack.svd(self.matrices)
        return left, values, right

    @cached_property
    def singular_values(self) -> Float[Tensor, "*batch d"]:
        """Singular values, decreasing, (..., d)."""
        known: Any = vars(self).get("svd")  # cached_property keeps its value there
        return lapack.svdvals(self.matrices) if known is None else known[1]


Matrices: TypeAlias = Real[Tensor, "*batch d d"] | Factors


def factors(A: Matrices) -> Factors:
    """Wrap matrices as factors; factors are returned as they are."""
    return A if isinstance(A, Factors) else Factors(A)
