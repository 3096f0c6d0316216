"""One affine map for all tokens: baselines, ridge regression from sufficient statistics, and its reduced-rank optimum.

All are affine: x and y are centred by their means, ``ŷ = ȳ + (x − x̄) W``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from probe import display, plots
from probe.boundary import at_least, public
from probe.errors import InputError
from probe.maps.base import Map, Validation, check_pair, row_blocks

# Relative to the mean eigenvalue of the covariance, which a few outlier coordinates raise far above the median one:
# small values must be within reach.
RIDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)

AnyLinear = TypeVar("AnyLinear", bound="LinearMap")


class SufficientStatistics(display.Shown):
    """The sums over pairs (x, y) that ridge regression needs, from one pass over any number of tokens.

    O(d² + d e) memory. Means and centred sums of products in float64, merged by the pairwise update of Chan, Golub &
    LeVeque (*The American Statistician* 37, 1983), so that large means cost no digits.

    Args:
        d: Width of x.
        e: Width of y.
        device: Where the sums live and the products are computed.

    Attributes:
        count: Number of tokens n.
        mean_x: x̄, (d,).
        mean_y: ȳ, (e,).
        xx: Σ (x − x̄)(x − x̄)ᵀ, (d, d).
        xy: Σ (x − x̄)(y − ȳ)ᵀ, (d, e).
        yy: Σ (y − ȳ)² of each coordinate, (e,).
    """

    @public(d=at_least(1), e=at_least(1))
    def __init__(self, d: int, e: int, device: torch.device | str = "cpu") -> None:
        try:
            device = torch.device(device)
        except RuntimeError as error:
            raise InputError(f"device= must be one that torch knows, got {device!r}: try cpu") from error
        self.count = 0
        self.mean_x, self.mean_y = (torch.zeros(width, dtype=torch.float64, device=device) for width in (d, e))
        self.xx, self.xy = (torch.zeros(d, width, dtype=torch.float64, device=device) for width in (d, e))
        self.yy = torch.zeros(e, dtype=torch.float64, device=device)

    @public
    def update(self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> SufficientStatistics:
        """Add tokens: one more block of a stream.

        Args:
            x: States, (n, d), any float dtype.
            y: Targets, (n, e).

        Returns:
            The statistics themselves.

        Raises:
            InputError: If shapes do not agree, or a value is not finite.
        """
        check_pair(x, y, widths=(len(self.mean_x), len(self.mean_y)))
        for start, states in row_blocks(x, elements=2**21):
            x64 = states.to(self.xx, copy=True)
            y64 = y[start : start + len(states)].to(self.xy, copy=True)
            mean_x, mean_y = x64.mean(0), y64.mean(0)
            self._shift_means(len(states), mean_x, mean_y)
            x64 -= mean_x
            y64 -= mean_y
            self.xx.addmm_(x64.T, x64)
            self.xy.addmm_(x64.T, y64)
            self.yy += y64.square().sum(0)
        return self

    @public
    def merge(self, other: SufficientStatistics) -> SufficientStatistics:
        """Add the tokens of other statistics.

        Args:
            other: Statistics of other tokens, of the same widths.

        Returns:
            The statistics themselves, as if they had come from all tokens.

        Raises:
            InputError: If the widths differ.
        """
        if other.xy.shape != self.xy.shape:
            raise InputError(f"statistics must share their widths, got {tuple(self.xy.shape)}, {tuple(other.xy.shape)}")
        if other.count:
            self._shift_means(other.count, other.mean_x, other.mean_y)
            self.xx += other.xx
            self.xy += other.xy
            self.yy += other.yy
        return self

    def _facts(self) -> dict[str, object]:
        return {"count": self.count, "widths": (len(self.mean_x), len(self.mean_y))}

    def _shift_means(self, count: int, mean_x: Tensor, mean_y: Tensor) -> None:
        """Move to the means of both parts and add the scatter between them to the sums of products."""
        total = self.count + count
        gap_x, gap_y = mean_x - self.mean_x, mean_y - self.mean_y
        weight = self.count * count / total
        self.xx.addr_(gap_x, gap_x, alpha=weight)
        self.xy.addr_(gap_x, gap_y, alpha=weight)
        self.yy.addcmul_(gap_y, gap_y, value=weight)
        self.mean_x += gap_x * (count / total)
        self.mean_y += gap_y * (count / total)
        self.count = total


@public
@dataclass(eq=False)
class ZeroMap(Map):
    """The map to no update at all, ``ŷ = 0``: relative error 1 by definition."""

    def _fit(self, x: Tensor, y: Tensor, groups: Tensor | None, validation: Validation | None) -> None:
        """Nothing beyond the widths is needed."""

    def _predict(self, x: Tensor, groups: Tensor | None) -> Tensor:
        return x.new_zeros(len(x), self.d_out_)


@public
@dataclass(eq=False)
class MeanMap(Map):
    """The map to the mean of the fitted targets, ``ŷ = ȳ``.

    Attributes:
        mean_y_: ȳ, (e,).
    """

    mean_y_: Tensor = field(init=False, repr=False)

    def _fit(self, x: Tensor, y: Tensor, groups: Tensor | None, validation: Validation | None) -> None:
        self.mean_y_ = y.mean(0, dtype=torch.float64)

    def _predict(self, x: Tensor, groups: Tensor | None) -> Tensor:
        return self.mean_y_.to(x).repeat(len(x), 1)


@public
@dataclass(eq=False)
class DiagonalMap(Map):
    """A scale and an offset for each coordinate by least squares, ``ŷ_j = ȳ_j + (x_j − x̄_j) w_j``; needs e = d.

    Attributes:
        mean_x_: x̄, (d,).
        mean_y_: ȳ, (d,).
        weight_: w, (d,); 0 where a coordinate does not vary.
    """

    mean_x_: Tensor = field(init=False, repr=False)
    mean_y_: Tensor = field(init=False, repr=False)
    weight_: Tensor = field(init=False, repr=False)

    def _fit(self, x: Tensor, y: Tensor, groups: Tensor | None, validation: Validation | None) -> None:
        if self.d_in_ != self.d_out_:
            raise InputError(f"a diagonal map needs x and y of one width, got {self.d_in_} and {self.d_out_}")
        self.mean_x_, self.mean_y_ = x.mean(0, dtype=torch.float64), y.mean(0, dtype=torch.float64)
        squares, products = torch.zeros_like(self.mean_x_), torch.zeros_like(self.mean_x_)
        for start, states in row_blocks(x):
            x64 = states.double() - self.mean_x_
            squares += x64.square().sum(0)
            products += (x64 * (y[start : start + len(states)].double() - self.mean_y_)).sum(0)
        constant = squares <= len(x) * (torch.finfo(torch.float64).eps * self.mean_x_) ** 2
        self.weight_ = torch.where(constant, 0.0, products / squares)

    def _predict(self, x: Tensor, groups: Tensor | None) -> Tensor:
        return self.mean_y_.to(x) + (x - self.mean_x_.to(x)) * self.weight_.to(x)


@public
@dataclass(eq=False)
class LinearMap(Map):
    """One affine map for all tokens by ridge regression, ``W = (XᵀX + λI)⁻¹ XᵀY`` with x and y centred.

    ``λ = ridge · mean eigenvalue of XᵀX``, so that the option means the same for any number of tokens and any scale.
    One eigendecomposition of XᵀX serves all values of λ: O(n d (d + e) + d³) time, O(d² + d e) memory.

    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> linear = LinearMap().fit(x, 2 * x + 1)
    >>> round(linear.score(x, 2 * x + 1), 3)
    1.0

    Args:
        ridge: Relative strength of the penalty; 0 is least squares (of least norm where x is rank deficient). None
            chooses among `RIDGES`: by the squared error on validation pairs, or without them by generalised
            cross-validation, ``n RSS / (n − tr H)²`` (Golub, Heath & Wahba, *Technometrics* 21, 1979).

    Attributes:
        weight_: W, (d, e), float64.
        mean_x_: x̄, (d,).
        mean_y_: ȳ, (e,).
        ridge_: The relative strength that was used.
        penalty_: λ itself, called alpha in other libraries.
    """

    ridge: float | None = field(default=None, kw_only=True)
    weight_: Tensor = field(init=False, repr=False)
    mean_x_: Tensor = field(init=False, repr=False)
    mean_y_: Tensor = field(init=False, repr=False)
    ridge_: float = field(init=False, repr=False)
    penalty_: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.ridge is not None and self.ridge < 0:
            raise InputError(f"ridge must be at least 0, or None to choose it, got {self.ridge}: pass another")

    @public
    def fit_statistics(
        self: AnyLinear,
        statistics: SufficientStatistics,
        *,
        validation: Validation | SufficientStatistics | None = None,
    ) -> AnyLinear:
        """Fit from sums that were gathered in one pass over any number of tokens.

        Args:
            statistics: Sums gathered by `SufficientStatistics.update`.
            validation: Pairs (x, y) to choose the ridge by, as for `fit`, or the statistics of such pairs.

        Returns:
            The map itself.

        Raises:
            InputError: If the statistics hold fewer than two tokens, or the validation pairs do not fit them.
        """
        if statistics.count < 2:
            raise InputError(
                f"a linear map needs at least 2 tokens, the statistics hold {statistics.count}: add tokens by update"
            )
        d, e = statistics.xy.shape
        if isinstance(validation, SufficientStatistics):
            if validation.xy.shape != (d, e) or not validation.count:
                raise InputError(
                    f"statistics to choose the ridge by must hold tokens and be {(d, e)} wide as the fitted ones, got "
                    f"{validation.count} tokens and {tuple(validation.xy.shape)}: gather them alike"
                )
        elif validation is not None:
            check_pair(*validation, widths=(d, e))
        self.d_in_, self.d_out_ = d, e
        self.mean_x_, self.mean_y_ = statistics.mean_x.clone(), statistics.mean_y.clone()
        normal = _NormalEquations(statistics)
        self.ridge_ = self._choose(normal, validation) if self.ridge is None else self.ridge
        self.penalty_ = self.ridge_ * normal.mean_eigenvalue
        self.weight_ = self._solve(normal, self.penalty_)
        return self

    def plot(self, **options: Any) -> plots.Picture:
        """Draw the fitted matrix W: row i is what coordinate i of a state adds to each coordinate of the target.

        Args:
            **options: Of `probe.plots.heat_map`, such as `clip`, `ax` and `width`.

        Returns:
            The picture; the scale leaves out the largest thousandth of the entries unless `clip` says otherwise.

        Raises:
            InputError: If the map is not fitted.
        """
        self._check_fitted()
        usual: dict[str, Any] = {"clip": 0.999, "title": repr(self), "label": "W"}
        return plots.heat_map(self.weight_, **(usual | options))

    def _fit(self, x: Tensor, y: Tensor, groups: Tensor | None, validation: Validation | None) -> None:
        statistics = SufficientStatistics(self.d_in_, self.d_out_, x.device).update(x, y)
        self.fit_statistics(statistics, validation=validation)

    def _predict(self, x: Tensor, groups: Tensor | None) -> Tensor:
        return self.mean_y_.to(x) + (x - self.mean_x_.to(x)) @ self.weight_.to(x)

    def _solve(self, normal: _NormalEquations, penalty: float) -> Tensor:
        """Coefficients for one penalty."""
        return normal.coefficients(penalty)

    def _choose(self, normal: _NormalEquations, validation: Validation | SufficientStatistics | None) -> float:
        """The best of `RIDGES`."""
        if validation is None:
            criterion = [normal.cross_validation(ridge * normal.mean_eigenvalue) for ridge in RIDGES]
        elif isinstance(validation, SufficientStatistics):
            weights = (self._solve(normal, ridge * normal.mean_eigenvalue) for ridge in RIDGES)
            criterion = [self._squared_error(weight, validation) for weight in weights]
        else:
            x, y = validation[0].to(self.mean_x_) - self.mean_x_, validation[1].to(self.mean_y_) - self.mean_y_
            weights = (self._solve(normal, ridge * normal.mean_eigenvalue) for ridge in RIDGES)
            criterion = [float((y - x @ weight).square().sum()) for weight in weights]
        return RIDGES[criterion.index(min(criterion))]

    def _squared_error(self, weight: Tensor, held: SufficientStatistics) -> float:
        """Σ ‖y − ȳ − (x − x̄) W‖² over other tokens, with the fitted means."""
        around = held.yy.sum() - 2 * (weight * held.xy).sum() + (weight * (held.xx @ weight)).sum()
        off = held.mean_y - self.mean_y_ - (held.mean_x - self.mean_x_) @ weight
        return float(around + held.count * off.square().sum())


@public
@dataclass(eq=False)
class ReducedRankMap(LinearMap):
    """The best affine map whose matrix has at most rank r, by the ridge objective ``‖Y − XW‖² + λ‖W‖²``.

    The full ridge solution projected on the top-r eigenvectors V of ``YᵀX (XᵀX + λI)⁻¹ XᵀY``: ``W_r = W V Vᵀ``. For
    λ = 0 these are the directions of the fitted values (Izenman, *Journal of Multivariate Analysis* 5, 1975); with a
    ridge Mukherjee & Zhu, *Statistical Analysis and Data Mining* 4, 2011. Neither is the truncated SVD of W.

    Args:
        rank: Largest rank r of the matrix; from min(d, e) on, this is `LinearMap`.
        ridge: As for `LinearMap`; validation pairs judge maps of this rank, cross-validation the full map.
    """

    rank: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise InputError(f"rank must be at least 1, got {self.rank}: choose a larger one")

    def _solve(self, normal: _NormalEquations, penalty: float) -> Tensor:
        directions: Tensor = torch.linalg.eigh(normal.explained(penalty)).eigenvectors[:, -self.rank :]
        return normal.coefficients(penalty) @ directions @ directions.T


class _NormalEquations:
    """``XᵀX = V diag(s²) Vᵀ`` and ``Z = VᵀXᵀY``: ridge solutions for every penalty without another factorisation."""

    def __init__(self, statistics: SufficientStatistics) -> None:
        squares, vectors = torch.linalg.eigh(statistics.xx)
        # Below this, eigenvalues are rounding of the largest: directions in which x does not vary.
        kept = squares > squares[-1].clamp(min=0) * len(squares) * torch.finfo(torch.float64).eps
        self.count = statistics.count
        self.mean_eigenvalue = float(statistics.xx.diagonal().mean())
        self.squares, self.vectors = squares[kept], vectors[:, kept]
        self.targets = self.vectors.T @ statistics.xy
        self.fitted = self.targets.square().sum(1) / self.squares  # energy of y along each left singular vector of x
        self.total = float(statistics.yy.sum())

    def coefficients(self, penalty: float) -> Tensor:
        """Compute ``(XᵀX + λI)⁻¹ XᵀY``, (d, e)."""
        coefficients: Tensor = self.vectors @ (self.targets / (self.squares + penalty)[:, None])
        return coefficients

    def explained(self, penalty: float) -> Tensor:
        """Compute ``YᵀX (XᵀX + λI)⁻¹ XᵀY``, (e, e)."""
        explained: Tensor = self.targets.T @ (self.targets / (self.squares + penalty)[:, None])
        return explained

    def cross_validation(self, penalty: float) -> float:
        """Compute ``n RSS / (n − tr H)²``; infinite where no degree of freedom is left."""
        shrinkage = self.squares / (self.squares + penalty)
        freedom = self.count - 1 - float(shrinkage.sum())  # the mean is one fitted parameter
        if freedom < 0.5:
            return float("inf")
        # Least squares leaves the first part, shrinkage adds the second: both are sums of squares, nothing cancels.
        unexplained = max(self.total - float(self.fitted.sum()), 0.0)
        shrunk = float(((1 - shrinkage).square() * self.fitted).sum())
        return self.count * (unexplained + shrunk) / freedom**2
