"""`python -m probe.analyses.tokenwise`."""

from __future__ import annotations

import sys

from probe.analyses import tokenwise
from probe.analysis import command

if __name__ == "__main__":
    sys.exit(command.main("tokenwise", tokenwise.Config, lambda: tokenwise.analysis))
