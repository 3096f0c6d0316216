"""Studies: TOMLs and their mistakes, runs that are cut off and go on, and a ledger that says what the runs say."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from probe import InputError, analyses
from probe.analysis.contract import Analysis
from probe.claims import SIGNS, Claim, Verdict, bound_text
from probe.cli import study
from probe.report import Result
from probe.report.page import interval_text
from probe.runs import Run, changes
from probe.study import definition, ledger, work
from probe.study.definition import Study
from probe.study.ledger import Entry, Ledger, RunEntry
from tests.weights.test_curves import rotating_weights

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "analyses").glob("*.toml"))
TIME_LIMIT = 120  # seconds that another process may take
MODEL = 'analysis = "continuity"\nmodels = ["a"]\n'
CLAIMS = ["continuity.adjacency", "continuity.trained"]


# What a run draws is tested where it is drawn; here it would take most of the time.
UNDRAWN = "type(analyses.load('continuity')).figures = lambda self, data, config: []"
IMPORTS = "import sys; from probe import analyses; from probe.cli import study"
COMMAND = [sys.executable, "-c", f"{IMPORTS}; {UNDRAWN}; sys.exit(study.main(sys.argv[1:]))"]


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(analyses.load("continuity")), "figures", lambda self, data, config: [])
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    rotating_weights(0.4).save_pretrained(folder / "turning")
    return folder


def toml(folder: Path, name: str = "turning", *, run: str = "", settings: str = "", claims: list[str] = CLAIMS) -> Path:
    """A study of the tiny model, whose file is in the folder."""
    path = folder / f"{name}.toml"
    path.write_text(
        f'title = "Turning"\narxiv = "2605.04971"\nclaims = {json.dumps(claims)}\n'
        f'[[runs]]\nanalysis = "continuity"\nmodels = ["{folder}/turning"]\nrandom_init = [3]\n{run}\n'
        f"[runs.settings]\ninit_seeds = 1\npermutations = 20\n{settings}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def done(folder: Path) -> Path:
    """The directory of a study that was run."""
    assert study.main([str(toml(folder)), "--out", str(folder / "done"), "--quiet"]) == 0
    return folder / "done"


def members_of(path: Path) -> list[str]:
    return [member.name for member in definition.read(path).members]


class TestDefinition:
    def test_each_model_and_its_fresh_twin_is_a_run(self, folder: Path) -> None:
        first, twin = definition.read(toml(folder)).members
        assert (first.state, twin.state) == ("pretrained", "untrained")
        assert twin.name == f"{first.name}-init-3"
        assert twin.model == f"{folder}/turning, fresh weights (seed 3)"
        assert (first.config, twin.config) == (
            analyses.continuity.Config(model=f"{folder}/turning", init_seeds=1, permutations=20),
            analyses.continuity.Config(model=f"{folder}/turning", init_seeds=1, permutations=20, random_init=3),
        )

    def test_settings_have_the_types_of_the_configuration(self, folder: Path) -> None:
        more = "subspaces = [1, 2]\noutlier_share = 0\n[runs.settings.thresholds]\nthreshold_adjacency = -1"
        config = definition.read(toml(folder, settings=more)).members[0].config
        assert config.subspaces == (1, 2)
        assert isinstance(config.outlier_share, float)
        assert config.thresholds == replace(type(config.thresholds)(), threshold_adjacency=-1.0)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('analysis = "continuty"', "continuity"),
            ('analysis = "continuity"\nmodel = ["a"]', "got 'model': did you mean models"),
            ('models = ["a"]', "names its analysis"),
            ('analysis = "continuity"', "reads models"),
            ('analysis = "causes"\nmodels = ["a"]', "reads no model"),
            ('analysis = "continuity"\nmodels = ["a", "a"]', "a name of its own"),
            ('analysis = "continuity"\nmodels = "a"', "must be a list, got 'a'"),
            (MODEL + 'random_init = ["b"]', "must be a whole number, got 'b'"),
            (MODEL + "settings = {init_seed = 1}", "did you mean init_seeds"),
            (
                'analysis = "continuity"\nmodels = ["a"]\nsettings = {init_seeds = true}',
                "must be a whole number, got True",
            ),
            (
                'analysis = "continuity"\nmodels = ["a"]\nsettings = {init_seeds = 1.5}',
                "must be a whole number, got 1.5",
            ),
            (MODEL + "settings = {docs = 1}", "must be true or false, got 1"),
            (MODEL + 'settings = {method = "fast"}', "one of auto, dense, randomised"),
            (MODEL + 'settings = {model = "b"}', "hold no model"),
            (
                'analysis = "continuity"\nmodels = ["a"]\nsettings = {thresholds = {adjacency = 1}}',
                "threshold_adjacency",
            ),
            ('analysis = "tokenwise"\nmodels = ["a"]\nsettings = {text = "a", dataset = "b"}', "only one text"),
        ],
    )
    def test_a_mistake_in_a_run_is_one_line_that_says_what_is_meant(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
    ) -> None:
        path = tmp_path / "wrong.toml"
        path.write_text(f'title = "a"\narxiv = "b"\nclaims = []\n[[runs]]\n{line}\n', encoding="utf-8")
        assert study.main([str(path), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("title = ", "not: Invalid value"),
            ('title = "a"\narxiv = "b"\nruns = []', "has no claims: add it"),
            ('title = 1\narxiv = "b"\nclaims = []\nruns = []', "must be text, got 1"),
            ('titel = "a"', "did you mean title"),
            ('title = "a"\narxiv = "b"\nclaims = ["c", "c"]\nruns = []', "c comes more than once"),
        ],
    )
    def test_a_mistake_in_a_study_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "wrong.toml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            definition.read(path)
        with pytest.raises(InputError, match="cannot be read"):
            definition.read(tmp_path / "absent.toml")

    def test_a_file_replaces_the_data_set_where_a_text_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "texts.toml"
        runs = [
            'analysis = "tokenwise"\nmodels = ["a"]\nsettings = {dataset = "wikitext-2"}',
            'analysis = "causes"\nlabel = "with"\nsettings = {dataset = "wikitext-2"}',
            'analysis = "causes"\nlabel = "without"',
            'analysis = "continuity"\nmodels = ["a"]',
        ]
        path.write_text(
            'title = "a"\narxiv = "b"\nclaims = []\n' + "".join(f"[[runs]]\n{run}\n" for run in runs), encoding="utf-8"
        )
        read = definition.read(path, text=Path("file.txt"))
        texts = [(getattr(m.config, "text", None), getattr(m.config, "dataset", None)) for m in read.members]
        assert texts == [(Path("file.txt"), None), (Path("file.txt"), None), (None, None), (None, None)]
        other = definition.read(path, dataset="sample").members[0].config
        assert (other.text, other.dataset) == (None, "sample")

    def test_a_run_without_a_model_is_trained_here(self, tmp_path: Path) -> None:
        path = tmp_path / "toys.toml"
        path.write_text(
            'title = "a"\narxiv = "b"\nclaims = []\n[[runs]]\nanalysis = "causes"\nlabel = "toys"\n'
            '[[runs]]\nanalysis = "continuity"\nmodels = ["bundled/mamba"]\nrandom_init = [0]\n'
            '[[runs]]\nanalysis = "continuity"\nmodels = ["bundled/mamba"]\nlabel = "shuffled"\n'
            "settings = {shuffled_weights = 1}\n",
            encoding="utf-8",
        )
        members = definition.read(path).members
        assert [(m.label, m.state) for m in members] == [
            ("toys", "trained here"),
            ("bundled-mamba", "trained here"),
            ("bundled-mamba-init-0", "untrained"),
            ("bundled-mamba-shuffled", "untrained"),
        ]


class TestShipped:
    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_every_claim_is_one_that_an_analysis_of_it_makes(self, path: Path) -> None:
        read = definition.read(path)
        known = {"updates.universal"}
        for name in {member.analysis for member in read.members}:
            module = __import__(f"probe.analyses.{name}.claims", fromlist=["ROWS"])
            known |= {row.sentence.id for row in module.ROWS}
        assert set(read.claims) == known if "updates.alignment" in known else known - {"updates.universal"}

    def test_the_default_models_dynamics_is_the_run_in_the_examples(self) -> None:
        read = definition.read(ROOT / "analyses" / "residual_dynamics.toml", text=Path("wiki.test.raw"))
        for member in read.members:
            if member.state == "pretrained":
                record = json.loads((ROOT / "docs/examples" / member.analysis / "config.json").read_text())
                assert changes(record, {"analysis": member.analysis, "config": member.config}) == []

    def test_every_small_model_has_a_fresh_twin(self) -> None:
        for path in SHIPPED:
            names = set(members_of(path))
            assert {f"{name}-init-0" for name in names if name.endswith(("mamba", "transformer"))} <= names


class TestRuns:
    def test_what_is_done_is_not_done_again(self, folder: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
        files = sorted((done / "continuity").rglob("*.*"))
        before = {path: path.stat().st_mtime_ns for path in files}
        assert study.main([str(toml(folder)), "--out", str(done)]) == 0
        said = capsys.readouterr()
        assert said.out == f"{done / 'ledger.html'}\n"
        assert said.err == ""
        assert before == {path: path.stat().st_mtime_ns for path in files}

    def test_a_dry_run_tells_what_is_done_and_runs_nothing(
        self, folder: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = toml(folder)
        assert study.main([str(path), "--out", str(tmp_path / "out"), "--dry-run", "--only", "*-init-3"]) == 0
        first, twin = members_of(path)
        rows = {
            name: line for line in capsys.readouterr().out.splitlines() for name in (first, twin) if f" {name} " in line
        }
        assert "not chosen" in rows[first]
        assert "0 of 26" in rows[twin]  # five variants of four blocks and a comparison each; the coordinates
        assert not (tmp_path / "out").exists()
        assert study.main([str(path), "--out", str(done), "--dry-run"]) == 0
        assert capsys.readouterr().out.count(" done ") == 2

    def test_a_killed_study_goes_on_and_ends_the_same(self, folder: Path, done: Path, tmp_path: Path) -> None:
        path, out = toml(folder), tmp_path / "out"
        first, twin = (out / name for name in members_of(path))
        argv = [*COMMAND, str(path), "--out", str(out), "--quiet"]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + TIME_LIMIT
            while not list((twin / "units").glob("vectors/*.safetensors")):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        assert work.is_done(first)
        assert not work.is_done(twin)
        partly = json.loads((out / "ledger.json").read_text())
        assert partly["missing"] == [twin.relative_to(out).as_posix()]
        before = {file: file.stat().st_mtime_ns for file in out.glob("*/*/units/*/*.safetensors")}
        assert study.main([str(path), "--out", str(out), "--quiet"]) == 0
        assert before == {file: file.stat().st_mtime_ns for file in before}
        for file in ("ledger.md", "ledger.csv"):
            assert _claims_of(out / file) == _claims_of(done / file)

    def test_an_interruption_says_how_to_go_on(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*args: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Analysis, "run", interrupted)
        argv = [str(toml(folder)), "--out", str(tmp_path / "out")]
        assert study.main(argv, program="probe study") == 130
        assert f"go on with: probe study {' '.join(argv)}" in capsys.readouterr().err

    def test_bad_options_of_a_later_run_are_refused_before_the_first_begins(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = toml(folder, "later")
        later = MODEL.replace('a"]', f'{folder}/turning"]') + 'label = "b"\nsettings = {layers = "9"}'
        path.write_text(f"{path.read_text(encoding='utf-8')}\n[[runs]]\n{later}\n", encoding="utf-8")
        assert study.main([str(path), "--out", str(tmp_path / "out")]) == 2
        assert "layers must lie between" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--text", "a", "--dataset", "sample"], "only one text"),
            (["--only", "dynamics/*"], "--only must match some run, got 'dynamics/*'"),
            (["--onyl", "a"], "--only"),
        ],
    )
    def test_bad_options_of_the_study_are_refused(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
    ) -> None:
        assert study.main([str(toml(folder)), "--out", str(tmp_path / "out"), *options]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1

    def test_a_run_with_other_settings_is_not_taken_for_the_studys(
        self, folder: Path, done: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = toml(folder, "other", settings="block_length = 2")
        assert study.main([str(path), "--out", str(done)]) == 2
        assert "block_length was 3, is 2" in capsys.readouterr().err

    def test_a_claim_that_no_run_tests_is_an_error_that_names_a_close_one(
        self, folder: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        copy = shutil.copytree(done, tmp_path / "copy")
        path = toml(folder, "misspelt", claims=[*CLAIMS, "continuity.adjacent"])
        assert study.main([str(path), "--out", str(copy)]) == 2
        assert "continuity.adjacent is tested by none: did you mean continuity.adjacency?" in capsys.readouterr().err


def _claims_of(path: Path) -> list[list[str]]:
    """Rows of a ledger's file that tell of claims, without times."""
    if path.suffix == ".csv":
        return [row[:18] for row in csv.reader(path.read_text(encoding="utf-8").splitlines())]
    return [line.split("|") for line in path.read_text(encoding="utf-8").split("**Runs**")[0].splitlines()]


