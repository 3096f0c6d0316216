"""The Jacobian lens, measured: stable, read, own context, corpus, learned, causal.

Two fits on disjoint documents, held-out documents that are read, and controls that keep the head or nothing at all:
whether a lens is a property of the model, whether it reads what the logit lens does not, and whether its directions do
to the output what they say. Scores by layer, controls, and six claims come out as a Dataset, a list and a report.

    python -m probe.analyses.lens --model smollm2-135m-instruct-q4 --dataset sample
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
