"""`python -m probe.analyses.continuity`."""

from __future__ import annotations

import sys

from probe.analyses.continuity import analysis

if __name__ == "__main__":
    sys.exit(analysis.main())
