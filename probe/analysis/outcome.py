"""The words of lower floors in which an analysis says what it found: claims, their evidence, figures."""

from __future__ import annotations

from probe.claims import Claim, Condition, Criterion, Evidence, Sentence, decide, enough_units, line
from probe.inference import bootstrap
from probe.report import Figure

__all__ = [
    "Claim",
    "Condition",
    "Criterion",
    "Evidence",
    "Figure",
    "Sentence",
    "bootstrap",
    "decide",
    "enough_units",
    "line",
]
