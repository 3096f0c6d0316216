"""Names of the parts of toys and small transformers, for options and their `--help`: no torch is imported here."""

from __future__ import annotations

RADIAL = ("radial_gate", "radial_squash")
"""Activations that are nonlinear and yet commute with rotations."""
POINTWISE = ("relu", "gelu", "silu", "tanh")
"""Activations that act coordinate by coordinate, and so single out the axes."""
ACTIVATIONS = ("identity", *RADIAL, *POINTWISE)
"""Keys of `probe.training.activations.FUNCTION_OF`."""
NORMS = ("none", "layer", "rms", "rms_bare")
"""Normalisations: none, LayerNorm, RMSNorm with gain, RMSNorm without."""
TOY_FORMS = ("stream", "branch", "block2")
"""Forms of a toy; see `probe.training.mlp`."""
TEACHERS = ("nonlinear", "linear")
"""Frozen teachers of `probe.training.Regression`."""
OPTIMISERS = ("adamw", "sgd", "muon")
"""Kinds of `probe.training.Optimiser`."""
ARMS = ("full", "v_nonlinearity", "radial", "no_residual", "no_norm", "linear_attention")
"""Keys of `probe.training.transformer.ARM_OF`."""
