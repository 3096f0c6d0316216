"""Errors to plant in the formulas of `probe.spectra`: file -> groups that the same tests watch."""

from __future__ import annotations

SCORES = "tests/spectra/test_spectra.py"
CONTROLS = "tests/spectra/test_controls.py"
PRODUCTS = "tests/spectra/test_products.py"
RESOLVENT = "tests/spectra/test_resolvent.py"

SPECTRA: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/spectra/normality.py": [
        (
            SCORES,
            [
                ("eigenvalues(A).abs().amax(-1)", "eigenvalues(A).real.amax(-1)"),
                ("eigenvalues(A).real.amax(-1)", "eigenvalues(A).abs().amax(-1)"),
                ("eigenvalues(A).real.amax(-1)", "eigenvalues(A).real.amin(-1)"),
                ("REAL_TOLERANCE * torch.as_tensor", "0 * torch.as_tensor"),
                ("(values.imag.abs() > bound[..., None])", "(values.imag > bound[..., None])"),
                ("        scale = values.abs().amax(-1)\n", "        scale = values.abs().mean(-1)\n"),
                ("        scale = values.abs().amax(-1)\n", "        scale = 1.0\n"),
                (
                    "values.imag.abs().sum(-1) / values.abs().sum(-1)",
                    "values.imag.abs().mean(-1) / values.abs().sum(-1)",
                ),
                ("values.imag.abs().sum(-1) / values.abs()", "values.imag.abs().sum(-1) / values.real.abs()"),
                ("known.scaled - known.scaled.mT) / (2 *", "known.scaled - known.scaled.mT) / (1 *"),
                ("known.scaled - known.scaled.mT) / (2 *", "known.scaled + known.scaled.mT) / (2 *"),
                (
                    "(matrix_norm(known.scaled + known.scaled.mT) / (2 * matrix_norm(known.scaled))).square()",
                    "(matrix_norm(known.scaled + known.scaled.mT) / (2 * matrix_norm(known.scaled)))",
                ),
                ("matrix_norm(strictly_upper(known.schur().T /", "matrix_norm(torch.triu(known.schur().T /"),
                ("    return departure.clamp(max=1)\n", "    return departure.square().clamp(max=1)\n"),
                ("upper = T.triu(1)", "upper = T.triu(2)"),
                ("upper = T.triu(1)", "upper = T.triu(0)"),
                (".add_(T.diagonal(-1, -2, -1))", ".sub_(T.diagonal(-1, -2, -1))"),
                ("unit.mT @ unit - unit @ unit.mT", "unit.mT @ unit - unit.mT @ unit.mT"),
                ("known.scaled / matrix_norm(known.scaled)[..., None, None]", "known.scaled"),
                ("lapack.svdvals(known.eigenvectors)", "lapack.svdvals(known.matrices)"),
                ("condition = values[..., 0] / values[..., -1]", "condition = values[..., 0] / values[..., -2]"),
                ("torch.finfo(torch.float64).eps < 1, condition", "torch.finfo(torch.float64).eps < 1e9, condition"),
                (
                    "lapack.eigvalsh(matrices + matrices.mT)[..., -1]",
                    "lapack.eigvalsh(matrices + matrices.mT)[..., 0]",
                ),
                ("factors(A).matrices / 2", "factors(A).matrices"),
                ("lapack.eigvalsh(matrices + matrices.mT)", "lapack.eigvalsh(matrices)"),
            ],
        )
    ],
    "probe/spectra/ranks.py": [
        (
            SCORES,
            [
                ("trace.square() / (scaled.shape[-1] *", "trace.square() / ("),
                ("trace.square() / (scaled", "trace.abs() / (scaled"),
                ("relative.square().sum(-1)", "relative.sum(-1)"),
                ("entropy_rank(_relative(singular_values(A)))", "entropy_rank(_relative(singular_values(A)).square())"),
                ("entropy_rank(_relative(singular_values(A)).square())", "entropy_rank(_relative(singular_values(A)))"),
                ("U = left @ right\n", "U = left @ right.mT\n"),
                ("[identity - U, identity + U]", "[identity + U, identity - U]"),
                ("angles = 2 * torch.atan2", "angles = torch.atan2"),
                ("torch.atan2(sines, cosines.flip(-1))", "torch.atan2(sines, cosines)"),
                ("<= SINGULAR * values[..., 0]", "<= 0 * values[..., 1] - 1"),
                ("(-torch.xlogy(share, share).sum(-1)).exp()", "(-torch.xlogy(share, share).sum(-1))"),
                ("weights / weights.sum(-1, keepdim=True)", "weights / weights.amax(-1, keepdim=True)"),
                ("energies.sum(-1).square() / energies.square()", "energies.sum(-1) / energies.square()"),
                ("    energies = _relative(values).square()\n", "    energies = _relative(values)\n"),
            ],
        )
    ],
    "probe/spectra/factors.py": [
        (
            SCORES,
            [
                ("SchurForm(T - torch.eye", "SchurForm(T + torch.eye"),
                ("Q, values - 1)", "Q, values + 1)"),
                ("return self._origin.eigenvalues - 1", "return self._origin.eigenvalues"),
                ("if self._schur is None or (vectors and self._schur.Q is None):", "if True:"),
                ("if self._schur is None or (vectors and self._schur.Q is None):", "if self._schur is None:"),
                ("if known is None else known[1]", "if known is None else known[0]"),
            ],
        )
    ],
    "probe/spectra/decomposition.py": [
        (
            SCORES,
            [("Spectrum(self.matrices - identity, origin=self)", "Spectrum(self.matrices + identity, origin=self)")],
        )
    ],
    "probe/spectra/controls.py": [
        (
            CONTROLS,
            [
                (
                    "_matched(known.matrices / 2 + known.matrices.mT / 2",
                    "_matched(known.matrices / 2 - known.matrices.mT / 2",
                ),
                ("_matched(known.matrices / 2 + known.matrices.mT / 2", "_matched(known.matrices + known.matrices.mT"),
                ("Q @ _normal_part(form.T) @ Q.mT", "Q.mT @ _normal_part(form.T) @ Q"),
                ("    return Q @ T @ Q.mT\n", "    return Q.mT @ T @ Q\n"),
                ("entries.gather(-1, uniform[0].argsort(-1))", "entries"),
                ("* (uniform[1] - 0.5).sign()", ""),
                ("* (uniform[1] - 0.5).sign()", "* (uniform[1] - 0.1).sign()"),
                ("uniform = torch.rand(2, *entries.shape,", "uniform = torch.rand(2, 1, *entries.shape[1:],"),
                ("T.diagonal(-1, -2, -1).copy_(below)", "T.diagonal(-1, -2, -1).copy_(-below)"),
                ("normal.triu(0).tril(0)", "normal.triu(0)"),
                ("torch.hypot(total, 2 * turn)", "torch.hypot(total, turn)"),
                ("-turn * (turn / larger)", "turn * (turn / larger)"),
                ("first = larger * turn >= 0", "first = larger * turn < 0"),
                ("first = larger * turn >= 0", "first = larger >= larger"),
                ("turn = beside.sign() *", "turn ="),
                ("normal.diagonal(-1, -2, -1).copy_(-turn)", "normal.diagonal(-1, -2, -1).copy_(turn)"),
                ("(-beside * below).clamp(min=0).sqrt()", "(-beside * below).clamp(min=0)"),
                ("known.frobenius_norm / frobenius_norm(changed)", "frobenius_norm(changed) / known.frobenius_norm"),
            ],
        )
    ],
    "probe/spectra/products.py": [
        (
            PRODUCTS,
            [
                ("(logs - logs[..., :1]).exp()", "(logs - logs[..., -1:]).exp()"),
                ("torch.arange(1, logs.shape[-2] + 1,", "torch.arange(0, logs.shape[-2],"),
                ("entropy_rank(self.singular_values)", "entropy_rank(self.singular_values.square())"),
                ("right[..., : max(kept), :].mT", "right[..., :, : max(kept)]"),
                ("values < SMALLEST * values[..., :1], torch.nan", "values < 0 * values[..., :1], torch.nan"),
                ("values.log() + log_scale[..., None]", "values.log() - log_scale[..., None]"),
                ("values.log() + log_scale[..., None]", "values.log()"),
                ("lapack.qr(step @ basis)", "lapack.qr(step)"),
                ("triangle = factor @ triangle", "triangle = triangle @ factor"),
                ("log_scale = log_scale + size.log()", "log_scale = log_scale - size.log()"),
                ("log_scale = log_scale + size.log()", "log_scale = size.log()"),
                ("[(basis @ triangle, log_scale)", "[(triangle, log_scale)"),
                ("U, V = left[..., :k], right[..., :k, :].mT", "U, V = left[..., :k], right[..., :, :k]"),
                ('"...jpk,...ipq,...jql->...ijkl"', '"...ipk,...jpq,...iql->...ijkl"'),
                ('"...jpk,...ipq,...jql->...ijkl", U, K, V).abs()', '"...jpk,...ipq,...jql->...ijkl", U, K, V)'),
                ("[..., :, None, :, :]  # S_i", "[..., None, :, :, :]  # S_i"),
                ("seen - diagonal) / matrix_norm(diagonal)", "seen - diagonal) / matrix_norm(diagonal).square()"),
                ("dim=(-2, -1)).square() / k for k", "dim=(-2, -1)).square() for k"),
                (
                    "vector_norm(cosines[..., :k, :k], dim=(-2, -1)).square()",
                    "vector_norm(cosines[..., :k, :k], dim=(-2, -1))",
                ),
            ],
        )
    ],
    "probe/spectra/resolvent.py": [
        (
            RESOLVENT,
            [
                ("return Pseudospectrum(z, 1 / norms, residuals)", "return Pseudospectrum(z, norms, residuals)"),
                ("adjoint = T.mH.flip(0, 1)", "adjoint = T.mT.flip(0, 1)"),
                ("pivots = z - T.diagonal()[:, None]", "pivots = z + T.diagonal()[:, None]"),
                ("image = image - beside[-1] * before", "image = image + beside[-1] * before"),
                ("largest.sqrt(), torch.inf", "largest, torch.inf"),
                ("pivots.conj().flip(0), image.flip(0)", "pivots.flip(0), image.flip(0)"),
                ("waiting = finite & (residual > tolerance)", "waiting = finite & (residual > 1)"),
                ("largest = values[:, -1] * ratio[:, 0]", "largest = values[:, -1]"),
                ("vectors[:, -1, -1].abs() / values[:, -1]", "vectors[:, -1, -1].abs() * 0 / values[:, -1]"),
                ("x[i] += T[i, i + 1 : stop] @ x[i + 1 : stop]", "x[i] -= T[i, i + 1 : stop] @ x[i + 1 : stop]"),
                ("x[:start] += T[:start, start:stop]", "x[:start] -= T[:start, start:stop]"),
                ("return distance * _resolvent_norm", "return _resolvent_norm"),
                ("return distance * _resolvent_norm", "return (distance + limit) * _resolvent_norm"),
                ("limit = edge.amax()", "limit = 0 * edge.amax()"),
                ("edge, along = values.real, values.imag.abs()", "edge, along = values.abs(), values.imag.abs()"),
                ("if edge.amax() > unit * (1 + _UNIT):", "if edge.amax() < 0:"),
                (").clamp(min=1)\n", ")\n"),
                ("to_log).clamp(min=logs[0])", "to_log * 0).clamp(min=logs[0])"),
                ("place[:, None] + place_span * to_place", "place[:, None] + place_span * to_log"),
                ("left - beyond, right + beyond, resolution", "left, right + beyond, resolution"),
                ("torch.linspace(0, top + beyond, max", "torch.linspace(0, top, max"),
            ],
        )
    ],
    "probe/spectra/lapack.py": [
        (
            "tests/spectra/test_lapack.py",
            [
                ("T = A.transpose(0, 2, 1).copy()", "T = A.copy()"),
                ("T = T.transpose(0, 2, 1)\n", "T = T\n"),
                ("real + 1j * imaginary, Q.transpose(0, 2, 1))", "real + 1j * imaginary, Q)"),
                ("real + 1j * imaginary, Q.transpose", "real - 1j * imaginary, Q.transpose"),
                ("found[2] if vectors else None, found[1]", "found[2] if vectors else None, found[1].conj()"),
                ("min(torch.get_num_threads(), machine.cores())", "machine.cores()"),
                ("if workers == 1 or len(slices) < 2:", "if len(slices) < 2:"),
                ("round(_TASK / max(1, A.shape[-1]) ** 3)", "round(_TASK / max(1, A.shape[-1]))"),
                ("with _ONE_BLAS_THREAD, _BLAS.limit(limits=1):", "with _ONE_BLAS_THREAD:"),
                ("with _ONE_BLAS_THREAD, _BLAS.limit(limits=1):", "with _BLAS.limit(limits=1):"),
                ("pool.shutdown(cancel_futures=True)", "pool.shutdown(wait=False)"),
                ("d >= _GPU_FROM", "d > _GPU_FROM"),
                ("pays = pays and tuple", "pays = pays or tuple"),
                (".to(A.device) for part in factors)", ".to(A.device).flip(0) for part in factors)"),
                ("np.linalg.svd(A, compute_uv=False)", "np.linalg.svd(A, compute_uv=False)[..., ::-1].copy()"),
                ("if not bool(A.isfinite().all()):", "if bool(A.isnan().any()):"),
            ],
        )
    ],
}
