"""`python -m probe.analyses.dynamics`."""

from __future__ import annotations

import sys

from probe import command
from probe.analyses.dynamics import Config, plan, run

if __name__ == "__main__":
    sys.exit(command.main("dynamics", Config, run, plan))
