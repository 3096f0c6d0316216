from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import probe
from probe import analyses
from probe.analysis import Analysis
from probe.cli import program as cli

ANALYSES = ["causes", "communities", "continuity", "dynamics", "lens", "tokenwise"]


def test_help_gives_each_command_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    lines = dict(re.findall(r"^  ([a-z]+) +(\S.*)$", shown.split("Options:")[0], re.MULTILINE))
    assert list(lines) == [*ANALYSES, "study", "compare", "models"]
    assert lines["continuity"].startswith("Do the leading singular vectors of neighbouring blocks' weights")
    for part in ("usage: probe COMMAND", "--version", '--completion bash)"', "COMMAND --help"):
        assert part in shown
    assert cli.main([]) == 0
    assert capsys.readouterr().out == shown
    assert cli.main(["-h"]) == 0
    assert capsys.readouterr().out == shown


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import contextlib, sys\nfrom probe import cli\nstatus = cli.main(['--help'])\n"
        "light = not {'rich'} & set(sys.modules)\n"
        "for name in sys.argv[1:]:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        cli.main([name, '--help'])\n"
        "heavy = {'torch', 'transformers', 'xarray', 'pandas'} & set(sys.modules)\n"
        "sys.exit(status or not light or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, *ANALYSES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: ") == 1 + len(ANALYSES)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"residual-probe {probe.__version__}\n"


@pytest.mark.guards(
    "wrong input on the command line",
    when="a sentence is said",
    gives="one line, status 2, no traceback",
)
@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["tokenwize", "--help"], "got 'tokenwize': perhaps tokenwise;"),
        (["model"], "got 'model': perhaps models;"),
        (
            ["zzz"],
            "got 'zzz': there are causes, communities, continuity, dynamics, lens, tokenwise, study, compare, models;",
        ),
        (["--verison"], "got '--verison'"),
        (["--completion"], "takes one of bash, zsh, fish, got nothing"),
        (["--completion", "tcsh"], "got tcsh"),
        (["tokenwise", "--widnows", "3"], "perhaps --windows"),
        (["models", "--jsn"], "perhaps --json"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(argv: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert part in said.err


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_is_the_same_program_by_either_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    ours = capsys.readouterr().out
    with pytest.raises(SystemExit):
        analyses.load(name).main(["--help"])
    theirs = capsys.readouterr().out
    assert f"usage: probe {name} " in ours
    assert f"usage: python -m probe.analyses.{name} " in theirs
    assert ours.replace(f"probe {name}", f"python -m probe.analyses.{name}") == theirs


def test_a_command_is_named_as_it_was_typed(tmp_path: Path) -> None:
    def usage(*words: str, **variables: str) -> str:
        done = subprocess.run(
            [*words, "--help"], env=os.environ | variables, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[0]

    script = tmp_path / "bin dir" / "probe"  # as the installer writes it
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom probe.cli.program import main\nsys.exit(main())\n")
    script.chmod(0o755)
    assert usage(str(script)) == f"usage: '{script}' COMMAND [OPTIONS]"
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    assert usage(str(script), PATH=path) == "usage: probe COMMAND [OPTIONS]"
    assert usage(str(script), "models", PATH=path).startswith("usage: probe models ")
    python = shlex.quote(sys.executable)
    assert usage(sys.executable, "-m", "probe") == f"usage: {python} -m probe COMMAND [OPTIONS]"
    assert usage(sys.executable, "-m", "probe", "causes") == f"usage: {python} -m probe causes [-h] [OPTIONS]"


def test_an_interruption_names_the_program_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Analysis, "run", interrupted)
    assert cli.main(["causes", "--fresh", "--out", str(tmp_path / "a b")]) == 130
    assert capsys.readouterr().err.endswith(f"go on with: probe causes --out '{tmp_path / 'a b'}'\n")


COMPLETE = """
source /dev/stdin
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_probe; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script() -> str:
    return subprocess.check_output([sys.executable, "-m", "probe", "--completion", "bash"], text=True)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["probe", "t"], ["tokenwise"]),
        (["probe", "co"], ["communities", "compare", "continuity"]),
        (["probe", "--v"], ["--version"]),
        (["probe", "--completion", ""], ["bash", "fish", "zsh"]),
        (["probe", "tokenwise", "--mo"], ["--model"]),
        (["probe", "tokenwise", "--quiet", "--mlp-"], ["--mlp-steps", "--mlp-width"]),
        (["probe", "dynamics", "--context", ""], ["alone", "detached", "sequence"]),
        (["probe", "models", "--c"], ["--cache", "--check"]),
        (["probe", "models", "--no-"], ["--no-all", "--no-json", "--no-trust-remote-code"]),
    ],
)
def test_bash_completes_commands_options_and_choices(script: str, words: list[str], completed: list[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", *words], input=script, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    assert sorted(done.stdout.split()) == completed


def test_bash_completes_the_files_of_a_text(script: str, tmp_path: Path) -> None:
    (tmp_path / "my-text.txt").touch()
    words = ["probe", "tokenwise", "--text", "my-"]
    done = subprocess.check_output(["bash", "-c", COMPLETE, "bash", *words], input=script, cwd=tmp_path, text=True)
    assert done == "my-text.txt\n"


@pytest.mark.parametrize(
    ("shell", "part"), [("zsh", "#compdef probe"), ("fish", "complete --no-files --command 'probe'")]
)
def test_other_shells_get_a_script(shell: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--completion", shell]) == 0
    said = capsys.readouterr()
    assert part in said.out
    assert "'--window-length'" in said.out


@pytest.mark.guards("the terminal knows no UTF-8", when="a sentence is said", gives="help in what it knows")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    "words", [["probe", "--help"], ["probe", "dynamics", "--help"], ["probe.analyses.dynamics", "--help"]]
)
def test_help_is_told_in_any_encoding(words: list[str], encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"usage: " in done.stdout
    assert not done.stderr
    done.stdout.decode(encoding)
