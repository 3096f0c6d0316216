"""Every causal type of the installed transformers: taken exactly, or refused in one line?

A line for each type (outcome, method of its Jacobians, seconds, and the largest error, the reason of the refusal or the
check that failed), and at the end a line of counts. A type counts under the worst of its checks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import transformers

from tests.architectures import zoo
from tests.architectures.case import CHECKS, QUICK
from tests.architectures.survey import Result, counted, read, survey


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("--types", default="", help="types or variants (llama:attention_bias), comma-separated")
    parser.add_argument("--variants", action="store_true", help="the variants of these types, too, by the quick checks")
    parser.add_argument("--checks", default="", help=f"of {', '.join(CHECKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, by products with few vectors")
    parser.add_argument("--layers", type=int, default=zoo.DEEP, help="layers of the models")
    parser.add_argument("--out", type=Path, help="a file of JSON lines that keeps the results")
    parser.add_argument("--resume", action="store_true", help="leave out what that file holds already")
    parser.add_argument("--verbose", action="store_true", help="a line for each check")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a type may take")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = options.types.split(",") if options.types else list(zoo.types())
    checks = options.checks.split(",") if options.checks else QUICK if options.quick else list(CHECKS)
    whole = {"checks": checks, "n_rows": 2 if options.quick else None, "layers": options.layers}
    done = read(options.out) if options.out and options.resume else {}
    results = list(_run(names, whole, done, options))
    say(counted(results))
    if options.variants:
        quick = {"checks": options.checks.split(",") if options.checks else QUICK, "layers": options.layers}
        further = [f"{name}:{variant}" for name in names if ":" not in name for variant in zoo.variants(name)]
        say(counted(_run(further, quick, done, options)) + " variants")
    return 0


def _run(
    names: list[str], how: dict[str, object], done: dict[str, Result], options: argparse.Namespace
) -> list[Result]:
    results = [done[name] for name in names if name in done]
    left = [name for name in names if name not in done]
    for result in survey(left, how, limit=options.limit, kept=options.out) if left else ():
        results.append(result)
        line = result.line if result.outcome != "refused" else f"[{result.facts}] {result.line}"
        say(f"{result.name:28} {result.outcome:8} {result.method:9} {result.seconds:5.1f}s  {line}")
        for one in result.findings if options.verbose else ():
            say(f"    {one.check:16} {one.outcome:8} {one.error:.1e}  {one.line}")
    return results


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
