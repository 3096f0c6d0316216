"""Errors to plant in the claims of `probe.analyses.communities`: file -> groups that one test watches."""

from __future__ import annotations

TESTS = "tests/analyses/test_communities_claims.py"

COMMUNITIES: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/analyses/communities/table.py": [
        (
            f"{TESTS}::TestCoupling",
            [
                ("gain = self._square @ (weights * self._measured)", "gain = self._square @ self._measured"),
                ("partial_spearman(self._place, gain, self._given)", "partial_spearman(self._place, gain, [])"),
                ("np.isfinite(self._square).any(axis=(0, 1))", "np.isfinite(self._square).any(axis=(0, 1)) | True"),
                ("np.asarray(np.nan_to_num(partial_spearman(", "np.asarray((partial_spearman("),
                ('np.nan_to_num(own["permuted_rho"].values)', 'own["permuted_rho"].values'),
                (
                    "np.square(self(weights)).mean() - np.square(self.permuted).mean()",
                    "np.square(self(weights)).mean() - self.permuted.mean() ** 2",
                ),
                (
                    "np.quantile(np.square(self.permuted).mean(axis=0), quantile)",
                    "np.quantile(np.square(self.permuted), quantile)",
                ),
                ('*one, alternative="two-sided"', '*one, alternative="greater"'),
                ("return benjamini_hochberg(np.array([", "return (np.array(["),
                ('"Δ": own.strength(weights) - values', '"Δ": values - own.strength(weights)'),
                ("np.sign(values) * np.sqrt(np.abs(values))", "np.sqrt(np.abs(values))"),
                (
                    '"mean ρ": np.array([float(fisher_mean(other(weights)))',
                    '"mean ρ": np.array([float(np.mean(other(weights)))',
                ),
            ],
        ),
        (
            f"{TESTS}::TestPooledCoupling",
            [
                ('data["excess"].values > least', 'data["excess"].values < least'),
                ("(stable if enough.holds else np.ones_like(stable))", "stable"),
                ("found >= needed, f", "found > needed, f"),
                ("np.sqrt(np.abs(values))", "np.abs(values)"),
            ],
        ),
        (
            f"{TESTS}::TestLearned",
            [
                ("measured = table.measured(", "measured = (lambda _: table)("),
            ],
        ),
        (
            f"{TESTS}::TestRobust",
            [
                ('data["grid_rho"].fillna(0.0)', 'data["grid_rho"]'),
                ('data["grid_permuted_rho"].fillna(0.0)', 'data["grid_permuted_rho"]'),
                ("np.sign(mean) == np.sign(fisher_mean(observed))", "(mean > 0) == bool(fisher_mean(observed) > 0)"),
                ("same_sign & ((p < COUPLING_P)", "same_sign | ((p < COUPLING_P)"),
                ("(permuted_squares >= squares)", "(permuted_squares <= squares)"),
                ("same_sign & ((p < COUPLING_P) == (default_p < COUPLING_P))", "same_sign"),
                (
                    "same_sign & ((p < COUPLING_P) == (default_p < COUPLING_P))",
                    "(p < COUPLING_P) == (default_p < COUPLING_P)",
                ),
                (
                    'np.isin(data["layer"].values, data["ablated"].values)',
                    'np.isin(data["layer"].values, data["layer"].values)',
                ),
                ("fisher_mean(rho.values, axis=0)", "fisher_mean(-rho.values, axis=0)"),
            ],
        ),
    ],
    "probe/analyses/communities/claims.py": [
        (
            f"{TESTS}::TestExist",
            [
                (
                    'np.quantile(data["null_quality"].values, 0.95, axis=1)',
                    'np.quantile(data["null_quality"].values, 0.05, axis=1) - 0.3',
                ),
                ("tokens >= 2 * nodes", "tokens >= nodes"),
                ('n = min(int(data.attrs["n_graph_documents"])', 'n = max(int(data.attrs["n_graph_documents"])'),
                (
                    'data["run_quality"].values - quantile, data',
                    'data["run_quality"].values + quantile, data',
                ),
            ],
        ),
        (
            f"{TESTS}::TestSupported {TESTS}::TestExist",
            [
                (
                    '(data["half_ami"].values, data["resampled_half_ami"].values)',
                    '(data["stability"].values, data["resampled_half_ami"].values)',
                ),
                ('(data["run_quality"].values > quantile).sum()', '(data["run_quality"].values < quantile).sum()'),
            ],
        ),
        (
            f"{TESTS}::TestPooledCoupling",
            [
                ("own.beyond(everywhere, 1 - COUPLING_P)", "own.beyond(everywhere, 0.5)"),
                (
                    'Criterion("Δ of A to random orthogonal bases", others["Δ"], 0.0)',
                    'Criterion("Δ of A to random orthogonal bases", others["A"], -1.0)',
                ),
                ('if table.data.attrs["nodes"] != "mlp" else []', ""),
            ],
        ),
        (
            f"{TESTS}::TestSign",
            [
                (
                    'found["θ"], bound, "below"',
                    'found["θ"], bound, "above"',
                ),
                ("reachable = 1 / len(rho) < SIGN_P", "reachable = True"),
                ("reachable = 1 / len(rho) < SIGN_P", "reachable = 1 / len(rho) <= SIGN_P"),
                ('shifted, alternative="less"', 'shifted, alternative="greater"'),
                ("np.roll(rho, shift)", "np.roll(rho, 1)"),
                ("(significant & (rho > 0)).sum()", "(rho > 0).sum()"),
                ("(significant & (rho < 0)).sum()", "(rho < 0).sum()"),
                ("min(counts) >= needed", "max(counts) >= needed"),
            ],
        ),
        (
            f"{TESTS}::TestLearned",
            [
                ('others["√A"], limit, "below"', 'others["√A"], limit + 9, "below"'),
                ("inside = [-Coupling(", "inside = [1 + Coupling("),
                (".beyond(np.ones(len(table.documents)), 0.95)", ".beyond(np.ones(len(table.documents)), 1.0) - 9"),
                ("preconditions=[enough, seeds]", "preconditions=[enough]"),
                ("others = pooled(table, layers, fresh)", 'others = pooled(table, layers, ["basis-0"])'),
            ],
        ),
        (
            f"{TESTS}::TestRobust",
            [
                ("not fragile < share < bound", "True"),
            ],
        ),
    ],
}
