"""`python -m probe.analyses.causes`."""

from __future__ import annotations

import sys

from probe.analyses import causes
from probe.analysis import command

if __name__ == "__main__":
    sys.exit(command.main("causes", causes.Config, lambda: causes.analysis))
