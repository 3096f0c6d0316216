"""One dialect of docstrings: imperative for functions, a noun for all else, sentences in sections."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import probe

ROOT = Path(probe.__file__).parent

VERBS = frozenset(
    """
    Add Adjust Align Allow Answer Append Apply Approximate Ask Assemble Average Begin Bin Bound Build Call Cancel
    Capture Carry Center Check Choose Clear Close Collect Combine Compare Complete Compose Compute Condition Convert
    Copy Correlate Count Cover Create Cut Decide Decode Decompose Define Dequantise Derive Describe Detach Differentiate
    Divide Do Download Draw Embed Encode Ensure Enter Estimate Evaluate Extract Factor Fill Filter Find Finish Fit
    Flatten Fold Follow Format Free Gather Generate Get Give Group Hash Hide Hold Hook Initialise Insert Intervene
    Invert Iterate Join Judge Keep Know Label Lay Leave Let Limit Link List Load Locate Lock Look Make Map Mark Mask
    Match Measure Merge Move Multiply Name Normalise Offer Open Orthogonalise Parse Patch Permute Pick Place Plan
    Plot Pool Predict Prepare Print Project Propagate Prove Put Randomise Rank Reach Read Rebuild Record Reduce
    Refuse Release Remove Rename Render Reorder Repeat Replace Replay Report Require Resample Reset Resolve Restrict
    Return Rewire Rotate Round Run Sample Save Say Scale Score Search Seed Select Send Separate Set Shorten Show
    Shuffle Simulate Skip Solve Sort Split Spread Square Stack Standardise Start State Step Stop Store Stream
    Subtract Sum Summarise Swap Switch Symmetrise Tabulate Take Tell Test Time Tokenise Track Train Translate Transpose
    Treat Try Turn Undo Unembed Use Verify View Wait Walk Warn Watch Weigh Work Wrap Write Yield
    """.split()  # noqa: SIM905
)
"""What a function's docstring may begin with; add a verb where you need one."""
HIDING = ("What", "How", "Where", "Which", "Whether", "When", "Why", "Who")


def _documented() -> Iterator[tuple[str, ast.AST, str, bool]]:
    """(where, node, docstring, whether it is a public function) of everything that has a docstring."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            text = ast.get_docstring(node)
            if text is None:
                continue
            decorators = {ast.unparse(one).split("(")[0].rpartition(".")[2] for one in node.decorator_list}
            noun = isinstance(node, ast.ClassDef) or bool(decorators & {"property", "cached_property"})
            public = not node.name.startswith("_")
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node, text, public and not noun


DOCUMENTED = list(_documented())


@pytest.mark.parametrize("room", sorted({where.split("/")[0].split(":")[0] for where, *_ in DOCUMENTED}))
def test_docstrings_speak_one_dialect(room: str) -> None:
    wrong = []
    for where, node, text, function in DOCUMENTED:
        if where.split("/")[0].split(":")[0] != room:
            continue
        first = re.split(r"[\s,:;.]", text.removeprefix("`"), maxsplit=1)[0]
        if first in HIDING:
            wrong.append(f"{where}: begins with {first}; say the noun that it hides")
        if function and first not in VERBS:
            wrong.append(f"{where}: a function's docstring begins with a verb, got {first!r}")
        if not function and not isinstance(node, ast.ClassDef) and first in VERBS - {"State", "Rank", "Score", "Map"}:
            continue  # private helpers may say what they do
        wrong += _sections(where, text)
    assert not wrong, "\n".join(wrong)


def _sections(where: str, text: str) -> Iterator[str]:
    section = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            section = heading[1]
        elif line and not line.startswith(" "):
            section = ""
        elif section and (entry := re.fullmatch(r"    (\*{0,2}\w+(?: \([^)]*\))?): (.*)", line)):
            said = entry[2]
            if section == "Raises" and not said.startswith("If "):
                yield f"{where}: under Raises says 'If ...', got {said!r}"
            elif re.match(r"[a-z]{2,}|[a-z] (?![×=])", said):
                yield f"{where}: sentence case after the colon, got '{entry[1]}: {said}'"
