"""The planted errors of `python -m tests.mutants`, by file: fragment, what replaces it, the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants.boundary import BOUNDARY
from tests.mutants.communities import COMMUNITIES
from tests.mutants.directions import DIRECTIONS
from tests.mutants.dynamics import DYNAMICS
from tests.mutants.graphs import GRAPHS
from tests.mutants.jacobian import JACOBIAN
from tests.mutants.lens import LENS
from tests.mutants.lens_analysis import LENS_ANALYSIS
from tests.mutants.patching import PATCHING
from tests.mutants.plots import PLOTS
from tests.mutants.results import RESULTS
from tests.mutants.runs import RUNS
from tests.mutants.spectra import SPECTRA
from tests.mutants.training import TRAINING
from tests.mutants.weights import WEIGHTS


@dataclass(frozen=True)
class Mutant:
    """One planted error."""

    file: str
    fragment: str
    replacement: str
    tests: str


def _mutants(file: str, *groups: tuple[str, list[tuple[str, str]]]) -> list[Mutant]:
    """The mutants of one file, in groups that the same tests watch."""
    return [Mutant(file, old, new, tests) for tests, pairs in groups for old, new in pairs]


GEOMETRY = _mutants(
    "probe/geometry.py",
    (
        "tests/test_geometry.py",
        [
            ("(_unit(a) * _unit(b)).sum(-1).clamp(-1, 1)", "(_unit(a) * _unit(b)).sum(-1).abs().clamp(-1, 1)"),
            ("(_unit(a) * _unit(b)).sum(-1)", "(_unit(a) * b).sum(-1)"),
            (
                "torch.atan2(vector_norm(a - b, dim=-1), vector_norm(a + b, dim=-1))",
                "torch.atan2(vector_norm(a + b, dim=-1), vector_norm(a - b, dim=-1))",
            ),
            ("torch.rad2deg(2 * half)", "torch.rad2deg(half)"),
            (
                "vector_norm(y - y_hat, dim=-1) / vector_norm(y, dim=-1)",
                "vector_norm(y - y_hat, dim=-1) / vector_norm(y_hat, dim=-1)",
            ),
            (
                "vector_norm(y - y_hat, dim=-1) / vector_norm(y, dim=-1)",
                "vector_norm(y + y_hat, dim=-1) / vector_norm(y, dim=-1)",
            ),
            ("(y64 - y64.mean(-2, keepdim=True))", "(y64 - y64.mean(-1, keepdim=True))"),
            ("(y64 - y64.mean(-2, keepdim=True))", "y64"),
            ("(1 - residual / total)", "(1 - total / residual)"),
            ("(1 - relative_error.square())", "(1 - relative_error)"),
            ("(1 - relative_error.square())", "(1 + relative_error.square())"),
            ("rows = rows - rows.mean(-2, keepdim=True)", "rows = rows + rows.mean(-2, keepdim=True)"),
            ("rows = rows - rows.mean(-2, keepdim=True)", "rows = rows - rows.mean(-1, keepdim=True)"),
            ("directions[..., -rank:].flip(-1)", "directions[..., -rank:]"),
            ("directions[..., -rank:].flip(-1)", "directions[..., :rank]"),
            ("directions[..., -rank:].flip(-1)", "directions.mT[..., -rank:].flip(-1)"),
            ("(_unit(x) @ basis).square()", "(x @ basis).square()"),
            ("(_unit(x) @ basis).square()", "(_unit(x) @ basis).abs()"),
            ("overlap = wide.mT @ narrow", "overlap = wide.mT @ narrow.flip(-2)"),
            ("torch.linalg.svdvals(narrow - wide @ overlap)", "torch.linalg.svdvals(narrow + wide @ overlap)"),
            ("sines.arcsin(), cosines.arccos()", "cosines.arccos(), sines.arcsin()"),
            ("torch.where(finite[..., 0], angles, torch.nan)", "torch.where(finite[..., 0], angles, 0.0)"),
            ("svdvals(narrow - wide @ overlap).flip(-1)", "svdvals(narrow - wide @ overlap)"),
            ("x.double().square().mean(-2).sqrt()", "x.double().mean(-2).abs()"),
            ("x.double().square().mean(-2).sqrt()", "x.double().square().mean(-2)"),
            ("scale > factor * scale.median()", "scale > factor * scale.mean()"),
            ("scale > factor * scale.median()", "scale < factor * scale.median()"),
            ("x64 - x64.mean(0), y64 - y64.mean(0)", "x64 - x64.mean(0), y64"),
            ("x64 - x64.mean(0), y64 - y64.mean(0)", "x64, y64 - y64.mean(0)"),
            ("(kept.mT @ (y64 / y64.norm())).square().sum()", "(kept.mT @ y64).square().sum()"),
            ("singular > singular[0] * max(x.shape)", "singular > 0 * max(x.shape)"),
            ("    return norms[..., None] * _unit(normal)\n", "    return norms[..., None] * normal\n"),
            ("    return norms[..., None] * _unit(normal)\n", "    return norms[..., None].square() * _unit(normal)\n"),
            ("vectors * values.clamp(min=0).sqrt()) @ vectors.mT", "vectors * values.clamp(min=0)) @ vectors.mT"),
            (
                "vectors * values.clamp(min=0).sqrt()) @ vectors.mT",
                "vectors.mT * values.clamp(min=0).sqrt()) @ vectors",
            ),
            ("norms[..., None] * _unit(normal @ root)", "norms[..., None] * (normal @ root)"),
            ("norms[..., None] * _unit(normal @ root)", "norms[..., None] * _unit(normal) @ root"),
            ("x / vector_norm(x, dim=-1, keepdim=True)", "x / vector_norm(x, ord=1, dim=-1, keepdim=True)"),
        ],
    ),
)

MAPS = [
    *_mutants(
        "probe/maps/base.py",
        (
            "tests/maps/test_maps.py",
            [
                (
                    "explained_variance(y.double(), self.predict(x, groups=groups).double())",
                    "explained_variance(self.predict(x, groups=groups).double(), y.double())",
                ),
            ],
        ),
    ),
    *_mutants(
        "probe/maps/linear.py",
        (
            "tests/maps/test_maps.py",
            [
                ("x64 -= mean_x", "x64 += mean_x"),
                ("y64 -= mean_y", "y64 += mean_y"),
                ("self.xx.addmm_(x64.T, x64)", "self.xx.addmm_(x64.T, x64, alpha=2)"),
                ("self.xy.addmm_(x64.T, y64)", "self.xy.addmm_(x64.T, y64, alpha=-1)"),
                ("self.yy += y64.square().sum(0)", "self.yy += y64.square().mean(0)"),
                ("mean_x - self.mean_x, mean_y - self.mean_y", "self.mean_x - mean_x, self.mean_y - mean_y"),
                ("weight = self.count * count / total", "weight = self.count * count"),
                ("weight = self.count * count / total", "weight = count * count / total"),
                ("self.xx.addr_(gap_x, gap_x, alpha=weight)", "self.xx.addr_(gap_x, gap_x, alpha=-weight)"),
                ("self.xy.addr_(gap_x, gap_y, alpha=weight)", "self.xy.addr_(gap_x, gap_y, alpha=-weight)"),
                ("self.yy.addcmul_(gap_y, gap_y, value=weight)", "self.yy.addcmul_(gap_y, gap_y, value=-weight)"),
                ("gap_x * (count / total)", "gap_x * (self.count / total)"),
                ("gap_y * (count / total)", "gap_y * (self.count / total)"),
                ("self.xx += other.xx", "self.xx -= other.xx"),
                ("self.xy += other.xy", "self.xy -= other.xy"),
                ("self.yy += other.yy", "self.yy -= other.yy"),
                ("x.new_zeros(len(x), self.d_out_)", "x.new_ones(len(x), self.d_out_)"),
                (
                    "        self.mean_y_ = y.mean(0, dtype=torch.float64)",
                    "        self.mean_y_ = y.sum(0, dtype=torch.float64)",
                ),
                ("squares += x64.square().sum(0)", "squares += x64.abs().sum(0)"),
                ("products += (x64 *", "products -= (x64 *"),
                ("torch.where(constant, 0.0, products / squares)", "torch.where(constant, 0.0, squares / products)"),
                ("torch.where(constant, 0.0, products / squares)", "products / squares"),
                ("(x - self.mean_x_.to(x)) * self.weight_.to(x)", "(x + self.mean_x_.to(x)) * self.weight_.to(x)"),
                ("(x - self.mean_x_.to(x)) @ self.weight_.to(x)", "x @ self.weight_.to(x)"),
                ("+ (x - self.mean_x_.to(x)) @ self.weight_.to(x)", "- (x - self.mean_x_.to(x)) @ self.weight_.to(x)"),
                ("self.penalty_ = self.ridge_ * normal.mean_eigenvalue", "self.penalty_ = self.ridge_"),
                ("validation[0].to(self.mean_x_) - self.mean_x_", "validation[0].to(self.mean_x_) + self.mean_x_"),
                ("(y - x @ weight).square()", "(y + x @ weight).square()"),
                ("criterion.index(min(criterion))", "criterion.index(max(criterion))"),
                ("eigenvectors[:, -self.rank :]", "eigenvectors[:, : self.rank]"),
                ("@ directions @ directions.T", "@ directions.T @ directions"),
                (
                    "torch.linalg.eigh(normal.explained(penalty))",
                    "torch.linalg.eigh(normal.coefficients(penalty).T @ normal.coefficients(penalty))",
                ),
                ("torch.linalg.eigh(normal.explained(penalty))", "torch.linalg.eigh(normal.explained(0.0))"),
                ("statistics.xx.diagonal().mean()", "statistics.xx.diagonal().sum()"),
                ("self.targets.square().sum(1) / self.squares", "self.targets.square().sum(1) / self.squares.sqrt()"),
                ("self.targets = self.vectors.T @ statistics.xy", "self.targets = -self.vectors.T @ statistics.xy"),
                (
                    "coefficients: Tensor = self.vectors @ (self.targets / (self.squares + penalty)[:, None])",
                    "coefficients: Tensor = self.vectors @ (self.targets / (self.squares - penalty)[:, None])",
                ),
                (
                    "explained: Tensor = self.targets.T @ (self.targets / (self.squares + penalty)[:, None])",
                    "explained: Tensor = self.targets.T @ (self.targets / (self.squares + penalty).square()[:, None])",
                ),
                (
                    "shrinkage = self.squares / (self.squares + penalty)",
                    "shrinkage = penalty / (self.squares + penalty)",
                ),
                ("self.count - 1 - float(shrinkage.sum())", "self.count - float(shrinkage.sum())"),
                ("self.count - 1 - float(shrinkage.sum())", "self.count - 1 + float(shrinkage.sum())"),
                ("self.total - float(self.fitted.sum())", "self.total + float(self.fitted.sum())"),
                ("(1 - shrinkage).square() * self.fitted", "(1 - shrinkage) * self.fitted"),
                ("(unexplained + shrunk) / freedom**2", "(unexplained - shrunk) / freedom**2"),
                ("(unexplained + shrunk) / freedom**2", "(unexplained + shrunk) / freedom"),
            ],
        ),
    ),
    *_mutants(
        "probe/maps/local.py",
        (
            "tests/maps/test_local.py",
            [
                (
                    "relative_error(y[rows].to(block).expand_as(block), block)",
                    "relative_error(block, y[rows].to(block).expand_as(block))",
                ),
                (
                    "= centre, torch.where(spread > 0, spread, 1.0)",
                    "= centre, torch.where(spread > 0, spread.square(), 1.0)",
                ),
                (".div_(self.scale_.to(x))", ".mul_(self.scale_.to(x))"),
                ("bank.T, alpha=-2)", "bank.T, alpha=2)"),
                ("bank.T, alpha=-2)", "bank.T, alpha=-1)"),
                ("same_group = torch.eq(groups", "same_group = torch.ne(groups"),
                ('distances.masked_fill_(same_group, float("inf"))', "distances.masked_fill_(same_group, 0.0)"),
                ("distances.topk(k, largest=False)", "distances.topk(k, largest=True)"),
                ("vector_norm(one - other, dim=-1)", "vector_norm(one + other, dim=-1)"),
                ("/ vector_norm(y.to(one), dim=-1)", "/ vector_norm(one, dim=-1)"),
                ("self.x = x - self.mean_x[:, None]", "self.x = x + self.mean_x[:, None]"),
                ("self.y = y - self.mean_y[:, None]", "self.y = y"),
                ("self.offset = queries - self.mean_x", "self.offset = queries"),
                (
                    "squares[:, -rank:].flip(1), left[:, :, -rank:].flip(2)",
                    "squares[:, -rank:].flip(1), left[:, :, -rank:]",
                ),
                (
                    "squares[:, -rank:].flip(1), left[:, :, -rank:].flip(2)",
                    "squares[:, -rank:].flip(1), left[:, -rank:, :].mT.flip(2)",
                ),
                ("LEAST_CONDITION * self.squares[:, 0]", "0 * self.squares[:, 0]"),
                ("squares.sum(1) / kept.sum(1).clamp(min=1)", "squares.sum(1)"),
                ("errors.argmin(0, keepdim=True)", "errors.argmax(0, keepdim=True)"),
                ("scores = left.mT @ (self.x @", "scores = -left.mT @ (self.x @"),
                ("scores[:, :, 0] / (squares + penalty[:, None])", "scores[:, :, 0] / (squares - penalty[:, None])"),
                (
                    "scores[:, :, 0] / (squares + penalty[:, None])",
                    "scores[:, :, 0] / (squares + penalty[:, None]).sqrt()",
                ),
                ("self.mean_y + (coefficients[:, None]", "(coefficients[:, None]"),
                ("self.x.square() / squares[:, None], 0.0)", "self.x.abs() / squares[:, None], 0.0)"),
                ("(self.x * self.y).sum(1) / squares, 0.0)", "(self.x * self.y).sum(1) / squares.sqrt(), 0.0)"),
                ("shrinkage = 1 / (1 + strength)", "shrinkage = strength / (1 + strength)"),
                ("(1 - 1 / k - share * shrinkage)", "(1 - share * shrinkage)"),
                ("(1 - 1 / k - share * shrinkage)", "(1 - 1 / k + share * shrinkage)"),
                ("(1 - 1 / k - share * shrinkage)", "(1 - 1 / k - share)"),
                ("torch.where(error < best, shrinkage, chosen)", "torch.where(error > best, shrinkage, chosen)"),
                ("self.mean_y + self.offset * slope", "self.mean_y - self.offset * slope"),
                ("squares.rsqrt()", "squares.sqrt()"),
                ("(self.x + self.y) @ basis", "(self.x - self.y) @ basis"),
                ("(self.x + self.y) @ basis", "self.y @ basis"),
                ("torch.linalg.svd(source.mT @ target)", "torch.linalg.svd(target.mT @ source)"),
                ("stretch.sum(1) / energy, 1.0)", "stretch.sum(1) / energy.sqrt(), 1.0)"),
                ("left_turn @ right_turn", "left_turn @ right_turn.mT"),
                ("(turned - inside) @ basis.mT", "(turned + inside) @ basis.mT"),
                ("(turned - inside) @ basis.mT", "turned @ basis.mT"),
                ("next_state = self.mean_x + self.mean_y", "next_state = self.mean_x - self.mean_y"),
                ("update: Tensor = next_state - self.queries", "update: Tensor = next_state"),
                ("total > 0, squares / total, 0.0", "total > 0, penalty[:, None] / total, 0.0"),
                ("norms - 2 * (shrunk * cross).sum(2)", "norms + 2 * (shrunk * cross).sum(2)"),
                ("norms - 2 * (shrunk * cross).sum(2)", "norms - (shrunk * cross).sum(2)"),
                ("(shrunk @ gram * shrunk).sum(2)", "(shrunk @ gram * left).sum(2)"),
                ("leverage = 1 / k + (shrunk * left).sum(2)", "leverage = (shrunk * left).sum(2)"),
                ("leverage = 1 / k + (shrunk * left).sum(2)", "leverage = 1 / k + (shrunk * shrunk).sum(2)"),
                ("/ (1 - leverage).square()", "/ (1 - leverage)"),
                ("/ (1 - leverage).square()", "/ (1 + leverage).square()"),
            ],
        ),
    ),
    *_mutants(
        "probe/maps/mlp.py",
        (
            "tests/maps/test_mlp.py",
            [
                ("self.mean_y_ = y.mean(0, dtype=torch.float64)", "self.mean_y_ = -y.mean(0, dtype=torch.float64)"),
                ("(y.double() - self.mean_y_).square().mean().sqrt()", "(y.double() - self.mean_y_).square().mean()"),
                (
                    "targets = ((y.double() - self.mean_y_) / self.scale_y_)",
                    "targets = ((y.double() - self.mean_y_) * self.scale_y_)",
                ),
                ("(x - self.mean_x_) / self.scale_x_", "(x + self.mean_x_) / self.scale_x_"),
                ("(x - self.mean_x_) / self.scale_x_", "(x - self.mean_x_) * self.scale_x_"),
                (
                    "self.mean_y_.to(z) + self.scale_y_.to(z) * self._network(z)",
                    "self.mean_y_.to(z) - self.scale_y_.to(z) * self._network(z)",
                ),
                (
                    "gelu(z @ self.weight_in_.to(z) + self.bias_in_.to(z))",
                    "gelu(z @ self.weight_in_.to(z) - self.bias_in_.to(z))",
                ),
                (
                    "+ hidden @ self.weight_out_.to(z) + self.bias_out_.to(z)",
                    "+ hidden @ self.weight_out_.to(z) - self.bias_out_.to(z)",
                ),
                ("- 1) / math.sqrt(inputs)", "- 1) * math.sqrt(inputs)"),
                ("return [torch.zeros(d, e), *inner", "return [uniform(d, d, e), *inner"),
                ("return (step + 1) / warm", "return step / warm"),
                ("return (step + 1) / warm", "return 1.0"),
                ("math.cos(0.5 * math.pi * (step - warm)", "math.sin(0.5 * math.pi * (step - warm)"),
                ("max(1, steps - warm)) ** 4", "max(1, steps - warm)) ** 2"),
                ("math.ceil(WARM_UP * steps)", "math.ceil(WARM_UP)"),
                ("self.scale_x_[:, None] * linear / self.scale_y_", "linear / self.scale_y_"),
                ("self.scale_x_[:, None] * linear / self.scale_y_", "self.scale_x_[:, None] * linear * self.scale_y_"),
                (
                    "(self._network(z[rows]) - targets[rows]).square().mean()",
                    "(self._network(z[rows]) + targets[rows]).square().mean()",
                ),
                ("if curve[-1] < min(curve[:-1]):", "if curve[-1] > min(curve[:-1]):"),
                ("return 1 - float(explained_variance(", "return float(explained_variance("),
                ("curve[: len(curve) - len(curve) // 5].min()", "curve[: len(curve) // 5].min()"),
                ("earlier - curve.min() < 0.01 * earlier", "earlier - curve.min() < 0.1 * earlier"),
                ("earlier - curve.min() < 0.01 * earlier", "earlier - curve.min() > 0.01 * earlier"),
                ("max(1, len(names) // 10)", "max(1, len(names) // 2)"),
            ],
        ),
    ),
]

INFERENCE = _mutants(
    "probe/inference/resampling.py",
    (
        "tests/inference/test_inference.py::TestBootstrap",
        [
            ("generator.integers(len(groups), size=len(groups))", "generator.permutation(len(groups))"),
            ("size=len(groups))]", "size=len(groups) - 1)]"),
            ("t=n_documents < SMALL_SAMPLE", "t=n_documents <= SMALL_SAMPLE"),
            ("t=n_documents < SMALL_SAMPLE", "t=n_documents > SMALL_SAMPLE"),
            (
                "groups = _rows_of_groups(documents)\n    generator",
                "groups = [np.array([row]) for row in range(len(documents))]\n    generator",
            ),
            ("inflation = np.sqrt(n / max(n - 1, 1))", "inflation = np.sqrt((n - 1) / n)"),
            (
                "reach = stats.t.ppf(0.5 + level / 2, max(n - 1, 1)) * inflation",
                "reach = stats.t.ppf(level, max(n - 1, 1)) * inflation",
            ),
            (
                "reach = stats.t.ppf(0.5 + level / 2, max(n - 1, 1)) * inflation",
                "reach = stats.t.ppf(0.5 + level / 2, 1) * inflation",
            ),
            (
                "half = reach * np.nanstd(draws, axis=0, ddof=1)",
                "half = reach * np.nanstd(draws, axis=0, ddof=1) / np.sqrt(n)",
            ),
            ("low, high = estimate - half, estimate + half", "low, high = estimate + half, estimate - half"),
            ("stats.norm.cdf([-reach, reach])", "stats.norm.cdf([-reach / 2, reach / 2])"),
            ("stats.norm.cdf([-reach, reach])", "stats.norm.cdf([reach, -reach])"),
            ("> MISSING_SHARE)", "> 1 - MISSING_SHARE)"),
            ("| ~np.isfinite(estimate) | (n < 2)", "| (n < 2)"),
            ("| ~np.isfinite(estimate) | (n < 2)", "| ~np.isfinite(estimate)"),
            (
                "float(np.asarray(end)[index]) for end in (self.estimate, self.low, self.high)",
                "float(np.asarray(end)[index]) for end in (self.estimate, self.high, self.low)",
            ),
        ],
    ),
    (
        "tests/inference/test_inference.py::TestOtherResampling",
        [
            ("((starts[:, None] + offsets) % n)", "((starts[:, None] - offsets) % n)"),
            ("((starts[:, None] + offsets) % n).ravel()", "((starts[:, None] + offsets) % n).T.ravel()"),
            ("np.stack(draws), n // block, level", "np.stack(draws), n, level"),
            ("n * whole - (n - 1) * left_out.mean(axis=0)", "n * whole + (n - 1) * left_out.mean(axis=0)"),
            ("n * whole - (n - 1) * left_out.mean(axis=0)", "left_out.mean(axis=0)"),
            ("np.sqrt((n - 1) / n * np.square(", "np.sqrt(n / (n - 1) * np.square("),
            (
                "np.square(left_out - left_out.mean(axis=0)).sum(axis=0)",
                "np.square(left_out - left_out.mean(axis=0)).mean(axis=0)",
            ),
            ("stats.t.ppf(0.5 + level / 2, n - 1) * error", "stats.t.ppf(level, n - 1) * error"),
            ("groups[:i] + groups[i + 1 :]", "groups[: i + 1] + groups[i + 1 :]"),
            ("values if control is None else values - control", "values if control is None else values + control"),
            ("difference.std(axis=0, ddof=1) / np.sqrt(n)", "difference.std(axis=0, ddof=1) / n"),
            ("difference.std(axis=0, ddof=1) / np.sqrt(n)", "difference.std(axis=0) / np.sqrt(n)"),
            ("stats.t.ppf(0.5 + level / 2, n - 1) * difference", "stats.t.ppf(0.5 + level / 2, n) * difference"),
        ],
    ),
    (
        "tests/inference/test_inference.py::TestPermutations",
        [
            ("(1 + (~short).sum()) / (1 + len(values))", "(~short).sum() / len(values)"),
            ("(1 + (~short).sum()) / (1 + len(values))", "(1 + (~short).sum()) / len(values)"),
            ('"greater": values < observed', '"greater": values <= observed'),
            ('"greater": values < observed', '"greater": values > observed'),
            ('"less": values > observed', '"less": values < observed'),
            ('"two-sided": np.abs(values) < abs(observed)', '"two-sided": values < observed'),
            ('float("nan") if np.isnan(observed) else ', ""),
            ("order[rows] = generator.permutation(rows)", "order[rows] = generator.permutation(n)[: len(rows)]"),
            ("* len(order) / np.arange(1, len(order) + 1)", "* len(p_values) / np.arange(1, len(order) + 1)"),
            ("* len(order) / np.arange(1, len(order) + 1)", "/ len(order) * np.arange(1, len(order) + 1)"),
            ("np.minimum.accumulate(scaled[::-1])[::-1]", "np.minimum.accumulate(scaled)"),
            (
                "np.split(order, np.flatnonzero(np.diff(label[order])) + 1)",
                "np.split(order, np.flatnonzero(np.diff(label[order])))",
            ),
        ],
    ),
)

RANKS = _mutants(
    "probe/inference/ranks.py",
    (
        "tests/inference/test_inference.py::TestRanking",
        [
            ("cumulated[..., 1:] >= half", "cumulated[..., 1:] > half"),
            ("cumulated[..., 1:] > half", "cumulated[..., 1:] >= half"),
            ("half = cumulated[..., -1:] / 2", "half = cumulated.shape[-1] / 2"),
            ("(lower + upper) / 2, np.nan", "(lower - upper) / 2, np.nan"),
            ("np.where(cumulated[..., -1] > 0, (lower", "np.where(cumulated[..., -1] >= 0, (lower"),
            ("(below + _gather(cumulated, self._last) + 1) / 2", "(below + _gather(cumulated, self._last)) / 2"),
            ("(below + _gather(cumulated, self._last) + 1) / 2", "below + 1"),
            ("below + (self._present(weights) + 1) / 2", "below + (self._present(weights) - 1) / 2"),
            ("below + (self._present(weights) + 1) / 2", "below + 1"),
            ("weights if self._complete else weights * self.finite", "weights"),
            ("np.where(differs[..., :-1], position, 0)", "np.where(differs[..., 1:], position, 0)"),
            ("np.where(differs[..., 1:], position + 1, n)", "np.where(differs[..., 1:], position, n)"),
            ("reshape(*lead, 1) * values.shape[-1]", "reshape(*lead, 1) * index.shape[-1]"),
        ],
    ),
    (
        "tests/inference/test_inference.py::TestSpearman",
        [
            ("np.vecdot(weighted, y), np.vecdot(weighted, x)", "np.vecdot(x, y), np.vecdot(weighted, x)"),
            ("np.vecdot(weighted, x), np.vecdot(y * weights, y)", "np.vecdot(weighted, x), np.vecdot(weighted, x)"),
            ("rho = _cosine_of(np.vecdot(weighted, y),", "rho = _cosine_of(-np.vecdot(weighted, y),"),
            ("(weights > 0).sum(axis=-1) >= 3, rho", "(weights > 0).sum(axis=-1) >= 1, rho"),
            ("joint = joint * ranking.finite", "joint = joint"),
            ("(weights.sum(axis=-1, keepdims=True) + 1) / 2)", "weights.sum(axis=-1, keepdims=True) / 2)"),
            ("product / np.sqrt(np.where(defined, square, 1.0))", "product / np.where(defined, square, 1.0)"),
            ("square = np.asarray(a * b)", "square = np.asarray(a * a)"),
            ("(ranks * weights[..., None, :]) @ np.swapaxes", "ranks @ np.swapaxes"),
            ("scale[..., :, None] * scale[..., None, :]", "scale[..., :, None] * scale[..., :, None]"),
            ("left = pair - cross @", "left = pair + cross @"),
            ("left = pair - cross @ np.linalg.pinv(given, rcond=1e-10, hermitian=True)", "left = pair - cross @ given"),
            ("pinv(given, rcond=1e-10, hermitian=True)", "inv(given)"),
            ("(left[..., 0, 0] < 1e-10)", "(left[..., 0, 0] < -1)"),
            (
                "_cosine_of(left[..., 0, 1], left[..., 0, 0], left[..., 1, 1])",
                "_cosine_of(left[..., 0, 1], left[..., 0, 0], left[..., 0, 0])",
            ),
            ("((weights > 0).sum(axis=-1) < 3)", "((weights > 0).sum(axis=-1) < 0)"),
            ("np.tanh(np.arctanh(", "np.sinh(np.arctanh("),
            (
                "np.arctanh(np.clip(rho, -LARGEST_RHO, LARGEST_RHO)).mean(axis=axis)",
                "np.arctanh(np.clip(rho, -LARGEST_RHO, LARGEST_RHO).mean(axis=axis))",
            ),
        ],
    ),
)

CLAIMS = _mutants(
    "probe/claims/verdict.py",
    (
        "tests/claims/test_verdict.py",
        [
            ("        if low > bound:\n", "        if high > bound:\n"),
            ("        if low > bound:\n", "        if low >= bound:\n"),
            ('return "short" if high < bound else "astride"', 'return "short" if low < bound else "astride"'),
            ('return "short" if high < bound else "astride"', 'return "short" if high <= bound else "astride"'),
            ("(-ends[1], -ends[0])", "(-ends[0], -ends[1])"),
            ('bound = self.bound if self.direction == "above" else -self.bound', "bound = self.bound"),
            ("if not all(map(math.isfinite, ends))", "if not any(map(math.isfinite, ends))"),
            ("if not condition.holds]\n    if failed", "if condition.holds]\n    if failed"),
            (
                '    if short:\n        return "not supported"',
                '    if len(short) == len(parts):\n        return "not supported"',
            ),
            ('for part in parts if part.place == "missing"]', 'for part in parts[1:] if part.place == "missing"]'),
            ('for part in parts if part.place == "astride"]', 'for part in parts[:1] if part.place == "astride"]'),
            ('if contrast.place in {"short", "astride"}]', 'if contrast.place in {"short"}]'),
            ('if contrast.place in {"short", "astride"}]', 'if contrast.place in {"astride"}]'),
            (
                'for contrast in contrasts if contrast.place == "missing"]',
                'for contrast in contrasts if contrast.place == "lost"]',
            ),
            (
                "for condition in evidence.conditions if not condition.holds",
                "for condition in evidence.conditions if condition.holds",
            ),
            ("if evidence.fixed_by is not None:", "if evidence.fixed_by is None:"),
            ("ci_low=float(interval.low)", "ci_low=float(interval.high)"),
            ("n_units >= needed", "n_units > needed"),
            (
                "values = (None, None, None) if interval is None else (interval.estimate, interval.low, interval.high)",
                "values = (None, None, None) if interval is None else (interval.estimate, interval.high, interval.low)",
            ),
            ("float(value) if math.isfinite(value) else None", "float(value)"),
        ],
    ),
)

TOKENWISE_CLAIMS = _mutants(
    "probe/analyses/tokenwise/claims.py",
    (
        "tests/analyses/test_tokenwise_claims.py",
        [
            ('value["fit"] - value[control] for', 'value[control] - value["fit"] for'),
            ("1.0 - np.square(error)", "1.0 - error"),
            ("fixed_by=identity,", "fixed_by=None,"),
            ('share("update", 4) - share("residual", 4)', 'share("residual", 4) - share("update", 4)'),
            ('share("update", 4) - share("other", 4)', 'share("residual", 4) - share("other", 4)'),
            ('"Δ": value["fit"] - value["other"]', '"Δ": value["other"] - value["fit"]'),
            ("same_sign = len({", "same_sign = True or len({"),
            ('value["fit"] - value[name] for name in MATCHED', 'value[name] - value["fit"] for name in MATCHED'),
            ("float(fisher_mean(one, axis=(0, 1)))", "float(one.mean())"),
            ("np.nanstd(_log(statistic.error), axis=-1)", "np.nanstd(statistic.error, axis=-1)"),
            (
                "self._kl, self._covariates, weights=weights)",
                "self._kl, self._covariates[1:], weights=weights)",
            ),
            ("log_kl - _log(table.get(", "log_kl + _log(table.get("),
            ("gain = gain - _log(", "gain = gain + _log("),
            ('(("high", 2), ("low", 0))', '(("high", 0), ("low", 2))'),
            ('"Δ": value["high"] - value["low"]', '"Δ": value["high"] - value["all"] + 1'),
            ("learned.mean() > 0.5", "learned.mean() > 0.3"),
            ('_log(table.get("instability", neighbours=32)) -', '- _log(table.get("instability", neighbours=32)) +'),
            ("transformers >= 2 and len(counted) - transformers >= 1", "transformers >= 2"),
            (
                "transformers >= 2 and len(counted) - transformers >= 1",
                "transformers >= 1 and len(counted) - transformers >= 1",
            ),
            ('if kinds[model] != "control"]', "]"),
            ('"inconclusive" not in by_model.values()', "True"),
        ],
    ),
)

ROOMS = {
    **COMMUNITIES,
    **BOUNDARY,
    **DIRECTIONS,
    **DYNAMICS,
    **JACOBIAN,
    **GRAPHS,
    **PLOTS,
    **SPECTRA,
    **WEIGHTS,
    **TRAINING,
    **LENS,
    **LENS_ANALYSIS,
    **PATCHING,
    **RUNS,
    **RESULTS,
}

MUTANTS = [
    *GEOMETRY,
    *MAPS,
    *INFERENCE,
    *RANKS,
    *CLAIMS,
    *TOKENWISE_CLAIMS,
    *(mutant for file, groups in ROOMS.items() for mutant in _mutants(file, *groups)),
]
