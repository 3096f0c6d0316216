"""The ledger of a study: claim by claim and model by model what was found, as JSON, CSV, Markdown and a page.

Nothing in it is written by hand: estimates, intervals, verdicts and reasons are those of the runs' `claims.json`. A
claim that several models decide together is decided by pretrained models only; fresh twins and the small models that
were trained for this project are shown, and decide nothing.
"""

from __future__ import annotations

import csv
import datetime
import difflib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probe import analyses, display
from probe.claims import SIGNS, Claim, Verdict
from probe.errors import InputError
from probe.report import Result
from probe.report import page as report
from probe.runs import Run, write_file
from probe.study.definition import State, Study

TOGETHER = "all pretrained models"
WITHOUT_TRAINING = "Supported on fresh weights of the same model, too, so not what training made"
COLUMNS = (
    *("study", "claim", "model", "state", "verdict", "estimate", "ci_low", "ci_high", "threshold"),
    *("direction", "unit", "n_units"),
    *("null", "controls", "reason", "statement", "source", "statistic", "analysis", "run", "report"),
    *("seconds", "cpu", "cores", "memory", "threads"),
)
"""Columns of the CSV; `null` and `controls` are JSON."""


@dataclass(frozen=True)
class RunEntry:
    """A run that is done.

    Attributes:
        name: ANALYSIS/LABEL.
        analysis: Its analysis.
        model: Its model in words.
        state: Whether the weights are pretrained, trained here or untrained.
        report: Its report, relative to the study's directory.
        command: What began it.
        begun: When, ISO 8601.
        last_task: When its last task was finished.
        seconds: Working time of its tasks; None where they do not tell.
        cpu: Processor; None where the run did not record it, as `cores` and `memory` (bytes).
        cores: Cores that it might use.
        memory: Memory of the machine.
        threads: Threads of torch.
        weights: Hash of the weights.
    """

    name: str
    analysis: str
    model: str
    state: State
    report: str
    command: str
    begun: str
    last_task: str | None
    seconds: float | None
    cpu: str | None
    cores: int | None
    memory: int | None
    threads: int | None
    weights: str | None

    @property
    def took(self) -> str:
        """Its working time in words."""
        if self.seconds is not None:
            return display.duration(self.seconds)
        return f"not recorded: begun {_minute(self.begun)}, last task {_minute(self.last_task)}"

    @property
    def machine(self) -> str:
        """Its processor, cores, memory and threads in words."""
        if self.cpu is None:
            return "not recorded" + (f", threads of torch: {self.threads}" if self.threads else "")
        memory = "" if self.memory is None else f", {self.memory / 2**30:.0f} GiB"
        return f"{self.cpu}, cores: {self.cores}{memory}, threads of torch: {self.threads}"


@dataclass(frozen=True)
class Entry:
    """One claim on one model, or on all that decide it together.

    Attributes:
        claim: As it was computed.
        model: The model in words.
        state: Of its weights.
        run: The run that it comes from; None for a claim that runs decide together.
    """

    claim: Claim
    model: str
    state: State
    run: RunEntry | None

    def to_dict(self) -> dict[str, Any]:
        """Give it as `ledger.json` holds it."""
        return self.claim.to_dict() | {
            "model": self.model,
            "state": self.state,
            "run": self.run.name if self.run else None,
        }


