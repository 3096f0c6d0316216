"""Errors to plant in `probe.analyses.dynamics` and `probe.claims.evidence`: file -> groups that one test watches."""

from __future__ import annotations

DYNAMICS: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/analyses/dynamics/work.py": [
        (
            "tests/analyses/test_dynamics.py::TestAgainstTheJacobians",
            [
                ("product = block.double() @ product", "product = product @ block.double()"),
                ("spectra.identity_share(J[subject.layers])", "spectra.identity_share(J[subject.layers] + 1)"),
            ],
        ),
    ],
    "probe/claims/evidence.py": [
        (
            "tests/claims/test_evidence.py",
            [
                ("float(np.mean(value)) for name", "float(np.max(value)) for name"),
                ("np.subtract(interval.high, interval.low) / 2", "np.subtract(interval.high, interval.low)"),
                ("np.array([n - 1, seeds.n_units - 1])", "np.array([n - 1, n - 1])"),
                ("np.square(variances).dot(1 / freedom)", "np.square(variances).dot(freedom)"),
                ("total = reach = variances.sum()", "total = reach = variances.max()"),
                ("if np.size(value) > 1:", "if np.size(value) > 0:"),
                (".any(axis=0)\n        return replace", ".all(axis=0)\n        return replace"),
            ],
        ),
    ],
    "probe/analyses/dynamics/claims.py": [
        (
            "tests/analyses/test_dynamics_claims.py",
            [
                (
                    "curve(weights)[1:-1] for score, curve in curves.items()",
                    "curve(weights) for score, curve in curves.items()",
                ),
                ('{"ρ": max(rho.values())', '{"ρ": min(rho.values())'),
                ("min(float((np.diff(curve) < 0).mean())", "max(float((np.diff(curve) < 0).mean())"),
                ("(np.diff(curve) < 0).mean()", "(np.diff(curve) > 0).mean()"),
                ('"Δ": falling - bound', '"Δ": falling + bound'),
                (
                    "0.5 + 2 * np.sqrt((layers + 1) / 12) / (layers - 1)",
                    "0.5 + np.sqrt((layers + 1) / 12) / (layers - 1)",
                ),
                ("slice(layers - max(1, layers // 4), layers)", "slice(0, max(1, layers // 4))"),
                ('"Δ": float(own(weights)[late].mean()) - init', '"Δ": init - float(own(weights)[late].mean())'),
                ('Typical(_whole_product(table, "model") / width)', 'Typical(_whole_product(table, "model"))'),
                ('"Δ init": logs(weights) - seeds', '"Δ init": seeds - logs(weights)'),
                ("measured[name] - control[name] for", "control[name] - measured[name] for"),
                (
                    "inner[..., :third].mean(axis=-1) - inner[..., -third:]",
                    "inner[..., -third:].mean(axis=-1) - inner[..., :third]",
                ),
                ("inner = curve[..., 1:-1]", "inner = curve"),
                ("1 - left(weights) / raw(weights)", "left(weights) / raw(weights)"),
                ("curve, own = (Depth(one.get(", "own, curve = (Depth(one.get("),
                ("float(raw.low) > 0", "float(raw.high) > 0"),
                ("Typical(epsilon.mean(axis=0))", "Typical(epsilon.max(axis=0))"),
                ("float(np.exp(part(weights)))", "float(part(weights))"),
                (
                    'np.log(table.get("epsilon_at_tenth", dims=dims, horizon="1"))',
                    'np.log(table.get("epsilon_at_tenth", dims=dims, horizon="2"))',
                ),
                ("variant=variant)[-1]", "variant=variant)[0]"),
                ("null=name)[:, -1]", "null=name)[:, 0]"),
            ],
        ),
    ],
    "probe/analyses/dynamics/nulls.py": [
        (
            "tests/analyses/test_dynamics.py::TestNulls",
            [
                ("product = J @ self._product", "product = self._product @ J"),
                ("matrix_norm(gram).square().reciprocal()", "matrix_norm(gram).reciprocal()"),
                ("(matrix_norm(K) / matrix_norm(gaussian))", "(matrix_norm(J) / matrix_norm(gaussian))"),
                ("rotation.mT @ K @ rotation, match", "rotation @ K @ rotation, match"),
                ('schur_normal(K.mT, match="frobenius").mT[None]', "schur_normal(K.mT)[None]"),
                ("product.step(J[orders[:, step]])", "product.step(J[orders[:, 0]])"),
            ],
        ),
    ],
    "probe/analyses/dynamics/means.py": [
        (
            "tests/analyses/test_dynamics.py::TestMeans",
            [
                ("(total - matrices[own].sum(0)) / rest", "(total - matrices[own].sum(0)) / n"),
                ("rest = n - int(own.sum())", "rest = n - 1"),
                ("np.stack([whole, whole - half, whole + half])", "np.stack([whole, whole + half, whole - half])"),
            ],
        ),
    ],
    "probe/analyses/dynamics/perturb.py": [
        (
            "tests/analyses/test_dynamics.py::TestPerturbations",
            [
                ("step.predicted = step.predicted @ J.mT", "step.predicted = step.predicted @ J"),
                ("predicted = self.predicted[:, None] * sizes[:, None]", "predicted = self.predicted[:, None]"),
                (
                    "vector_norm(after - before, dim=-1)[counted].median()",
                    "vector_norm(after, dim=-1)[counted].median()",
                ),
                ("kept - kept.mean(0)", "kept.abs()"),
                ("right[0], states[other]", "right[-1], states[other]"),
                ("others[position] = False", "others[:] = True"),
                (
                    "last = len(epsilons) - 1 - np.argmax(below[..., ::-1], axis=-1)",
                    "last = np.argmin(below, axis=-1) - 1",
                ),
                ("np.where(high > low, -low / gap, 0.0)", "np.where(high > low, low / gap, 0.0)"),
                ("below = logs <= 0", "below = logs >= 0"),
            ],
        ),
    ],
}
