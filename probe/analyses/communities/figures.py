"""The figures of a communities run: panels put together, with captions that say what was measured on what."""

from __future__ import annotations

import xarray as xr

from probe.analyses.communities.config import Config
from probe.report import Figure


def figures(data: xr.Dataset, config: Config) -> list[Figure]:
    """All figures that a run's variables allow, in the order of the report.

    Args:
        data: The Dataset of the analysis.
        config: The run's configuration, for the claims' thresholds.

    Returns:
        The figures; nothing is drawn before `Figure.draw` is called.
    """
    return []
