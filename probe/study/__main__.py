"""`python -m probe.study`."""

from __future__ import annotations

import sys

from probe.study import main

if __name__ == "__main__":
    sys.exit(main())
