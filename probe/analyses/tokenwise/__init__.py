"""Layer updates (arXiv 2604.02459): how much of a block's update is tokenwise, and what is the rest?

Maps of one token's state are fitted to each block's update on text of one set of documents, and scored on another.
The geometry of the tokenwise part and the residual, what the model's output does when the residual is left out, and
the claims of the paper with their controls come out as a Dataset, a list of claims and a report.

    python -m probe.analyses.tokenwise --model smollm2-135m-instruct-q4 --dataset sample
"""

from __future__ import annotations

from probe.analyses.tokenwise.config import FITS, Config, Thresholds
from probe.analysis.contract import Analysis

__all__ = ["FITS", "Config", "Thresholds", "analysis", "plan", "run"]

analysis = Analysis("tokenwise", Config, "probe.analyses.tokenwise.stages")
run, plan = analysis.run, analysis.plan
