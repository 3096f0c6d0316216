"""Errors to plant in `probe.analyses.lens`: file -> groups that the same tests watch."""

from __future__ import annotations

CLAIMS = "tests/analyses/test_lens_claims.py"
RUNS = "tests/analyses/test_lens.py"

LENS_ANALYSIS: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/analyses/lens/means.py": [
        (
            f"{CLAIMS}::TestJackknife",
            [
                ("variance += (len(group) - 1) / len(group) *", "variance += 1 / len(group) *"),
                ("stats.t.ppf(0.5 + level / 2, n - len(groups))", "stats.t.ppf(0.5 + level / 2, n - 1)"),
                ("weights[document] = 0.0", "weights[document] = 0.5"),
                ("- np.mean(left, axis=0)).sum(axis=0)", "- np.mean(left, axis=0)).mean(axis=0)"),
            ],
        ),
        (
            f"{CLAIMS}::TestMeans",
            [
                ("own + theirs - 2 * both", "own + theirs - both"),
                ("/ (own * theirs) ** 0.25", "/ (own * theirs) ** 0.5"),
                ("self.gram, other / other.sum())", "self.gram, other)"),
                ("group[:count]) for group", "group[-count:]) for group"),
                ("(apart - inside * sum(1 / count for count in counts)) / 2", "apart / 2"),
                (
                    "(apart - inside * sum(1 / count for count in counts)) / 2",
                    "apart - inside * sum(1 / count for count in counts)",
                ),
                ("squares / (sum(counts) - 2)", "squares / sum(counts)"),
                ("- count * found.product(mask, mask)", "- found.product(mask, mask)"),
                ("2 * np.log(self.trace @ pair)", "np.log(self.trace @ pair)"),
                ("share[self._first] * share[self._second]", "share[self._first] * share[self._first]"),
            ],
        ),
    ],
    "probe/analyses/lens/claims.py": [
        (
            CLAIMS,
            [
                ('mean(kl["logit"] - kl["jacobian"])', 'mean(kl["jacobian"] - kl["logit"])'),
                ("max(1, 2 * layers // 3)", "layers"),
                ('mean(kl[name] - kl["jacobian"])', 'mean(kl["jacobian"] - kl[name])'),
                ("Typical(np.abs(second - first))", "Typical(second - first)"),
                ('"Δ": lambda weights: gain(weights) - refit(weights)', '"Δ": gain'),
                ("Typical(own - same)", "Typical(own - first)"),
                ('summed = table.data.attrs["targets"] == "later"', "summed = True"),
                ("own, distances = first + second", "own, distances = first"),
                ("(beyond + 1) / (PERMUTATIONS + 1)", "beyond / PERMUTATIONS"),
                ('(logs["model"](weights) - logs[name](weights))', '(logs[name](weights) - logs["model"](weights))'),
                ("joined(found[kind], seed_interval(differences(whole)))", "found[kind]"),
                ("lens - logit, lens - random, logit", "lens - random, lens - logit, logit"),
                ("rows = table.documents == document", "rows = table.documents == table.documents"),
                ("row.compute in (stable, corpus, learned)", "row.compute in (stable, corpus)"),
            ],
        ),
    ],
    "probe/analyses/lens/work.py": [
        (
            f"{RUNS}::TestAgainstTheJacobians",
            [
                (".mean(-1, keepdim=True))\n    return found", ".sum(-1, keepdim=True))\n    return found"),
                ("product if one == other else product + product.T", "product + product.T"),
                ("rest[one].T @ rest[other]", "rest[one] @ rest[other].T"),
                ("update = state - before", "update = state"),
                ("(len(rest) / (len(rest) - 1)) ** 0.5", "1.0"),
                ("rest = rest - rest.mean(0)\n", ""),
                ("roll(max(1, len(lens.layers) // 2), 0)", "roll(0, 0)"),
                ("unit = directions[name] / directions[name].norm(dim=-1, keepdim=True)", "unit = directions[name]"),
                ('targets="same", sources=', 'targets="later", sources='),
            ],
        ),
    ],
}
