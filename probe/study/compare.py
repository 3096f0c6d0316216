"""Finished runs side by side, with the joint figure where they are of one model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import xarray as xr

from probe import analyses, plots
from probe.report import Figure, Result, write_comparison
from probe.study import joint, panels

PANELS = {
    "weights_jacobian": "weights and mean K",
    "weights_update": "weights and û",
    "jacobian_update": "mean K and û",
}


def compare(runs: Sequence[Path], path: Path) -> Path:
    """Write the page.

    Args:
        runs: Directories of finished runs.
        path: The page's file.

    Returns:
        The path.

    Raises:
        InputError: If a directory holds no finished run, or a joint figure is due and a run keeps no directions.
    """
    results = [analyses.open_run(run) for run in runs]
    kinds = [str(result.data.attrs["analysis"]) for result in results]
    across = analyses.load(kinds[0]).across(results) if len(set(kinds)) == 1 else ()
    return write_comparison(results, path, across, joint_figures(dict(zip(kinds, results, strict=True)), results))


def joint_figures(by_analysis: dict[str, Result], results: Sequence[Result]) -> list[Figure]:
    """Make the joint figure, if the runs are one each of two or more analyses of one model.

    Args:
        by_analysis: The runs by their analyses.
        results: All runs.

    Returns:
        One figure or none.

    Raises:
        InputError: If a run keeps no directions.
    """
    found = {name: by_analysis[name] for name in joint.PARTS if name in by_analysis}
    if len(found) < 2 or len(by_analysis) < len(results) or len({_weights(one) for one in found.values()}) > 1:
        return []
    data = joint.joint({name: joint.directions_of(result) for name, result in found.items()})
    return [_figure(data, next(iter(found.values())), list(found))]


def _weights(result: Result) -> str:
    """The options that name a run's weights: the analyses hash them in different ways."""
    config = json.loads(result.data.attrs["provenance"])["config"]
    return json.dumps([config.get(name) for name in ("model", "revision", "random_init", "shuffled_weights")])


def _figure(data: xr.Dataset, result: Result, kinds: Sequence[str]) -> Figure:
    pairs = [name for name in PANELS if name in data]
    k = data.attrs["leading"]

    def draw() -> matplotlib.figure.Figure:
        figure, axes = plots.new_figure(1, len(pairs), height=3.4, share_y="all")
        for name, ax in zip(pairs, axes[0], strict=True):
            if name == "jacobian_update":
                panels.subspace_angles(data, ax=ax)
            else:
                panels.direction_angles(data, name, ax=ax)
            ax.set_title(PANELS[name])
        plots.shared_legend(figure, columns=5)
        return figure

    return Figure(
        "joint",
        "Do the directions of the analyses coincide?",
        f"Angles by block between the leading direction of each projection in the stream (v₁ of readers, u₁ of "
        f"writers), the {k} leading directions of the mean K = J − I (what it reads beside readers, where it writes "
        f"beside writers), and the {k} dominant directions of the tokenwise part û of the update. Of two subspaces the "
        f"smallest angle, pale the others. Grey, the null: the middle 95 % and the median of random directions and "
        f"subspaces in {data.attrs['d_model']} dimensions. {result.data.attrs['model']}; from {', '.join(kinds)}.",
        draw,
        alt="Line charts of principal angles by depth between the directions that the analyses found.",
    )
