"""Why neighbouring layers' leading directions are alike (arXiv 2605.04971): toys in which each cause is switched.

Toy MLPs and small transformers are trained on several seeds at once, with and without residual connections, with
nonlinearities that break the rotational symmetry and such that keep it, with four normalisations, over weight decay and
the scale of the start; continuity, coherence of gradients and rotation of frames are measured through training.

    python -m probe.analyses.causes                                  # the toys
    python -m probe.analyses.causes --text FILE                      # small transformers as well
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
