"""The words of lower floors in which tasks read and return arrays."""

from __future__ import annotations

from probe.runs import Piece, Run

__all__ = ["Piece", "Run"]
