"""Planted errors in how pieces become a Dataset: file -> (tests, [(fragment, replacement)])."""

from __future__ import annotations

PIECES_TESTS = "tests/runs/test_pieces.py"

RUNS = {
    "probe/runs/pieces.py": [
        (
            PIECES_TESTS,
            [
                (
                    "values.permute([now.index(axis) for axis in axes])",
                    "values.permute([list(axes).index(axis) for axis in now])",
                ),
                ("slice(own.start - every.start, own.stop - every.start)", "slice(0, own.stop - own.start)"),
                ("filled[_mesh(index)] = True", "filled[...] = True"),
                ("whole[~filled] = variable.fill", "whole[~filled] = 0"),
                ("axis == place else 1", "place == 0 else 1"),
                ("return [places[axis][label] for label in _many(own)]", "return list(range(len(_many(own))))"),
            ],
        ),
    ],
}
