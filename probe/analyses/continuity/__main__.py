"""`python -m probe.analyses.continuity`."""

from __future__ import annotations

import sys

from probe import command
from probe.analyses.continuity import Config, plan, run

if __name__ == "__main__":
    sys.exit(command.main("continuity", Config, run, plan))