@dataclass(frozen=True)
class Ledger:
    """The findings of a study so far.

    Attributes:
        study: The study.
        runs: The runs that are done.
        entries: By claim, in the study's order, then by run.
        missing: Names of the runs that are not done.
    """

    study: Study
    runs: Sequence[RunEntry]
    entries: Sequence[Entry]
    missing: Sequence[str]

    @property
    def columns(self) -> list[tuple[str, State]]:
        """The models with the state of their weights: all that decide together, then each, in the order of the runs."""
        together = [(entry.model, entry.state) for entry in self.entries if entry.run is None]
        return list(dict.fromkeys([*together, *((run.model, run.state) for run in self.runs)]))

    @property
    def without_training(self) -> dict[str, list[str]]:
        """The claims that are supported on a model and on its untrained twin alike, with those models."""
        supported = {(e.claim.id, e.model) for e in self.entries if e.claim.verdict == "supported"}
        found: dict[str, list[str]] = {}
        for entry in self.entries:
            trained = entry.model.partition(", ")[0]  # as a model's name ends in words
            if entry.state == "untrained" and {(entry.claim.id, entry.model), (entry.claim.id, trained)} <= supported:
                found.setdefault(entry.claim.id, []).append(trained)
        return found

    def of_claim(self, name: str) -> list[Entry]:
        """Select the entries of one claim.

        Args:
            name: Its id.

        Returns:
            One a model.
        """
        return [entry for entry in self.entries if entry.claim.id == name]

    def to_dict(self) -> dict[str, Any]:
        """Give it as `ledger.json` holds it."""
        return {
            "study": self.study.name,
            "title": self.study.title,
            "arxiv": self.study.arxiv,
            "claims": list(self.study.claims),
            "missing": list(self.missing),
            "without_training": self.without_training,
            "runs": [asdict(run) | {"took": run.took, "machine": run.machine} for run in self.runs],
            "entries": [entry.to_dict() for entry in self.entries],
        }


def gather(study: Study, results: Mapping[str, Result], out: Path) -> Ledger:
    """Gather the ledger of the runs that are done.

    Args:
        study: The study.
        results: By name of the run.
        out: The study's directory.

    Returns:
        The ledger.
    """
    done = [member for member in study.members if member.name in results]
    runs = {member.name: _run_entry(member.name, member.analysis, member.model, member.state, out) for member in done}
    entries: list[Entry] = []
    decided_together: set[str] = set()
    for name in dict.fromkeys(member.analysis for member in done):
        pretrained = [results[m.name] for m in done if m.analysis == name and m.state == "pretrained"]
        together = [Entry(claim, TOGETHER, "pretrained", None) for claim in analyses.load(name).across(pretrained)]
        decided_together |= {entry.claim.id for entry in together}
        entries += together
    for member in done:
        own = [claim for claim in results[member.name].claims if claim.id not in decided_together]
        entries += [Entry(claim, member.model, member.state, runs[member.name]) for claim in own]
    listed = [entry for entry in entries if entry.claim.id in study.claims]
    listed.sort(key=lambda entry: study.claims.index(entry.claim.id))  # stable: runs stay in their order
    missing = [member.name for member in study.members if member.name not in results]
    return Ledger(study, list(runs.values()), listed, missing)


def check_complete(found: Ledger, known: Iterable[str]) -> None:
    """Refuse a study that lists a claim which none of its runs tests.

    Args:
        found: The ledger, all runs done.
        known: Ids of all claims of the runs.

    Raises:
        InputError: If no run tests a claim.
    """
    absent = [name for name in found.study.claims if not found.of_claim(name)]
    if absent:
        close = difflib.get_close_matches(absent[0], set(known), n=1, cutoff=0.0)
        hint = f"did you mean {close[0]}?" if close else "its runs have no claims"
        raise InputError(
            f"each claim of a study must be tested by one of its runs, but {absent[0]} is tested by none: {hint}"
        )


