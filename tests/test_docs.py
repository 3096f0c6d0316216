"""The site's sources hold together: pages are reachable, files exist, code compiles, commands and sentences are real.

Without Sphinx, which builds the site and runs its pages: `make docs`.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from probe import analyses
from probe.analysis import command, parsing

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NO_PAGES = {"_build", "_generated", "examples", "ledger", "extending"}
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] not in NO_PAGES)
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_text = pytest.mark.parametrize("path", TEXTS, ids=_name)


def _blocks(path: Path, *kinds: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(path.read_text(encoding="utf-8")) if kind in kinds]


def test_every_page_is_in_a_toctree() -> None:
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for body in _blocks(page, "{toctree}"):
            for line in body.splitlines():
                if line and not line.startswith(":"):
                    entry = re.sub(r".*<(.*)>", r"\1", line)
                    listed.add((page.parent / f"{entry}.md").resolve())
    orphans = {page for page in PAGES if "orphan: true" in page.read_text(encoding="utf-8")}
    assert set(PAGES) == listed | orphans


@every_text
def test_every_file_that_is_named_exists(path: Path) -> None:
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    named = [target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if ":" not in target]
    taken_in = re.compile(r"^```\{(?:include|figure|literalinclude)\} (\S+)", re.MULTILINE)
    named += taken_in.findall(path.read_text(encoding="utf-8"))
    for target in named:
        if not target.startswith("_generated/"):
            assert (path.parent / target).exists(), target


@every_text
def test_python_blocks_compile(path: Path) -> None:
    for body in _blocks(path, "python", "{code-cell}"):
        ast.parse(re.sub(r"\A(---\n.*?---\n|(:[^\n]*\n)+\n?)", "", body, flags=re.DOTALL))


def _commands() -> list[tuple[str, str]]:
    bodies = [(_name(path), body) for path in TEXTS for body in _blocks(path, "console", "")]
    lines = [(where, line) for where, body in bodies for line in body.splitlines()]
    wanted = re.compile(rf"(python -m probe\.analyses\.|probe )({'|'.join(analyses.names())})\b")
    return [(where, line) for where, line in lines if wanted.match(line)]


@pytest.mark.parametrize(("where", "line"), _commands())
def test_every_command_parses(where: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    name, options = (words[1], words[2:]) if words[0] == "probe" else (words[2].rsplit(".", 1)[1], words[3:])
    if "--help" in options:
        return
    command_line = command.with_run_options(analyses.load(name).config)
    assert parsing.parse(command_line, name, options) is not None, where


def _sentences() -> str:
    """Every text inside the calls of InputError, values as an ellipsis."""

    def words(node: ast.expr) -> str:
        match node:
            case ast.Constant(value=value):
                return str(value)
            case ast.JoinedStr(values=values):
                return "".join(map(words, values))
            case ast.BinOp(left=left, right=right):
                return words(left) + words(right)
        return "…"

    calls = (
        node
        for path in (ROOT / "probe").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError" and node.args
    )
    return "\n".join(words(call.args[0]) for call in calls)


@pytest.mark.guards(
    "the errors that are explained are those of the code",
    when="a sentence is said",
    gives="they stand there word by word",
)
def test_every_error_that_is_explained_is_one_of_the_codes() -> None:
    said = re.sub(r"…+", "…", _sentences())
    quoted = re.findall(r"^> (.+)$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 20
    for sentence in quoted:
        assert max(sentence.split("…"), key=len) in said, sentence
