"""The variables of a continuity run.

SIDE is "input" or "output", the space of v₁ or of u₁; `block` numbers the blocks, `layer` the pairs of a block and the
next.
"""

from __future__ import annotations

from probe.runs import Schema, Variable

VECTORS = {"input": "v₁", "output": "u₁"}
"""The leading singular vector of each space."""


def _of_side(side: str, vector: str) -> dict[str, Variable]:
    return {
        f"{side}_continuity": Variable("variant projection layer", meaning=f"|{vector}(l) · {vector}(l+1)|"),
        f"{side}_subspace": Variable(
            "k projection layer", meaning="mean squared cosine of the principal angles, k leading"
        ),
        f"{side}_cosine": Variable("projection block other_block", meaning=f"|{vector}(l) · {vector}(m)|"),
        f"{side}_lag": Variable("projection lag", meaning=f"mean |{vector}(l) · {vector}(l+m)| over l"),
        f"{side}_participation": Variable("variant projection block", meaning=f"participation ratio of {vector}"),
        f"{side}_trajectory": Variable(
            "projection block axis", meaning=f"principal components of {vector}, signs along depth"
        ),
        f"{side}_trajectory_share": Variable("projection axis", meaning="share of the variance of an axis"),
        f"{side}_width": Variable("projection", meaning=f"dimension of the {side} space"),
        f"{side}_haar": Variable("projection", meaning="mean |cosine| of random directions"),
        f"{side}_haar_high": Variable(
            "projection", meaning="what 99 % of the |cosines| of random directions stay below"
        ),
        f"{side}_heads": Variable(
            "composite layer", meaning="best |cosine| of a head to a head of the next block, mean over heads"
        ),
    }


# Of one projection, whose spaces have their own widths: "left.q".
PASSED = {
    "left": Variable("variant block out rank", meaning="left singular vectors", kept=False),
    "right": Variable("variant block in rank", meaning="right singular vectors", kept=False),
    "singular": Variable("variant block rank", meaning="singular values", kept=False),
    "norm": Variable("variant block", meaning="‖W‖_F", kept=False),
    "error": Variable("variant block", meaning="residual of the triplets over σ₁", kept=False),
    "left_heads": Variable("block out head", meaning="leading left singular vector of each head", kept=False),
    "right_heads": Variable("block in head", meaning="leading right singular vector of each head", kept=False),
    "input_kept": Variable("coordinate", None, "coordinates of the input space that are no outliers", kept=False),
    "output_kept": Variable("coordinate", None, "coordinates of the output space that are no outliers", kept=False),
}

SCHEMA = Schema(
    {
        "gap": Variable("variant projection layer", meaning="σ₁/σ₂, the smaller of the pair"),
        "block_gap": Variable("variant projection block", meaning="σ₁/σ₂"),
        "singular_value": Variable("projection rank block", meaning="leading singular values of W"),
        "stable_rank": Variable("projection block", meaning="‖W‖_F² / σ₁²"),
        "svd_error": Variable("projection block", meaning="residual of the triplets over σ₁"),
        "directions": Variable("projection block coordinate", meaning="v₁ of readers, u₁ of writers"),
        "heads_null": Variable("", meaning="the same of random directions"),
        "docs": Variable("projection layer", meaning="DOCS of the two blocks' columns"),
    }
    | _of_side("input", VECTORS["input"])
    | _of_side("output", VECTORS["output"])
    | PASSED
)
