"""`python -m probe.compare`."""

from __future__ import annotations

import sys

from probe.compare import main

if __name__ == "__main__":
    sys.exit(main())
