"""`python -m probe.analyses.tokenwise`."""

from __future__ import annotations

import sys

from probe import command
from probe.analyses.tokenwise import Config, across, plan, run

if __name__ == "__main__":
    sys.exit(command.main("tokenwise", Config, run, plan, across=across))
