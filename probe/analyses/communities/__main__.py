"""`python -m probe.analyses.communities`."""

from __future__ import annotations

import sys

from probe.analyses.communities import analysis

if __name__ == "__main__":
    sys.exit(analysis.main())
