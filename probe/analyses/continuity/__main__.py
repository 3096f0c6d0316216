"""`python -m probe.analyses.continuity`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from probe.analyses.continuity.config import Config
from probe.analysis import command

if TYPE_CHECKING:
    from probe.analysis import Analysis


def load() -> Analysis[Any]:
    """Load the analysis, and torch with it, once the options are known to be right."""
    from probe.analyses.continuity import analysis

    return analysis


if __name__ == "__main__":
    sys.exit(command.main("continuity", Config, load))
