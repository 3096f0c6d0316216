"""Errors to plant in lenses beside the Jacobian's, in actions and in the page: file -> groups that one test watches."""

from __future__ import annotations

AFFINE, ACTING = "tests/lens/test_affine.py", "tests/lens/test_acting.py"

LENS: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/lens/affine.py": [
        (
            f"{AFFINE} -k closed",
            [
                ("one.mean_y_ - one.mean_x_ @ one.weight_", "one.mean_y_ + one.mean_x_ @ one.weight_"),
                ("[:, estimator.skip_first : -1]", "[:, estimator.skip_first :]"),
                ("one.weight_.T for one", "one.weight_ for one"),
            ],
        ),
        (f"{AFFINE} -k ridge_is_chosen", [("validation=sums[1][row]", "validation=sums[0][row]")]),
    ],
    "probe/lens/tuning.py": [
        (
            f"{AFFINE} -k that_is_kept",
            [
                ("- change @ self.mean[row]", "+ change @ self.mean[row]"),
                ("(output.exp() * (output - read))", "(read.exp() * (read - output))"),
            ],
        ),
        (f"{AFFINE} -k harm", [("(losses < self.least)", "(losses == losses)")]),
    ],
    "probe/lens/acting.py": [
        (f"{ACTING} -k stated_size", [("keepdim=True)[..., None] * unit", "keepdim=True)[..., None] * vectors")]),
        (f"{ACTING} -k ablated", [("kept = sizes > sizes", "kept = sizes >= 0 * sizes")]),
        (f"{ACTING} -k exchanges", [("(coordinates.flip(-1) - coordinates)", "(coordinates - coordinates.flip(-1))")]),
        (
            f"{ACTING} -k written_down",
            [
                ("(delta @ matrices.mT)", "(delta @ matrices)"),
                ("found = self.head @ matrices", "found = self.head @ matrices.mT"),
                ("context.run_on(layer + 1,", "context.run_on(layer,"),
            ],
        ),
        (f"{ACTING} -k other_directions", [("identity, layer) - offset)", "identity, layer))")]),
    ],
    "probe/lens/effect.py": [
        (f"{ACTING} -k correlations", [("self._rho(np.bincount(rows, minlength=count)", "self._rho(np.ones(count)")]),
    ],
}
