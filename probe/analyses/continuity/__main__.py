"""`python -m probe.analyses.continuity`."""

from __future__ import annotations

import sys

from probe.analyses import continuity
from probe.analysis import command

if __name__ == "__main__":
    sys.exit(command.main("continuity", continuity.Config, lambda: continuity.analysis))
