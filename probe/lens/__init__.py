"""The Jacobian lens: what the stream at a layer will do to the output, by the mean Jacobian over documents.

A lens (Gurnee et al. 2026, transformer-circuits.pub/2026/workspace) holds for each layer l a matrix J_l, the mean over
documents and positions of the Jacobian from the stream behind block l to that behind the last block. A state is read
out as ``unembed(norm(J_l h))``; the logit lens is J_l = I.

- `fit` and `merge` make one, exactly, with the spread over documents; `document_jacobian` gives a single document's
- `JacobianLens.readout` and `readout` read prompts, by several lenses beside each other; `own_lens` is the exact
  Jacobian of a context at its own position
- `JacobianLens.save` and `load` exchange it with TransformerLens and the reference; `load` also finds the lenses that
  are published, `published` lists them
- `fit_affine` and `fit_tuned` make other lenses to set beside it: ridge regression, and maps trained on the outputs
- `steer`, `ablate` and `swap` act along its directions: what it predicts of the logits, beside what a run measures
"""

from __future__ import annotations

from probe.lens.acting import ablate, steer, swap
from probe.lens.affine import AffineLens, fit_affine
from probe.lens.effect import LensEffect
from probe.lens.estimators import Estimator, document_jacobian
from probe.lens.fitting import fit, merge
from probe.lens.jacobian_lens import JacobianLens
from probe.lens.published import load, published
from probe.lens.reading import Readout, own_lens, readout
from probe.lens.tuning import fit_tuned

__all__ = [
    "AffineLens",
    "Estimator",
    "JacobianLens",
    "LensEffect",
    "Readout",
    "ablate",
    "document_jacobian",
    "fit",
    "fit_affine",
    "fit_tuned",
    "load",
    "merge",
    "own_lens",
    "published",
    "readout",
    "steer",
    "swap",
]


def __dir__() -> list[str]:
    return __all__
