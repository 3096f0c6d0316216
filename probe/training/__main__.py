"""`python -m probe.training`."""

from __future__ import annotations

import sys

import tyro

from probe.errors import InputError, as_typed
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
        sys.stderr.write(f"error: {as_typed(str(error), [Config])}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the last checkpoint is kept, and the same command resumes from it\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
