"""`python -m probe.analyses.communities`."""

from __future__ import annotations

import sys

from probe.analyses import communities
from probe.analysis import command

if __name__ == "__main__":
    sys.exit(command.main("communities", communities.Config, lambda: communities.analysis))
