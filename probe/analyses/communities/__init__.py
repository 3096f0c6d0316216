"""Communities of coordinates (arXiv 2605.14258), and what the block's Jacobian does to them.

Graphs of correlated coordinates, made from one half of the text; Leiden communities, beside null graphs and on
resampled documents; the gain of each coordinate under the block's Jacobian, on the other half; whether a coordinate's
place among the communities predicts its gain, and what of that remains in fresh initialisations, in random bases,
without outliers and under every other choice of algorithm, resolution, neighbours and edges. The neurons of an MLP can
stand in the place of the coordinates.

    python -m probe.analyses.communities --model smollm2-135m-instruct-q4 --dataset sample
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
