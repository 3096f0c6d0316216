"""Errors to plant in what reads results: file -> groups that the same tests watch."""

from __future__ import annotations

RESULTS: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/report/pairing.py": [
        (
            "tests/report/test_pairing.py",
            [
                ("np.where(both, a - b, np.nan)", "np.where(both, b - a, np.nan)"),
                ("= np.isfinite(a) & np.isfinite(b)", "= np.isfinite(a) | np.isfinite(b)"),
                ('(("this", a), ("other", b))', '(("this", b), ("other", a))'),
                ("alike &= (merged", "alike |= (merged"),
                ("rows_of_other})", "rows})"),
                ("counts = finite @ weights", "counts = np.full(finite.shape[:-1], weights.sum())"),
                ("statistic(np.bincount(index, minlength=n))", "statistic((np.bincount(index, minlength=n) > 0) * 1)"),
                ("total / np.maximum(n, 1)", "total"),
                ("documents[tokens], resamples", "np.arange(len(tokens)), resamples"),
                ("(dim in over and mine != its)", "False"),
            ],
        )
    ],
    "probe/report/tables.py": [
        (
            "tests/report/test_tables.py",
            [
                ("array.transpose(*first.dims).values", "array.values"),
                ("np.any([~pd.isna(one) for one in values], axis=0)", "np.ones(first.size, dtype=bool)"),
                ("_labels(first, str(dim))[place]", "_labels(first, str(dim))[np.sort(place)]"),
            ],
        )
    ],
}
