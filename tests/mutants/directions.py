"""Errors to plant in `probe.directions`: file -> groups that the same tests watch."""

from __future__ import annotations

CARRYING = "tests/directions/test_carrying.py"
FILES = "tests/directions/test_files.py"
FOLLOWING = "tests/directions/test_following.py"
OVERLAPS = "tests/directions/test_overlaps.py"
VECTORS = "tests/directions/test_vectors.py"

DIRECTIONS: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/jacobian/pushing.py": [
        (
            CARRYING,
            [
                ('"wpij,nwpj->nwpi"', '"wpji,nwpj->nwpi"'),
                ("pushed - vectors if options.of", "pushed + vectors if options.of"),
                ("2 * vectors * parameters > 10", "2 * vectors * parameters < 10"),
                ("    if not is_standard(model, layer):\n        return False\n", ""),
                ("if vectors >= model.d_model", "if vectors > model.d_model"),
            ],
        )
    ],
    "probe/directions/carrying.py": [
        (
            CARRYING,
            [
                ("at = push_forward(recorded, layer, at, options)", "at = push_forward(recorded, first, at, options)"),
                ("moved - origin", "moved + origin"),
                ("vector_norm(image, dim=-1) / vector_norm(origin, dim=-1)", "vector_norm(image, dim=-1)"),
                ("geometry.angle(image, origin.expand_as(image))", "geometry.angle(moved, origin.expand_as(image))"),
                ("np.repeat(self.documents, count)", "np.tile(self.documents, count)"),
                ("np.repeat(np.arange(len(self.rows.ids)), count)", "np.tile(np.arange(len(self.rows.ids)), count)"),
            ],
        )
    ],
    "probe/directions/following.py": [
        (
            FOLLOWING,
            [
                ("(state - before.double().cpu())", "before.double().cpu()"),
                ("geometry.cosine(moved, start)", "geometry.cosine(moved, -start)"),
                ("vector_norm(moved, dim=-1) / vector_norm(start, dim=-1)", "vector_norm(moved, dim=-1)"),
                ("place, positions[rows == row]", "place, positions"),
                ("place, positions[rows == row]", "place"),
                (".double().cpu().mT.cov()", ".double().cpu().mT.corrcoef()"),
                ("covariance_matched(covariance, lengths", "covariance_matched(covariance @ covariance, lengths"),
                (
                    "geometry.random_directions(lengths, width, generator)[0]",
                    "geometry.covariance_matched(covariance, lengths, generator)[0]",
                ),
                ("own[:, None] - null.mean(axis=2)", "own[:, None] + null.mean(axis=2)"),
                ("null.mean(axis=2)[:, :, None]", "null[:, :, 0][:, :, None]"),
                ("(null_dims, null.mean(axis=2),", "(null_dims, np.median(null, axis=2),"),
                ("(draws < value) + 0.5 * (draws == value)", "(draws > value) + 0.5 * (draws == value)"),
                ("(draws < value) + 0.5 * (draws == value)", "(draws < value) + 1.0 * (draws == value)"),
                ('np.exp(array[names.index("gain")])', 'array[names.index("gain")]'),
            ],
        )
    ],
    "probe/directions/overlaps.py": [
        (
            OVERLAPS,
            [
                ("right[:k].mT, gap", "right[:, :k], gap"),
                ("left[:, :k], gap", "left[:k].mT, gap"),
                ("np.argsort(-sizes", "np.argsort(sizes"),
                ("inside[pair] | inside[pair + 1]", "inside[pair] & inside[pair + 1]"),
                ("dimension[..., None] / 2, (d - dimension[..., None]) / 2", "dimension[..., None] / 2, d / 2"),
                ("_ratio(float(values[k - 1]), float(values[k]))", "_ratio(float(values[0]), float(values[k]))"),
                ("sizes[inside].min(), outside", "sizes[inside].max(), outside"),
                ("values.imag.numpy() > 0", "values.imag.numpy() < 0"),
            ],
        )
    ],
    "probe/directions/vectors.py": [
        (
            VECTORS,
            [
                ("return first - second", "return second - first"),
                ("rows * norm.gain.double().cpu()", "rows / norm.gain.double().cpu()"),
                ("if norm.centred else rows", "if not norm.centred else rows"),
            ],
        )
    ],
    "probe/directions/files.py": [
        (
            FILES,
            [
                ("return shape[1] == width", "return shape[0] == width"),
                ("n, d = shape if along else shape[::-1]", "d, n = shape if along else shape[::-1]"),
                ('"W_dec": True, "decoder.weight": False', '"W_dec": False, "decoder.weight": False'),
                ('(known[2] != "resid_pre")', '(known[2] == "resid_pre")'),
                ("int(module[1]) + 1", "int(module[1])"),
                ('("hook_name_out", "hook_name",', '("hook_name", "hook_name_out",'),
                ('("d_out", "d_in",', '("d_in", "d_out",'),
                ("for part in (*parts, settings)", "for part in (settings,)"),
            ],
        )
    ],
}
