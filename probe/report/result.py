"""Result of a run: its Dataset, claims and figures, and the report that is written of them."""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import plots
from probe.boundary import public
from probe.claims import Claim
from probe.errors import InputError
from probe.report.figure import Figure, data_uri, image_of
from probe.report.page import environment, page, script_json
from probe.runs import write_file

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

SETTINGS = {
    "config": "Configuration",
    "fingerprint": "What it ran on",
    "versions": "Versions",
    "provenance": "When and where",
}


@public
@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run.

    Attributes:
        data: The Dataset; `attrs["provenance"]` holds the run's record as JSON.
        claims: The claims, in the order in which they are read; `claims_table` makes a table of them.
        directory: The run directory.
        title: Heading of the report.
        notes: Sentences at the head of the report.
        figures: The figures.
        config: The options of the run, its thresholds among them.
        judge: Makes a result of Dataset, options and directory, by the rules of the run's analysis.
        compared: The variables whose paired differences a page of two runs shows, each with labels.
        rejudged: Whether the claims were judged with other thresholds than the run's own.
    """

    data: xr.Dataset
    claims: Sequence[Claim]
    directory: Path
    title: str
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    config: Any = None
    judge: Callable[[xr.Dataset, Any, Path], Result] | None = None
    compared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rejudged: bool = False

    def __repr__(self) -> str:
        counts = Counter(claim.verdict for claim in self.claims)
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no claims"
        return f"Result({self.title!r}: {verdicts}; {len(self.figures)} figures; in {self.directory})"

    @property
    def record(self) -> dict[str, Any]:
        """The contents of `config.json` when the results were written; the key `config` is always there."""
        record: dict[str, Any] = json.loads(self.data.attrs.get("provenance") or "{}")
        return {"config": {}} | record

    @public
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
            raise InputError(
                f"the name of a figure must be one of the run's ({', '.join(by_name)}), got {name!r}: choose one"
            )
        return by_name[name]

    @public
    def table(self, *names: str, missing: bool = False) -> pd.DataFrame:
        """Tabulate variables: one row for each value, along the variable's own axes alone.

        `data.to_dataframe()` would make the product of *all* axes of the Dataset instead, which may be billions of
        rows.

        Args:
            *names: Variables with the same axes, one column each; by default a table of all variables with axes, unit,
                number of values and meaning.
            missing: Keep the rows without a value, which were not measured.

        Returns:
            A column of labels for each axis, one for each further label that stands along these axes (window, position,
            document, title and token of a scored token), then the values.

        Raises:
            InputError: If the run has no such variable, or the variables have different axes.
        """
        from probe.report import tables

        return tables.table(self.data, names, missing=missing) if names else tables.variables_table(self.data)

    def claims_table(self) -> pd.DataFrame:
        """Tabulate the claims: one row each, with verdict, estimate, interval, threshold and its direction.

        Returns:
            The table; `null_estimate` is the null line's, all else of a claim's nulls and controls stays in `claims`.
        """
        from probe.report import tables

        return tables.claims_table(self.claims)

    @public
    def paired(
        self,
        other: Result,
        name: str,
        *,
        centre: str = "median",
        over: Sequence[str] = (),
        resamples: int = 1000,
        seed: int = 0,
        **labels: Any,
    ) -> pd.DataFrame:
        """Compare a variable of two runs token by token: this run's value less the other's, on the same tokens.

        ``Δ = centre over tokens of (this − other)``, then the mean over the axes of `over`. Its 95 % interval resamples
        documents, and each takes all its tokens in both runs (`probe.inference.bootstrap`). The median of the
        differences is not the difference of the medians.

        Args:
            other: A run of the same analysis: of another checkpoint, of the model before tuning, of a control.
            name: A variable that is measured at scored tokens.
            centre: "median" or "mean" over the tokens.
            over: Axes whose mean is taken after that, "layer" for example.
            resamples: Resamples of the documents.
            seed: Seed of the resamples.
            **labels: Where, along axes of the variable: `map="local"`.

        Returns:
            One row for each place along the remaining axes: its labels, `this` and `other` (the same statistic of each
            run, on the tokens that both measured), `difference`, `ci_low`, `ci_high`, `n_documents`, `n_tokens`; in the
            variable's unit.

        Raises:
            InputError: If the runs cannot be paired: another analysis, text, window, position or tokenizer, no layer in
                common. The message says which option would make them alike.
        """
        from probe.report import pairing

        return pairing.paired(self, other, name, labels, centre=centre, over=over, resamples=resamples, seed=seed)

    @public
    def rejudge(self, thresholds: Mapping[str, Any] | None = None, /, **named: Any) -> Result:
        """Judge the claims again with other thresholds, by the analysis's own rules, from the Dataset alone.

        It takes as long as judging did: up to a minute, for the intervals are computed anew. The files of the run stay
        as they are.

        Args:
            thresholds: New values by name, fields of `config.thresholds`; the others keep theirs.
            **named: The same as keywords: `threshold_alignment=0.8`.

        Returns:
            A result with these claims, and figures with these lines; its notes name what was changed.

        Raises:
            InputError: If a threshold is unknown or no number, or the run's analysis has none.
        """
        changes = dict(thresholds or {}) | named
        config = _with_thresholds(self.config, changes)
        if self.judge is None or config is None:
            raise InputError(
                f"a run is judged again by its analysis's thresholds, but the analysis of {self.directory} has none: "
                "judge its Dataset by rules of your own"
            )
        own = replace(self.judge(self.data, config, self.directory), rejudged=self.rejudged or bool(changes))
        old = self.config.thresholds
        told = "; ".join(f"{name} is {value:g}, was {getattr(old, name):g}" for name, value in changes.items())
        return replace(own, notes=[*self.notes, f"Judged again with other thresholds: {told}."]) if told else own

    @public
    def write_report(self, folder: Path | str | None = None) -> Path:
        """Draw the figures and write the page.

        Args:
            folder: Where to; by default the run directory.

        Returns:
            Path of `report.html`; beside it `figures/NAME.png` and `figures/NAME.svg`.

        Raises:
            InputError: If the folder cannot be written or the disk is full, or if claims that were judged again would
                be written beside the run's own.
        """
        if folder is None and self.rejudged:
            raise InputError(
                f"a run's report says what its claims.json says, but these claims of {self.directory} were judged with "
                "other thresholds: pass write_report(folder)"
            )
        folder = self.directory if folder is None else Path(folder)
        shown = [_shown(figure, folder / "figures") for figure in self.figures]
        interactive = any(figure["spec"] for figure in shown)
        path = folder / "report.html"
        write_file(path, page("report.html", self._head() | {"figures": shown}, interactive=interactive))
        return path

    def _head(self) -> dict[str, Any]:
        """Content that report, comparison and notebook summary share."""
        record = self.record
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


def _with_thresholds(config: Any, changes: Mapping[str, Any]) -> Any:
    """The options with other thresholds; None if they hold none."""
    old = getattr(config, "thresholds", None)
    if not is_dataclass(old) or isinstance(old, type):
        return None
    known = [entry.name for entry in fields(old)]
    for name, value in changes.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"perhaps {close[0]}" if close else f"they are {', '.join(known)}"
            raise InputError(f"a threshold must be one that the analysis has, got {name!r}: {meant}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"a threshold must be a finite number, got {name}={value!r}: give one")
    return replace(config, thresholds=replace(old, **changes))


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
