"""`python -m probe.analyses.communities`."""

from __future__ import annotations

import sys

from probe import command
from probe.analyses.communities import Config, plan, run

if __name__ == "__main__":
    sys.exit(command.main("communities", Config, run, plan))
