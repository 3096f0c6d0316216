"""`python -m probe.analyses.causes`."""

from __future__ import annotations

import sys

from probe import command
from probe.analyses.causes import Config, plan, run

if __name__ == "__main__":
    sys.exit(command.main("causes", Config, run, plan))
