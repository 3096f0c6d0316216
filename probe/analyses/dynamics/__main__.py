"""`python -m probe.analyses.dynamics`."""

from __future__ import annotations

import sys

from probe.analyses import dynamics
from probe.analysis import command

if __name__ == "__main__":
    sys.exit(command.main("dynamics", dynamics.Config, lambda: dynamics.analysis))
