"""`python -m probe`."""

from __future__ import annotations

import sys

from probe import cli

if __name__ == "__main__":
    sys.exit(cli.main())
