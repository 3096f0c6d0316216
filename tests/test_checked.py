"""The page of what is checked is what the tests say, and what they say stands in the code."""

from __future__ import annotations

import ast

from tests.checked import MOMENTS, PAGE, TESTS, guards, page


def test_the_page_says_what_the_tests_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.checked"


def test_each_mark_has_a_moment_and_one_end() -> None:
    for guard in guards():
        assert guard.when in MOMENTS, guard
        assert bool(guard.says) != bool(guard.gives), guard
    assert {guard.when for guard in guards()} == set(MOMENTS)


def test_no_line_stands_twice() -> None:
    lines = [(guard.what, guard.when, guard.test) for guard in guards()]
    assert len(set(lines)) == len(lines)


def _texts() -> str:
    """Every text of the modules that refuse, values as an ellipsis."""
    texts = []
    written = (path.read_text(encoding="utf-8") for path in (TESTS.parent / "probe").rglob("*.py"))
    for code in written:
        for node in ast.walk(ast.parse(code)) if "InputError" in code else ():
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_refusal_that_is_quoted_is_one_of_the_codes() -> None:
    said = _texts()
    for guard in guards():
        for part in filter(None, guard.says.split("…")):
            assert part in said, guard
