"""`python -m probe.analyses.lens`."""

from __future__ import annotations

import sys

from probe.analyses import lens
from probe.analysis import command

if __name__ == "__main__":
    sys.exit(command.main("lens", lens.Config, lambda: lens.analysis))
