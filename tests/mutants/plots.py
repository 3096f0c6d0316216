"""Planted errors in what the panels of all analyses share."""

from __future__ import annotations

PLOTS: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/plots/style.py": [
        (
            "tests/plots/test_plots.py::test_intervals_of_draws",
            [
                ("np.quantile(draws, [0.025, 0.975], axis=0)", "np.quantile(draws, [0.05, 0.95], axis=0)"),
                ("draws.min(axis=0), draws.max(axis=0)", "draws.max(axis=0), draws.min(axis=0)"),
            ],
        ),
        (
            "tests/plots/test_plots.py::test_names_of_a_kind",
            [('str(name).startswith(f"{kind}-")', "str(name).startswith(kind)")],
        ),
        (
            "tests/plots/test_plots.py::test_geometric_means_and_medians_of_positive_values",
            [
                ("logs = values.copy(data=np.log(values.values)).mean(dim)", "logs = values.mean(dim)"),
                ("return exponential(median_over_documents(data, logs))", "return median_over_documents(data, logs)"),
            ],
        ),
    ],
    "probe/plots/pages.py": [
        (
            "tests/plots/test_plots.py::test_labels_stay_at_the_edge_of_the_page",
            [("if (row + 1, column) in by_cell:", "if row + 1 < len(by_cell):")],
        ),
    ],
    "probe/analyses/dynamics/panels/spectral.py": [
        (
            "tests/plots/test_plots.py::test_the_null_of_a_score_is_what_a_random_matrix_has",
            [
                ("1 - (2 / (np.pi * d)) ** 0.5", "(2 / (np.pi * d)) ** 0.5"),
                ('("antisymmetric_fraction", "henrici_departure"), 0.5**0.5', '("antisymmetric_fraction",), 0.5'),
            ],
        ),
    ],
}
