"""A layer-update run as its claims read it."""

from __future__ import annotations

from dataclasses import dataclass

from probe import table
from probe.analyses.tokenwise.thresholds import Thresholds


@dataclass(frozen=True)
class Table(table.Table[Thresholds]):
    """A run's Dataset with what the claims on layer updates share."""

    @property
    def fit(self) -> str:
        """The class of maps that decides."""
        return str(self.data.attrs.get("deciding_fit", "local"))
