"""`python -m probe.analyses.tokenwise`."""

from __future__ import annotations

import sys

from probe.analyses.tokenwise import analysis

if __name__ == "__main__":
    sys.exit(analysis.main())