class TestLedger:
    def test_it_says_what_the_runs_say(self, folder: Path, done: Path) -> None:
        told = json.loads((done / "ledger.json").read_text(encoding="utf-8"))
        names = members_of(toml(folder))
        assert (told["claims"], told["missing"], [run["name"] for run in told["runs"]]) == (CLAIMS, [], names)
        expected = []
        for claim_id in CLAIMS:
            for name, model in zip(names, ("turning", "turning, fresh weights (seed 3)"), strict=True):
                claims = json.loads((done / name / "claims.json").read_text(encoding="utf-8"))
                (claim,) = [claim for claim in claims if claim["id"] == claim_id]
                state = "untrained" if "fresh" in model else "pretrained"
                expected.append(claim | {"model": f"{folder}/{model}", "state": state, "run": name})
        assert told["entries"] == expected

    @pytest.mark.parametrize(
        ("trained", "fresh", "named"),
        [
            ("supported", "supported", True),
            ("supported", "mechanical", False),
            ("not supported", "supported", False),
        ],
    )
    def test_what_holds_without_training_is_named(
        self, folder: Path, done: Path, trained: Verdict, fresh: Verdict, named: bool
    ) -> None:
        read = definition.read(toml(folder))
        claim = analyses.open_run(done / members_of(toml(folder))[0]).claims[0]
        verdicts: list[tuple[str, definition.State, Verdict]] = [
            ("a_b", "trained here", trained),
            ("a_b, fresh weights (seed 0)", "untrained", fresh),
            ("c, fresh weights (seed 0)", "untrained", "supported"),
        ]
        entries = [Entry(replace(claim, verdict=verdict), model, state, None) for model, state, verdict in verdicts]
        found = Ledger(read, [], entries, [])
        assert found.to_dict()["without_training"] == ({claim.id: ["a_b"]} if named else {})
        text = ledger.to_markdown(found)
        assert (f"{ledger.WITHOUT_TRAINING}: `{claim.id}` (a\\_b)." in text) == named
        page = ledger.write(found, folder / f"page-{trained}-{fresh}", reports=done).read_text(encoding="utf-8")
        assert (f"{ledger.WITHOUT_TRAINING}: <a" in page) == named

    def test_it_says_on_what_and_how_long(self, folder: Path, done: Path) -> None:
        for run in json.loads((done / "ledger.json").read_text(encoding="utf-8"))["runs"]:
            assert run["seconds"] == Run(done / run["name"]).seconds > 0
            assert run["cores"] == len(os.sched_getaffinity(0))
            assert (done / run["report"]).is_file()
            assert run["begun"] <= run["last_task"]

    def test_csv_page_and_markdown_hold_the_same(self, folder: Path, done: Path) -> None:
        told = json.loads((done / "ledger.json").read_text(encoding="utf-8"))
        rows = list(csv.DictReader((done / "ledger.csv").read_text(encoding="utf-8").splitlines()))
        page = (done / "ledger.html").read_text(encoding="utf-8")
        markdown = (done / "ledger.md").read_text(encoding="utf-8")
        assert len(rows) == len(told["entries"]) == 4
        for row, entry in zip(rows, told["entries"], strict=True):
            assert (row["claim"], row["run"], row["verdict"]) == (entry["id"], entry["run"], entry["verdict"])
            numbers = [entry[name] for name in ("estimate", "ci_low", "ci_high")]
            assert [float(row[name]) if row[name] else None for name in ("estimate", "ci_low", "ci_high")] == numbers
            assert json.loads(row["controls"]) == entry["controls"]
            assert (row["direction"], float(row["threshold"])) == (entry["direction"], entry["threshold"])
            for text in (
                *(interval_text(*numbers), entry["reason"], entry["model"]),
                bound_text(entry["direction"], entry["threshold"]),
            ):
                assert str(escape(text)) in page
            assert (
                f"| {SIGNS[entry['verdict']]}\N{NO-BREAK SPACE}{entry['verdict']} | {interval_text(*numbers)} "
                f"| \\{bound_text(entry['direction'], entry['threshold'])} |" in markdown
            )
        assert 'src="http' not in page
        assert "Content-Security-Policy" in page
        assert page.count(f'href="{rows[0]["run"]}/report.html"') == 3  # beside each claim, and in the list of runs

    def test_another_folder_links_only_reports_that_lie_there(self, folder: Path, done: Path, tmp_path: Path) -> None:
        copy = tmp_path / "docs"
        assert study.main([str(toml(folder)), "--out", str(done), "--ledger", str(copy)]) == 0
        assert "report.html" not in (copy / "ledger.html").read_text(encoding="utf-8")
        assert (copy / "ledger.csv").read_bytes() == (done / "ledger.csv").read_bytes()

    def test_what_comes_from_outside_is_escaped_and_keeps_its_row(self, tmp_path: Path) -> None:
        nasty = 'a<script>alert(1)</script>|"b",\n`c` [d](e)'
        found = _ledger(nasty)
        page = ledger.write(found, tmp_path, reports=tmp_path).read_text(encoding="utf-8")
        assert "<script>alert" not in page
        assert str(escape(nasty)) in page
        text = (tmp_path / "ledger.csv").read_text(encoding="utf-8")
        (row,) = csv.DictReader(io.StringIO(text))
        assert text.count("\n") == 2
        assert row["model"] == row["reason"] == nasty.replace("\n", " ")
        assert row["estimate"] == ""
        lines = (tmp_path / "ledger.md").read_text(encoding="utf-8").splitlines()
        (line,) = [line for line in lines if line.startswith("| a")]
        assert line.replace("\\|", "").count("|") == 8
        assert "\\<script\\>" in line
        assert "\\[d\\](e)" in line
        assert json.loads((tmp_path / "ledger.json").read_text())["entries"][0]["reason"] == nasty

    def test_untimed_runs_say_so(self) -> None:
        (run,) = _ledger("a").runs
        assert run.took == "not recorded: begun 2026-01-02 03:04 UTC, last task unknown"
        assert replace(run, seconds=130.0).took == "2 min 10 s"
        assert run.machine == "not recorded, threads of torch: 2"
        on = replace(run, cpu="Abacus", cores=2, memory=3 * 2**30)
        assert on.machine == "Abacus, cores: 2, 3 GiB, threads of torch: 2"

    def test_pretrained_models_alone_decide_what_is_decided_together(
        self, folder: Path, done: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def across(self: Analysis[Any], results: list[Result]) -> list[Claim]:
            asked.extend(result.directory.name for result in results)
            return [replace(results[0].claims[0], id="continuity.trained", reason="together")]

        monkeypatch.setattr(Analysis, "across", across)
        read = definition.read(toml(folder))
        results = {member.name: analyses.load("continuity").read(done / member.name) for member in read.members}
        found = ledger.gather(read, results, done)
        assert asked == [read.members[0].label]
        (together,) = found.of_claim("continuity.trained")
        assert (together.claim.reason, together.run, together.state) == ("together", None, "pretrained")
        assert len(found.of_claim("continuity.adjacency")) == 2
        assert found.columns[0] == (together.model, "pretrained")
        assert f"| {together.model} |" in ledger.to_markdown(found)


def _ledger(text: str) -> Ledger:
    """A ledger of one claim on one model, all of whose words are the text."""
    claim = Claim(
        id="a.b",
        statement=text,
        source=text,
        statistic=text,
        estimate=math.nan,
        ci_low=math.nan,
        ci_high=math.nan,
        threshold=0.5,
        direction="<",
        unit=text,
        n_units=3,
        null={"name": text, "estimate": None, "ci_low": None, "ci_high": None},
        controls=[{"name": text, "role": text, "estimate": 1.0, "ci_low": 0.5, "ci_high": 2.0, "threshold": None}],
        verdict="inconclusive",
        reason=text,
    )
    run = RunEntry(
        *("a/b", "a", text, "pretrained", "a/b/report.html", text, "2026-01-02T03:04:05+00:00"),
        *(None, None, None, None, None, 2, None),
    )
    return Ledger(Study("s", text, text, ("a.b",), ()), [run], [Entry(claim, text, "pretrained", run)], ["a/c"])
