"""Toy MLPs and small transformers in which each suspected cause of continuity is switched on and off.

All seeds of an experiment are trained at once, and watched through training by batched measures. From the seed alone
follow the start, the data of every step and so the result, whatever else is trained beside it.
"""

from __future__ import annotations

from probe.training.activations import ACTIVATIONS, NORMS, RADIAL, normalise
from probe.training.data import Bytes, NextByte, Regression, generator
from probe.training.loop import Checkpoint, Plan, Stack, snapshot_steps, train
from probe.training.measures import (
    LEADING,
    Leading,
    best_matches,
    coherence,
    continuity,
    haar_matches,
    leading_triplets,
    rotation,
    subspace_continuity,
)
from probe.training.mlp import FORMS, Shape, ToyMLP
from probe.training.optimisers import LEARNING_RATES, Optimiser, orthogonalise
from probe.training.transformer import ARMS, PROJECTIONS, Arm, Size, SmallTransformer, next_byte_loss
from probe.training.watch import SPACES, WEIGHTS, Watch, carried

__all__ = [
    "ACTIVATIONS",
    "ARMS",
    "FORMS",
    "LEADING",
    "LEARNING_RATES",
    "NORMS",
    "PROJECTIONS",
    "RADIAL",
    "SPACES",
    "WEIGHTS",
    "Arm",
    "Bytes",
    "Checkpoint",
    "Leading",
    "NextByte",
    "Optimiser",
    "Plan",
    "Regression",
    "Shape",
    "Size",
    "SmallTransformer",
    "Stack",
    "ToyMLP",
    "Watch",
    "best_matches",
    "carried",
    "coherence",
    "continuity",
    "generator",
    "haar_matches",
    "leading_triplets",
    "next_byte_loss",
    "normalise",
    "orthogonalise",
    "rotation",
    "snapshot_steps",
    "subspace_continuity",
    "train",
]
