"""A run as one self-contained HTML page, and a page that compares runs.

The page holds all it needs: figures as data URIs (PNG or SVG, whichever is smaller), plotly.js once, the numbers of
the interactive charts as JSON. Its Content-Security-Policy forbids the network and runs no script but the page's own,
by hash. Whatever comes from outside (titles, tokens, names, options) is escaped: by the templates in HTML, by
`script_json` inside script elements, and by `hover_text` where plotly would read tags.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import matplotlib.figure
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from probe import plots
from probe.claims import SIGNS, Claim
from probe.command import model_in_words
from probe.errors import InputError
from probe.runs import write_file

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
            source = _data_uri("png", _picture(self.draw(), "png", plots.NOTEBOOK_DPI))
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
        record = _record(self)
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
            "settings": [(words, _flat(record[name])) for name, words in SETTINGS.items() if record.get(name)],
            "directory": str(self.directory),
        }

    def _repr_html_(self) -> str:
        """The summary that Jupyter shows: model, text, claims with verdicts."""
        return _environment().get_template("summary.html").render(self._head())


def write_comparison(
    results: Sequence[Result], path: Path | str, across: Sequence[Claim] = (), figures: Sequence[Figure] = ()
) -> Path:
    """Write one page with several runs side by side: claims, settings that differ, figures of one name; links to each.

    Args:
        results: Runs, of one analysis or of several.
        path: The page's file.
        across: Claims that are decided by all runs together.
        figures: Figures that are drawn from all runs together.

    Returns:
        The path.

    Raises:
        InputError: If the file cannot be written.
    """
    path = Path(path)
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
        "settings": _differing([dict(_flat(_record(result)["config"])) for result in results]),
        "joint": [_embedded(figure) for figure in figures],
        "figures": _side_by_side(results, [run["label"] for run in runs]),
    }
    write_file(path, page("comparison.html", content, interactive=False))
    return path


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Settings that two runs have and that are not equal in all that have them."""
    names = dict.fromkeys(name for one in settings for name in one)
    values = {name: [one.get(name, _ABSENT) for one in settings] for name in names}
    return [
        (name, ["" if value is _ABSENT else value for value in row])
        for name, row in values.items()
        if len({repr(value) for value in row if value is not _ABSENT}) > 1
    ]


_ABSENT = object()


def _side_by_side(results: Sequence[Result], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Figures that two runs have under one name, each with the pictures of all."""
    names = Counter(figure.name for result in results for figure in result.figures)
    found = []
    for name in (name for name, count in names.items() if count > 1):
        having = [
            (label, figure, result.directory / "figures" / f"{name}.png")
            for label, result in zip(labels, results, strict=True)
            for figure in result.figures
            if figure.name == name
        ]
        pictures = [
            _embedded(figure, file.read_bytes() if file.is_file() else None) | {"label": label}
            for label, figure, file in having
        ]
        found.append({"name": name, "title": having[0][1].title, "pictures": pictures})
    return found


def _embedded(figure: Figure, picture: bytes | None = None) -> dict[str, Any]:
    """A figure's picture, drawn where there is none, with its words."""
    if picture is None:
        with plots.page_style():
            picture = _picture(figure.draw(), "png", DPI)
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "alt": figure.alt or figure.title,
        "source": _data_uri("png", picture),
    }


