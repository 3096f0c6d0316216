"""Errors to plant in lenses beside the Jacobian's, in actions and in the page: file -> groups that one test watches."""

from __future__ import annotations

AFFINE, ACTING = "tests/lens/test_affine.py", "tests/lens/test_acting.py"
FITTING, FILES = "tests/lens/test_fitting.py", "tests/lens/test_files.py"

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
        (
            f"{ACTING} -k stated_size",
            [("[..., None] * torch.nn.functional.normalize(vectors, dim=-1)", "[..., None] * vectors")],
        ),
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
    "probe/jacobian/later.py": [
        (
            f"{FITTING} -k whole_networks",
            [
                ("update.diagonal(dim1=-2, dim2=-1).add_(1.0)", "pass"),
                ("gradients.add_(own)", "pass"),
                ("block)[:, self.start :]", "block)[:, self.start - 1 : -1]"),
            ],
        ),
        (f"{FITTING} -k more_than_the_stream", [("points[depth] = first_tensor(output)", "points[depth] = points[0]")]),
    ],
    "probe/lens/estimators.py": [
        (
            f"{FITTING} -k horizon",
            [
                ("int(estimator.targets) + 1, len(tokens) - 1)", "int(estimator.targets), len(tokens) - 1)"),
                ("torch.bmm(product, block)", "torch.bmm(block, product)"),
            ],
        ),
        (f"{FITTING} -k whole_networks", [("gradients.mean(0)", "gradients.sum(0)"), ("tokens[:-1]", "tokens")]),
    ],
    "probe/lens/fitting.py": [
        (f"{FITTING} -k whole_networks", [("(self.squares / self.count).sqrt()", "self.squares.sqrt()")]),
        (f"{FITTING} -k merge", [("lens.n_documents / total", "1 / len(lenses)")]),
        (f"{FITTING} -k broken_off", [("documents[running.count :]", "documents")]),
    ],
    "probe/lens/files.py": [(f"{FILES} -k sums", [("jacobians / count if summed", "jacobians if summed")])],
    "probe/lens/effect.py": [
        (f"{ACTING} -k correlations", [("self._rho(np.bincount(rows, minlength=count)", "self._rho(np.ones(count)")]),
    ],
}
