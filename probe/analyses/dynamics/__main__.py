"""`python -m probe.analyses.dynamics`."""

from __future__ import annotations

import sys

from probe.analyses.dynamics import analysis

if __name__ == "__main__":
    sys.exit(analysis.main())
