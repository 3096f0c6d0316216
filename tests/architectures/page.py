"""The page of the docs that lists every type: `python -m tests.architectures.page RESULTS.jsonl docs/architectures.md`.

RESULTS.jsonl is what `python -m tests.architectures --out RESULTS.jsonl` wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from tests.architectures.survey import Result, counted, read

HEAD = """# Architectures

Every model type that `AutoModelForCausalLM` of transformers {transformers} maps (torch {torch}), built tiny and random
and tried against oracles that share no code with the library: {counts}

"Exact" means: states and logits equal those of the module's own pass; Jacobians, also of one-token inputs and of the
parts of a block, equal central differences and derivatives of that pass within 1e-6 of their norm in float64; what a
block adds adds up; `q k v o`, where they are matrices, give what attention is handed. Every refusal is one line, quoted
here. "Asked and refused" names what a type cannot offer, though all else is exact.

The table was made by

```bash
python -m tests.architectures {options}--out RESULTS.jsonl
python -m tests.architectures.page RESULTS.jsonl docs/architectures.md
```

`probe models --check NAME` says the same of one model with its own weights.

| type | outcome | Jacobians | reason, or what is asked and refused |
|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.architectures.page", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON lines that a survey kept")
    parser.add_argument("page", type=Path, help="the page to write")
    parser.add_argument("--options", default="", help="options of the survey, as they were typed")
    options = parser.parse_args()
    results = list(read(options.results).values())
    options.page.write_text(page(results, f"{options.options} " if options.options else ""), encoding="utf-8")
    return 0


def page(results: Sequence[Result], options: str) -> str:
    """Write the page.

    Args:
        results: One a type.
        options: Options of the survey, as they were typed, and a blank.
    """
    head = HEAD.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        counts=f"**{counted(results)}**.",
        options=options,
    )
    rows = [f"| `{one.name}` | {one.outcome} | {_method(one)} | {_remark(one)} |" for one in results]
    return head + "\n".join(rows) + "\n"


def _method(result: Result) -> str:
    return result.method if result.outcome == "exact" else ""


def _remark(result: Result) -> str:
    refused = [one for one in result.findings if one.outcome == "refused"]
    text = result.line if result.outcome != "exact" else "; ".join(f"{one.check}: {one.line}" for one in refused)
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