def _same_weights(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Names of runs whose weights have one hash: some published checkpoints hold the weights of another."""
    by_hash: dict[str, list[str]] = {}
    for run in runs:
        if run["weights"]:
            by_hash.setdefault(run["weights"], []).append(run["name"])
    return [names for names in by_hash.values() if len(names) > 1]


def _record(result: Result) -> dict[str, Any]:
    """What `config.json` held when the results were written; `config` is there even if nothing is."""
    record: dict[str, Any] = json.loads(result.data.attrs.get("provenance") or "{}")
    return {"config": {}} | record


def _named(attrs: Mapping[Any, Any], config: Mapping[str, Any]) -> str:
    """The model, and what was done to its weights."""
    done = {name: config.get(name) for name in ("random_init", "shuffled_weights")}
    return model_in_words(str(attrs.get("model", "unnamed")), attrs.get("revision"), **done)


def interval_text(estimate: float | None, low: float | None, high: float | None) -> str:
    """An estimate with its interval, with as many decimals as give the interval's width two digits.

    Args:
        estimate: A number; None and NaN are written as a dash.
        low: Lower end; without two finite ends the estimate stands alone.
        high: Upper end.

    Returns:
        For example "0.617 [0.601, 0.632]".
    """
    if estimate is None or low is None or high is None or not 0 < high - low < math.inf:
        return _number(estimate)
    decimals = max(0, 1 - math.floor(math.log10(high - low)))
    first, second, third = (f"{value:.{decimals}f}".replace("-", "−") for value in (estimate, low, high))
    return f"{first} [{second}, {third}]"


def script_json(text: str) -> Markup:
    """JSON made safe to stand inside a script element: nothing in it can close the element or open a comment.

    Args:
        text: JSON.

    Returns:
        The same JSON with `<`, `>`, `&` and the two line separators of Unicode written as escapes.
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def hover_text(text: str, limit: int = 80) -> str:
    """User text for a plotly label: shows invisible characters, and holds nothing that plotly reads as a tag.

    Args:
        text: A token, its context or a title.
        limit: Longest result in characters, before escaping; the end of the text is kept.

    Returns:
        The text with line ends as ↵, control and format characters as codes, and `&`, `<`, `>` escaped.
    """
    cut = text if len(text) <= limit else f"…{text[1 - limit :]}"
    return html.escape("".join(map(_visible, cut)), quote=False)


def _visible(character: str) -> str:
    if character == "\n":
        return "↵"
    invisible = unicodedata.category(character) in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
    return f"\\u{ord(character):04x}" if invisible else character


def _shown(figure: Figure, folder: Path) -> dict[str, Any]:
    """Draws a figure to its two files and returns what the template needs."""
    with plots.page_style():
        drawn = figure.draw()
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")  # laid out once, not once a format
        pictures = {suffix: _picture(drawn, suffix) for suffix in ("png", "svg")}
    for suffix, content in pictures.items():
        write_file(folder / f"{figure.name}.{suffix}", content)
    suffix = min(pictures, key=lambda name: len(pictures[name]))
    spec = figure.interactive().to_json() if figure.interactive else ""
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "alt": figure.alt or figure.title,
        "source": _data_uri(suffix, pictures[suffix]),
        "spec": script_json(spec),
        "table": figure.table() if figure.table else None,
    }


def _data_uri(suffix: str, content: bytes) -> str:
    kind = {"png": "image/png", "svg": "image/svg+xml"}[suffix]
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(figure: matplotlib.figure.Figure, suffix: str, dpi: int = DPI) -> bytes:
    file = io.BytesIO()
    # without a date, equal data give equal files
    figure.savefig(file, format=suffix, dpi=dpi, metadata={"Date": None} if suffix == "svg" else None)
    return file.getvalue()


def page(template: str, content: Mapping[str, Any], *, interactive: bool) -> str:
    """A template as a whole page, with style, scripts and a policy that lets no other script run.

    Args:
        template: Its file name.
        content: What it shows; escaped wherever it is not marked as safe.
        interactive: Whether plotly.js goes in.

    Returns:
        HTML.
    """
    scripts = [_resource("page.js")]
    if interactive:
        scripts.insert(0, get_plotlyjs())
    # a browser reads line ends as \n, and the hash is of what it reads
    scripts = [script.replace("\r\n", "\n").replace("\r", "\n") for script in scripts]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = "; ".join([
        "default-src 'none'",
        "script-src " + " ".join(f"'sha256-{value}'" for value in hashes),
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    ])
    return (
        _environment()
        .get_template(template)
        .render(
            content,
            policy=policy,
            style=Markup(_resource("page.css")),
            scripts=[Markup(script) for script in scripts],
        )
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("probe", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["interval"] = _interval
    environment.filters["plain"] = _plain
    environment.globals["signs"] = SIGNS
    return environment


def _resource(name: str) -> str:
    return (resources.files("probe") / "templates" / name).read_text(encoding="utf-8")


def _number(value: object) -> str:
    """A number to three digits; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.3g}".replace("-", "−") if isinstance(value, float) else str(value)


def _interval(entry: Claim | Mapping[str, Any]) -> str:
    """Estimate and interval of a claim, or of a null line or control in it."""
    values = asdict(entry) if isinstance(entry, Claim) else entry
    return interval_text(*(values.get(name) for name in ("estimate", "ci_low", "ci_high")))


def _plain(value: object) -> str:
    """A configuration value in words."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return {None: "–", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings under dotted names."""
    return [
        leaf
        for name, value in tree.items()
        for leaf in (_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)])
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


def link(target: Path, page: Path) -> str:
    """Relative address of a file, as a page beside it would write it.

    Args:
        target: The file.
        page: The page's file.

    Returns:
        The address, quoted.
    """
    return quote(Path(os.path.relpath(target.resolve(), page.resolve().parent)).as_posix())
