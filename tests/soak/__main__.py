"""Random tiny models, as objects and in files, through load, capture, Jacobian and continuity, each beside an oracle.

The last line counts the cases: exact, refused in one line, ended in a traceback, wrong. The status is 1 if there is one
of the last two. Each of these has a line before it, and so has each reason why a valid case was refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from tests.soak.asking import Result
from tests.soak.drawing import COUNT, SEED
from tests.soak.survey import counted, failed, read, refused, survey


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the drawing")
    parser.add_argument("--count", type=int, default=COUNT, help="number of cases")
    parser.add_argument("--cases", default="", help="their numbers, comma-separated, instead of the first COUNT")
    parser.add_argument("--out", type=Path, help="a file of JSON lines that keeps the results; what it holds is done")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a case may take")
    options = parser.parse_args()
    numbers = [int(number) for number in options.cases.split(",")] if options.cases else list(range(options.count))
    results = {number: one for number, one in _kept(options).items() if number in numbers}
    left = [number for number in numbers if number not in results]
    for result in tqdm(survey(left, options.seed, limit=options.limit, kept=options.out), total=len(left), unit="case"):
        results[result.number] = result
    for reason, those in refused(results.values()).items():
        say(f"refused, though valid: {', '.join(map(str, those))}: {reason}")
    for result in failed(results.values()):
        say(f"{result.outcome}: {result.number}: {result.name}: {result.line}")
    say(counted(results.values()))
    return 1 if failed(results.values()) else 0


def _kept(options: argparse.Namespace) -> dict[int, Result]:
    return read(options.out, options.seed) if options.out else {}


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
