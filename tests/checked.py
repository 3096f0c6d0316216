"""The page that says what is checked when: `python -m tests.checked` writes it from the marks of tests.

A test that proves a guard carries `@pytest.mark.guards(what, when=..., says=... or gives=...)`, its values written out:
`says` is the sentence of a refusal as it stands in the code, values as …; `gives` is what is computed, or done, all the
same. The marks are read from the files themselves, so that the page needs no run.
"""

from __future__ import annotations

import argparse
import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "howto" / "what-is-checked.md"

MOMENTS = (
    "a name is looked up",
    "a file is read",
    "a model is loaded",
    "a text is read",
    "tokens enter",
    "a pass runs",
    "a Jacobian is computed",
    "a control is drawn",
    "weights are compared",
    "matrices and graphs are measured",
    "a run begins",
    "a run is saved",
    "a finished run is opened",
    "two runs are compared",
    "a sentence is said",
)
"""When something is checked, in the order of the page."""

HEAD = """# What is checked when

A number is wrong in silence where something that was taken for granted does not hold. Here is what is looked at, when,
and what happens where it does not hold: the library refuses in one line (quoted, `…` for your own values; what to do
about it stands in [Errors](../errors.md)), or computes what is right all the same. A test proves each line.

This page is written from the tests: `python -m tests.checked`. `make soak` tries the same on random models, objects and
files that are drawn by a seed, beside oracles that share no code with the library: `python -m tests.soak --help`.

One thing is left to you: torch's hooks act on the passes of every thread, so give each thread a copy of a model of its
own (`copy.deepcopy(module)`).
"""


@dataclass(frozen=True)
class Guard:
    """One mark.

    Attributes:
        what: What is checked.
        when: One of `MOMENTS`.
        says: The sentence of the refusal; "" where there is none.
        gives: What is computed or done; "" where it is refused.
        test: The test that proves it, as pytest names it.
    """

    what: str
    when: str
    says: str
    gives: str
    test: str


@functools.cache
def guards() -> tuple[Guard, ...]:
    """The marks of all tests, by file and line."""
    return tuple(guard for path in sorted(TESTS.rglob("test_*.py")) for guard in _in_file(path))


def _in_file(path: Path) -> Iterator[Guard]:
    text = path.read_text(encoding="utf-8")
    if "mark.guards(" not in text:
        return
    tree = ast.parse(text)
    parents: list[ast.Module | ast.ClassDef] = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    for parent in parents:
        inside = f"::{parent.name}" if isinstance(parent, ast.ClassDef) else ""
        for node in parent.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.guards":
                    test = f"{path.relative_to(TESTS.parent).as_posix()}{inside}::{node.name}"
                    yield _guard(mark, test)


def _guard(mark: ast.Call, test: str) -> Guard:
    (what,) = map(ast.literal_eval, mark.args)
    named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in mark.keywords}
    return Guard(what, named.pop("when"), named.pop("says", ""), named.pop("gives", ""), test, **named)


def page() -> str:
    """Write the page."""
    found = guards()
    parts = [HEAD]
    for moment in MOMENTS:
        parts += [f"\n## When {moment}\n", "| what is checked | what comes | test |", "|---|---|---|"]
        for one in found:
            if one.when == moment:
                comes = f"refused: “{one.says}”" if one.says else one.gives
                file, _, test = one.test.rpartition("::")
                parts.append(f"| {_cell(one.what)} | {_cell(comes)} | `{test}` in `{file.partition('::')[0]}` |")
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.checked", description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    parser.parse_args().page.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
