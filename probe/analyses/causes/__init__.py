"""Why neighbouring layers' leading directions are alike (arXiv 2605.04971): toys in which each cause is switched.

Toy MLPs and small transformers are trained on several seeds at once, with and without residual connections, with
nonlinearities that break the rotational symmetry and such that keep it, with four normalisations, over weight decay and
the scale of the start; continuity, coherence of gradients and rotation of frames are measured through training.

    python -m probe.analyses.causes                                  # the toys
    python -m probe.analyses.causes --text FILE                      # small transformers as well
"""

from __future__ import annotations

from probe.analyses.causes.config import Config, Thresholds
from probe.analysis.contract import Analysis

__all__ = ["Config", "Thresholds", "analysis", "plan", "run"]

analysis = Analysis("causes", Config, "probe.analyses.causes.stages")
run, plan = analysis.run, analysis.plan
