"""Toy MLPs and small transformers in which each suspected cause of continuity is switched on and off.

All seeds of an experiment are trained at once, and watched through training by batched measures
(`probe.training.measures`). The seed alone fixes the start, the data of every step and so the result, whatever else is
trained beside it.
"""

import lazy_loader

from probe.errors import renamed

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_MOVED = {
    "activations": ("normalise",),
    "data": ("generator",),
    "loop": ("Checkpoint",),
    "measures": ("LEADING", "coherence", "continuity", "haar_matches", "rotation", "subspace_continuity"),
    "names": ("NORMS", "RADIAL"),
    "optimisers": ("LEARNING_RATES", "orthogonalise"),
    "transformer": ("PROJECTIONS",),
    "watch": ("SPACES", "WEIGHTS", "carried"),
}
__getattr__ = renamed(
    __name__,
    {name: f"{home}.{name}" for home, names in _MOVED.items() for name in names}
    | {"ACTIVATIONS": "activations.FUNCTION_OF", "ARMS": "transformer.ARM_OF", "FORMS": "names.TOY_FORMS"}
    | {"Leading": "measures.BatchedTriplets", "Plan": "Schedule"}
    | {"best_matches": "measures.best_squared_cosines", "leading_triplets": "measures.batched_triplets"},
    _load,
)
