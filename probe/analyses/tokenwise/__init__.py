"""Layer updates (arXiv 2604.02459): how much of a block's update is tokenwise, and what is the rest?

Maps of one token's state are fitted to each block's update on text of one set of documents, and scored on another.
The geometry of the tokenwise part and the residual, what the model's output does when the residual is left out, and
the claims of the paper with their controls come out as a Dataset, a list of claims and a report.

    python -m probe.analyses.tokenwise --model smollm2-135m-instruct-q4 --dataset sample
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
