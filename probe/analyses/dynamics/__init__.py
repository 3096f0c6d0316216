"""Dynamics of the residual stream (arXiv 2605.14258): exact Jacobians of every block, and their product over depth.

How each block rotates, stretches and compresses the stream; into how many directions a perturbation is funnelled by
all of them; whether the product predicts the real network; and what of it is learned. Scores by depth, controls, and
the claims of the paper come out as a Dataset, a list of claims and a report.

    python -m probe.analyses.dynamics --model smollm2-135m-instruct-q4 --dataset sample
"""

from __future__ import annotations

from probe.analyses.dynamics.config import Config, Thresholds
from probe.analysis.contract import Analysis

__all__ = ["Config", "Thresholds", "analysis", "plan", "run"]

analysis = Analysis("dynamics", Config, "probe.analyses.dynamics.stages")
run, plan = analysis.run, analysis.plan
