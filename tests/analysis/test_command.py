from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from safetensors.numpy import load_file
from torch import Tensor

import probe
from probe.analysis import Plan, RunOptions, StagePlan, Subject, Task, TextConfig, command, config, parsing
from probe.analysis.config import parse_layers
from probe.errors import InputError
from probe.runs import Run
from tests.plant import toy

SAMPLE = ["--dataset", "sample", "--quiet"]


def start(argv: list[str], stop: str = "") -> subprocess.Popen[str]:
    """The toy's command line in a process of its own, which stops in that task."""
    environment = os.environ | {"TOY_STOP": stop}
    return subprocess.Popen(argv, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def contents(directory: Path) -> dict[str, dict[str, bytes]]:
    """The arrays of every finished task; the file beside them holds what it took, which no two runs share."""
    return {
        str(path.relative_to(directory)): {name: array.tobytes() for name, array in load_file(path).items()}
        for path in (directory / "units").rglob("*.safetensors")
    }


def test_a_killed_run_goes_on_to_the_result_of_an_uninterrupted_one(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.plant.toy", *SAMPLE, "--out", str(tmp_path / "run")]
    with start(argv, stop="write") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        process.kill()
    before = contents(tmp_path / "run")
    drawn = {f"units/draw/index-{i:05d}.safetensors" for i in range(4)}
    assert set(before) == drawn | {"units/add/index-00000.safetensors"}
    assert len(list((tmp_path / "run").rglob("*.partial"))) == 1, "killed while it wrote"
    written = {path: (tmp_path / "run" / path).stat().st_mtime_ns for path in before}

    with start(argv) as process:
        out, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    assert out == f"{tmp_path / 'run' / 'report.html'}\n"
    assert written == {path: (tmp_path / "run" / path).stat().st_mtime_ns for path in before}, "not done again"
    assert not list((tmp_path / "run").rglob("*.partial"))

    whole = toy.run(toy.Config(dataset="sample"), out=tmp_path / "whole", quiet=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    resumed = Run(tmp_path / "run").read_results()
    assert resumed["sum"].values.tobytes() == whole.data["sum"].values.tobytes()
    xr.testing.assert_equal(resumed, whole.data)


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from probe.analysis.command import main
from probe.analysis.config import TextConfig
try:
    main("toy", TextConfig, None, ["--help"])
except SystemExit as stop:
    assert stop.code == 0
print(sorted({"torch", "transformers", "datasets", "xarray", "pandas", "numpy", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


def test_help_names_every_option_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        toy.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    options = """--model --revision --random-init --dataset --text --split --windows --window-length --layers --device
    --dtype --seed --out --fresh --dry-run --quiet --shuffled-weights --skip-first --numbers"""
    assert [option for option in options.split() if not re.search(rf"{option}[ ,]", text)] == []
    for part in ("--random-init SEED", "--text FILE", "--out DIR", "--ranks INT,INT,...", "4,8", "How many numbers"):
        assert part in text


def test_options_reach_the_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--text t.txt --windows 7 --window-length 64 --layers 0,2 --random-init 3 --revision none --ranks 1,2,3"
    assert toy.main([*options.split(), "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"
    config = Run(tmp_path / "run").record["config"]
    expected = {
        "text": "t.txt",
        "dataset": None,
        "windows": 7,
        "window_length": 64,
        "layers": "0,2",
        "random_init": 3,
        "shuffled_weights": None,
        "revision": None,
        "ranks": [1, 2, 3],
        "model": "smollm2-135m-instruct-q4",
    }
    assert expected.items() <= config.items()


def test_without_text_or_data_set_it_is_wikitext_2() -> None:
    assert TextConfig().dataset == "wikitext-2"
    assert TextConfig(text=Path("t.txt")).dataset is None
    with pytest.raises(InputError, match=r"got data set sample and file t\.txt"):
        TextConfig(text=Path("t.txt"), dataset="sample")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--windows", "many"], "--windows: must be a whole number, got 'many'"),
        (["--windows"], "Missing value for argument '--windows'"),
        (["--ranks", "1,x"], "--ranks: must be a whole number, got 'x'"),
        (["--random-init", "x"], "--random-init: must be a whole number, got 'x'"),
        (["--widnows", "3"], "Unrecognized options: --widnows, 3; perhaps --windows; --help lists the options"),
        (["extra"], "Unrecognized options: extra"),
        (["--dtype", "int8"], "invalid choice 'int8' for argument '--dtype'. Expected one of ('float32'"),
        (["--dataset", "sample", "--text", "t.txt"], "only one text can be read"),
        (["--windows", "0"], "--windows must be at least 1, got 0"),
        (["--model", "unknown"], "no model of that name"),
        (["--model", "a", "--out", "/proc/none"], "the run directory must be writable"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(argv: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy.main(argv) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert part in said.err


def test_a_defect_keeps_its_traceback() -> None:
    def broken() -> toy.Toy:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command.main("toy", toy.Config, broken, [])


def test_dry_run_prints_the_plan_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert toy.main(["--dry-run", "--model", "a,b"]) == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in said.splitlines() if line[:1] == "│"]
    assert rows == 2 * [
        ["draw", "4", "1 min 15 s", "123 MB"],
        ["add", "4", "1 h 6 min", "2 GB"],
        ["in all", "8", "1 h 7 min", "2 GB"],
    ]
    assert "toy a" in said
    assert "toy b" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    finish = toy.draw

    def draw(subject: Subject[toy.Config], task: Task, run: Run) -> Mapping[str, Tensor]:
        if task["index"] == 2:
            signal.raise_signal(number)
        return finish(subject, task, run)

    draw.__qualname__ = "draw"
    monkeypatch.setattr(toy, "draw", draw)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    argv = [*SAMPLE, "--fresh", "--out", str(tmp_path / "a b")]
    assert toy.main(argv) == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    # --fresh would move the finished tasks aside
    go_on = f"python -m probe.analyses.toy --dataset sample --quiet --out '{tmp_path / 'a b'}'"
    assert capsys.readouterr().err == f"interrupted: finished tasks are kept; go on with: {go_on}\n"
    assert sorted(path.name for path in (tmp_path / "a b" / "units" / "draw").iterdir()) == [
        "index-00000.safetensors",
        "index-00001.safetensors",
    ]
    monkeypatch.undo()
    assert toy.main([*SAMPLE, "--out", str(tmp_path / "a b")]) == 0


def test_the_command_to_go_on_is_the_one_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> toy.Toy:
        raise KeyboardInterrupt

    typed = ["../venv/bin/python", "-m", "probe.analyses.toy", "--fresh", "--text", "my file.txt"]
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", ["__main__.py", *typed[3:]])
    assert command.main("toy", toy.Config, interrupt) == 130
    said = capsys.readouterr().err
    assert said.endswith("go on with: ../venv/bin/python -m probe.analyses.toy --text 'my file.txt'\n")


@pytest.mark.parametrize("program", ["probe toy", "python -m probe.analyses.toy"])
def test_a_run_records_the_command_that_was_typed(tmp_path: Path, program: str) -> None:
    out = tmp_path / "a b"
    words = [*SAMPLE, "--fresh", "--out", str(out)]
    assert command.main("toy", toy.Config, toy.Toy, words, program=program) == 0
    record = json.loads((out / "config.json").read_text())
    assert record["provenance"]["command"] == f"{program} {' '.join(SAMPLE)} --fresh --out '{out}'"


def test_several_models_and_revisions_make_one_run_each_and_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared: list[tuple[list[Any], Path]] = []
    monkeypatch.setattr("probe.report.write_comparison", lambda results, path, across: compared.append((results, path)))
    models = ["--model", "org/a, b", "--revision", "step1,step2"]
    assert toy.main([*SAMPLE, *models, "--out", str(tmp_path)]) == 0
    names = ["org-a-step1", "org-a-step2", "b-step1", "b-step2"]
    pages = [str(tmp_path / name / "report.html") for name in names]
    assert capsys.readouterr().out.splitlines() == [*pages, str(tmp_path / "comparison.html")]
    ((results, path),) = compared
    assert [result.directory for result in results] == [tmp_path / name for name in names]
    assert path == tmp_path / "comparison.html"
    configs = [json.loads((tmp_path / name / "config.json").read_text())["config"] for name in names]
    assert [(config["model"], config["revision"]) for config in configs] == [
        ("org/a", "step1"),
        ("org/a", "step2"),
        ("b", "step1"),
        ("b", "step2"),
    ]


@pytest.mark.parametrize(
    ("text", "layers"), [("all", [0, 1, 2, 3]), ("0,3", [0, 3]), ("3, 1,3", [1, 3]), ("2", [2])], ids=str
)
def test_layers_are_all_or_a_comma_list(text: str, layers: list[int]) -> None:
    assert parse_layers(text, 4) == layers
    assert TextConfig(layers=text).layer_indices(4) == layers


@pytest.mark.parametrize(
    ("text", "message"),
    [("4", "between 0 and 3.*got 4"), ("-1,2", "got -1"), ("0-3", "like 0,5,10"), ("", "like 0,5,10")],
)
def test_layers_that_are_not_there(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_layers(text, 4)


def test_a_configuration_of_another_shape_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """No model, no text."""

        arms: tuple[str, ...] = ("full", "none")

    seen = []

    class Recording(toy.Toy):
        def run(self, config: Any, **options: Any) -> Any:
            seen.append((config.arms, options))
            raise InputError("that is enough")

    assert command.main("causes", Config, Recording, ["--arms", "none", "--fresh"]) == 2
    typed = "python -m probe.analyses.causes --arms none --fresh"
    assert seen == [(("none",), {"out": None, "fresh": True, "quiet": False, "typed": typed})]


@pytest.mark.parametrize("argv", [["--model", "pythia-1b", "--dataset", "sample"], ["--dataset", "wikitext-2"]])
def test_what_is_neither_here_nor_on_a_hub_is_refused_before_torch_is_imported(tmp_path: Path, argv: list[str]) -> None:
    code = (
        "import sys\n"
        "from probe.analyses import tokenwise\n"
        "from probe.analysis import command\n"
        "status = command.main('tokenwise', tokenwise.Config, lambda: tokenwise.analysis, sys.argv[1:])\n"
        "sys.exit(status + 10 * ('torch' in sys.modules))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "the hub does not answer" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("stream", "module", "option"),
    [
        ("stdout", "probe.analyses.tokenwise", "--help"),
        ("stdout", "tests.plant.toy", "--dry-run"),
        ("stderr", "probe.analyses.tokenwise", "--unknown"),
    ],
)
def test_a_reader_that_has_gone_ends_a_command_as_sigpipe_would(
    unbuffered: str, stream: str, module: str, option: str
) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command_line = [sys.executable, "-m", module, option]
    with subprocess.Popen(command_line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        ends = {"stdout": process.stdout, "stderr": process.stderr}
        gone, other = ends.pop(stream), ends.popitem()[1]
        assert gone is not None
        assert other is not None
        gone.close()
        assert other.read() == b""
    assert process.returncode == 141


def test_a_broken_pipe_that_is_not_the_output_is_a_defect() -> None:
    def broken() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        command.exit_status(broken, "toy")


@pytest.mark.parametrize("name", ["tokenwise", "dynamics", "communities", "continuity", "causes", "lens"])
def test_every_example_of_a_help_is_a_command_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = getattr(probe.analyses, name).Config
    assert len(config.examples) >= 2
    for options in config.examples:
        both = command.with_run_options(config)
        parsed = parsing.parse(both, "probe", shlex.split(options))
        assert not options or (parsed.config, parsed.options) != (config(), RunOptions())
    with pytest.raises(SystemExit):
        command.main(name, config, toy.Toy, ["--help"], program=f"probe {name}")
    shown = capsys.readouterr().out
    assert f"usage: probe {name} " in shown
    for options, what in config.examples.items():
        assert f"\n  {f'probe {name} {options}'.strip()}\n      {what}\n" in shown


@pytest.mark.parametrize("argv", [["probe.analyses.tokenwise", "--help"], ["tests.plant.toy", "--dry-run"]])
def test_colours_are_for_terminals_and_for_who_wants_them(argv: list[str]) -> None:
    assert b"\x1b[" in on_a_terminal(argv, {"NO_COLOR": ""})
    assert not re.search(rb"\x1b\[[\d;]*[34]\d", on_a_terminal(argv, {"NO_COLOR": "1"}))
    assert (
        "\x1b"
        not in subprocess.run([sys.executable, "-m", "tests.plant.toy", *argv], capture_output=True, text=True).stdout
    )


def on_a_terminal(argv: list[str], variables: dict[str, str]) -> bytes:
    """What a module prints where standard output is a terminal."""
    own, its = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"} | variables
    with subprocess.Popen([sys.executable, "-m", *argv], env=environment, stdout=its) as process:
        os.close(its)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(own, 65536):
                shown += part
    os.close(own)
    assert process.returncode == 0
    return shown


def test_a_table_is_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a stage whose name is longer than a terminal is wide " * 2
    command.print_plan(Plan([StagePlan(name, 1, 1.0, 1)]), "toy")
    assert name.strip() in capsys.readouterr().out


def test_in_a_notebook_a_plan_is_one_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *shown: pytest.fail(f"displayed {shown}"))
    file = io.StringIO()
    command.print_plan(Plan([StagePlan("draw", 4, 1.0, 1)]), "toy", file)
    assert "draw" in file.getvalue()
    assert "\x1b" not in file.getvalue()
