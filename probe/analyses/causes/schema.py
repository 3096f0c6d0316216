"""The variables of a run on causes.

Toys lie along `cell`, arms of the transformer along `arm`; variables of the latter begin with `arm_`, as do their axes
where those of the toys have another length. A toy has one matrix on each side of the stream, so that a space names it;
of a transformer every projection has both spaces.
"""

from __future__ import annotations

from probe.runs.tasks import Schema, Variable

_MEASURED = {  # at each step and seed, along the axes of a toy, and those of an arm
    "cosine": (
        "weights space pair",
        "projection weights space arm_pair",
        "1",
        "|cos| of neighbouring layers' leading singular vectors",
    ),
    "overlap": (
        "weights space k",
        "projection weights space arm_k",
        "1",
        "mean squared cosine of neighbouring layers' top-k subspaces",
    ),
    "match": (
        "weights space k",
        "projection weights space arm_k",
        "1",
        "squared cosine of the k-th direction and its best match one layer on",
    ),
    "gap": ("weights space layer", "projection weights arm_layer", "1", "σ₁/σ₂"),
    "layer_angle": (
        "weights space",
        "projection weights space",
        "degree",
        "mean principal angle of neighbouring layers' top-8 frames",
    ),
    "step_angle": (
        "space",
        "projection space",
        "degree",
        "mean principal angle of a layer's top-8 frame and its own a snapshot before",
    ),
    "gradient_coherence": ("space", "projection", "1", "cos of neighbouring layers' gradients, mean over batches"),
    "mean_gradient_coherence": ("space", "projection", "1", "cos of neighbouring layers' mean gradients"),
    "update_coherence": ("space", "projection", "1", "cos of what neighbouring layers moved since the snapshot before"),
    "held_out_loss": ("", "", "1", "held-out loss"),
    "train_loss": ("", "", "1", "training loss, mean since the snapshot before"),
}

SCHEMA = Schema(
    {name: Variable(f"cell step seed {toy}", unit, meaning) for name, (toy, _, unit, meaning) in _MEASURED.items()}
    | {"null_match": Variable("k", "1", "`match` of random frames")}
    | {
        f"arm_{name}": Variable(
            f"arm arm_step seed {arm}", "nat/byte" if name.endswith("loss") else unit, f"{meaning}, transformers"
        )
        for name, (_, arm, unit, meaning) in _MEASURED.items()
    }
    | {"arm_null_cosine": Variable("projection space", "1", "mean |cos| of random directions")}
)