def write(found: Ledger, folder: Path, *, reports: Path) -> Path:
    """Write `ledger.json`, `ledger.csv`, `ledger.md` and `ledger.html`.

    Args:
        found: The ledger.
        folder: Where to.
        reports: Where the runs' reports lie; only those that are there are linked.

    Returns:
        The page's path.

    Raises:
        InputError: If the folder cannot be written.
    """
    write_file(folder / "ledger.json", json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_file(folder / "ledger.csv", to_csv(found))
    write_file(folder / "ledger.md", to_markdown(found))
    page = folder / "ledger.html"
    paths = {run.name: reports / run.report for run in found.runs}
    content = {
        "title": f"Ledger of claims: {found.study.title}",
        "ledger": found,
        "columns": found.columns,
        "without_training": (WITHOUT_TRAINING, found.without_training),
        "rows": [(name, found.of_claim(name)) for name in found.study.claims],
        "links": {name: report.link(path, page) for name, path in paths.items() if path.is_file()},
    }
    write_file(page, report.page("ledger.html", content, interactive=False))
    return page


def to_csv(found: Ledger) -> str:
    """Write one row a claim and model; no field holds a line end.

    Args:
        found: The ledger.

    Returns:
        CSV with a head, lines ended by a line feed.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for entry in found.entries:
        row = {"study": found.study.name} | entry.to_dict()
        row |= {name: json.dumps(row[name], ensure_ascii=False) for name in ("null", "controls")}
        row |= asdict(entry.run) | {"run": entry.run.name} if entry.run else {}
        row["claim"] = entry.claim.id
        writer.writerow({key: _one_line(value) if isinstance(value, str) else value for key, value in row.items()})
    return file.getvalue()


def to_markdown(found: Ledger) -> str:
    """Write a fragment for a page of documents: the matrix of claims and models, then each claim with its numbers.

    Args:
        found: The ledger.

    Returns:
        Markdown with tables; everything that comes from outside is escaped.
    """
    models = [model for model, _ in found.columns]
    rows = [[f"`{name}`", *_cells(found.of_claim(name), models)] for name in found.study.claims]
    lines = _table(["claim", *map(_escaped, models)], rows)
    if without := [f"`{name}` ({_escaped(', '.join(models))})" for name, models in found.without_training.items()]:
        lines += ["", f"{WITHOUT_TRAINING}: {', '.join(without)}."]
    for name in found.study.claims:
        if entries := found.of_claim(name):
            claim = entries[0].claim
            lines += ["", f"**{_escaped(claim.statement)}** `{name}` ({_escaped(claim.source)})", ""]
            lines += [f"Statistic: {_escaped(claim.statistic)}. Resampled: {_escaped(claim.unit)}.", ""]
            lines += _table(
                ["model", "weights", "verdict", "estimate [95 % interval]", "threshold", "n", "reason"],
                [_markdown_row(entry) for entry in entries],
            )
    lines += ["", "**Runs**", ""]
    rows = [[f"`{run.name}`", run.state, _escaped(run.took), _escaped(run.machine)] for run in found.runs]
    return "\n".join([*lines, *_table(["run", "weights", "working time", "machine"], rows)]) + "\n"


def _cells(entries: Sequence[Entry], models: Sequence[str]) -> list[str]:
    by_model = {entry.model: entry.claim.verdict for entry in entries}
    return [_signed(by_model[model]) if model in by_model else "–" for model in models]


def _signed(verdict: Verdict) -> str:
    """A verdict after its sign, which no end of a line parts from it."""
    return f"{SIGNS[verdict]}\N{NO-BREAK SPACE}{verdict}"


def _markdown_row(entry: Entry) -> list[str]:
    claim = entry.claim
    numbers = report.interval_text(claim.estimate, claim.ci_low, claim.ci_high)
    return [
        *(_escaped(entry.model), entry.state, _signed(claim.verdict), numbers),
        *(_escaped(claim.required), str(claim.n_units), _escaped(claim.reason)),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _escaped(text: str) -> str:
    """Text in which Markdown sees no mark-up and no end of a cell or line."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|$~&" else c for c in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _run_entry(name: str, analysis: str, model: str, state: State, out: Path) -> RunEntry:
    run = Run(out / name)
    record = run.record
    provenance = record["provenance"]
    times = [path.stat().st_mtime for path in (run.directory / "units").glob("*/*.safetensors")]
    last = datetime.datetime.fromtimestamp(max(times), datetime.UTC).isoformat(timespec="seconds") if times else None
    return RunEntry(
        name=name,
        analysis=analysis,
        model=model,
        state=state,
        report=f"{name}/report.html",
        command=provenance["command"],
        begun=provenance["date"],
        last_task=last,
        seconds=run.seconds,
        weights=record["fingerprint"].get("weights"),
        **{key: provenance.get(key) for key in ("cpu", "cores", "memory", "threads")},
    )


def _minute(moment: str | None) -> str:
    return "unknown" if moment is None else f"{datetime.datetime.fromisoformat(moment):%Y-%m-%d %H:%M} UTC"
