"""Continuity of weights (arXiv 2605.04971): do leading singular vectors carry on from block to block?

For every projection and both of its spaces, the |cosine| of neighbouring blocks' leading singular vectors, their
subspaces, lag curves and trajectories, beside random directions, fresh initialisations, shuffled weights, permuted
orders of the blocks, gains folded in and outlier coordinates left out. No text is read.

    python -m probe.analyses.continuity --model smollm2-135m-instruct-q4
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
