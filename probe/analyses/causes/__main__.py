"""`python -m probe.analyses.causes`."""

from __future__ import annotations

import sys

from probe.analyses.causes import analysis

if __name__ == "__main__":
    sys.exit(analysis.main())
