"""Several runs side by side on one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe import plots
from probe.boundary import filled, public
from probe.claims import Claim
from probe.errors import InputError
from probe.report.figure import DPI, Figure, data_uri, image_of
from probe.report.page import link, page
from probe.report.result import Result, flat
from probe.runs import write_file


@public(results=filled)
def write_comparison(
    results: Sequence[Result], path: Path | str, across: Sequence[Claim] = (), figures: Sequence[Figure] = ()
) -> Path:
    """Write one page with several runs side by side: claims, differing settings, figures of one name, links.

    Where runs of one analysis measured the same tokens of the same documents, each stands against the first: the paired
    differences of the variables that the analysis compares, with intervals over documents; otherwise why not.

    Args:
        results: Runs, of one analysis or of several.
        path: The page's file.
        across: Claims that all runs together decide.
        figures: Figures drawn from all runs together.

    Returns:
        The path.

    Raises:
        InputError: If the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"path= must be a file that can be written, and {path} is a directory: name a file in it")
    ids = dict.fromkeys(claim.id for result in results for claim in result.claims)
    by_id = [{claim.id: claim for claim in result.claims} for result in results]
    rows = [(next(claims[name] for claims in by_id if name in claims), [c.get(name) for c in by_id]) for name in ids]
    runs = [result._head() | {"link": link(result.directory / "report.html", path)} for result in results]
    several = len({result.data.attrs["analysis"] for result in results}) > 1
    labels = [f"{run['name']}, {run['attrs']['analysis']}" if several else run["name"] for run in runs]
    for run, label in zip(runs, labels, strict=True):
        run["label"] = label if labels.count(label) == 1 else f"{label}, in {run['directory']}"
    content = {
        "title": "Runs side by side",
        "runs": runs,
        "rows": rows,
        "across": across,
        "same": [] if several else _same_weights(runs),
        "settings": _differing([dict(flat(result.record["config"])) for result in results]),
        "joint": [_embedded(figure) for figure in figures],
        "paired": [] if several else _paired(results, [run["label"] for run in runs]),
        "figures": _side_by_side(results, [run["label"] for run in runs]),
    }
    write_file(path, page("comparison.html", content, interactive=False))
    return path


def _paired(results: Sequence[Result], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Each run against the first: rows of differences, or the reason why there are none."""
    first, *others = results
    if not first.compared:
        return []
    tables = []
    for result, label in zip(others, labels[1:], strict=True):
        rows: list[dict[str, Any]] = []
        why = ""
        try:
            for name in first.compared:
                rows += _differences(result, first, name)
        except InputError as error:
            rows, why = [], str(error)
        tables.append({"label": label, "first": labels[0], "rows": rows, "why": why})
    return tables


def _differences(result: Result, first: Result, name: str) -> list[dict[str, Any]]:
    """A variable's differences, averaged over layers: one row for each place along its other axes."""
    if name not in result.data or name not in first.data:
        return []
    labels = first.compared[name]
    array = first.data[name]
    found = result.paired(first, name, over=["layer"] if "layer" in array.dims else [], **labels)
    axes = [axis for axis in found.columns if axis in array.dims]
    return [
        {
            "name": name,
            "meaning": array.attrs.get("long_name", name),
            "unit": array.attrs.get("units", ""),
            "where": ", ".join(f"{axis} {label}" for axis, label in [*labels.items(), *((a, row[a]) for a in axes)]),
            "estimate": row["difference"],
        }
        | {key: row[key] for key in ("this", "other", "ci_low", "ci_high", "n_documents", "n_tokens")}
        for row in found.to_dict("records")
    ]


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Settings that at least two runs have, and that are not equal in all runs that have them."""
    names = dict.fromkeys(name for options in settings for name in options)
    values = {name: [options.get(name, _ABSENT) for options in settings] for name in names}
    return [
        (name, ["" if value is _ABSENT else value for value in row])
        for name, row in values.items()
        if len({repr(value) for value in row if value is not _ABSENT}) > 1
    ]


_ABSENT = object()


def _side_by_side(results: Sequence[Result], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Figures that at least two runs have under one name, each with the pictures of all."""
    names = Counter(figure.name for result in results for figure in result.figures)
    groups = []
    for name in (name for name, count in names.items() if count > 1):
        sources = [
            (label, figure, result.directory / "figures" / f"{name}.png")
            for label, result in zip(labels, results, strict=True)
            for figure in result.figures
            if figure.name == name
        ]
        pictures = [
            _embedded(figure, file.read_bytes() if file.is_file() else None) | {"label": label}
            for label, figure, file in sources
        ]
        groups.append({"name": name, "title": sources[0][1].title, "pictures": pictures})
    return groups


def _embedded(figure: Figure, picture: bytes | None = None) -> dict[str, Any]:
    """A figure's picture, drawn where there is none, with its texts."""
    if picture is None:
        with plots.page_style():
            picture = image_of(figure.draw(), "png", DPI)
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "alt": figure.alt or figure.title,
        "source": data_uri("png", picture),
    }


def _same_weights(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Names of runs whose weights have one hash, for some published checkpoints hold the weights of another."""
    by_hash: dict[str, list[str]] = {}
    for run in runs:
        if run["weights"]:
            by_hash.setdefault(run["weights"], []).append(run["name"])
    return [names for names in by_hash.values() if len(names) > 1]
