"""Result of a run: its Dataset, claims and figures, and the report that is written of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import plots
from probe.claims import Claim
from probe.errors import InputError
from probe.report.figure import Figure, data_uri, image_of
from probe.report.page import environment, page, script_json
from probe.runs import write_file

if TYPE_CHECKING:
    import xarray as xr

SETTINGS = {
    "config": "Configuration",
    "fingerprint": "What it ran on",
    "versions": "Versions",
    "provenance": "When and where",
}


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run.

    Attributes:
        data: The Dataset; `attrs["provenance"]` holds the run's record as JSON.
        claims: The claims, in the order in which they are read.
        directory: The run directory.
        title: Heading of the report.
        notes: Sentences at the head of the report.
        figures: The figures.
    """

    data: xr.Dataset
    claims: Sequence[Claim]
    directory: Path
    title: str
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()

    def __repr__(self) -> str:
        counts = Counter(claim.verdict for claim in self.claims)
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no claims"
        return f"Result({self.title!r}: {verdicts}; {len(self.figures)} figures; in {self.directory})"

    def figure(self, name: str) -> Figure:
        """Find a figure by its name; Jupyter shows it with its caption.

        Args:
            name: The name, also that of its files in `figures/`.

        Returns:
            The figure, which is drawn when it is shown.

        Raises:
            InputError: If the run has no such figure.
        """
        by_name = {figure.name: figure for figure in self.figures}
        if name not in by_name:
            raise InputError(f"a figure must be one of the run's ({', '.join(by_name)}), got {name!r}: choose one")
        return by_name[name]

    def write_report(self) -> Path:
        """Draw the figures and write the page.

        Returns:
            Path of `report.html`; beside it `figures/NAME.png` and `figures/NAME.svg`.

        Raises:
            InputError: If the directory cannot be written or the disk is full.
        """
        shown = [_shown(figure, self.directory / "figures") for figure in self.figures]
        interactive = any(figure["spec"] for figure in shown)
        path = self.directory / "report.html"
        write_file(path, page("report.html", self._head() | {"figures": shown}, interactive=interactive))
        return path

    def _head(self) -> dict[str, Any]:
        """Content that report, comparison and notebook summary share."""
        record = record_of(self)
        return {
            "title": self.title,
            "notes": self.notes,
            "attrs": self.data.attrs,
            "facts": _facts(self.data),
            "claims": self.claims,
            "counts": Counter(claim.verdict for claim in self.claims),
            "command": record.get("provenance", {}).get("command"),
            "name": _named(self.data.attrs, record["config"]),
            "weights": record.get("fingerprint", {}).get("weights"),
            "settings": [(heading, flat(record[name])) for name, heading in SETTINGS.items() if record.get(name)],
            "directory": str(self.directory),
        }

    def _repr_html_(self) -> str:
        """The summary for Jupyter: model, text, claims with verdicts."""
        return environment().get_template("summary.html").render(self._head())


def record_of(result: Result) -> dict[str, Any]:
    """Read the contents of `config.json` at the time of writing; the key `config` is always there."""
    record: dict[str, Any] = json.loads(result.data.attrs.get("provenance") or "{}")
    return {"config": {}} | record


def _named(attrs: Mapping[Any, Any], config: Mapping[str, Any]) -> str:
    """The model, and the changes to its weights."""
    from probe.runs.provenance import model_in_words  # imports torch

    changes = {name: config.get(name) for name in ("random_init", "shuffled_weights")}
    return model_in_words(str(attrs.get("model", "unnamed")), attrs.get("revision"), **changes)


def _shown(figure: Figure, folder: Path) -> dict[str, Any]:
    """Draw a figure to its two files, and return what the template needs."""
    with plots.page_style():
        drawn = figure.draw()
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")  # laid out once, not once a format
        pictures = {suffix: image_of(drawn, suffix) for suffix in ("png", "svg")}
    for suffix, content in pictures.items():
        write_file(folder / f"{figure.name}.{suffix}", content)
    suffix = min(pictures, key=lambda name: len(pictures[name]))
    spec = figure.interactive().to_json() if figure.interactive else ""
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "alt": figure.alt or figure.title,
        "source": data_uri(suffix, pictures[suffix]),
        "spec": script_json(spec),
        "table": figure.table() if figure.table else None,
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested mappings to leaves under dotted names."""
    return [
        leaf
        for name, value in tree.items()
        for leaf in (flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)])
    ]


def _facts(data: xr.Dataset) -> list[tuple[str, str]]:
    """The run in a few lines, from the Dataset."""
    attrs = data.attrs
    model = _named(attrs, {}) + (f" ({attrs['description']})" if attrs.get("description") else "")
    named = [("Model", model), ("Architecture", attrs.get("architecture")), ("Text", attrs.get("text"))]
    sizes = [("Blocks", "layer"), ("Scored tokens", "query")]
    counts = [(label, f"{data.sizes[name]:,}") for label, name in sizes if name in data.sizes]
    documents, fitted = attrs.get("n_documents_scored"), attrs.get("n_fit_tokens")
    counts += [("Scored documents", f"{int(documents):,}")] if documents is not None else []
    counts += [("Tokens for fitting", f"{int(fitted):,}")] if fitted is not None else []
    return [(label, str(value)) for label, value in named if value] + counts
