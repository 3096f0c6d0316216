"""Figures of the lens over depth."""

from __future__ import annotations

import xarray as xr

from probe.analyses.lens.config import Config
from probe.report import Figure


def figures(data: xr.Dataset, config: Config) -> list[Figure]:
    """Make the figures of the report.

    Args:
        data: The Dataset.
        config: The options.

    Returns:
        The figures, in the report's order.
    """
    return []
