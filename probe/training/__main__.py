"""`python -m probe.training`."""

from __future__ import annotations

import re
import sys
from dataclasses import fields

import tyro

from probe.errors import InputError
from probe.training.bundled import Config, fit


def main() -> int:
    """Train a small model with the options of the command line.

    Returns:
        Exit status: 0; 2 for wrong input; 130 if interrupted.
    """
    config = tyro.cli(Config, prog="python -m probe.training")
    try:
        sys.stdout.write(f"{fit(config)}\n")
    except InputError as error:
        sys.stderr.write(f"error: {_as_typed(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the last checkpoint is kept, and the same command resumes from it\n")
        return 130
    return 0


def _as_typed(message: str) -> str:
    """Write options as they are typed: `--window-length 64` for `window_length=64`."""
    names = "|".join(field.name for field in fields(Config))
    typed = re.sub(rf"\b({names})=", lambda found: f"--{found[1].replace('_', '-')} ", message)
    return re.sub(r"(--[\w-]+) (?=[:;,.]|$)", r"\1", typed)


if __name__ == "__main__":
    sys.exit(main())
