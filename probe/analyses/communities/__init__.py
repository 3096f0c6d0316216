"""Communities of units (arXiv 2605.14258), and what the block's Jacobian does to them.

Graphs of correlated units, made from one half of the text; Leiden communities, beside null graphs and on resampled
documents; the gain of each unit under the block's Jacobian, on the other half; whether a unit's place among the
communities predicts its gain, and what of that remains in fresh initialisations, in random bases, without outliers and
under every other choice of algorithm, resolution, neighbours and edges.

    python -m probe.analyses.communities --model smollm2-135m-instruct-q4 --dataset sample
"""

from __future__ import annotations

from probe.analyses.communities.config import Config, Thresholds
from probe.analysis.contract import Analysis

__all__ = ["Config", "Thresholds", "analysis", "plan", "run"]

analysis = Analysis("communities", Config, "probe.analyses.communities.stages")
run, plan = analysis.run, analysis.plan
