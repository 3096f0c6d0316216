"""What a run found: its Dataset, claims and figures, and the report that is written of them."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from probe import plots
from probe.claims import Claim
from probe.errors import InputError
from probe.report.page import environment, page, script_json
from probe.runs import write_file
from probe.runs.provenance import model_in_words

DPI = 200


SETTINGS = {
    "config": "Configuration",
    "fingerprint": "What it ran on",
    "versions": "Versions",
    "provenance": "When and where",
}


@dataclass(frozen=True, repr=False)
class Figure:
    """A figure of a report.

    Attributes:
        name: File name without suffix, and anchor on the page.
        title: Heading.
        caption: What is shown: model, text, documents, tokens, the null line.
        draw: Makes the matplotlib figure; called once a report, inside `plots.page_style()`.
        interactive: Makes the plotly figure, if there is one. Its sliders and dropdowns become HTML controls.
        table: Makes a table of the figure's numbers, if there is one.
        alt: What the picture shows, for who cannot see it; default title.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], matplotlib.figure.Figure]
    interactive: Callable[[], go.Figure] | None = None
    table: Callable[[], pd.DataFrame] | None = None
    alt: str = ""

    def __repr__(self) -> str:
        return f"Figure({self.name!r}: {self.title})"

    def _repr_html_(self) -> str:
        """The picture with its caption, as Jupyter shows it."""
        with plots.page_style():
            source = data_uri("png", image_of(self.draw(), "png", plots.NOTEBOOK_DPI))
        return (
            f'<figure><img src="{source}" alt="{html.escape(self.alt or self.title)}" style="max-width: 100%">'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True, repr=False)
class Result:
    """What a run found.

    Attributes:
        data: The Dataset; `attrs["provenance"]` holds the run's record as JSON.
        claims: The claims, in the order in which they are read.
        directory: The run directory.
        title: Heading of the report.
        notes: Sentences that stand at its head.
        figures: Its figures.
    """

    data: xr.Dataset
    claims: Sequence[Claim]
    directory: Path
    title: str
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()

    def __repr__(self) -> str:
        counts = Counter(claim.verdict for claim in self.claims)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no claims"
        return f"Result({self.title!r}: {told}; {len(self.figures)} figures; in {self.directory})"

    def figure(self, name: str) -> Figure:
        """One figure by its name; in Jupyter it shows itself with its caption.

        Args:
            name: The name, which is also that of its files in `figures/`.

        Returns:
            The figure; nothing is drawn before it is shown.

        Raises:
            InputError: If the run has no such figure.
        """
        found = {figure.name: figure for figure in self.figures}
        if name not in found:
            raise InputError(f"a figure must be one of the run's ({', '.join(found)}), got {name!r}: choose among them")
        return found[name]

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
        """What report, comparison and notebook summary say about a run."""
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
            "settings": [(words, flat(record[name])) for name, words in SETTINGS.items() if record.get(name)],
            "directory": str(self.directory),
        }

    def _repr_html_(self) -> str:
        """The summary that Jupyter shows: model, text, claims with verdicts."""
        return environment().get_template("summary.html").render(self._head())


def record_of(result: Result) -> dict[str, Any]:
    """What `config.json` held when the results were written; `config` is there even if nothing is."""
    record: dict[str, Any] = json.loads(result.data.attrs.get("provenance") or "{}")
    return {"config": {}} | record


def _named(attrs: Mapping[Any, Any], config: Mapping[str, Any]) -> str:
    """The model, and what was done to its weights."""
    done = {name: config.get(name) for name in ("random_init", "shuffled_weights")}
    return model_in_words(str(attrs.get("model", "unnamed")), attrs.get("revision"), **done)


def _shown(figure: Figure, folder: Path) -> dict[str, Any]:
    """Draws a figure to its two files and returns what the template needs."""
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


def data_uri(suffix: str, content: bytes) -> str:
    """A picture as a page holds it within itself."""
    kind = {"png": "image/png", "svg": "image/svg+xml"}[suffix]
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_of(figure: matplotlib.figure.Figure, suffix: str, dpi: int = DPI) -> bytes:
    """The bytes of a figure's file."""
    file = io.BytesIO()
    # without a date, equal data give equal files
    figure.savefig(file, format=suffix, dpi=dpi, metadata={"Date": None} if suffix == "svg" else None)
    return file.getvalue()


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings under dotted names."""
    return [
        leaf
        for name, value in tree.items()
        for leaf in (flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)])
    ]


def _facts(data: xr.Dataset) -> list[tuple[str, str]]:
    """The run in a few words, from what the Dataset holds."""
    attrs = data.attrs
    model = _named(attrs, {}) + (f" ({attrs['description']})" if attrs.get("description") else "")
    named = [("Model", model), ("Architecture", attrs.get("architecture")), ("Text", attrs.get("text"))]
    sizes = [("Blocks", "layer"), ("Scored tokens", "query")]
    counts = [(label, f"{data.sizes[name]:,}") for label, name in sizes if name in data.sizes]
    documents, fitted = attrs.get("n_documents_scored"), attrs.get("n_fit_tokens")
    counts += [("Scored documents", f"{int(documents):,}")] if documents is not None else []
    counts += [("Tokens for fitting", f"{int(fitted):,}")] if fitted is not None else []
    return [(label, str(value)) for label, value in named if value] + counts
