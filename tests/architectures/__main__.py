"""`python -m tests.architectures`: every causal type of transformers, one line each, and a line of counts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import transformers

from tests.architectures import zoo
from tests.architectures.case import CHECKS, QUICK
from tests.architectures.survey import counted, read, survey


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("--types", default="", help="names, comma-separated; all by default")
    parser.add_argument("--checks", default="", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--quick", action="store_true", help="the checks that take less than a second a type")
    parser.add_argument("--out", type=Path, help="a file of JSON lines that keeps the results")
    parser.add_argument("--resume", action="store_true", help="leave out the types that the file holds already")
    parser.add_argument("--verbose", action="store_true", help="a line for each check")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a type")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    names = options.types.split(",") if options.types else list(zoo.types())
    checks = options.checks.split(",") if options.checks else (QUICK if options.quick else list(CHECKS))
    done = read(options.out) if options.out and options.resume else {}
    results = [done[name] for name in names if name in done]
    for result in survey(
        [name for name in names if name not in done],
        {"checks": checks, "n_rows": 3 if options.quick else None},
        limit=options.limit,
        kept=options.out,
    ):
        results.append(result)
        say(f"{result.name:28} {result.outcome:8} {result.method:9} {result.seconds:5.1f}s  {result.line}")
        for one in result.findings if options.verbose else ():
            say(f"    {one.check:16} {one.outcome:8} {one.error:.1e}  {one.line}")
    say(counted(results))
    return 0


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
