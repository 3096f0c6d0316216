"""Continuity of weights (arXiv 2605.04971): do leading singular vectors carry on from block to block?

For every projection and both of its spaces, the |cosine| of neighbouring blocks' leading singular vectors, their
subspaces, lag curves and trajectories, beside random directions, fresh initialisations, shuffled weights, permuted
orders of the blocks, gains folded in and outlier coordinates left out. No text is read.

    python -m probe.analyses.continuity --model smollm2-135m-instruct-q4
"""

from __future__ import annotations

from probe.analyses.continuity.config import Config, Thresholds
from probe.analysis.contract import Analysis

__all__ = ["Config", "Thresholds", "analysis", "plan", "run"]

analysis = Analysis("continuity", Config, "probe.analyses.continuity.stages")
run, plan = analysis.run, analysis.plan
