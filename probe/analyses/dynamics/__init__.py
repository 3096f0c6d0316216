"""Dynamics of the residual stream (arXiv 2605.14258): exact Jacobians of every block, and their product over depth.

How each block rotates, stretches and compresses the stream; into how many directions a perturbation is funnelled by
all of them; whether the product predicts the real network; and what of it is learned. Scores by depth, controls, and
the claims of the paper come out as a Dataset, a list of claims and a report.

    python -m probe.analyses.dynamics --model smollm2-135m-instruct-q4 --dataset sample
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
