"""Errors to plant in the formulas of `probe.weights` and of its claims: file -> groups that one test watches."""

from __future__ import annotations

READ = "tests/weights/test_weights.py"
FOLDED = f"{READ}::test_a_folded_reader_acts_on_the_normed_state_before_its_gain"
CURVES = "tests/weights/test_curves.py"
RUNS = "tests/analyses/test_continuity.py::TestVariables"
CLAIMS = "tests/analyses/test_continuity_claims.py"

EXPERTS = "tests/weights/test_experts.py"

WEIGHTS: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/weights/reading.py": [
        (
            FOLDED,
            [("return None if gain is None else gain.float()", "return None if gain is None else gain.float() - 1")],
        ),
        (f"{READ} -k twin", [("generator_of(self.permuted, layer, name)", "generator_of(self.permuted)")]),
    ],
    "probe/model/architectures/stacks.py": [
        (
            f"{EXPERTS} -k make_what",
            [
                (
                    "return matrix[:half] if first else matrix[half:]",
                    "return matrix[half:] if first else matrix[:half]",
                ),
                ("matrix[0 if first else 1 :: 2]", "matrix[1 if first else 0 :: 2]"),
                ("tuple(parameters) if turned else ()", "()"),
                ('dict(_FLAT), ("down",), flat=True', "dict(_FLAT), (), flat=True"),
            ],
        ),
        (f"{EXPERTS} -k dbrx", [("rows // self.count if self.flat else 1", "1")]),
    ],
    "probe/weights/experts.py": [
        (
            f"{EXPERTS} -k _experts_",
            [
                ("triplets.right if stream", "triplets.left if stream"),
                ("cosines[:, pair].sum(0) if together else", "cosines[:, pair].sum(0) if not together else"),
                ("cosines.mean((-2, -1))", "cosines.max(-1).mean(-1)"),
                ("partners[..., None], -1)", "partners[..., None], -2).swapaxes(-1, -2)"),
                (
                    "haar_matched(width, count, draws=DRAWS, seed=seed)",
                    "haar_matched(count, width, draws=DRAWS, seed=seed)",
                ),
            ],
        ),
    ],
    "probe/model/architectures/layout.py": [
        (
            FOLDED,
            [
                (
                    'fromkeys(readers, self.form.attention_norm) | dict.fromkeys(("gate", "up"), self.form.mlp_norm)',
                    'fromkeys(readers, self.form.mlp_norm) | dict.fromkeys(("gate", "up"), self.form.attention_norm)',
                ),
                ('"down": self.form.mlp_out_norm', '"down": self.form.attention_out_norm'),
            ],
        ),
    ],
    "probe/weights/twins.py": [
        (
            f"{READ} -k twin",
            [
                ("part.apply(initialise)", "[initialise(module) for module in part.modules()]"),
                ("generator_of(self.seed, block_path, name).initial_seed()", "self.seed"),
            ],
        ),
        (f"{READ} -k leaves_no_value", [("reset()", "pass")]),
    ],
    "probe/weights/checkpoint.py": [
        (
            READ,
            [
                (
                    "for candidate in (name, bare):\n            if candidate in self._file_of:",
                    "for candidate in (name,):\n            if candidate in self._file_of:",
                ),
                ("if len(inside) != 1:", "if len(inside) > 1:"),
                ('digest.update(hashlib.file_digest(file, "sha256").digest())', "digest.update(b'')"),
            ],
        ),
    ],
    "probe/model/gguf/tensors.py": [
        ("tests/model/test_gguf.py -k converted", [("return torch.from_numpy(values)", "return parts[0]")]),
    ],
    "probe/weights/heads.py": [
        (
            READ,
            [
                (
                    "views.repeat_interleave(heads.query // heads.key, dim=0)",
                    "views.repeat(heads.query // heads.key, 1, 1)",
                ),
                ("left.transpose(0, 1).flatten(1) @ right.flatten(0, 1)", "left[0] @ right[0]"),
                ('head_views(weights, layer, "q").mT, _repeated', 'head_views(weights, layer, "q").mT * 2, _repeated'),
                ("matrix.unflatten(1, (heads.query, -1))", "matrix.unflatten(1, (-1, heads.query)).mT"),
            ],
        ),
    ],
    "probe/spectra/singular.py": [
        (
            READ,
            [
                ("left, right = right, left", "pass"),
                ("gram = (wide.mT @ wide)", "gram = -(wide.mT @ wide)"),
                ("self.singular[0] / self.singular[1]", "self.singular[1] / self.singular[0]"),
                ("basis.double() @ turned[:k].mT", "basis.double() @ turned[:, :k]"),
                (".max() <= tolerance * singular[0]", ".min() <= 30 * tolerance * singular[0]"),
                ("residual = torch.linalg.qr(residual - basis @ (basis.mT @ residual)).Q", "residual = residual * 1.0"),
                ("- left * singular\n    backward", "- left\n    backward"),
                (".norm(dim=0).max() / singular[0]", ".norm(dim=0).max() / singular.sum()"),
                ("Triplets(q_left @ core.left,", "Triplets(q_left @ core.right,"),
            ],
        ),
    ],
    "probe/weights/curves.py": [
        (
            CURVES,
            [
                ("(vectors @ vectors.mT).abs()", "(vectors @ vectors.mT)"),
                ("(vectors[:-1] * vectors[1:]).sum(-1).abs()", "(vectors[:-1] * vectors[1:]).sum(-1)"),
                ("overlap.square().sum((-2, -1)) / k", "overlap.square().sum((-2, -1)) / k**2"),
                ("bases[:-1, :, :k].mT @ bases[1:, :, :k]", "bases[:-1, :, -k:].mT @ bases[1:, :, -k:]"),
                ("cosines.diagonal(lag, -2, -1)", "cosines.diagonal(lag - 1, -2, -1)"),
                (".cumprod(0)", ""),
                ("path - path.mean(0)", "path"),
                ("left[:, :axes] * singular[:axes]", "left[:, :axes]"),
                ("1 / vectors.pow(4).sum(-1)", "1 / vectors.pow(2).sum(-1)"),
                ("(a.mT @ b).abs().amax(-1)", "(a.mT @ b).abs().amin(-1)"),
                ("(a.mT @ b).abs().amax(-1)", "(a.mT @ b).amax(-1)"),
                ("-int(-share * n // 1)", "int(share * n)"),
                ("vectors.square().mean(0)", "vectors.square().amax(0)"),
            ],
        ),
    ],
    "probe/weights/nulls.py": [
        (
            CURVES,
            [
                (
                    "special.gammaln(n / 2) - special.gammaln((n + 1) / 2)",
                    "special.gammaln(n / 2) - special.gammaln((n + 2) / 2)",
                ),
                ("stats.beta.ppf(level, 0.5, (n - 1) / 2)", "stats.beta.ppf(level, 0.5, n / 2 - 1)"),
                ("total / sum(pairs.values())", "total / len(pairs)"),
                ("** others", "* others"),
                ("cosines[:, order[:, None], order[None, :]]", "cosines[:, order[:, None], order[None, ::-1]]"),
                ('"greater" if greater else "less"', '"less" if greater else "greater"'),
            ],
        ),
    ],
    "probe/weights/similarity.py": [
        (
            CURVES,
            [
                ("cosines = (part @ y).abs()", "cosines = part @ y"),
                ("cosines.amax(0)", "cosines.amax(0) * 0"),
                ("/ norms[norms > 0]", "/ 1"),
                ("location, _ = stats.gumbel_r.fit(values)", "location = values.mean()"),
            ],
        ),
    ],
    "probe/weights/bases.py": [
        (
            CURVES,
            [
                ('{"input": "right", "output": "left"}', '{"input": "left", "output": "right"}'),
                ("torch.minimum(gap[:, :-1], gap[:, 1:])", "torch.maximum(gap[:, :-1], gap[:, 1:])"),
                ("matrix = matrix * before.to(matrix)", "matrix = matrix / before.to(matrix)"),
            ],
        ),
    ],
    "probe/analyses/continuity/work.py": [
        (
            RUNS,
            [
                ('enumerate(("output", "input"))', 'enumerate(("input", "output"))'),
                ("[array])[array][..., 0]", "[array])[array][..., 1]"),
                ("folded=variant == FOLDED", "folded=False"),
            ],
        ),
    ],
    "probe/analyses/continuity/table.py": [
        (
            CLAIMS,
            [
                ('dict.fromkeys(("o", "down", "out"), "output")', 'dict.fromkeys(("o", "down", "out"), "input")'),
                ("BAND = np.array([0.005, 0.99, 0.995])", "BAND = np.array([0.005, 0.5, 0.995])"),
                ("self.n_pairs // self._block", "self.n_pairs"),
            ],
        ),
    ],
    "probe/analyses/continuity/claims.py": [
        (
            CLAIMS,
            [
                ('"Δ init": mean - twin', '"Δ init": mean'),
                ("low <= twin <= highest", "twin <= twin"),
                ('limits.threshold_permuted, "below"', 'limits.threshold_permuted, "above"'),
                ('table.curves(claimed, "trimmed")', "table.curves(claimed)"),
                ("np.where(gaps >= needed, table.curves(table.claimed), np.nan)", "table.curves(table.claimed)"),
                ("float(read.min()) - v_in", "float(read.mean()) - v_in"),
                ("float(write.min()) - max(v_in, v_out)", "float(write.min()) - v_in"),
                ("max(v_in, v_out) - float(read.mean()) / 2", "max(v_in, v_out) - float(read.mean())"),
                ("{name: OTHER[side] for name, side in claimed.items()}", "dict(claimed)"),
                ('wrong, highest, "below")],', 'wrong, 1.0, "below")],'),
                ("@ starts / starts.sum()", "@ starts"),
                ("seed=table.seed, greater=False", "seed=table.seed, greater=True"),
            ],
        ),
    ],
}
